"""Saving a job and going on with it: what is saved, what may change, what is put back."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from burnish import config as configuration
from burnish.config import Config
from burnish.errors import type_and_message
from burnish.evaluation.guard import decide
from burnish.evaluation.paired import load_evaluation
from burnish.run_files import GuardFile, read_json
from burnish.runs import Run, clear, log_digest
from burnish.stages import stage
from burnish.training import checkpoint
from burnish.training.checkpoint import tensor_error_context
from burnish.training.export import write_export
from burnish.training.job import Job
from burnish.training.learners import averaged
from burnish.training.origin import changes, decides_evaluations, origin_of
from burnish.world import World

FIXED = (
    "model",
    "sampler.identifiers_learn",
    "expander.model",
    "expander.train",
    "expander.rank",
    "guard.action",
)
"""Keys that --accept-changes does not help: the checkpoint's weights are of another shape."""

MOST_NAMED = 5  # changes in a message
ACCEPT = "--accept-changes (in Python accept_changes=True)"


def save(job: Job, iteration: int, origin: Mapping[str, Any]) -> None:
    """Write a checkpoint after `iteration`, and the weights in formats of other programs.

    Of a sharded network all processes give their parts, and the main one writes.

    Args:
        job: the run.
        iteration: that is done.
        origin: where the run comes from, as it was when this process began.
    """
    path = job.run.checkpoints / f"{iteration:06d}"
    if not job.takes_part(iteration > 0 and not checkpoint.is_intact(path)):
        return
    if not job.world.main:
        job.learners["generator"].state()
        export(job, iteration)
        return

    parts = job.parts
    state = checkpoint.State(
        iteration=iteration,
        learners={name: learner.state() for name, learner in job.learners.items()},
        memory={
            "advantage": parts.advantage.state_dict(),
            "curriculum": parts.curriculum.state_dict(),
        },
        origin={**origin, "log": log_digest(job.run, iteration)},
    )
    spared = best_iteration(job, iteration)
    routine = iteration < job.config.iterations
    with stage("saving", f"checkpoint after iteration {iteration}", routine=routine):
        checkpoint.save(job.run.checkpoints, state, job.config.run.keep, spared)
        export(job, iteration)


def make_up(job: Job, done: int) -> None:
    """Do what was due after the checkpoint of iteration `done`, and may not have been done."""
    if not job.takes_part(done > 0):
        return
    if job.world.main:
        spared = best_iteration(job, done)
        checkpoint.prune(job.run.checkpoints, done, job.config.run.keep, spared)
    export(job, done)


def export(job: Job, iteration: int) -> None:
    """Write what the learners have learned, averaged if there is an average, to RUN/adapter.

    RUN/adapter.json comes last, so that an adapter that is not complete can be told. Of a sharded
    network all processes give their parts, and the main one writes.
    """
    folder = job.run.adapter
    with averaged(job.learners), tensor_error_context(folder):
        if not job.world.main:
            job.parts.policy.save_adapter(folder)
            return
        for learner in job.learners.values():
            learner.export(folder)
        write_export(job.run, iteration)


def restore(job: Job, accept_changes: bool = False) -> int:
    """Put the newest checkpoint into the job; return the iterations that are done, or 0.

    Args:
        job: the run.
        accept_changes: go on although what was trained with is not what there is now.

    Raises:
        ValueError: the checkpoint does not fit the configuration or the run's files, or none is
            intact.
    """
    state = checkpoint.restore(job.run.checkpoints)
    origin = origin_of(job.config, job.world, job.parts)
    if state is None:
        start_over(job, origin)
        return 0

    changed = check_origin(
        job.run, state.origin or _origin_on_disk(job.run), origin, accept_changes
    )
    if not accept_changes:
        check_log(job.run, state)

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

    parts: dict[str, Any] = {
        "advantage": job.parts.advantage,
        "curriculum": job.parts.curriculum,
    }
    if {name.split(".")[0].split(" ")[0] for name in changed} & {"rewards", "prompts"}:
        del parts["advantage"]  # it remembers rewards of prompts that are others now

    for name, part in parts.items():
        if memory := state.memory.get(name):
            try:
                part.load_state_dict(memory)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ValueError(
                    f"{job.run.checkpoints}: what the {name} remembers cannot be restored "
                    f"({type_and_message(error)}); delete the newest checkpoint"
                ) from error

    if decides_evaluations(changed):
        drop_evaluations(job)
    return state.iteration


def start_over(job: Job, origin: Mapping[str, Any]) -> None:
    """Remove what an unfinished first iteration has left, if it was of another origin."""
    run = job.run
    if job.world.main:
        stored = read_json(run.origin, dict[str, Any], "delete it") if run.origin.is_file() else {}
        if not stored or changes(stored, origin):
            clear(run)
        shutil.rmtree(run.samples, ignore_errors=True)  # quickly drawn, in another layout perhaps

    job.world.any(False)  # nobody reads before that


def drop_evaluations(job: Job) -> None:
    """Remove the evaluations of what has changed since.

    Raises:
        ValueError: the guard needs them.
    """
    if job.config.guard.action != "none":
        raise ValueError(
            f"{job.run.folder}: the guard compares with the evaluation before training, which is "
            'not of these rewards and prompts; set guard.action = "none"'
        )

    if job.world.main and job.run.evaluation_file(0).exists():
        warnings.warn(
            f"{job.run.folder}: its evaluations are of what was before the change and are removed; "
            f"afterwards compare with burnish evaluate {job.run.folder}",
            stacklevel=3,
        )
        shutil.rmtree(job.run.evaluation_file(0).parent)
        job.run.evaluation.unlink(missing_ok=True)
    job.world.any(False)


def best_iteration(job: Job, iteration: int) -> int:
    """Return the iteration to which the guard would go back; 0 without one."""
    if job.config.guard.action != "rollback":
        return 0

    initial = load_evaluation(job.run.evaluation_file(0))
    if not initial:
        return 0
    return decide(
        job.run, job.config, job.parts.evaluated_weights, initial["train"], iteration
    ).best


def check_not_guarded(run: Run) -> None:
    """Refuse to go on with a run that the guard has ended.

    Raises:
        ValueError: it has; the message says why, and how to go on all the same.
    """
    if not run.guard.exists():
        return

    about = read_json(run.guard, GuardFile, "delete it, and the guard decides again")
    raise ValueError(
        f"{run.folder}: the guard ended this run after iteration {about['iteration']} "
        f"({'; '.join(about['reasons'])}); to go on all the same, delete {run.guard} and set "
        'guard.action = "none" or a larger guard.drop'
    )


def check_unchanged(config: Config, run: Run, world: World, accept_changes: bool = False) -> None:
    """Refuse to go on with a run under another configuration, beyond what may change.

    Compared is what the newest checkpoint says; without one nothing was learned, and all may
    change.

    Raises:
        ValueError: a key, a file or the number of processes differs; the message names it.
    """
    if about := checkpoint.newest(run.checkpoints):
        old = about.get("origin") or _origin_on_disk(run)
        check_origin(run, old, origin_of(config, world), accept_changes)


def check_origin(
    run: Run, old: Mapping[str, Any], new: Mapping[str, Any], accept_changes: bool
) -> dict[str, str]:
    """Return what has changed since a checkpoint, if that is accepted.

    Raises:
        ValueError: it is not accepted, or cannot be.
    """
    changed = changes(old, new)
    fixed = [
        name
        for name, remark in changed.items()
        if not remark.startswith("the file") and any(f"{name}.".startswith(f"{f}.") for f in FIXED)
    ]
    if not changed or (accept_changes and not fixed):
        return changed

    names = list(changed)[:MOST_NAMED]
    more = f" and {len(changed) - len(names)} more" if len(changed) > len(names) else ""
    remarks = "; ".join(f"{name}: {changed[name]}" for name in names)
    accept = "" if fixed else f"go on with what there is now by {ACCEPT}, "
    expander = run.adapter / "expander"
    own = not expander.is_dir() or any(path != expander for path in run.adapter.iterdir())
    starts = [f'model.adapter = "{run.adapter}"'] if own else []
    starts += [f'expander.adapter = "{expander}"'] if expander.is_dir() else []
    raise ValueError(
        f"{run.folder} was trained with another {', '.join(names)}{more}; leave that as it was "
        f"({remarks}), {accept}or start a new --out with {' and '.join(starts)}"
    )


def check_log(run: Run, state: checkpoint.State) -> None:
    """Refuse a log that is not what it was when a checkpoint was written.

    Raises:
        ValueError: lines are missing or were changed.
    """
    done = state.iteration
    rows = [record["iteration"] for record in run.records() if record["iteration"] <= done]
    written = state.origin.get("log")
    if written == log_digest(run, done) or (written is None and rows == [*range(1, done + 1)]):
        return

    missing = f"it has {len(rows)} of {done} lines" if len(rows) < done else "lines have changed"
    raise ValueError(
        f"{run.log} is not what it was after iteration {done}: {missing}; put the file back, or go "
        f"on with it as it is by {ACCEPT}"
    )


def _origin_on_disk(run: Run) -> dict[str, Any]:
    """Return what is known of a run whose checkpoints do not say where it comes from."""
    return {"config": asdict(configuration.load(run.config, purpose="compare"))}
