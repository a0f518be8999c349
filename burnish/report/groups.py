"""The groups of the latest iteration: each prompt's images with their rewards.

An image learns from the comparison with the others of its prompt, so a group whose rewards are all
equal teaches nothing. Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from burnish.run_files import GroupsFile, numbered, read_json
from burnish.runs import Run

SPREADLESS = 1e-9
"""Rewards of a group that differ by less than this share are equal."""


@dataclass(frozen=True)
class Member:
    """An image of a group with its reward."""

    place: int  # in the grid
    label: str
    reward: float | None  # the weighted sum
    mark: str = ""  # best, worst


@dataclass(frozen=True)
class Group:
    """The images of one prompt in the latest iteration."""

    prompt: str
    members: list[Member]
    flat: bool  # all rewards are equal, so that nothing is learned from it


@dataclass(frozen=True)
class Groups:
    """All groups of the latest iteration, and the grid that has their images."""

    iteration: int
    rewards: list[str]
    groups: list[Group]
    grid: Path
    count: int  # images in the grid
    columns: int  # of the grid

    @property
    def flat(self) -> int:
        """The number of groups without spread."""
        return sum(group.flat for group in self.groups)


def latest_groups(run: Run, weights: Mapping[str, float]) -> Groups | None:
    """Return the groups of the latest iteration; None if there are no images of one.

    Args:
        run: of any state.
        weights: of the rewards, by name; a reward without one counts 1.

    Raises:
        ValueError: the file is none of a run.
    """
    newest = max(numbered(run.groups, ".json"), default=None)
    if newest is None:
        return None

    path = run.groups / f"{newest:06d}.json"
    layout: GroupsFile = read_json(path, GroupsFile, "delete it")
    count = len(layout["texts"])
    if len(layout["group"]) != count or len(layout["parts"]) != count:
        raise ValueError(f"{path}: it has lists of different lengths; delete it")
    if any(len(row) != len(layout["rewards"]) for row in layout["parts"]):
        raise ValueError(f"{path}: an image has too few rewards or too many; delete it")

    factors = [weights.get(name, 1.0) for name in layout["rewards"]]
    places: dict[int, list[int]] = {}
    for place, number in enumerate(layout["group"]):
        places.setdefault(number, []).append(place)

    groups = [_group(layout, members, factors) for members in places.values()]
    return Groups(
        layout["iteration"],
        layout["rewards"],
        groups,
        path.with_suffix(".png"),
        count,
        layout["columns"],
    )


def weighted(row: Sequence[float | None], factors: Sequence[float]) -> float | None:
    """Return the weighted sum of an image's rewards; None if one is missing."""
    total = 0.0
    for value, factor in zip(row, factors, strict=True):
        if value is None or not math.isfinite(value):
            return None
        total += value * factor
    return total


def _group(layout: GroupsFile, places: Sequence[int], factors: Sequence[float]) -> Group:
    """Return the images of a prompt, with the best and the worst marked."""
    totals = [weighted(layout["parts"][place], factors) for place in places]
    known = [total for total in totals if total is not None]
    high = max(known, default=0.0)
    low = min(known, default=0.0)
    flat = high - low <= SPREADLESS * max(abs(high), abs(low))

    members = []
    for place, total in zip(places, totals, strict=True):
        mark = ""
        if not flat and total is not None:
            mark = "best" if total == high else "worst" if total == low else ""
        label = f"image {place + 1} of {layout['texts'][place]}"
        members.append(Member(place, label, total, mark))

    return Group(layout["texts"][places[0]], members, flat)
