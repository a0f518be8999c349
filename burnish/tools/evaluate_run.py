"""Evaluate a finished run: its newest checkpoint against the model it started from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from burnish import config as configuration
from burnish.config import Config, Table
from burnish.evaluation.paired import compare, load_evaluation
from burnish.files import dumps, write
from burnish.references import Purpose
from burnish.runs import Run
from burnish.seeds import seed_globals
from burnish.training import checkpoint
from burnish.training.assembly import EvaluationParts, assemble_evaluation, start_expander
from burnish.training.evaluations import Evaluations, evaluate_all
from burnish.training.origin import changes, decides_evaluations, origin_of
from burnish.training.weights import evaluated_weights
from burnish.trust import Trust
from burnish.world import World


def evaluate_run(
    run: Run, images: int = 0, rewards: Sequence[Table] = (), *, trust: Trust = False
) -> dict[str, Any]:
    """Compare a run's newest checkpoint with the model it started from.

    Args:
        run: the run directory; its evaluation.json is written, unless there are other `rewards`.
        images: for each prompt; 0: as its configuration says.
        rewards: tables of rewards to judge by, in place of its own.
        trust: whether to import the code that its configuration names, but for that of its rewards
            where there are others; see `config.load`.

    Returns:
        The contents of evaluation.json, by these rewards.

    Raises:
        FileNotFoundError: the run has no checkpoint.
        ValueError: no reward knows other images than those that are trained on.
    """
    with run.lock():
        purpose: Purpose = "rejudge" if rewards else "evaluate"
        config = configuration.load(run.config, purpose=purpose, trust=trust)
        count = images or config.evaluation.images_per_prompt or 4
        state = checkpoint.restore(run.checkpoints)

        if state is None:
            raise FileNotFoundError(
                f"{run.folder} has no checkpoint yet, so there is nothing to compare; train first"
            )

        seed_globals(config.seed, "weights")
        parts = assemble_evaluation(config, rewards)
        before = None if rewards else _stored(run, config, state.origin, parts, count)
        if before is None:
            if parts.expander is not None:
                start_expander(config, parts.expander)
            chunk = config.batch.sample_batch
            seed = config.evaluation.seed
            before = evaluate_all(parts, count, seed, chunk, when="before training")

        after = _evaluate_trained(parts, state, before)
        comparison = compare(before, after, parts.evaluated_weights)
        if not rewards:
            write(run.evaluation, dumps(comparison, indent=1))

    return comparison


def _evaluate_trained(
    parts: EvaluationParts, state: checkpoint.State, before: Evaluations
) -> Evaluations:
    """Return the evaluations with a checkpoint's weights, of as many images as those before."""
    parts.policy.load_state(evaluated_weights(state.learners["generator"]))
    if parts.embeddings is not None:
        parts.embeddings.load_state(evaluated_weights(state.learners["identifiers"]))
    if parts.expander is not None:
        parts.expander.load_state(evaluated_weights(state.learners["expander"]))

    first = before["train"]
    return evaluate_all(
        parts,
        first.images_per_prompt,
        first.seed,
        first.chunk,
        template=parts.template,
        when=f"after iteration {state.iteration}",
    )


def _stored(
    run: Run, config: Config, origin: dict[str, Any], parts: EvaluationParts, count: int
) -> Evaluations | None:
    """Return the run's evaluation before training; None where it cannot be compared with.

    That is so by a reward or on prompts that have changed since.
    """
    before = load_evaluation(run.evaluation_file(0))
    changed = changes(origin, origin_of(config, World(), parts)) if origin else {}
    # the start of an expander was made once, and what is stored came after it
    decisive = [name for name in changed if not name.startswith("expander.start")]
    if before is None or decides_evaluations(decisive) or _differs(before, parts, count):
        return None
    return before


def _differs(stored: Evaluations, parts: EvaluationParts, images_per_prompt: int) -> bool:
    """Return whether an evaluation has other prompts, or another number of images for each."""
    wanted = {
        name: [prompt.text for prompt in prompts]
        for name, prompts in parts.evaluation_prompts.items()
    }
    found = {name: evaluation.prompts for name, evaluation in stored.items()}
    return found != wanted or stored["train"].images_per_prompt != images_per_prompt
