"""The processes of one run: this one's rank, and the three things that cross between them.

Only scores, gradients and evaluation results cross; each process samples and trains its own prompt
groups. With one process every method is the identity and accelerate is not even imported. Start
several processes by `accelerate launch` or `torchrun`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from burnish.tracking import SERVICES, Tracking


@dataclass(frozen=True)
class World:
    """This process among all processes of a run; `World()` is a single one."""

    rank: int = 0
    count: int = 1
    accelerator: Any = None

    @property
    def main(self) -> bool:
        """True in the process that writes the run directory."""
        return self.rank == 0

    def device(self, wanted: str) -> str:
        """Return the device of this process: the wanted one if the process is alone."""
        if self.count == 1 or wanted == "cpu":
            return wanted
        return str(self.accelerator.device)

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the rows of every process, by rank; each process must give as many rows."""
        if self.count == 1:
            return tensor
        gathered: Tensor = self.accelerator.gather(tensor.to(self.accelerator.device))
        return gathered.cpu()

    def gather_list(self, items: list[Any]) -> list[Any]:
        """Return the items of every process, by rank; their numbers may differ."""
        if self.count == 1:
            return items
        from accelerate.utils import gather_object

        gathered: list[Any] = gather_object(items)
        return gathered

    def any(self, flag: bool) -> bool:
        """Return whether the flag is true in any process."""
        if self.count == 1:
            return flag
        return bool(self.gather(torch.tensor([flag])).any())

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its mean over all processes."""
        if self.count == 1:
            return

        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.copy_(self.accelerator.reduce(parameter.grad, reduction="mean"))

    @property
    def tracking(self) -> Tracking:
        """The experiment trackers; only the main process has any."""
        return Tracking(self.accelerator if self.main else None)

    def end(self) -> None:
        """Close the trackers, and part from the other processes.

        They part together: the first one keeps the store that the others are still connected to.
        """
        if self.accelerator is not None:
            self.tracking.end()
            self.accelerator.wait_for_everyone()
            self.accelerator.end_training()


def join_world(
    trackers: Sequence[str] = (), folder: Path | None = None, device: str = "auto"
) -> World:
    """Return this process's place among the processes that were launched together.

    Args:
        trackers: names of experiment trackers, such as "wandb".
        folder: for files of the trackers.
        device: "cpu" keeps accelerate off the GPU.

    Raises:
        ValueError: a tracker is unknown or not installed.
    """
    _check_trackers(trackers)
    if not trackers and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World()

    from accelerate import Accelerator

    accelerator = Accelerator(
        log_with=list(trackers) or None,
        project_dir=str(folder) if folder else None,
        cpu=device == "cpu",
    )
    if left_out := set(trackers) - {str(name) for name in accelerator.log_with}:
        raise ValueError(
            f"run.trackers: accelerate cannot use {', '.join(sorted(left_out))} here; update "
            "accelerate, and see that no environment variable turns it off"
        )

    return World(accelerator.process_index, accelerator.num_processes, accelerator)


def _check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker that is unknown, also to accelerate, or whose package is not installed."""
    for name in names:
        if name in SERVICES:
            if find_spec(name) is None:
                raise ValueError(f"run.trackers: {name} is not installed; run: pip install {name}")
            continue

        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        if name not in LOGGER_TYPE_TO_CLASS:
            raise ValueError(
                f'run.trackers: "{name}" is unknown; accepted: {", ".join(SERVICES)}, or a class '
                "that is registered with accelerate"
            )
