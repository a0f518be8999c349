"""Images after more and more votes, from the sample grids that two runs left."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from burnish.images import open_image
from burnish.runs import Run
from experiments.image_rows import image_rows
from experiments.votes import plan

ARMS = ("rvm", "head")


def draw_grid(out: Path, folder: Path) -> None:
    """Write `votes_grid.png`: two arms' runs with the first seed, a row for each budget.

    Args:
        out: the experiment's folder.
        folder: of the image.
    """
    runs = {name: Run(out / plan.trial(name, plan.SEEDS[0]).name) for name in ARMS}
    rows = {"before": tiles(runs[ARMS[0]], 0)}
    for name, run in runs.items():
        for votes in plan.BUDGETS:
            if sample_grid(run, votes).exists():
                rows[f"{name}, {votes} votes"] = tiles(run, votes)
    image_rows(rows).save(folder / "votes_grid.png")


def sample_grid(run: Run, votes: int) -> Path:
    """Return the path of the sample grid of so many votes, which perhaps was not drawn."""
    return run.sample_grid(votes // plan.VOTES)


def tiles(run: Run, votes: int) -> Tensor:
    """Return the images (n, 3, H, W) of a sample grid."""
    layout = json.loads((run.samples / "prompts.json").read_text())
    side, columns = layout["size"], layout["columns"]
    sheet = open_image(sample_grid(run, votes))

    corners = [divmod(number, columns) for number in range(len(layout["texts"]))]
    return torch.stack(
        [
            sheet[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
            for row, column in corners
        ]
    )
