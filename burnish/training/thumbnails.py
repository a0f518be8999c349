"""Small images of the latest iteration and the latest evaluation, for whoever looks at a run.

    RUN/groups/000012.png               the images of iteration 12, one beside the other
    RUN/groups/000012.json              the prompt, group and rewards of each
    RUN/groups/evaluation-000012.png    the images of the evaluation of the training prompts
    RUN/groups/evaluation-000012.json   their number, and the columns of the grid

Each takes the place of the one before. They are looked at and never read by a training.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from burnish.files import dumps, write
from burnish.images import image_grid
from burnish.runs import Run
from burnish.types import Prompt, Scores

MOST = 512
"""Images of which there is a small one: the first of an iteration."""


class Thumbnails:
    """Keeps images small as they come, chunk by chunk.

    Args:
        side: of a small image in pixels, at most; 0: nothing is kept.
    """

    def __init__(self, side: int) -> None:
        self.side = side
        self.images: list[Tensor] = []  # (b, 3, h, w) uint8

    def add(self, images: Tensor) -> None:
        """Keep images (B, 3, H, W) in [0, 1] small, while there is room."""
        room = MOST - sum(map(len, self.images))
        if not self.side or room <= 0:
            return

        small = images[:room].detach().float()
        factor = self.side / max(small.shape[-2:])
        if factor < 1:
            size = [max(1, round(factor * length)) for length in small.shape[-2:]]
            small = interpolate(small, size, mode="area")
        self.images.append(small.clamp(0, 1).mul(255).round().to("cpu", torch.uint8))

    def write_iteration(
        self, run: Run, iteration: int, prompts: list[Prompt], group: Tensor, scores: Scores
    ) -> None:
        """Write the small images of an iteration, with what each of them got."""
        count = sum(map(len, self.images))
        columns = self.write(run.groups, f"{iteration:06d}")
        if not columns:
            return

        layout = {
            "iteration": iteration,
            "columns": columns,
            "texts": [prompt.text for prompt in prompts[:count]],
            "group": group[:count].tolist(),
            "rewards": list(scores.names),
            "parts": scores.parts[:count].tolist(),
        }
        write(run.groups / f"{iteration:06d}.json", dumps(layout))
        for path in run.groups.glob("[0-9]*"):
            if path.stem != f"{iteration:06d}":
                path.unlink(missing_ok=True)

    def write_evaluation(self, run: Run, iteration: int) -> None:
        """Write the small images of an evaluation of the training prompts."""
        name = f"evaluation-{iteration:06d}"
        columns = self.write(run.groups, name)
        if not columns:
            return

        layout = {"columns": columns, "count": sum(map(len, self.images))}
        write(run.groups / f"{name}.json", dumps(layout))
        for path in run.groups.glob("evaluation-*"):
            if path.stem != name:
                path.unlink(missing_ok=True)

    def write(self, folder: Path, name: str) -> int:
        """Write the images as one grid and return its columns; 0 if there are none."""
        if not self.images:
            return 0

        png, columns = image_grid(torch.cat(self.images).float() / 255)
        write(folder / f"{name}.png", png)
        return columns
