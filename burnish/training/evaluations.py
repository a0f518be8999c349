"""When a run evaluates: before training, at intervals and at the end; and what the guard makes of
it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

from burnish.evaluation.guard import remember, verdict
from burnish.evaluation.paired import (
    Evaluation,
    compare,
    evaluate,
    load_evaluation,
    save_evaluation,
)
from burnish.prompts.identifiers import with_template
from burnish.runs import dumps, write
from burnish.training import checkpoint
from burnish.training.assembly import Parts
from burnish.training.export import averaged, save_adapter
from burnish.training.job import Job
from burnish.training.samples import draw_samples
from burnish.world import World


def evaluate_initial(job: Job, done: int) -> dict[str, Evaluation] | None:
    """The evaluation before training: measured at the first start, then read from the run
    directory.
    """
    settings = job.config.evaluation
    if settings.images_per_prompt == 0:
        return None
    if measured := load_evaluation(job.run.measured(0)):
        return measured

    if done:
        warnings.warn(
            f"{job.run.measured(0)} is missing, so there is nothing to compare with", stacklevel=3
        )
        return None

    chunk = job.config.batch.sample_batch
    measured = evaluate_all(
        job.parts, settings.images_per_prompt, settings.seed, chunk, job.world, job.poll
    )

    if job.world.main:
        save_evaluation(job.run.measured(0), measured)

    return measured


def evaluate_now(job: Job, first: dict[str, Evaluation], iteration: int) -> None:
    """Measure again with the same noise, and write the comparison with `first`."""
    settings = job.config.evaluation
    chunk = first["train"].chunk

    with averaged(job):
        count = settings.images_per_prompt
        template = job.parts.template
        measured = evaluate_all(
            job.parts, count, settings.seed, chunk, job.world, job.poll, template
        )

    if job.world.main:
        save_evaluation(job.run.measured(iteration), measured)
        write(job.run.evaluation, dumps(compare(first, measured, job.parts.weights), indent=1))


def check_guard(job: Job, first: dict[str, Evaluation], iteration: int) -> bool:
    """Ask the guard after an evaluation; whether it ends the run. With "rollback" the weights are
    the best ones then.

    All processes read the same evaluations, which the main one has written, and so come to the same
    verdict.
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
            warnings.warn(
                f"over-optimisation after iteration {iteration}: {'; '.join(said.reasons)}",
                stacklevel=3,
            )

        return False

    draw_samples(job, iteration)
    if action == "rollback":
        go_back(job, first, said.best)
    if job.world.main:
        remember(job.run, said, action)

    return True


def go_back(job: Job, first: dict[str, Evaluation], iteration: int) -> None:
    """Make the state after ``iteration`` the run's last: its weights, its comparison, its
    checkpoint.
    """
    kept_state = checkpoint.read(job.run.checkpoints / f"{iteration:06d}") if iteration else None
    state = job.first if kept_state is None else kept_state.average or kept_state.weights
    assert state is not None  # kept since the start, because the guard may roll back
    job.parts.policy.load_state(state)
    words = job.first_words if kept_state is None else kept_state.expander

    if job.parts.expander is not None and words is not None:
        job.parts.expander.load_state(words)

    if job.average is not None:
        job.average.load_state_dict(
            {"shadow_params": [p.detach().clone() for p in job.parts.policy.trainable]}
        )

    draw_samples(job, iteration)
    if not job.world.main:
        return

    measured = load_evaluation(job.run.measured(iteration))
    assert measured is not None
    write(job.run.evaluation, dumps(compare(first, measured, job.parts.weights), indent=1))
    save_adapter(job)
    checkpoint.forget(job.run.checkpoints, iteration)


def evaluate_all(
    parts: Parts,
    images_per_prompt: int,
    seed: int,
    chunk: int,
    world: World | None = None,
    poll: Callable[[], None] = lambda: None,
    template: str = "{}",
) -> dict[str, Evaluation]:
    """Evaluate on the training prompts and, if there are any, on the unseen ones, with ``template``
    around them.
    """
    return {
        name: evaluate(
            parts.policy,
            parts.sampler,
            with_template(prompts, template),
            parts.rewards,
            judge=parts.judge,
            tolerance=parts.tolerance,
            panel=parts.panel,
            expander=parts.expander,
            images_per_prompt=images_per_prompt,
            seed=seed,
            chunk=chunk,
            world=world,
            poll=poll,
        )
        for name, prompts in parts.judged.items()
    }
