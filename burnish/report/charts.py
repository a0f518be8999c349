"""Line charts as SVG text: curves with a band of spread, round ticks, values on hover. Standard
library only.

Written by hand so that a report needs no plotting library, stays sharp at any size and follows the
reader's light or
dark theme: colours and fonts are the page's CSS (`.series-0`, `.axis`, ...).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

# margins in the chart's own units
LEFT = 56
RIGHT = 14
TOP = 12
BOTTOM = 26
HOVERED = 160  # at most so many points answer to the pointer: more would only make the file large

Value = float | None


@dataclass(frozen=True)
class Series:
    """One curve; a value that is None or not finite is a gap."""

    label: str
    y: Sequence[Value]
    spread: Sequence[Value] | None = None  # half the height of the band around each value

    def band(self, i: int) -> tuple[float, float] | None:
        """The lowest and highest drawn value at point i; None in a gap."""
        y = self.y[i]
        spread = self.spread[i] if self.spread else None

        if y is None or not math.isfinite(y):
            return None

        half = spread if spread is not None and math.isfinite(spread) else 0.0
        return y - half, y + half


@dataclass(frozen=True)
class Frame:
    """The rectangle of a chart and the ranges it shows."""

    width: int
    height: int
    x: tuple[float, float]
    y: tuple[float, float]

    def px(self, value: float) -> float:
        low, high = self.x
        across = (value - low) / (high - low) if high > low else 0.5
        return round(LEFT + across * (self.width - LEFT - RIGHT), 1)

    def py(self, value: float) -> float:
        low, high = self.y
        return round(
            self.height - BOTTOM - (value - low) / (high - low) * (self.height - TOP - BOTTOM), 1
        )


def number(value: Value) -> str:
    """A value as people read it: four digits that matter, a true minus sign."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"

    text = f"{value:.3g}" if abs(value) < 1e-3 or abs(value) >= 1e6 else f"{value:.4g}"
    return text.replace("e-0", "e-").replace("e+0", "e").replace("e+", "e").replace("-", "−")


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten) within [low, high]."""
    if high <= low:
        return [low]

    step = (high - low) / count
    power = 10.0 ** math.floor(math.log10(step))
    step = power * next(unit for unit in (1, 2, 5, 10) if unit * power >= step * 0.999)

    return [
        float(f"{i * step:.10g}")
        for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def line_chart(
    x: Sequence[float], series: Sequence[Series], width: int = 340, height: int = 190
) -> str:
    """An SVG of `series` over `x`, without a title; empty text if there is nothing to draw."""
    edges = [edge for one in series for i in range(len(x)) for edge in one.band(i) or ()]
    if not edges:
        return ""

    frame = Frame(width, height, (min(x), max(x)), _range(min(edges), max(edges)))
    label = escape(", ".join(one.label for one in series))
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">', axes(frame)]

    for index, one in enumerate(series):
        for run in _runs([one.band(i) for i in range(len(x))]):
            upper = [f"{frame.px(x[i])} {frame.py(high)}" for i, (_, high) in run]
            lower = [f"{frame.px(x[i])} {frame.py(low)}" for i, (low, _) in reversed(run)]
            middle = [f"{frame.px(x[i])} {frame.py((low + high) / 2)}" for i, (low, high) in run]

            if one.spread:
                parts.append(f'<path class="band series-{index}" d="M{"L".join(upper + lower)}Z"/>')

            alone = "h.01" if len(run) == 1 else ""  # a path of one point would not be drawn
            parts.append(f'<path class="line series-{index}" d="M{"L".join(middle)}{alone}"/>')

    return "".join([*parts, *_hover(frame, x, series), "</svg>"])


def _range(low: float, high: float) -> tuple[float, float]:
    margin = 0.06 * (high - low) or abs(low) * 0.1 or 1.0
    return (0.0 if 0 <= low <= 0.3 * high else low - margin), high + margin


def _runs(
    bands: Sequence[tuple[float, float] | None],
) -> list[list[tuple[int, tuple[float, float]]]]:
    """The points between two gaps, with their numbers."""
    runs: list[list[tuple[int, tuple[float, float]]]] = [[]]
    for i, band in enumerate(bands):
        if band is None:
            runs.append([])
        else:
            runs[-1].append((i, band))

    return [run for run in runs if run]


def axes(frame: Frame, whole: bool = True) -> str:
    """Round ticks with their grid; along x whole numbers alone, as of iterations, or any, with a
    grid of their own.
    """
    parts = []

    for value in ticks(*frame.y):
        y = frame.py(value)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{frame.width - RIGHT}" y1="{y}" y2="{y}"/>'
        )
        parts.append(
            f'<text class="axis" x="{LEFT - 8}" y="{y + 3.5:.1f}" text-anchor="end">{number(value)}</text>'
        )

    for value in ticks(*frame.x, count=6):
        if not whole:
            x = frame.px(value)
            parts.append(
                f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP}" y2="{frame.height - BOTTOM}"/>'
            )

        if value == int(value) or not whole:
            place = f'x="{frame.px(value)}" y="{frame.height - 8}"'
            parts.append(
                f'<text class="axis" {place} text-anchor="middle">{int(value) if whole else number(value)}</text>'
            )

    return "".join(parts)


def _hover(frame: Frame, x: Sequence[float], series: Sequence[Series]) -> list[str]:
    """For some points an invisible column that shows their values while the pointer is over it; no
    script needed.
    """
    chosen = range(0, len(x), max(1, math.ceil(len(x) / HOVERED)))
    column = (frame.width - LEFT - RIGHT) / max(len(chosen) - 1, 1)
    parts = []

    for i in chosen:
        said = [
            f"{s.label} {number(s.y[i])}" + (f" ± {number(s.spread[i])}" if s.spread else "")
            for s in series
        ]
        at = frame.px(x[i])
        dots = []

        for index, one in enumerate(series):
            if (band := one.band(i)) is not None:
                dots.append(
                    f'<circle class="series-{index}" cx="{at}" cy="{frame.py(sum(band) / 2)}" r="3"/>'
                )

        side = (
            f'x="{LEFT + 4}"'
            if at > frame.width / 2
            else f'x="{frame.width - RIGHT}" text-anchor="end"'
        )
        text = escape(f"{number(x[i])}: {', '.join(said)}")
        parts.append(
            f'<g class="point"><rect x="{at - column / 2:.1f}" y="0" width="{column:.1f}" height="{frame.height}"/>'
            f'{"".join(dots)}<text class="value" {side} y="{TOP + 9}">{text}</text></g>'
        )

    return parts
