"""Evaluate a finished run: its newest checkpoint against the model it started from."""

from __future__ import annotations

from typing import Any

from burnish import config as configuration
from burnish.evaluation.paired import compare, load_evaluation
from burnish.files import dumps, write
from burnish.runs import Run
from burnish.seeds import seed_globals
from burnish.training import checkpoint
from burnish.training.assembly import EvaluationParts, assemble_evaluation
from burnish.training.evaluations import Evaluations, evaluate_all
from burnish.training.origin import changes, decides_evaluations, origin_of
from burnish.training.weights import evaluated_weights
from burnish.trust import Trust
from burnish.world import World


def evaluate_run(run: Run, images: int = 0, *, trust: Trust = False) -> dict[str, Any]:
    """Compare a run's newest checkpoint with the model it started from.

    Args:
        run: the run directory; its evaluation.json is written.
        images: for each prompt; 0: as its configuration says.
        trust: whether to import the code that its configuration names; see `config.load`.

    Returns:
        The contents of evaluation.json.

    Raises:
        FileNotFoundError: the run has no checkpoint.
    """
    with run.lock():
        config = configuration.load(run.config, purpose="evaluate", trust=trust)
        count = images or config.evaluation.images_per_prompt or 4
        seed = config.evaluation.seed
        state = checkpoint.restore(run.checkpoints)

        if state is None:
            raise FileNotFoundError(
                f"{run.folder} has no checkpoint yet, so there is nothing to compare; train first"
            )

        seed_globals(config.seed, "weights")
        parts = assemble_evaluation(config)
        before = load_evaluation(run.evaluation_file(0))
        # by a reward or on prompts that have changed since it cannot be compared with
        changed = changes(state.origin, origin_of(config, World(), parts)) if state.origin else {}
        stale = decides_evaluations(changed)

        if before is None or stale or _differs(before, parts, count):
            chunk = config.batch.sample_batch
            before = evaluate_all(parts, count, seed, chunk, when="before training")

        parts.policy.load_state(evaluated_weights(state.learners["generator"]))
        if parts.expander is not None:
            parts.expander.load_state(evaluated_weights(state.learners["expander"]))

        chunk = before["train"].chunk
        when = f"after iteration {state.iteration}"
        after = evaluate_all(parts, count, seed, chunk, template=parts.template, when=when)
        comparison = compare(before, after, parts.evaluated_weights)
        write(run.evaluation, dumps(comparison, indent=1))

    return comparison


def _differs(stored: Evaluations, parts: EvaluationParts, images_per_prompt: int) -> bool:
    """Return whether an evaluation has other prompts, or another number of images for each."""
    wanted = {
        name: [prompt.text for prompt in prompts]
        for name, prompts in parts.evaluation_prompts.items()
    }
    found = {name: evaluation.prompts for name, evaluation in stored.items()}
    return found != wanted or stored["train"].images_per_prompt != images_per_prompt
