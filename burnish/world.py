"""The processes of one run: who I am among them, and the three things that cross between them.

Only scores, gradients and evaluation results cross; each process samples and trains its own prompt
groups. With one process every method is the identity and accelerate is not even imported. Start
several by `accelerate launch` or `torchrun`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TRACKERS = ("tensorboard", "wandb", "trackio")


@dataclass(frozen=True)
class World:
    """This process among all; `World()` is the only one there is."""

    rank: int = 0
    count: int = 1
    accelerator: Any = None

    @classmethod
    def start(
        cls, trackers: Sequence[str] = (), folder: Path | None = None, device: str = "auto"
    ) -> World:
        """Join the processes that were launched together. ValueError for a tracker that is not
        there.
        """
        for name in trackers:
            if name not in TRACKERS:
                raise ValueError(
                    f'run.trackers: "{name}" is unknown; accepted: {", ".join(TRACKERS)}'
                )
            if find_spec(name) is None:
                raise ValueError(
                    f'run.trackers: {name} is not installed; run: pip install "burnish[{name}]"'
                )

        if not trackers and int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()

        from accelerate import Accelerator

        accelerator = Accelerator(
            log_with=list(trackers) or None,
            project_dir=str(folder) if folder else None,
            cpu=device == "cpu",
        )
        return cls(accelerator.process_index, accelerator.num_processes, accelerator)

    @property
    def main(self) -> bool:
        """Whether this process writes the run directory."""
        return self.rank == 0

    def device(self, wanted: str) -> str:
        """The device of this process; what was wanted when it is alone."""
        return wanted if self.count == 1 or wanted == "cpu" else str(self.accelerator.device)

    def gather(self, tensor: Tensor) -> Tensor:
        """The rows of every process, by rank; each process must give as many rows."""
        if self.count == 1:
            return tensor
        return self.accelerator.gather(tensor.to(self.accelerator.device)).cpu()

    def gather_list(self, items: list[Any]) -> list[Any]:
        """The items of every process, by rank; the numbers may differ."""
        if self.count == 1:
            return items
        from accelerate.utils import gather_object

        return gather_object(items)

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        return bool(self.gather(torch.tensor([flag])).any()) if self.count > 1 else flag

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Put the mean over all processes into every gradient."""
        if self.count == 1:
            return

        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.copy_(self.accelerator.reduce(parameter.grad, reduction="mean"))

    @property
    def trackers(self) -> list[Any]:
        """accelerate's open trackers; only the main process has any."""
        return list(self.accelerator.trackers) if self.accelerator is not None and self.main else []

    def track(self, settings: Mapping[str, Any], project: str, options: Mapping[str, Any]) -> None:
        """Open the trackers, if there are any, for a run with these settings; ``options`` by
        tracker.
        """
        if self.accelerator is not None and self.accelerator.log_with:
            self.accelerator.init_trackers(
                project, config=flat(settings), init_kwargs=dict(options)
            )

    def log(self, record: Mapping[str, Any]) -> None:
        """Send the numbers of a record to the trackers."""
        if self.accelerator is not None:
            self.accelerator.log(flat(record), step=record["iteration"])

    def end(self) -> None:
        """Close the trackers."""
        if self.accelerator is not None:
            self.accelerator.end_training()


def flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a nested record by path: {"rewards": {"a": {"mean": 1}}} -> {"rewards/a/mean":
    1}.
    """
    numbers: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            numbers |= flat(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            numbers[prefix + key] = value

    return numbers
