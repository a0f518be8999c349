"""The style of all experiments' figures, and the folder of the docs that they go to."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

matplotlib.use("Agg")

IMAGES = Path(__file__).parent.parent / "docs" / "images"

__all__ = ["IMAGES", "pyplot", "save_figure", "style"]


def style(axes: Iterable[Axes], grid: bool = True) -> None:
    """Remove the frames' upper and right lines, and draw a faint grid."""
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        if grid:
            axis.grid(alpha=0.2)


def save_figure(figure: Figure, name: str, folder: Path = IMAGES) -> None:
    """Write a figure into the docs' images, or into another folder."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(folder / name, dpi=110)
