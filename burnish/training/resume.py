"""Saving a job and going on with it: what is saved, what may change, what is put back."""

from __future__ import annotations

import json
from dataclasses import asdict, fields

from burnish import config as configuration
from burnish.config import Config, RunConfig
from burnish.evaluation.guard import decide
from burnish.evaluation.paired import load_evaluation
from burnish.runs import Run
from burnish.stages import stage
from burnish.training import checkpoint
from burnish.training.checkpoint import tensor_error_context
from burnish.training.job import Job
from burnish.training.learners import averaged

# What may differ from the first start on resume: how long, how fast and what is kept, but not what
# is learned.
MAY_CHANGE: dict[str, tuple[str, ...]] = {
    "iterations": (),
    "run": tuple(field.name for field in fields(RunConfig)),
    "model": ("device", "gradient_checkpointing"),
    "batch": ("sample_batch", "train_batch"),
    "evaluation": ("every",),
    "scoring": ("retries", "timeout", "missing", "patience"),
    "guard": ("action", "kl", "drop", "patience"),
}

GUARD_MAY_BECOME = {
    "none": ("none",),  # nothing was measured that it could watch
    "warn": ("none", "warn", "stop"),  # the checkpoint that it would go back to may be gone
    "stop": ("none", "warn", "stop"),
    "rollback": ("none", "warn", "stop", "rollback"),
}
"""The actions that a run's guard may have on resume, by the one it had."""


def save(job: Job, iteration: int) -> None:
    """Write a checkpoint after `iteration`, and the weights in formats of other programs."""
    path = job.run.checkpoints / f"{iteration:06d}"
    if not job.world.main or iteration == 0 or checkpoint.is_intact(path):
        return

    parts = job.parts
    state = checkpoint.State(
        iteration=iteration,
        learners={name: learner.state() for name, learner in job.learners.items()},
        memory={
            "advantage": parts.advantage.state_dict(),
            "curriculum": parts.curriculum.state_dict(),
        },
    )
    spared = best_iteration(job, iteration)
    routine = iteration < job.config.iterations
    with stage("saving", f"checkpoint after iteration {iteration}", routine=routine):
        checkpoint.save(job.run.checkpoints, state, job.config.run.keep, spared)
        export(job)


def export(job: Job) -> None:
    """Write what the learners have learned, averaged if there is an average, to RUN/adapter."""
    with averaged(job.learners), tensor_error_context(job.run.adapter):
        for learner in job.learners.values():
            learner.export(job.run.adapter)


def restore(job: Job) -> int:
    """Put the newest checkpoint into the job; return the iterations that are done, or 0.

    Raises:
        ValueError: the checkpoint does not fit the configuration, or none is intact.
    """
    state = checkpoint.restore(job.run.checkpoints)
    if state is None:
        return 0

    if state.learners.keys() != job.learners.keys():
        raise ValueError(
            f"{job.run.folder} was trained with the learners {', '.join(state.learners)}, and this "
            f"program gives {', '.join(job.learners)}; give the same ones in overrides.learners"
        )

    try:
        for name, learner in job.learners.items():
            learner.load_state(state.learners[name])
    except ValueError as error:
        raise ValueError(
            f"{job.run.checkpoints} does not fit the configuration: {error}"
        ) from error

    if memory := state.memory.get("advantage"):
        job.parts.advantage.load_state_dict(memory)
    if memory := state.memory.get("curriculum"):
        job.parts.curriculum.load_state_dict(memory)

    return state.iteration


def best_iteration(job: Job, iteration: int) -> int:
    """Return the iteration to which the guard would go back; 0 without one."""
    if job.config.guard.action != "rollback":
        return 0

    initial = load_evaluation(job.run.evaluation_file(0))
    if not initial:
        return 0
    return decide(job.run, job.config, job.parts.weights, initial["train"], iteration).best


def check_not_guarded(run: Run) -> None:
    """Refuse to go on with a run that the guard has ended.

    Raises:
        ValueError: it has; the message says why, and how to go on all the same.
    """
    if not run.guard.exists():
        return

    about = json.loads(run.guard.read_text("utf-8"))
    raise ValueError(
        f"{run.folder}: the guard ended this run after iteration {about['iteration']} "
        f"({'; '.join(about['reasons'])}); to go on all the same, delete {run.guard} and set "
        'guard.action = "none" or a larger guard.drop'
    )


def check_unchanged(config: Config, run: Run) -> None:
    """Refuse to go on with a run under another configuration, beyond what may change.

    Raises:
        ValueError: a key differs; the message names all that do.
    """
    old = asdict(configuration.load(run.config))
    new = asdict(config)
    changed = []

    for section, value in new.items():
        if isinstance(value, dict):
            keys = {**value, **old[section]}
            changed += [
                f"{section}.{key}"
                for key in keys
                if value.get(key) != old[section].get(key)
                and key not in MAY_CHANGE.get(section, ())
            ]
        elif value != old[section] and section not in MAY_CHANGE:
            changed.append(section)

    before = old["guard"]["action"]
    if config.guard.action not in GUARD_MAY_BECOME[before]:
        changed.append("guard.action")

    if changed:
        raise ValueError(
            f"{run.folder} was trained with another {', '.join(changed)}; leave that as it was, or "
            f'start a new --out with model.adapter = "{run.adapter}"'
        )
