"""Reward against reward, as SVG: how far a run moved the Pareto front of its images.

Each image of an evaluation is a point. An image that no other image of that evaluation beats in
both rewards shown is on the front, and the front is drawn through these images as steps. A run that
only trades one reward for another moves along its front; a run that learns pushes it outwards.
Standard library only, in the page's own colours, as all of `charts`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from burnish.report.charts import Frame, axes, drawing, number
from burnish.report.markup import Html, join, tag

PAIRS = 6  # at most so many pairs of rewards are drawn: all pairs of four
DRAWN = 300  # at most so many images of an evaluation that are not on its front
# size of a chart, in its own units
WIDTH = 460
HEIGHT = 330

Point = tuple[float, float]


def section(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    weights: Mapping[str, float],
) -> Html:
    """Return the HTML about the rewards' conflict; nothing for one reward or no evaluation.

    Args:
        before: the evaluation of the training prompts before training, or {}.
        after: the last one, or {}.
        records: the log, for the mean of every iteration.
        weights: of the rewards by name; with a negative weight less is better.
    """
    names = list((before or after).get("rewards", ()))
    figures = []

    for pair in list(combinations(range(len(names)), 2))[:PAIRS]:
        x, y = (names[column] for column in pair)
        signs = (-1 if weights.get(x, 1.0) < 0 else 1, -1 if weights.get(y, 1.0) < 0 else 1)

        means = [
            _point(record.get("rewards", {}).get(name, {}).get("mean") for name in (x, y))
            for record in records
        ]
        path = [mean for mean in means if mean]
        clouds = [_cloud(before, pair), _cloud(after, pair)]

        if chart := scatter(clouds, path, (x, y), signs):
            caption = tag("figcaption", tag("b", y), " (upwards) against ", tag("b", x))
            figures.append(tag("figure", caption, chart))

    if not figures:
        return join()

    note = tag(
        "p",
        "Each image of the evaluation on training prompts: ",
        _key(1, "before"),
        " (rings), ",
        _key(0, "after"),
        " (dots). Pale ones are dominated: another image of their evaluation is better in one of "
        "the two and no worse in the other. The steps join those that are not. "
        "The line is the mean of each iteration's images, from the ring to the dot.",
        class_="soft small",
    )
    heading = tag("h2", "Reward against reward")
    return join([heading, note, tag("div", *figures, class_="fronts")])


def _key(index: int, label: str) -> Html:
    return tag("span", tag("i", class_=f"key series-{index}"), label, class_="name")


def front(points: Sequence[Point], signs: tuple[int, int] = (1, 1)) -> list[bool]:
    """Return for each point whether no other point dominates it.

    A point dominates another if it is at least as good in both numbers and better in one.
    """
    signed = [(signs[0] * x, signs[1] * y) for x, y in points]
    order = sorted(range(len(points)), key=lambda i: (-signed[i][0], -signed[i][1]))
    on_front = [False] * len(points)
    best_y = -math.inf
    its_x = math.inf

    # from the best x on: only a y above all so far is new, but equal points stay together
    for i in order:
        x, y = signed[i]
        on_front[i] = y > best_y or (y == best_y and x == its_x)

        if y > best_y:
            best_y = y
            its_x = x

    return on_front


def scatter(
    clouds: Sequence[Mapping[int, tuple[Point, str]]],
    path: Sequence[Point],
    names: tuple[str, str],
    signs: tuple[int, int] = (1, 1),
) -> Html:
    """Return an SVG of two clouds, before and after, and a path; nothing if both are empty.

    Args:
        clouds: point and prompt of each image, by its row in the evaluation.
        path: the means, iteration by iteration.
        names: of both rewards, x first.
        signs: -1 where less is better.
    """
    points = [point for cloud in clouds for point, _ in cloud.values()]
    if not points:
        return join()

    everything = [*points, *path]
    x_range = _range([x for x, _ in everything])
    y_range = _range([y for _, y in everything])
    frame = Frame(WIDTH, HEIGHT, x_range, y_range)

    parts = [axes(frame, integers=False)]

    styles = (("ring series-1", "before"), ("dot series-0", "after"))
    for cloud, (style, when) in zip(clouds, styles, strict=True):
        parts += _draw_cloud(frame, list(cloud.values()), signs, style, when, names)

    if path:
        parts += _draw_path(frame, path)

    return drawing(frame, f"{names[1]} against {names[0]}, before and after", parts)


def _draw_path(frame: Frame, path: Sequence[Point]) -> list[Html]:
    """Return the line of the means, with a mark at its beginning and its end."""
    corners = "L".join(f"{frame.px(x)} {frame.py(y)}" for x, y in path)
    dot = "h.01" if len(path) == 1 else ""  # a path of one point would not be drawn
    parts = [tag("path", class_="walk", d=f"M{corners}{dot}")]

    for end, (x, y) in (("from", path[0]), ("to", path[-1])):
        parts.append(_circle(frame, (x, y), f"walk {end}", 4.5))

    return parts


def _draw_cloud(
    frame: Frame,
    images: Sequence[tuple[Point, str]],
    signs: tuple[int, int],
    style: str,
    when: str,
    names: tuple[str, str],
) -> list[Html]:
    """Return the images of one evaluation, those on the front last, so that they are on top."""
    on_front = front([point for point, _ in images], signs)
    best = [image for image, chosen in zip(images, on_front, strict=True) if chosen]
    rest = [point for (point, _), chosen in zip(images, on_front, strict=True) if not chosen]
    rest = rest[:: max(1, math.ceil(len(rest) / DRAWN))]

    parts = [_circle(frame, point, f"{style} faint", 3) for point in rest]
    corners = sorted({point for point, _ in best}, key=lambda point: signs[0] * point[0])

    if len(corners) > 1:
        # from the worst x on: the dominated points lie on the inner side of the steps
        (x, y), *others = corners
        steps = "".join(f"V{frame.py(y)}H{frame.px(x)}" for x, y in others)
        start = f"M{frame.px(x)} {frame.py(y)}"
        parts.append(tag("path", class_=f"steps {style}", d=f"{start}{steps}"))

    for (x, y), prompt in best:
        title = f"{when}, {prompt}: {names[0]} {number(x)}, {names[1]} {number(y)}"
        parts.append(tag("g", tag("title", title), _circle(frame, (x, y), style, 4)))

    return parts


def _circle(frame: Frame, point: Point, style: str, radius: float) -> Html:
    x, y = point
    return tag("circle", class_=style, cx=frame.px(x), cy=frame.py(y), r=radius)


def _range(values: Sequence[float]) -> Point:
    """Return the range of an axis: all values and a margin; it need not include zero."""
    low = min(values)
    high = max(values)
    margin = 0.05 * (high - low) or abs(low) * 0.1 or 1.0
    return low - margin, high + margin


def _cloud(evaluation: Mapping[str, Any], pair: tuple[int, int]) -> dict[int, tuple[Point, str]]:
    """Return both rewards and the prompt of each image that has both, by its row."""
    prompts = evaluation.get("prompts", ())
    images_per_prompt = evaluation.get("images_per_prompt", 1)
    cloud = {}

    for row, parts in enumerate(evaluation.get("parts", ())):
        if point := _point(parts[column] for column in pair):
            cloud[row] = point, str(prompts[row // images_per_prompt])

    return cloud


def _point(values: Any) -> Point | None:
    """Return two numbers as a point; None where one is missing."""
    x, y = values
    if x is None or y is None or not (math.isfinite(x) and math.isfinite(y)):
        return None
    return float(x), float(y)
