"""What a run leaves behind while it goes: checkpoints, the adapter, sample grids, evaluations. `runs` has the places.

Only the main process writes. Everything here can be asked for twice: what is already on the disk is not made again.
"""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from burnish import checkpoint, identifiers
from burnish import config as configuration
from burnish.config import Config, Keeping
from burnish.evaluate import Evaluation, compare, keep, kept, measure
from burnish.guard import remember, verdict
from burnish.parts import Parts
from burnish.runs import Run, dumps, write
from burnish.seeds import generator
from burnish.types import Prompt
from burnish.world import World

ASKED = 8  # prompts in the grid of the identifiers
# What may differ from the first start on resume: how long, how fast and what is kept, but not what is learned.
MAY_CHANGE: dict[str, tuple[str, ...]] = {
    "iterations": (),
    "run": tuple(one.name for one in fields(Keeping)),
    "model": ("device", "gradient_checkpointing"),
    "batch": ("sample", "replay"),
    "evaluation": ("every",),
    "scoring": ("retries", "timeout", "missing", "patience"),
    "guard": ("action", "kl", "drop", "patience"),
}


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
    first: dict[str, Tensor] | None  # the weights before training, where the guard may go back to them
    average: Any = None  # diffusers' EMAModel of the trained weights, if there is one
    wordsmith: torch.optim.Optimizer | None = None  # the prompt expander's, if it learns
    first_words: dict[str, Tensor] | None = None  # the expander's weights before training, where `first` is kept


def save(job: Job, iteration: int) -> None:
    """A checkpoint after `iteration`, and the weights in diffusers' format."""
    if not job.world.main or iteration == 0 or checkpoint.whole(job.run.checkpoints / f"{iteration:06d}"):
        return
    state = checkpoint.State(
        iteration=iteration,
        weights=job.parts.policy.state(),
        optimizer=checkpoint.optimizer_tensors(job.optimizer),
        advantage=memory(job.parts.advantage),
        curriculum=memory(job.parts.curriculum),
        scaler=job.scaler.state_dict(),
        **expander_state(job),
        **average_state(job),
    )
    checkpoint.save(job.run.checkpoints, state, job.config.run.keep, spared=best(job, iteration))
    save_adapter(job)


def memory(part: Any) -> dict[str, Any]:
    """What a part remembers from iteration to iteration, ready for JSON."""
    return part.state_dict() if hasattr(part, "state_dict") else {}


def save_adapter(job: Job) -> None:
    """The weights in diffusers' format, averaged if there is an average."""
    with averaged(job), checkpoint.saving(job.run.adapter):
        if job.parts.policy.train != "none":
            job.parts.policy.save_adapter(job.run.adapter)
        if job.parts.expander is not None:
            job.parts.expander.save(job.run.adapter / "expander")
        if job.config.sampler.identifiers == "tokens":
            identifiers.save(job.parts.policy.pipe, len(job.parts.rewards), job.run.adapter / "identifiers")


@contextmanager
def averaged(job: Job) -> Iterator[None]:
    """Within it the policy has the moving average of its weights, if there is one."""
    if job.average is None:
        yield
        return
    job.average.store(job.parts.policy.trainable)
    job.average.copy_to(job.parts.policy.trainable)
    try:
        yield
    finally:
        job.average.restore(job.parts.policy.trainable)


def average_state(job: Job) -> dict[str, Any]:
    """The moving average, as a checkpoint's fields."""
    if job.average is None:
        return {}
    with averaged(job):
        return {"average": job.parts.policy.state(), "averaged": job.average.optimization_step}


def expander_state(job: Job) -> dict[str, Any]:
    """What the prompt expander learned and its optimizer remembers, as a checkpoint's fields."""
    if job.parts.expander is None or job.wordsmith is None:
        return {}
    return {"expander": job.parts.expander.state(), "wordsmith": checkpoint.optimizer_tensors(job.wordsmith)}


def best(job: Job, iteration: int) -> int:
    """The iteration to which the guard would go back; 0 without one."""
    first = kept(job.run.measured(0)) if job.config.guard.action == "rollback" else None
    return verdict(job.run, job.config, job.parts.weights, first["train"], iteration).best if first else 0


def restore(job: Job) -> int:
    """Put the newest checkpoint into the job's parts; returns the iterations that are done, 0 without a checkpoint."""
    state = checkpoint.restore(job.run.checkpoints)
    if state is None:
        return 0
    try:
        if job.average is not None:
            job.parts.policy.load_state(state.average)
            shadow = [parameter.detach().clone() for parameter in job.parts.policy.trainable]
            job.average.load_state_dict({"shadow_params": shadow, "optimization_step": state.averaged})
        job.parts.policy.load_state(state.weights)
        if job.parts.expander is not None:
            job.parts.expander.load_state(state.expander)
    except ValueError as error:
        raise ValueError(f"{job.run.checkpoints} does not fit the configuration: {error}") from error
    checkpoint.load_optimizer(job.optimizer, state.optimizer)
    if job.wordsmith is not None:
        checkpoint.load_optimizer(job.wordsmith, state.wordsmith)
    if state.advantage:
        job.parts.advantage.load_state_dict(state.advantage)
    if state.curriculum:
        job.parts.curriculum.load_state_dict(state.curriculum)
    if job.scaler.is_enabled():
        job.scaler.load_state_dict(state.scaler)
    return state.iteration


def before(job: Job, done: int) -> dict[str, Evaluation] | None:
    """The evaluation before training: measured at the first start, then read from the run directory."""
    settings = job.config.evaluation
    if settings.images_per_prompt == 0:
        return None
    if measured := kept(job.run.measured(0)):
        return measured
    if done:
        warnings.warn(f"{job.run.measured(0)} is missing, so there is nothing to compare with", stacklevel=3)
        return None
    chunk = job.config.batch.sample
    measured = measure(job.parts, settings.images_per_prompt, settings.seed, chunk, job.world, job.poll)
    if job.world.main:
        keep(job.run.measured(0), measured)
    return measured


def after(job: Job, first: dict[str, Evaluation], iteration: int) -> None:
    """Measure again with the same noise, and write the comparison with `first`."""
    settings, chunk = job.config.evaluation, first["train"].chunk
    with averaged(job):
        count, frame = settings.images_per_prompt, job.parts.frame
        measured = measure(job.parts, count, settings.seed, chunk, job.world, job.poll, frame)
    if job.world.main:
        keep(job.run.measured(iteration), measured)
        write(job.run.evaluation, dumps(compare(first, measured, job.parts.weights), indent=1))


def watch(job: Job, first: dict[str, Evaluation], iteration: int) -> bool:
    """Ask the guard after an evaluation; whether it ends the run. With "rollback" the weights are the best ones then.

    All processes read the same evaluations, which the main one has written, and so come to the same verdict.
    """
    action = job.config.guard.action
    if action == "none":
        return False
    job.world.any(False)  # wait until the main process has written
    said = verdict(job.run, job.config, job.parts.weights, first["train"], iteration)
    if not said.tripped:
        return False
    if action == "warn":
        if job.world.main:
            warnings.warn(f"over-optimisation after iteration {iteration}: {'; '.join(said.reasons)}", stacklevel=3)
        return False
    draw_samples(job, iteration)
    if action == "rollback":
        go_back(job, first, said.best)
    if job.world.main:
        remember(job.run, said, action)
    return True


def go_back(job: Job, first: dict[str, Evaluation], iteration: int) -> None:
    """Make the state after ``iteration`` the run's last: its weights, its comparison, its checkpoint."""
    kept_state = checkpoint.read(job.run.checkpoints / f"{iteration:06d}") if iteration else None
    state = job.first if kept_state is None else kept_state.average or kept_state.weights
    assert state is not None  # kept since the start, because the guard may roll back
    job.parts.policy.load_state(state)
    words = job.first_words if kept_state is None else kept_state.expander
    if job.parts.expander is not None and words is not None:
        job.parts.expander.load_state(words)
    if job.average is not None:
        job.average.load_state_dict({"shadow_params": [p.detach().clone() for p in job.parts.policy.trainable]})
    draw_samples(job, iteration)
    if not job.world.main:
        return
    measured = kept(job.run.measured(iteration))
    assert measured is not None
    write(job.run.evaluation, dumps(compare(first, measured, job.parts.weights), indent=1))
    save_adapter(job)
    checkpoint.forget(job.run.checkpoints, iteration)


def draw_samples(job: Job, iteration: int) -> None:
    """One grid of pictures, from the same prompts and noise each time."""
    if not job.world.main or not job.config.run.sample_every or job.run.sample(iteration).exists():
        return
    prompts = spread(job.parts.prompts, job.config.run.sample_prompts)
    prompts = identifiers.ask(prompts, job.parts.frame if iteration else "{}")
    with averaged(job):
        images = _paint(job, prompts)
    picture, columns = grid(images)
    layout = {"texts": [prompt.text for prompt in prompts], "columns": columns, "size": images.shape[-1]}
    write(job.run.samples / "prompts.json", dumps(layout))
    write(job.run.sample(iteration), picture)


def draw_asked(job: Job, iteration: int) -> None:
    """What the identifiers do: a grid of a few prompts asked for every reward together, then for each reward alone,
    from the same noise. Nothing without identifiers."""
    config, path = job.config, job.run.asked(iteration)
    if not job.world.main or not config.sampler.identifiers or not config.run.sample_every or path.exists():
        return
    prompts = spread(job.parts.prompts, min(ASKED, config.run.sample_prompts))
    names = list(job.parts.rewards)
    frames = [identifiers.frame([place], config.sampler.identifiers_after) for place in range(len(names))]
    with averaged(job):
        images = [_paint(job, identifiers.ask(prompts, frame)) for frame in (job.parts.frame, *frames)]
    picture, columns = grid(torch.cat(images))
    layout = {"texts": [prompt.text for prompt in prompts], "asked": ["all", *names], "columns": columns}
    write(path.with_suffix(".json"), dumps(layout))
    write(path, picture)


def _paint(job: Job, prompts: list[Prompt]) -> Tensor:
    """Pictures (B, 3, H, W) of the prompts, from the noise and the words of the run's samples."""
    parts, size = job.parts, job.config.batch.sample
    noise, images = generator(job.config.seed, "samples"), []
    for start in range(0, len(prompts), size):
        some = prompts[start : start + size]
        if parts.expander is not None:
            some = parts.expander.draw(some, generator(job.config.seed, "samples", "expansions", start)).prompts
        cond = parts.sampler.encode(parts.policy, some)
        trajectory = parts.sampler.rollout(parts.policy, cond, torch.arange(len(some)), noise)
        images.append(parts.policy.decode(trajectory.latent).cpu())
    return torch.cat(images)


def spread(prompts: list[Prompt], count: int) -> list[Prompt]:
    """`count` prompts at even distances, over and over if there are fewer."""
    if count <= len(prompts):
        return [prompts[place * len(prompts) // count] for place in range(count)]
    return [prompts[place % len(prompts)] for place in range(count)]


def grid(images: Tensor) -> tuple[bytes, int]:
    """Images (B, 3, H, W) in [0, 1] side by side without gaps, row by row, as a PNG; and the number of columns."""
    count, _, height, width = images.shape
    columns = math.ceil(math.sqrt(count * height / width))
    lines = math.ceil(count / columns)
    sheet = torch.ones(lines * columns, 3, height, width)
    sheet[:count] = images
    pixels = sheet.view(lines, columns, 3, height, width).permute(0, 3, 1, 4, 2).reshape(lines * height, -1, 3)
    file = io.BytesIO()
    Image.fromarray(pixels.mul(255).round().to(torch.uint8).numpy()).save(file, format="PNG")
    return file.getvalue(), columns


def check_guard(run: Run) -> None:
    """ValueError if the guard has ended the run."""
    if not run.guard.exists():
        return
    about = json.loads(run.guard.read_text("utf-8"))
    raise ValueError(
        f"{run.folder}: the guard ended this run after iteration {about['iteration']} ({'; '.join(about['reasons'])}); "
        f'to go on all the same, delete {run.guard} and set guard.action = "none" or a larger guard.drop'
    )


def check_same(config: Config, run: Run) -> None:
    """ValueError if a run is resumed with another configuration, beyond what may change."""
    old, new = asdict(configuration.load(run.config)), asdict(config)
    changed = []
    for section, value in new.items():
        if isinstance(value, dict):
            keys = [key for key in {**value, **old[section]} if value.get(key) != old[section].get(key)]
            changed += [f"{section}.{key}" for key in keys if key not in MAY_CHANGE.get(section, ())]
        elif value != old[section] and section not in MAY_CHANGE:
            changed.append(section)
    if changed:
        raise ValueError(
            f"{run.folder} was trained with another {', '.join(changed)}; leave that as it was, or start a new --out "
            f'with model.adapter = "{run.adapter}"'
        )
