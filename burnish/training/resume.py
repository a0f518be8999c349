"""Checkpoints of a job and going on from them: what is saved, what may change, what is put back."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any

from burnish import config as configuration
from burnish.config import Config, RunConfig
from burnish.evaluation.guard import verdict
from burnish.evaluation.paired import load_evaluation
from burnish.runs import Run
from burnish.training import checkpoint
from burnish.training.export import averaged, save_adapter
from burnish.training.job import Job

# What may differ from the first start on resume: how long, how fast and what is kept, but not what
# is learned.
MAY_CHANGE: dict[str, tuple[str, ...]] = {
    "iterations": (),
    "run": tuple(one.name for one in fields(RunConfig)),
    "model": ("device", "gradient_checkpointing"),
    "batch": ("sample_batch", "train_batch"),
    "evaluation": ("every",),
    "scoring": ("retries", "timeout", "missing", "patience"),
    "guard": ("action", "kl", "drop", "patience"),
}


def save(job: Job, iteration: int) -> None:
    """A checkpoint after `iteration`, and the weights in diffusers' format."""
    if (
        not job.world.main
        or iteration == 0
        or checkpoint.whole(job.run.checkpoints / f"{iteration:06d}")
    ):
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
    checkpoint.save(
        job.run.checkpoints, state, job.config.run.keep, spared=best_iteration(job, iteration)
    )
    save_adapter(job)


def memory(part: Any) -> dict[str, Any]:
    """What a part remembers from iteration to iteration, ready for JSON."""
    return part.state_dict() if hasattr(part, "state_dict") else {}


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

    return {
        "expander": job.parts.expander.state(),
        "wordsmith": checkpoint.optimizer_tensors(job.wordsmith),
    }


def best_iteration(job: Job, iteration: int) -> int:
    """The iteration to which the guard would go back; 0 without one."""
    first = load_evaluation(job.run.measured(0)) if job.config.guard.action == "rollback" else None
    return (
        verdict(job.run, job.config, job.parts.weights, first["train"], iteration).best
        if first
        else 0
    )


def restore(job: Job) -> int:
    """Put the newest checkpoint into the job's parts; returns the iterations that are done, 0
    without a checkpoint.
    """
    state = checkpoint.restore(job.run.checkpoints)
    if state is None:
        return 0

    try:
        if job.average is not None:
            job.parts.policy.load_state(state.average)
            shadow = [parameter.detach().clone() for parameter in job.parts.policy.trainable]
            job.average.load_state_dict(
                {"shadow_params": shadow, "optimization_step": state.averaged}
            )

        job.parts.policy.load_state(state.weights)
        if job.parts.expander is not None:
            job.parts.expander.load_state(state.expander)
    except ValueError as error:
        raise ValueError(
            f"{job.run.checkpoints} does not fit the configuration: {error}"
        ) from error

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


def check_not_guarded(run: Run) -> None:
    """ValueError if the guard has ended the run."""
    if not run.guard.exists():
        return

    about = json.loads(run.guard.read_text("utf-8"))
    raise ValueError(
        f"{run.folder}: the guard ended this run after iteration {about['iteration']} ({'; '.join(about['reasons'])}); "
        f'to go on all the same, delete {run.guard} and set guard.action = "none" or a larger guard.drop'
    )


def check_unchanged(config: Config, run: Run) -> None:
    """ValueError if a run is resumed with another configuration, beyond what may change."""
    old = asdict(configuration.load(run.config))
    new = asdict(config)
    changed = []

    for section, value in new.items():
        if isinstance(value, dict):
            keys = [
                key for key in {**value, **old[section]} if value.get(key) != old[section].get(key)
            ]
            changed += [
                f"{section}.{key}" for key in keys if key not in MAY_CHANGE.get(section, ())
            ]
        elif value != old[section] and section not in MAY_CHANGE:
            changed.append(section)

    if changed:
        raise ValueError(
            f"{run.folder} was trained with another {', '.join(changed)}; leave that as it was, or start a new --out "
            f'with model.adapter = "{run.adapter}"'
        )
