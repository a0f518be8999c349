"""The work of `benchmarks.gpu`, each call in a process of its own: see `answer`."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import gpu_models
from burnish import config as configuration
from burnish.config import Config
from burnish.diffusion import shapes
from burnish.diffusion.policy import DTYPES, Policy
from burnish.errors import first_line
from burnish.files import write
from burnish.training.assembly import Overrides, load_policy
from burnish.training.loop import train
from burnish.types import Cond

GIB = 1 << 30
TIMED_SHARE = 4
"""One in so many calls of the network is timed again alone."""

ITERATION_ONLY = (
    "iterations=1",
    "rewards=[{use='compressibility'}]",
    "evaluation.images_per_prompt=0",
    "evaluation.prompts={}",
    "evaluation.unseen={}",
    "run.sample_every=0",
    "run.checkpoint_every=10000",
    "model.variant=",
)
SHORT = ("sampler.steps=3", "batch.transitions=1", "batch.minibatches=1")
"""An iteration with the calls of a long one, but few of them."""

TINY = ("model.size=64", "model.dtype=float32", *SHORT)


@dataclass(frozen=True)
class Case:
    """A model's recipe, as the benchmark changes it.

    Attributes:
        recipe: of the package.
        changes: for an iteration of few images.
        short: for a single call of the sampler, beside them.
    """

    recipe: str
    changes: tuple[str, ...]
    short: tuple[str, ...] = ()


GROUPS = ("batch.prompts=2", "batch.images_per_prompt=4")
CASES = {
    "sd15": Case("sd15-compressibility", ("batch.prompts=8", "batch.transitions=10")),
    "sdxl": Case(
        "sdxl-compressibility",
        ("batch.prompts=2", "batch.images_per_prompt=2"),
        ("batch.prompts=1",),
    ),
    "sd35": Case("sd35-pickscore-ram", GROUPS),
    "klein": Case("klein-pickscore-ram", GROUPS),
    "zimage": Case("zimage-pickscore-ram", GROUPS),
}


@dataclass(frozen=True)
class Task:
    """A call: a model and where it is.

    Attributes:
        model: its name in `CASES`.
        folder: of the pipeline.
        out: a run directory's parent.
        device: "cuda" or "cpu".
        tiny: take the tiny model of its architecture.
        gib: of memory that may be allocated; 0: all.
    """

    model: str
    folder: Path
    out: Path
    device: str
    tiny: bool = False
    gib: int = 0

    def config(self, short: bool) -> Config:
        """Return the configuration of an iteration, or of a short one."""
        case = CASES[self.model]
        changes = [*ITERATION_ONLY, *case.changes, *(TINY if self.tiny else ())]
        if short:
            changes += [*SHORT, *case.short]
        place = [f"model.id={self.folder}", f"model.device={self.device}"]
        return configuration.load(case.recipe, [*changes, *place])


class Answer:
    """The values known so far, in a file that is whole whenever the process ends."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._values: dict[str, Any] = {}
        self._started = time.perf_counter()

    def add(self, **values: Any) -> None:
        """Add values and write all."""
        self._values |= values
        write(self._file, json.dumps(self._values))

    def say(self, text: str) -> None:
        """Print what has been reached."""
        print(f"{time.perf_counter() - self._started:7.1f} s  {text}", flush=True)


def answer(do: str, task: Task | None, file: Path, log: Path) -> None:
    """Do one of `CALLS` and leave its values, or an error, in a file.

    Args:
        do: its name.
        task: its argument.
        file: JSON; "error" has an error's one line, "out_of_memory" is True if it was that.
        log: what is printed goes to its end.
    """
    with log.open("a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)

    values = Answer(file)
    values.say(f"{do} {task or ''}")
    try:
        CALLS[do](task, values)
        values.add(done=True)
    except BaseException as error:
        traceback.print_exc()
        values.add(
            error=f"{type(error).__name__}: {first_line(error)}",
            out_of_memory=is_out_of_memory(error),
        )


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return True if the device's memory was too small, whatever that was told as."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError) or "CUDA out of memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def probe(task: Task, values: Answer) -> None:
    """Add what the device is; fails where CUDA cannot be used from a process like this one."""
    if task.device == "cpu":
        values.add(device="cpu", memory_gib=0.0)
        return

    torch.ones(1, device="cuda").item()
    properties = torch.cuda.get_device_properties(0)
    values.add(
        device=properties.name,
        memory_gib=properties.total_memory / GIB,
        cuda=torch.version.cuda,
    )


def build(task: Task, values: Answer) -> None:
    """Write the model's folder."""
    shape = gpu_models.shape_of(task.model, task.tiny)
    started = time.perf_counter()
    dtype = DTYPES[task.config(short=False).model.dtype]
    gpu_models.build(shape, task.folder, task.device, dtype)
    values.add(
        seconds_build=time.perf_counter() - started,
        parameters=shapes.parameters(shape),
    )


def measure(task: Task, values: Answer) -> None:
    """Time an iteration after a short one, and its network's calls alone."""
    config = task.config(short=False)
    started = time.perf_counter()
    # on the GPU beside the network, also where a run frees its text encoders
    policy = load_policy(replace(config, model=replace(config.model, text_encoder="keep")))
    values.add(
        seconds_load=time.perf_counter() - started,
        settings=settings(config, policy),
    )
    values.say("loaded")

    calls = NetworkCalls(policy)
    iterate(task, task.config(short=True), calls, "warm-up")
    values.add(**{f"start_{key}": value for key, value in memory(task).items()})
    values.say("warm")
    forget_peak(task)
    calls.counts.clear()

    record = iterate(task, config, calls, "iteration")
    seconds = record["seconds_sampling"] + record["seconds_training"]
    values.add(
        images=record["images"],
        iteration_s=seconds,
        images_per_s=record["images"] / seconds,
        sampling_s=record["seconds_sampling"],
        scoring_s=record["seconds_scoring"],
        training_s=record["seconds_training"],
        **memory(task),
    )
    values.say("iterated")

    network = calls.seconds()
    values.add(
        network_s=sum(network.values()),
        network_sampling_s=network[False],
        network_training_s=network[True],
        network_calls=calls.table(),
        ratio_network=seconds / sum(network.values()),
    )


def run_within(task: Task, values: Answer) -> None:
    """Run a short iteration from loading on, with so much memory."""
    if task.device != "cpu":
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, task.gib * GIB / whole))

    train(task.config(short=True), task.out / f"within-{task.gib}", progress=False)
    values.add(**memory(task))


CALLS: dict[str, Any] = {
    "probe": probe,
    "build": build,
    "measure": measure,
    "run_within": run_within,
}


def settings(config: Config, policy: Policy) -> dict[str, Any]:
    """Return what the speed depends on."""
    batch = config.batch
    return {
        "size": policy.latent_shape[-1] * policy.latent_pixel,
        "dtype": config.model.dtype,
        "rank": config.model.rank,
        "gradient_checkpointing": config.model.gradient_checkpointing,
        "objective": config.objective["use"],
        "steps": config.sampler.steps,
        "sample_batch": batch.sample_batch,
        "train_batch": batch.train_batch,
        "transitions": batch.transitions,
        "minibatches": batch.minibatches,
    }


def memory(task: Task) -> dict[str, float]:
    """Return the most GiB allocated, and reserved by the allocator; nothing without CUDA."""
    if task.device == "cpu":
        return {}
    return {
        "allocated_gib": torch.cuda.max_memory_allocated() / GIB,
        "reserved_gib": torch.cuda.max_memory_reserved() / GIB,
    }


def forget_peak(task: Task) -> None:
    """Let `memory` begin anew, with what is held now."""
    if task.device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def iterate(task: Task, config: Config, calls: NetworkCalls, name: str) -> dict[str, Any]:
    """Run an iteration of `burnish.train` with the loaded policy; return its record."""
    records: list[dict[str, Any]] = []
    with calls.counted():
        train(
            config,
            task.out / name,
            on_record=lambda record: records.append(dict(record)),
            overrides=Overrides(policy=calls.policy),
            progress=False,
        )
    return records[0]


class NetworkCalls:
    """The calls of a policy's network: counted while it works, then timed alone.

    They are told apart by their images, their texts and whether they have a gradient. The first
    inputs of each kind are kept, in the CPU's memory.

    Args:
        policy: whose network is called.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.counts: dict[tuple[int, int, bool], int] = {}
        self._inputs: dict[tuple[int, int, bool], tuple[Tensor, Tensor, Cond]] = {}
        self._family = policy._family

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Return a context in which the network's calls are counted."""

        def call(pipe: Any, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
            kind = (len(x), len(cond["text"]), torch.is_grad_enabled())
            self.counts[kind] = self.counts.get(kind, 0) + 1
            if kind not in self._inputs:
                self._inputs[kind] = _to((x, t, cond), "cpu")
            return self._family.call(pipe, x, t, cond)

        self.policy._family = replace(self._family, call=call)
        try:
            yield
        finally:
            self.policy._family = self._family

    def seconds(self) -> dict[bool, float]:
        """Return the seconds of all counted calls alone, without and with gradient.

        A part of the calls is timed, and their time multiplied.
        """
        total = {False: 0.0, True: 0.0}
        for kind, count in self.counts.items():
            timed = ceil(count / TIMED_SHARE)
            total[kind[-1]] += self.time(kind, timed) * count / timed
        return total

    def time(self, kind: tuple[int, int, bool], count: int) -> float:
        """Return the seconds of so many calls of one kind, after one to warm up."""
        inputs = _to(self._inputs[kind], self.policy.device)
        call = self.with_gradient if kind[-1] else self.without_gradient
        call(inputs, 1)
        synchronize(self.policy.device)
        started = time.perf_counter()
        call(inputs, count)
        synchronize(self.policy.device)
        return time.perf_counter() - started

    def without_gradient(self, inputs: tuple[Tensor, Tensor, Cond], count: int) -> None:
        """Call the network with the adapter merged, as in sampling."""
        with torch.no_grad(), self.policy.merged():
            for _ in range(count):
                self.call(inputs)

    def with_gradient(self, inputs: tuple[Tensor, Tensor, Cond], count: int) -> None:
        """Call the network, and for the gradient of what is trained."""
        for _ in range(count):
            self.call(inputs).float().mean().backward()
            for weight in self.policy.trainable:
                weight.grad = None

    def call(self, inputs: tuple[Tensor, Tensor, Cond]) -> Tensor:
        """Return the network's output, computed as the policy computes it."""
        policy = self.policy
        reduced = policy.dtype != torch.float32
        with torch.autocast(policy.device.type, policy.dtype, enabled=reduced):
            return self._family.call(policy.pipe, *inputs)

    def table(self) -> list[dict[str, Any]]:
        """Return the kinds of calls and how many of each there were."""
        return [
            {"images": images, "texts": texts, "gradient": gradient, "calls": count}
            for (images, texts, gradient), count in self.counts.items()
        ]


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _to(
    inputs: tuple[Tensor, Tensor, Cond], device: torch.device | str
) -> tuple[Tensor, Tensor, Cond]:
    x, t, cond = inputs
    moved = {name: value.detach().to(device) for name, value in cond.items()}
    return x.detach().to(device), t.detach().to(device), moved
