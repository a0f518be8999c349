"""What a run leaves behind while it goes: checkpoints, the adapter, sample grids, evaluations.
`runs` has the places.

Only the main process writes. Everything here can be asked for twice: what is already on the disk is
not made again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from burnish.config import Config
from burnish.runs import Run
from burnish.training.assembly import Parts
from burnish.world import World


@dataclass(frozen=True)
class Job:
    """One training run in this process: what is trained, with what, and where it is written."""

    config: Config
    run: Run
    world: World
    parts: Parts
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # idle unless the arithmetic is float16
    poll: Callable[[], None]  # raises if somebody asked to stop
    # the weights before training, where the guard may go back to them
    first: dict[str, Tensor] | None
    average: Any = None  # diffusers' EMAModel of the trained weights, if there is one
    wordsmith: torch.optim.Optimizer | None = None  # the prompt expander's, if it learns
    # the expander's weights before training, where `first` is kept
    first_words: dict[str, Tensor] | None = None
