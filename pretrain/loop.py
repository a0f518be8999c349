"""The one training loop of all embedded models: a time budget, cosine decay, EMA, checkpoints, a
curve and pictures.

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
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import torch
import torch.distributed as dist
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

matplotlib.use("Agg")
from matplotlib import pyplot  # the backend must be chosen before


def arguments(doc: str, *, minutes: float, batch: int, lr: float) -> argparse.ArgumentParser:
    """The options every pretraining command has."""
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


def rank() -> tuple[int, int]:
    """This process's number and how many there are; the first call in a process of several joins
    the others.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")
    return (dist.get_rank() if count > 1 else 0), count


def average_gradients(module: nn.Module, count: int, spent: float) -> float:
    """Averages the gradients over all processes; returns the first one's ``spent``, so that all
    agree on the time.
    """
    if count == 1:
        return spent

    grads = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat(
        [g.flatten() for g in grads]
        + [grads[0].new_tensor([count * spent if dist.get_rank() == 0 else 0])]
    )
    dist.all_reduce(flat)
    flat /= count

    for grad, part in zip(grads, flat[:-1].split([g.numel() for g in grads]), strict=True):
        grad.copy_(part.view(grad.shape))

    return float(flat[-1])


class Average:
    """An exponential moving average of a module's parameters, with the usual warm-up of its decay."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.shadow = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        names, parameters = zip(*module.named_parameters(), strict=True)
        torch._foreach_lerp_(
            [self.shadow[n] for n in names], [p.detach() for p in parameters], 1 - decay
        )

    def copy_to(self, module: nn.Module) -> None:
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(self.shadow[name])


def save(
    folder: Path, module: nn.Module, average: Average, optimizer: torch.optim.Optimizer, facts: dict
) -> None:
    """Write one checkpoint atomically: weights, EMA and Adam's moments in safetensors, the rest as
    JSON metadata.
    """
    tensors = {f"model.{k}": v.detach().contiguous() for k, v in module.state_dict().items()}
    tensors |= {f"ema.{k}": v.contiguous() for k, v in average.shadow.items()}

    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{key}": value.contiguous() for key, value in state.items()}

    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "checkpoint.safetensors"
    save_file(
        tensors,
        target.with_suffix(".part"),
        metadata={"facts": json.dumps(facts | {"ema_steps": average.steps})},
    )
    os.replace(target.with_suffix(".part"), target)


def restore(
    folder: Path, module: nn.Module, average: Average, optimizer: torch.optim.Optimizer
) -> dict:
    """Load what ``save`` wrote; returns its facts, or an empty dict where there is no checkpoint."""
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return {}

    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["facts"])

    tensors = load_file(path)
    module.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})

    for name in average.shadow:
        average.shadow[name].copy_(tensors[f"ema.{name}"])

    average.steps = facts["ema_steps"]
    layout = optimizer.state_dict()
    moments: dict[int, dict[str, Tensor]] = {}

    for name, value in tensors.items():
        if name.startswith("adam."):
            _, index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = value

    optimizer.load_state_dict({"state": moments, "param_groups": layout["param_groups"]})
    return facts


def train(
    name: str,
    module: nn.Module,
    batches: Callable[[int], Iterator],
    loss_of: Callable[..., tuple[Tensor, dict[str, float]]],
    options: argparse.Namespace,
    *,
    picture: Callable[[], Image.Image] | None = None,
    finish: Callable[[], None] | None = None,
    decay: float = 0.999,
    weight_decay: float = 0.01,
    every: float = 5.0,
) -> None:
    """Train ``module`` for ``options.minutes``.

    ``batches(seed)`` yields batches for ever; ``loss_of(batch)`` gives the loss and what to record.
    Every ``every`` minutes, and at the end, the checkpoint, the curve and ``picture()`` (drawn with
    the EMA weights) are written to ``build/<name>``. ``finish()`` is called with the EMA weights in
    place: it exports the model.
    """
    folder, (me, processes) = options.build / name, rank()
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=options.lr, weight_decay=weight_decay, betas=(0.9, 0.99), fused=True
    )
    average = Average(module, decay)
    facts = restore(folder, module, average, optimizer)
    spent = facts.get("minutes", 0.0)
    step = facts.get("step", 0)
    curve = facts.get("curve", [])
    torch.manual_seed(
        options.seed + step * processes + me
    )  # the noise of each process, and after each start, is its own
    source = batches(options.seed + step * processes + me)
    sums: dict[str, float] = {}
    mark = time.monotonic()
    saved = spent
    count = 0
    usual = math.inf

    def write() -> None:
        if me:
            return

        save(folder, module, average, optimizer, {"minutes": spent, "step": step, "curve": curve})
        draw_curve(curve, folder / "curve.png")

        with swapped(module, average):
            if picture:
                picture().save(folder / "grid.png")
            if finish:
                finish()

    while spent < options.minutes:
        progress = spent / options.minutes

        for group in optimizer.param_groups:
            group["lr"] = (
                options.lr
                * min(1.0, progress / 0.02 + 0.01)
                * 0.5
                * (1 + math.cos(math.pi * progress))
            )

        loss, record = loss_of(next(source))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        spent = average_gradients(module, processes, spent)
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        average.update(module)
        step = step + 1
        count = count + 1

        for key, value in ({"loss": loss.item()} | record).items():
            sums[key] = sums.get(key, 0.0) + value

        now = time.monotonic()
        took = now - mark
        mark = now
        usual = min(took, 10 * usual)  # longer: the job was suspended meanwhile
        spent += usual / 60

        if step % 100 == 0:
            point = {"step": step, "minutes": round(spent, 3)} | {
                key: value / count for key, value in sums.items()
            }
            curve.append(point)

            if not me:
                print(json.dumps({k: round(v, 4) for k, v in point.items()}), flush=True)

            sums = {}
            count = 0

        if spent - saved > every:
            write()
            saved = spent
            mark = time.monotonic()

    write()


class swapped:
    """Within this context a module holds its averaged weights."""

    def __init__(self, module: nn.Module, average: Average) -> None:
        self.module = module
        self.average = average

    def __enter__(self) -> None:
        self.kept = {name: p.detach().clone() for name, p in self.module.named_parameters()}
        self.average.copy_to(self.module)

    def __exit__(self, *exc: object) -> None:
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                parameter.copy_(self.kept[name])


def draw_curve(curve: list[dict[str, float]], path: Path) -> None:
    """Every recorded quantity against minutes of training, one small plot each."""
    keys = [key for key in (curve[-1] if curve else {}) if key not in ("step", "minutes")]
    if not keys:
        return

    figure, axes = pyplot.subplots(1, len(keys), figsize=(4 * len(keys), 3), squeeze=False)
    for axis, key in zip(axes[0], keys, strict=True):
        axis.plot([p["minutes"] for p in curve], [p[key] for p in curve])
        axis.set(title=key, xlabel="minutes")

    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def grid(images: Tensor, columns: int, scale: int = 2) -> Image.Image:
    """Images (n, 3, h, w) in [0, 1] or uint8 (n, h, w, 3) as one sheet."""
    if images.dtype != torch.uint8:
        images = (images.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)

    n, h, w, _ = images.shape
    sheet = Image.new("RGB", (columns * w, -(-n // columns) * h), "white")

    for i, image in enumerate(images.cpu().numpy()):
        sheet.paste(Image.fromarray(image), (i % columns * w, i // columns * h))

    return sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST)
