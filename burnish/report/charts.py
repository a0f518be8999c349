"""Line charts as SVG text: curves with a band of spread, round ticks, values on hover.

Written by hand, with the standard library only, so that a report needs no plotting library, stays
sharp at any size and follows the reader's light or dark theme: colours and fonts are the page's CSS
(`.series-0`, `.axis`, ...).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from burnish.report.markup import Html, join, tag

# margins in the chart's own units
LEFT = 56
RIGHT = 14
TOP = 12
BOTTOM = 26
HOVERED = 100  # at most so many points show their values on hover: more would only bloat the file

Value = float | None


@dataclass(frozen=True)
class Series:
    """One curve; a value that is None or not finite is a gap."""

    label: str
    y: Sequence[Value]
    spread: Sequence[Value] | None = None  # half the height of the band around each value

    def band(self, i: int) -> tuple[float, float] | None:
        """Return the lowest and highest drawn value at point i; None in a gap."""
        y = self.y[i]
        spread = self.spread[i] if self.spread else None

        if y is None or not math.isfinite(y):
            return None

        half = spread if spread is not None and math.isfinite(spread) else 0.0
        return y - half, y + half


@dataclass(frozen=True)
class Frame:
    """The size of a chart and the ranges of its axes."""

    width: int
    height: int
    x: tuple[float, float]
    y: tuple[float, float]

    def px(self, value: float) -> float:
        """Return the horizontal position of a value."""
        low, high = self.x
        fraction = (value - low) / (high - low) if high > low else 0.5
        return round(LEFT + fraction * (self.width - LEFT - RIGHT), 1)

    def py(self, value: float) -> float:
        """Return the vertical position of a value."""
        low, high = self.y
        inner = self.height - TOP - BOTTOM
        return round(self.height - BOTTOM - (value - low) / (high - low) * inner, 1)


def number(value: Value) -> str:
    """Return a value as text: four significant digits, a true minus sign."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"

    text = f"{value:.3g}" if abs(value) < 1e-3 or abs(value) >= 1e6 else f"{value:.4g}"
    return text.replace("e-0", "e-").replace("e+0", "e").replace("e+", "e").replace("-", "−")


def duration(seconds: float) -> str:
    """Return seconds as a short text, such as "2 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"

    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers in [low, high]: 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]

    step = (high - low) / count
    power = 10.0 ** math.floor(math.log10(step))
    step = power * next(unit for unit in (1, 2, 5, 10) if unit * power >= step * 0.999)

    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]


def line_chart(
    x: Sequence[float], series: Sequence[Series], width: int = 340, height: int = 190
) -> Html:
    """Return an SVG of `series` over `x`, without a title; nothing if there is nothing to draw."""
    edges = [edge for curve in series for i in range(len(x)) for edge in curve.band(i) or ()]
    if not edges:
        return join()

    frame = Frame(width, height, (min(x), max(x)), _range(min(edges), max(edges)))
    parts = [axes(frame)]

    for index, curve in enumerate(series):
        for segment in _segments([curve.band(i) for i in range(len(x))]):
            parts += _curve(frame, x, index, segment, with_band=bool(curve.spread))

    parts += _hover(frame, x, series)
    return drawing(frame, ", ".join(curve.label for curve in series), parts)


def drawing(frame: Frame, label: str, parts: Sequence[Html]) -> Html:
    """Return an SVG of these parts; `label` describes it to readers who do not see it."""
    box = f"0 0 {frame.width} {frame.height}"
    return tag("svg", *parts, viewBox=box, role="img", aria_label=label)


def _curve(
    frame: Frame,
    x: Sequence[float],
    index: int,
    segment: Sequence[tuple[int, tuple[float, float]]],
    with_band: bool,
) -> list[Html]:
    """Return the paths of one curve between two gaps: its band, if it has one, and its line."""
    middle = [f"{frame.px(x[i])} {frame.py((low + high) / 2)}" for i, (low, high) in segment]
    parts = []

    if with_band:
        upper = [f"{frame.px(x[i])} {frame.py(high)}" for i, (_, high) in segment]
        lower = [f"{frame.px(x[i])} {frame.py(low)}" for i, (low, _) in reversed(segment)]
        parts.append(tag("path", class_=f"band series-{index}", d=f"M{'L'.join(upper + lower)}Z"))

    dot = "h.01" if len(segment) == 1 else ""  # a path of one point would not be drawn
    parts.append(tag("path", class_=f"line series-{index}", d=f"M{'L'.join(middle)}{dot}"))
    return parts


def _range(low: float, high: float) -> tuple[float, float]:
    margin = 0.06 * (high - low) or abs(low) * 0.1 or 1.0
    return (0.0 if 0 <= low <= 0.3 * high else low - margin), high + margin


def _segments(
    bands: Sequence[tuple[float, float] | None],
) -> list[list[tuple[int, tuple[float, float]]]]:
    """Return the points between two gaps, with their indices."""
    segments: list[list[tuple[int, tuple[float, float]]]] = [[]]

    for i, band in enumerate(bands):
        if band is None:
            segments.append([])
        else:
            segments[-1].append((i, band))

    return [segment for segment in segments if segment]


def axes(frame: Frame, integers: bool = True) -> Html:
    """Return round ticks with their grid lines.

    Args:
        frame: of the chart.
        integers: label whole numbers only along x, as of iterations, without vertical grid lines;
            else label any numbers, with vertical grid lines.
    """
    right = frame.width - RIGHT
    bottom = frame.height - BOTTOM
    parts = []

    for value in ticks(*frame.y):
        y = frame.py(value)
        parts.append(tag("line", class_="grid", x1=LEFT, x2=right, y1=y, y2=y))
        parts.append(_label(number(value), LEFT - 8, round(y + 3.5, 1), "end"))

    for value in ticks(*frame.x, count=6):
        x = frame.px(value)

        if not integers:
            parts.append(tag("line", class_="grid", x1=x, x2=x, y1=TOP, y2=bottom))

        if value == int(value) or not integers:
            text = str(int(value)) if integers else number(value)
            parts.append(_label(text, x, frame.height - 8, "middle"))

    return join(parts)


def _label(text: str, x: float, y: float, anchor: str) -> Html:
    return tag("text", text, class_="axis", x=x, y=y, text_anchor=anchor)


def _hover(frame: Frame, x: Sequence[float], series: Sequence[Series]) -> list[Html]:
    """Return invisible columns that show the values of their point on hover, without a script."""
    chosen = range(0, len(x), max(1, math.ceil(len(x) / HOVERED)))
    width = (frame.width - LEFT - RIGHT) / max(len(chosen) - 1, 1)
    parts = []

    for i in chosen:
        px = frame.px(x[i])
        left = f"{px - width / 2:.1f}"
        children = [tag("rect", x=left, y=0, width=f"{width:.1f}", height=frame.height)]

        for index, curve in enumerate(series):
            if (band := curve.band(i)) is not None:
                y = frame.py(sum(band) / 2)
                children.append(tag("circle", class_=f"series-{index}", cx=px, cy=y, r=3))

        # on the side of the chart that is away from the pointer
        away = px > frame.width / 2
        children.append(
            tag(
                "text",
                f"{number(x[i])}: {', '.join(_value(curve, i) for curve in series)}",
                class_="value",
                x=LEFT + 4 if away else frame.width - RIGHT,
                y=TOP + 9,
                text_anchor=None if away else "end",
            )
        )
        parts.append(tag("g", *children, class_="point"))

    return parts


def _value(curve: Series, i: int) -> str:
    text = f"{curve.label} {number(curve.y[i])}"
    return f"{text} ± {number(curve.spread[i])}" if curve.spread else text
