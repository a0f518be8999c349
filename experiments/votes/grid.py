"""One run's images after more and more votes, from the sample grids that it left."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from burnish.images import open_image
from burnish.runs import Run
from experiments.image_rows import image_rows
from experiments.votes import plan

ARM = "head"


def draw_grid(out: Path, folder: Path) -> None:
    """Write `votes_grid.png`: the first seed's run of the preference head, a row for each budget.

    Args:
        out: the experiment's folder.
        folder: of the image.
    """
    run = Run(out / plan.trial(ARM, plan.SEEDS[0]).name)
    drawn = [votes for votes in (0, *plan.BUDGETS) if sample_grid(run, votes).exists()]
    rows = {f"{votes} votes" if votes else "before": tiles(run, votes) for votes in drawn}
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
