"""The one training loop of all embedded models.

It has a time budget, cosine decay, EMA, checkpoints, a curve and preview images.

A job is resumable: run the same command again and it goes on from its last checkpoint, counting the
minutes already spent; while it is suspended (SIGSTOP) they stand still. On a CPU, one process a
core is faster than one process with a thread a core:

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m pretrain.unet

Each process draws batches of its own, and gradients are averaged.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from burnish.tools.preflight import UNITS
from burnish.zoo.scenes import SIZE

RECORD_EVERY = 100  # steps between two points of the curve
WARM_UP = 0.02  # share of the time in which the learning rate rises


def arguments(doc: str, *, minutes: float, batch: int, lr: float) -> argparse.ArgumentParser:
    """Return a parser with the options that every pretraining command has."""
    parser = argparse.ArgumentParser(
        description=doc.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=minutes,
        help="training time in all, earlier runs counted in",
    )
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument(
        "--lr", type=float, default=lr, help="peak learning rate; 2%% warm-up, then cosine to zero"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--build", type=Path, default=Path("build"), help="where checkpoints, curves and grids go"
    )
    parser.add_argument("--seed", type=int, default=0)

    return parser


Source = Callable[[int], Iterator[Any]]
"""A function of a seed to endless batches."""


class _Stream(IterableDataset):
    """The batches of a source; each worker process of a DataLoader has a seed of its own."""

    def __init__(self, source: Source, seed: int) -> None:
        self.source = source
        self.seed = seed

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        return self.source(self.seed + 1_000_003 * (worker.id if worker else 0))


def in_workers(source: Source, seed: int, workers: int) -> Iterator[Any]:
    """Return a source's batches, made by `workers` processes beside this one; 0: by this one.

    What they make should be arrays: tensors would need shared memory.
    """
    if not workers:
        return source(seed)

    loader = DataLoader(
        _Stream(source, seed),
        batch_size=None,
        num_workers=workers,
        collate_fn=_unchanged,
        prefetch_factor=4,
        multiprocessing_context="fork",
    )
    return iter(loader)


def _unchanged(batch: Any) -> Any:
    return batch


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add the option of commands whose scenes other processes can draw."""
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="processes that draw scenes beside the one that trains, where that is on a GPU",
    )


def autocast(device: torch.device) -> torch.autocast:
    """Return bfloat16 autocast, or none on a CPU without units for it: ten times slower there."""
    units = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    is_fast = not units or any(units.get(name) for name in UNITS["bfloat16"])
    return torch.autocast(device.type, torch.bfloat16, enabled=is_fast)


def sized(name: str, size: int) -> str:
    """Return the name of a job or a model, with its images' side unless that is the usual one."""
    return name if size == SIZE else f"{name}-{size}"


def rank() -> tuple[int, int]:
    """Return this process's number and the number of processes.

    The first call in one of several processes joins the others.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return 0, 1

    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return dist.get_rank(), count


def average_gradients(module: nn.Module, count: int, spent: float) -> float:
    """Average the gradients over `count` processes.

    Returns:
        The first process's `spent`, so that all agree on the time.
    """
    if count == 1:
        return spent

    grads = [p.grad for p in module.parameters() if p.grad is not None]
    time_of_first = count * spent if dist.get_rank() == 0 else 0
    flat = torch.cat([g.flatten() for g in grads] + [grads[0].new_tensor([time_of_first])])
    dist.all_reduce(flat)
    flat /= count

    for grad, part in zip(grads, flat[:-1].split([g.numel() for g in grads]), strict=True):
        grad.copy_(part.view(grad.shape))

    return float(flat[-1])


class Average:
    """An exponential moving average of parameters, with the usual warm-up of its decay."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.shadow = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's parameters."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        names, parameters = zip(*module.named_parameters(), strict=True)
        shadows = [self.shadow[name] for name in names]
        torch._foreach_lerp_(shadows, [p.detach() for p in parameters], 1 - decay)

    @contextmanager
    def swapped_into(self, module: nn.Module) -> Iterator[None]:
        """Let a module hold the averaged parameters within a context."""
        trained = {name: p.detach().clone() for name, p in module.named_parameters()}
        _copy_parameters(self.shadow, module)

        try:
            yield
        finally:
            _copy_parameters(trained, module)


@torch.no_grad()
def _copy_parameters(values: dict[str, Tensor], module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        parameter.copy_(values[name])


Optimizers = Sequence[torch.optim.Optimizer]


def save(
    folder: Path, module: nn.Module, average: Average, optimizers: Optimizers, facts: dict
) -> None:
    """Write one checkpoint atomically.

    Weights, EMA and the optimizers' moments are tensors of a safetensors file, all other facts are
    JSON in its metadata.
    """
    tensors = {f"model.{k}": v.detach().contiguous() for k, v in module.state_dict().items()}
    tensors |= {f"ema.{k}": v.contiguous() for k, v in average.shadow.items()}

    for which, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            prefix = f"optimizer.{which}.{index}"
            tensors |= {f"{prefix}.{key}": value.contiguous() for key, value in state.items()}

    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "checkpoint.safetensors"
    partial = target.with_suffix(".part")
    save_file(
        tensors, partial, metadata={"facts": json.dumps(facts | {"ema_steps": average.steps})}
    )
    os.replace(partial, target)


def restore(folder: Path, module: nn.Module, average: Average, optimizers: Optimizers) -> dict:
    """Load a checkpoint and return its facts; an empty dict where there is no checkpoint."""
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return {}

    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["facts"])

    tensors = load_file(path)
    weights = {k: v for k, v in tensors.items() if k.startswith("model.")}
    module.load_state_dict({k.removeprefix("model."): v for k, v in weights.items()})

    for name in average.shadow:
        average.shadow[name].copy_(tensors[f"ema.{name}"])

    average.steps = facts["ema_steps"]
    for which, optimizer in enumerate(optimizers):
        moments: dict[int, dict[str, Tensor]] = {}
        prefix = f"optimizer.{which}."

        for name, value in tensors.items():
            if name.startswith(prefix):
                index, key = name.removeprefix(prefix).split(".")
                moments.setdefault(int(index), {})[key] = value

        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": moments, "param_groups": groups})

    return facts


@dataclass
class Clock:
    """The minutes that a job has run; time in which it is suspended does not count."""

    minutes: float
    _mark: float = field(default_factory=time.monotonic)
    _usual: float = math.inf  # seconds of a step

    def tick(self) -> None:
        """Add the time since the last tick: one step."""
        now = time.monotonic()
        seconds = now - self._mark
        self._mark = now
        self._usual = min(seconds, 10 * self._usual)  # longer: the job was suspended meanwhile
        self.minutes += self._usual / 60

    def skip(self) -> None:
        """Leave out the time since the last tick."""
        self._mark = time.monotonic()


class Curve:
    """The recorded quantities of a job: their means over every `RECORD_EVERY` steps."""

    def __init__(self, points: list[dict[str, float]], verbose: bool) -> None:
        self.points = points
        self.verbose = verbose
        self._sums: dict[str, float] = {}
        self._count = 0

    def add(self, step: int, minutes: float, values: dict[str, float]) -> None:
        """Take in the values of a step; where a point is due, record and print it."""
        self._count += 1
        for key, value in values.items():
            self._sums[key] = self._sums.get(key, 0.0) + value

        if step % RECORD_EVERY:
            return

        means = {key: value / self._count for key, value in self._sums.items()}
        point = {"step": step, "minutes": round(minutes, 3), **means}
        self.points.append(point)
        self._sums = {}
        self._count = 0

        if self.verbose:
            print(json.dumps({k: round(v, 4) for k, v in point.items()}), flush=True)


def adamw(
    parameters: Iterable[nn.Parameter], lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return the optimizer of all jobs that name no other."""
    return torch.optim.AdamW(
        parameters, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.99), fused=True
    )


def learning_rate(peak: float, progress: float) -> float:
    """Return the learning rate at `progress` in [0, 1]: a short warm-up, then a cosine to 0."""
    warm_up = min(1.0, progress / WARM_UP + 0.01)
    return peak * warm_up * 0.5 * (1 + math.cos(math.pi * progress))


def train(
    name: str,
    module: nn.Module,
    batches: Callable[[int], Iterator],
    loss_of: Callable[..., tuple[Tensor, dict[str, float]]],
    options: argparse.Namespace,
    *,
    preview: Callable[[], Image.Image] | None = None,
    finish: Callable[[], None] | None = None,
    decay: float = 0.999,
    weight_decay: float = 0.01,
    every: float = 5.0,
    optimizers: Optimizers | None = None,
) -> None:
    """Train `module` for `options.minutes`.

    Every `every` minutes, and at the end, the checkpoint, the curve and the preview are written
    to `build/<name>`.

    Args:
        name: of the job.
        module: to be trained.
        batches: `batches(seed)` yields batches for ever.
        loss_of: `loss_of(batch)` gives the loss and further values to record.
        options: as `arguments` parses them.
        preview: draws an image with the EMA weights in place.
        finish: exports the model with the EMA weights in place.
        decay: of the EMA.
        weight_decay: of AdamW.
        every: minutes between two checkpoints.
        optimizers: the default is AdamW for all parameters. The learning rates of others are
            scaled alike over time: by 1 at the peak.
    """
    if find_spec("matplotlib") is None:  # the first curve is drawn minutes later
        raise SystemExit("pretraining draws curves by matplotlib: pip install -e '.[pretrain]'")

    folder = options.build / name
    process, processes = rank()
    optimizers = optimizers or [adamw(module.parameters(), options.lr, weight_decay)]
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    peaks = [group["lr"] for group in groups]
    average = Average(module, decay)
    facts = restore(folder, module, average, optimizers)
    step = facts.get("step", 0)
    curve = Curve(facts.get("curve", []), verbose=process == 0)

    # each process, and each start, has noise and batches of its own
    seed = options.seed + step * processes + process
    torch.manual_seed(seed)
    source = batches(seed)
    clock = Clock(facts.get("minutes", 0.0))
    saved = clock.minutes

    def write() -> None:
        if process:
            return

        facts = {"minutes": clock.minutes, "step": step, "curve": curve.points}
        save(folder, module, average, optimizers, facts)
        draw_curve(curve.points, folder / "curve.png")

        with average.swapped_into(module):
            if preview:
                preview().save(folder / "grid.png")
            if finish:
                finish()

    while clock.minutes < options.minutes:
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = learning_rate(peak, clock.minutes / options.minutes)

        loss, values = loss_of(next(source))
        module.zero_grad(set_to_none=True)
        loss.backward()
        clock.minutes = average_gradients(module, processes, clock.minutes)
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)

        for optimizer in optimizers:
            optimizer.step()

        average.update(module)

        step += 1
        values = {"loss": loss.item()} | values
        clock.tick()
        curve.add(step, clock.minutes, values)

        if clock.minutes - saved > every:
            write()
            saved = clock.minutes
            clock.skip()

    write()


def draw_curve(points: list[dict[str, float]], path: Path) -> None:
    """Draw every recorded quantity against minutes of training, one small plot each."""
    if not points:
        return

    keys = [key for key in points[-1] if key not in ("step", "minutes")]
    if not keys:
        return

    import matplotlib  # only who trains needs it

    matplotlib.use("Agg")
    from matplotlib import pyplot  # the backend must be chosen before

    figure, axes = pyplot.subplots(1, len(keys), figsize=(4 * len(keys), 3), squeeze=False)
    for axis, key in zip(axes[0], keys, strict=True):
        axis.plot([point["minutes"] for point in points], [point[key] for point in points])
        axis.set(title=key, xlabel="minutes")

    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def grid(images: Tensor, columns: int, scale: int = 2) -> Image.Image:
    """Return images on one sheet.

    Args:
        images: (n, 3, h, w) in [0, 1], or uint8 (n, h, w, 3).
        columns: of the sheet.
        scale: pixels of the sheet a pixel of an image.
    """
    if images.dtype != torch.uint8:
        images = (images.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)

    count, height, width, _ = images.shape
    rows = -(-count // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")

    for index, image in enumerate(images.cpu().numpy()):
        corner = (index % columns * width, index // columns * height)
        sheet.paste(Image.fromarray(image), corner)

    return sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST)
