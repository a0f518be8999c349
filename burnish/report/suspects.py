"""Suspects: images whose reward is among the highest and whose held-out score among the lowest.

Each measure is turned into ranks from 0 to 1, so that measures of any unit can be compared:

    suspicion = rank of the reward - mean rank of the held-out measures

The judge counts as a measure of 0 and 1. Images with equal values share their mean rank. Standard
library only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.report.groups import weighted
from burnish.report.results import KL, stored
from burnish.run_files import ThumbnailsFile, numbered, read_evaluation
from burnish.runs import Run

MOST = 12
"""Suspects that are shown."""

LEAST = 0.3
"""The suspicion below which an image is none."""

LOW = 0.5
"""The mean rank of the held-out measures above which an image is none."""


@dataclass(frozen=True)
class Suspect:
    """An image of an evaluation that the reward likes and nothing else does."""

    number: int  # of the image in the evaluation
    prompt: str
    reward: float  # the weighted sum
    held_out: Mapping[str, float | None]  # each measure of the image
    suspicion: float  # from -1 to 1


@dataclass(frozen=True)
class Suspects:
    """The suspects of the latest evaluation, and the grid that has small copies of its images."""

    iteration: int
    measures: list[str]  # that are held out
    suspects: list[Suspect]
    grid: Path
    count: int  # images in the grid: those of a higher number have none
    columns: int  # of the grid


def latest_suspects(run: Run, weights: Mapping[str, float]) -> Suspects | None:
    """Return the suspects of the latest evaluation after training began; None without one.

    Args:
        run: of any state.
        weights: of the rewards, by name; a reward without one counts 1.

    Raises:
        ValueError: a file is none of a run.
    """
    evaluations = numbered(run.evaluation_file(0).parent, ".json")
    newest = max(evaluations, default=0)
    if not newest:
        return None

    table = read_evaluation(evaluations[newest])["train"]
    grid = run.groups / f"evaluation-{newest:06d}.png"
    layout = stored(grid.with_suffix(".json"), ThumbnailsFile)
    found = suspects(table, weights)
    return Suspects(
        newest,
        [*held_out_measures(table)],
        found,
        grid,
        layout.get("count", 0),
        layout.get("columns", 1),
    )


def held_out_measures(table: Mapping[str, Any]) -> dict[str, Sequence[float | None]]:
    """Return the measures that say whether an image is good, each with its values by image."""
    judged = [float(right) for right in table.get("judged") or ()]
    panel = {name: row for name, row in (table.get("panel") or {}).items() if name != KL}
    return {"judged right": judged, **panel} if judged else panel


def differs(values: Sequence[float | None]) -> bool:
    """Return whether images differ in a measure: one that is the same for all suspects nobody."""
    return len({value for value in values if value is not None and math.isfinite(value)}) > 1


def suspects(table: Mapping[str, Any], weights: Mapping[str, float]) -> list[Suspect]:
    """Return the most suspicious images of an evaluation, the worst first.

    Args:
        table: of one set of prompts, from `run_files.read_evaluation`.
        weights: of the rewards, by name; a reward without one counts 1.

    Returns:
        Nothing if nothing is held out, or the reward is the same for all images.
    """
    factors = [weights.get(name, 1.0) for name in table["rewards"]]
    totals = [weighted(row, factors) for row in table["parts"]]
    measures = {
        name: values for name, values in held_out_measures(table).items() if differs(values)
    }
    if not measures or not differs(totals):
        return []

    rewarded = ranks(totals)
    held_out = [ranks(values) for values in measures.values()]
    found = []

    for index, total in enumerate(totals):
        others = [one[index] for one in held_out]
        known = [rank for rank in others if rank is not None]
        first = rewarded[index]
        if total is None or first is None or not known:
            continue

        mean = sum(known) / len(known)
        suspicion = first - mean
        if suspicion >= LEAST and mean <= LOW:
            values = {name: column[index] for name, column in measures.items()}
            prompt = table["prompts"][index // table["images_per_prompt"]]
            found.append(Suspect(index, prompt, total, values, suspicion))

    return sorted(found, key=lambda one: (-one.suspicion, one.number))[:MOST]


def ranks(values: Sequence[float | None]) -> list[float | None]:
    """Return each value's rank from 0 (lowest) to 1; equal values share their mean rank.

    >>> ranks([3.0, 1.0, None, 3.0])
    [0.75, 0.0, None, 0.75]
    """
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    places: dict[float, list[int]] = {}
    for place, value in enumerate(sorted(numbers)):
        places.setdefault(value, []).append(place)

    last = max(len(numbers) - 1, 1)
    mean = {value: sum(found) / len(found) / last for value, found in places.items()}
    return [mean.get(value) if value is not None else None for value in values]
