"""Reward against reward, as SVG: how far a run moved the front of what its pictures can have at
once.

Each picture of an evaluation is a point; one that no other picture of that evaluation beats in both
rewards shown is on the front, and the front is drawn through them as steps. A run that only trades
one reward for another moves along its front; one that learns pushes it outwards. Standard library
only, in the page's own colours, as all of `charts`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import combinations
from typing import Any

from burnish.report.charts import Frame, axes, number

PAIRS = 6  # at most so many pairs of rewards are drawn: all of four
DRAWN = 300  # at most so many pictures of an evaluation that are not on its front
# of a chart, in its own units
WIDTH = 460
HEIGHT = 330

Point = tuple[float, float]


def section(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    weights: Mapping[str, float],
) -> str:
    """The part of a report about the rewards' conflict; empty text for a single reward or before
    any evaluation.

    Args:
        before: the evaluation of the training prompts before training, or {}.
        after: the last one, or {}.
        records: the log, for the mean of every iteration.
        weights: of the rewards by name; of one with a negative weight less is better.
    """
    names = list((before or after).get("rewards", ()))
    figures = []

    for pair in list(combinations(range(len(names)), 2))[:PAIRS]:
        x, y = (names[place] for place in pair)
        signs = (-1 if weights.get(x, 1.0) < 0 else 1, -1 if weights.get(y, 1.0) < 0 else 1)
        means = [
            _point(record.get("rewards", {}).get(name, {}).get("mean") for name in (x, y))
            for record in records
        ]
        clouds = [_cloud(before, pair), _cloud(after, pair)]

        if chart := scatter(clouds, [one for one in means if one], (x, y), signs):
            caption = (
                f"<figcaption><b>{escape(y)}</b> (upwards) against <b>{escape(x)}</b></figcaption>"
            )
            figures.append(f"<figure>{caption}{chart}</figure>")

    if not figures:
        return ""

    key = '<i class="key series-{}"></i>{}'
    return (
        "<h2>Reward against reward</h2><p class='soft small'>Each picture of the evaluation on training prompts: "
        f'<span class="name">{key.format(1, "before")}</span> (rings), '
        f'<span class="name">{key.format(0, "after")}</span> (dots). Pale ones are dominated: another picture of their '
        "evaluation is better in one of the two and no worse in the other. The steps join those that are not. "
        "The line is the mean of each iteration's pictures, from the ring to the dot.</p>"
        f"<div class='fronts'>{''.join(figures)}</div>"
    )


def front(points: Sequence[Point], signs: tuple[int, int] = (1, 1)) -> list[bool]:
    """Which points no other one dominates: is at least as good in both numbers and better in one."""
    order = sorted(
        range(len(points)), key=lambda i: (-signs[0] * points[i][0], -signs[1] * points[i][1])
    )
    chosen = [False] * len(points)
    best = -math.inf
    at = math.inf

    for i in order:  # from the best x on: only a y above all so far is new, but twins stay together
        x = signs[0] * points[i][0]
        y = signs[1] * points[i][1]
        chosen[i] = y > best or (y == best and x == at)

        if y > best:
            best = y
            at = x

    return chosen


def scatter(
    clouds: Sequence[Mapping[int, tuple[Point, str]]],
    path: Sequence[Point],
    names: tuple[str, str],
    signs: tuple[int, int] = (1, 1),
) -> str:
    """An SVG of two clouds, before and after, and of a path; empty text if there is no picture in
    either.

    Args:
        clouds: point and prompt of each picture, by its row in the evaluation.
        path: the means, iteration by iteration.
        names: of both rewards, x first.
        signs: -1 where less is better.
    """
    seen = [point for cloud in clouds for point, _ in cloud.values()]
    if not seen:
        return ""

    every = [*seen, *path]
    frame = Frame(WIDTH, HEIGHT, _range([x for x, _ in every]), _range([y for _, y in every]))
    label = escape(f"{names[1]} against {names[0]}, before and after")
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">',
        axes(frame, whole=False),
    ]

    for cloud, (kind, said) in zip(
        clouds, (("ring series-1", "before"), ("dot series-0", "after")), strict=True
    ):
        parts += _drawn(frame, list(cloud.values()), signs, kind, said, names)

    if path:
        corners = [f"{frame.px(x)} {frame.py(y)}" for x, y in path]
        parts.append(
            f'<path class="walk" d="M{"L".join(corners)}{"h.01" if len(corners) == 1 else ""}"/>'
        )

        for kind, (x, y) in (("from", path[0]), ("to", path[-1])):
            parts.append(
                f'<circle class="walk {kind}" cx="{frame.px(x)}" cy="{frame.py(y)}" r="4.5"/>'
            )

    return "".join([*parts, "</svg>"])


def _drawn(
    frame: Frame,
    pictures: Sequence[tuple[Point, str]],
    signs: tuple[int, int],
    kind: str,
    said: str,
    names: tuple[str, str],
) -> list[str]:
    """The pictures of one evaluation, the front last, so that it is on top."""
    points = [point for point, _ in pictures]
    best = front(points, signs)
    rest = [point for point, chosen in zip(points, best, strict=True) if not chosen]
    rest = rest[:: max(1, math.ceil(len(rest) / DRAWN))]
    parts = [
        f'<circle class="{kind} faint" cx="{frame.px(x)}" cy="{frame.py(y)}" r="3"/>'
        for x, y in rest
    ]
    chosen = [one for one, there in zip(pictures, best, strict=True) if there]
    stairs = sorted({point for point, _ in chosen}, key=lambda point: signs[0] * point[0])

    if len(stairs) > 1:
        # from the worst x on: what is dominated lies on the near side of the steps
        first, *others = stairs
        steps = "".join(f"V{frame.py(y)}H{frame.px(x)}" for x, y in others)
        parts.append(
            f'<path class="steps {kind}" d="M{frame.px(first[0])} {frame.py(first[1])}{steps}"/>'
        )

    for (x, y), text in chosen:
        title = escape(f"{said}, {text}: {names[0]} {number(x)}, {names[1]} {number(y)}")
        parts.append(
            f'<g><title>{title}</title><circle class="{kind}" cx="{frame.px(x)}" cy="{frame.py(y)}" r="4"/></g>'
        )

    return parts


def _range(values: Sequence[float]) -> Point:
    """What an axis shows: all values and a margin; zero is nothing special in the company of
    another reward.
    """
    low = min(values)
    high = max(values)
    margin = 0.05 * (high - low) or abs(low) * 0.1 or 1.0
    return low - margin, high + margin


def _cloud(evaluation: Mapping[str, Any], pair: tuple[int, int]) -> dict[int, tuple[Point, str]]:
    """Both rewards and the prompt of each picture that has both."""
    prompts = evaluation.get("prompts", ())
    each = evaluation.get("images_per_prompt", 1)
    found = {}

    for row, parts in enumerate(evaluation.get("parts", ())):
        if point := _point(parts[place] for place in pair):
            found[row] = point, str(prompts[row // each])

    return found


def _point(values: Any) -> Point | None:
    """Two numbers, or None where one is missing."""
    x, y = values
    return (float(x), float(y)) if all(v is not None and math.isfinite(v) for v in (x, y)) else None
