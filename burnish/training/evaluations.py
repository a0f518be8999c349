"""A run evaluates before training, at intervals and at the end; then its guard decides."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from burnish.evaluation.guard import GuardDecision, decide, remember
from burnish.evaluation.paired import (
    Evaluation,
    compare,
    evaluate,
    load_evaluation,
    save_evaluation,
)
from burnish.files import dumps, write
from burnish.prompts.identifiers import with_template
from burnish.runs import guard_verdict
from burnish.stages import stage
from burnish.training import checkpoint
from burnish.training.assembly import EvaluationParts, check_evaluated
from burnish.training.job import Job
from burnish.training.learners import averaged
from burnish.training.resume import export
from burnish.training.samples import draw_samples
from burnish.training.thumbnails import Thumbnails
from burnish.world import World

Evaluations = dict[str, Evaluation]
"""By set of prompts: "train" and, if there are any, "unseen"."""


def evaluate_initial(job: Job, done: int) -> Evaluations | None:
    """Return the evaluation before training: made at the first start, read afterwards."""
    settings = job.config.evaluation
    path = job.run.evaluation_file(0)
    if settings.images_per_prompt == 0:
        return None
    if stored := load_evaluation(path):
        check_same_prompts(stored, job.parts, path)
        return stored

    if done:
        if job.config.guard.action != "none":
            raise FileNotFoundError(
                f"{path} is missing, so the guard has nothing to compare with; put it back, or set "
                'guard.action = "none"'
            )
        warnings.warn(f"{path} is missing, so there is nothing to compare with", stacklevel=3)
        return None

    evaluations = evaluate_all(
        job.parts,
        settings.images_per_prompt,
        settings.seed,
        job.config.batch.sample_batch,
        job.world,
        job.poll,
        when="before training",
    )
    if job.world.main:
        save_evaluation(path, evaluations)

    return evaluations


def check_same_prompts(stored: Evaluations, parts: EvaluationParts, path: Path) -> None:
    """Refuse to go on where later evaluations would have other prompts than the stored one.

    Raises:
        ValueError: they would; the message names the set and the file.
    """
    for name, prompts in parts.evaluation_prompts.items():
        texts = [prompt.text for prompt in prompts]
        if name in stored and stored[name].prompts != texts:
            raise ValueError(
                f"{path} has other {name} prompts than this configuration gives now: put the "
                "prompts and evaluation.max_prompts back as they were, or start a new --out"
            )


def evaluate_now(job: Job, initial: Evaluations, iteration: int) -> None:
    """Evaluate with the noise of the initial evaluation, and write the comparison.

    An evaluation that is on the disk is not made again.
    """
    settings = job.config.evaluation
    path = job.run.evaluation_file(iteration)
    missing = job.world.any(not path.exists())
    evaluations = None if missing else load_evaluation(path)

    if evaluations is None:
        # of several processes each has only some of the images
        alone = job.world.count == 1
        thumbnails = Thumbnails(job.config.run.thumbnails if alone else 0)
        with averaged(job.learners):
            evaluations = evaluate_all(
                job.parts,
                settings.images_per_prompt,
                settings.seed,
                initial["train"].chunk,
                job.world,
                job.poll,
                job.parts.template,
                f"after iteration {iteration}",
                thumbnails.add,
            )
        if job.world.main:
            thumbnails.write_evaluation(job.run, iteration)
            save_evaluation(path, evaluations)

    if job.world.main:
        comparison = compare(initial, evaluations, job.parts.evaluated_weights)
        write(job.run.evaluation, dumps(comparison, indent=1))
        if missing:
            job.world.tracking.evaluation(comparison, job.run.evaluation, iteration)


def evaluate_all(
    parts: EvaluationParts,
    images_per_prompt: int,
    seed: int,
    chunk: int,
    world: World | None = None,
    poll: Callable[[], None] = lambda: None,
    template: str = "{}",
    when: str = "",
    on_images: Callable[[Tensor], None] = lambda images: None,
) -> Evaluations:
    """Return the evaluations on the training prompts and, if there are any, the unseen ones.

    Args:
        parts: what is evaluated, by which rewards and judges, on which prompts.
        images_per_prompt: of each set.
        seed: of the noise.
        chunk: images sampled at once; decides which noise an image gets.
        world: processes that share the work.
        poll: called before each chunk; may raise to stop.
        template: put around the prompts' texts.
        when: the evaluation is made, for who watches.
        on_images: called with each chunk of images of the training prompts.

    Raises:
        ValueError: all rewards know training images only.
    """
    check_evaluated(parts.rewards)
    sets = parts.evaluation_prompts
    counts = " + ".join(
        f"{_share(len(prompts), parts.listed.get(name, 0))} {name}"
        for name, prompts in sets.items()
    )
    total = images_per_prompt * sum(map(len, sets.values()))
    detail = f"{counts} prompts x {images_per_prompt} = {total} images"

    with stage(f"evaluation {when}", detail, total):
        return {
            name: evaluate(
                parts.policy,
                parts.sampler,
                with_template(prompts, template),
                parts.evaluated,
                judge=parts.judge,
                tolerance=parts.tolerance,
                panel=parts.panel,
                expander=parts.expander,
                images_per_prompt=images_per_prompt,
                seed=seed,
                chunk=chunk,
                world=world,
                poll=poll,
                on_images=on_images if name == "train" else lambda images: None,
            )
            for name, prompts in sets.items()
        }


def _share(count: int, listed: int) -> str:
    """Return a number of prompts, with that of the list from which they were taken."""
    return f"{count:,} of {listed:,}" if listed > count else f"{count}"


def check_guard(job: Job, initial: Evaluations, iteration: int) -> bool:
    """Return whether the guard ends the run after an evaluation.

    With "rollback" the run's weights are the best ones then. All processes read the same
    evaluations, which the main one has written, and so come to the same decision.
    """
    action = job.config.guard.action
    if action == "none":
        return False

    job.world.any(False)  # wait until the main process has written
    decision = decide(job.run, job.config, job.parts.evaluated_weights, initial["train"], iteration)
    if not decision.tripped:
        return False
    if action == "warn":
        _warn(job, decision)
        return False

    draw_samples(job, iteration)
    if action == "rollback":
        roll_back(job, initial, decision.best)
    if job.world.main:
        verdict = guard_verdict(remember(job.run, decision, action))
        job.world.tracking.text("guard", verdict, job.run.guard, iteration)
    return True


def roll_back(job: Job, initial: Evaluations, iteration: int) -> None:
    """Make the state after `iteration` the run's last: weights, comparison and checkpoint."""
    folder = job.run.checkpoints / f"{iteration:06d}"
    stored = checkpoint.read(folder).learners if iteration else {}
    for name, learner in job.learners.items():
        learner.reset(stored.get(name))

    draw_samples(job, iteration)
    if not job.world.main:
        if job.parts.policy.sharded:
            export(job, iteration)
        return

    path = job.run.evaluation_file(iteration)
    evaluations = load_evaluation(path)
    if evaluations is None:
        raise FileNotFoundError(f"{path} is missing, so the guard cannot go back to it")

    comparison = compare(initial, evaluations, job.parts.evaluated_weights)
    write(job.run.evaluation, dumps(comparison, indent=1))
    export(job, iteration)
    checkpoint.forget(job.run.checkpoints, iteration)


def _warn(job: Job, decision: GuardDecision) -> None:
    if job.world.main:
        reasons = "; ".join(decision.reasons)
        verdict = f"over-optimisation after iteration {decision.iteration}: {reasons}"
        job.world.tracking.text("guard", verdict, job.run.evaluation, decision.iteration)
        warnings.warn(verdict, stacklevel=4)
