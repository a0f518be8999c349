"""The processes of one run: this one's rank, and what crosses between them.

Scores, gradients, metrics and evaluation results cross, with votes the images and their features,
and before training the weights with which an expander starts and sums of weights, to see that they
are alike; each process samples and trains its own prompt groups. With one process every method is
the identity and accelerate is not even imported. Start several processes by `torchrun` or
`accelerate launch --multi_gpu`.
"""

from __future__ import annotations

import atexit
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from burnish.tracking import SERVICES, Tracking

BUCKET = 1 << 24
"""Gradients that cross together, 64 MB of them in float32; a larger parameter crosses alone."""


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
        """Return the device of this process: the wanted one if the process is alone.

        Of several processes each has a GPU of its own, whichever of them is wanted.

        Raises:
            ValueError: it is Apple's GPU, of which a machine has one.
        """
        if self.count == 1 or wanted == "cpu":
            return wanted
        if wanted == "mps":
            raise ValueError(
                f'model.device = "mps": {self.count} processes cannot share the one Apple GPU; '
                "start a single process"
            )
        device = self.accelerator.device
        return "cpu" if device.type == "cpu" else str(device)  # accelerate numbers CPUs too

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

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over all processes.

        They cross as one row of numbers, or as a few where the network is large.
        """
        if self.count == 1:
            return

        for bucket in buckets(parameters):
            grads = [gradient_of(parameter) for parameter in bucket]
            mean = self.mean(torch.cat([grad.flatten() for grad in grads]))
            copy_row(mean, grads)

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of the processes' values, in their place; they have the same shape."""
        torch.distributed.all_reduce(values)
        return values.div_(self.count)

    def of_main(self, values: Tensor) -> Tensor:
        """Return the main process's values, in their place; they have the same shape."""
        torch.distributed.broadcast(values, 0)
        return values

    @property
    def tracking(self) -> Tracking:
        """The experiment trackers; only the main process has any."""
        return Tracking(self.accelerator if self.main else None)

    def end(self) -> None:
        """Close the trackers, and wait for the other processes.

        The program parts from them at its exit only, because it may train once more.
        """
        if self.accelerator is not None:
            self.tracking.end()
            self.accelerator.wait_for_everyone()
            atexit.register(_part)


def join_world(
    trackers: Sequence[str] = (),
    folder: Path | None = None,
    device: str = "auto",
    sharding: str = "",
) -> World:
    """Return this process's place among the processes that were launched together.

    Args:
        trackers: names of experiment trackers, such as "wandb".
        folder: for files of the trackers.
        device: "cpu" keeps accelerate off the GPU.
        sharding: "full" if the processes share the weights, which a single one cannot.

    Raises:
        ValueError: a tracker is unknown or not installed, or processes were launched in a way that
            cannot work.
    """
    _check_trackers(trackers)
    _warn_if_launched_alone()
    launched = processes_launched()
    if sharding and launched == 1:
        raise ValueError(
            f'run.sharding = "{sharding}" divides the weights among several processes, and this is '
            "a single one; start them by torchrun, or leave it out"
        )
    if not trackers and launched == 1:
        return World()

    # without the word accelerate takes each process on a machine without a GPU for a single one
    on_cpu = device == "cpu" or (launched > 1 and not torch.cuda.is_available())
    if not on_cpu:
        _check_gpus(launched)

    from accelerate import Accelerator

    atexit.unregister(_part)  # if an earlier training of this program has ended
    accelerator = Accelerator(
        log_with=list(trackers) or None,
        project_dir=str(folder) if folder else None,
        cpu=on_cpu,
    )
    if accelerator.num_processes != launched:
        raise ValueError(
            f"{launched} processes were launched, and accelerate sees {accelerator.num_processes}; "
            "start them by torchrun"
        )
    if left_out := set(trackers) - {str(name) for name in accelerator.log_with}:
        raise ValueError(
            f"run.trackers: accelerate cannot use {', '.join(sorted(left_out))} here; update "
            "accelerate, and see that no environment variable turns it off"
        )

    return World(accelerator.process_index, accelerator.num_processes, accelerator)


@torch.no_grad()
def share_weights(world: World, parameters: Iterable[nn.Parameter]) -> None:
    """Give all processes the main one's values of the parameters."""
    if world.count == 1:
        return

    for bucket in buckets(parameters):
        copy_row(world.of_main(torch.cat([one.flatten() for one in bucket])), bucket)


def buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield parameters in their order, of one type and device and about `BUCKET` values each."""
    bucket: list[nn.Parameter] = []
    values = 0

    for parameter in parameters:
        alike = not bucket or (parameter.dtype, parameter.device) == (
            bucket[0].dtype,
            bucket[0].device,
        )
        if bucket and not (alike and values + parameter.numel() <= BUCKET):
            yield bucket
            bucket = []
            values = 0
        bucket.append(parameter)
        values += parameter.numel()

    if bucket:
        yield bucket


def copy_row(row: Tensor, tensors: Sequence[Tensor]) -> None:
    """Copy a row of numbers into tensors, one after the other."""
    parts = row.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def gradient_of(parameter: nn.Parameter) -> Tensor:
    """Return a parameter's gradient, which is made if it has none."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def processes_launched() -> int:
    """Return how many processes were launched together, this one included."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _warn_if_launched_alone() -> None:
    """Warn if `accelerate launch` was to start several processes, and started this one alone.

    It gives the address of the main process only where there are to be several.
    """
    by_accelerate = {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys()
    if by_accelerate and processes_launched() == 1:
        warnings.warn(
            "accelerate launch has started a single process: on a machine with fewer than two GPUs "
            "it starts several only with --multi_gpu; or start them by torchrun",
            stacklevel=3,
        )


def _check_gpus(launched: int) -> None:
    """Refuse more processes on this machine than it has GPUs."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if launched > 1 and local > (count := torch.cuda.device_count()):
        raise ValueError(
            f"{local} processes were launched on this machine, which has {count} GPU"
            f"{'s' * (count > 1)} that PyTorch can use; launch as many, or set model.device = "
            '"cpu"'
        )


def _part() -> None:
    """Leave the group of processes."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


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
