"""Evaluate a finished run: its newest checkpoint against the model it started from."""

from __future__ import annotations

from typing import Any

from burnish import config as configuration
from burnish.evaluation.paired import compare, load_evaluation
from burnish.files import dumps, write
from burnish.runs import Run
from burnish.seeds import seed_globals
from burnish.training import checkpoint
from burnish.training.assembly import assemble_evaluation
from burnish.training.evaluations import evaluate_all
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

        if before is None or stale or before["train"].images_per_prompt != count:
            before = evaluate_all(parts, count, seed, config.batch.sample_batch)

        parts.policy.load_state(evaluated_weights(state.learners["generator"]))
        if parts.expander is not None:
            parts.expander.load_state(evaluated_weights(state.learners["expander"]))

        chunk = before["train"].chunk
        after = evaluate_all(parts, count, seed, chunk, template=parts.template)
        comparison = compare(before, after, parts.weights)
        write(run.evaluation, dumps(comparison, indent=1))

    return comparison
