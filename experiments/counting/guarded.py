"""The verdicts that the guard would have given in a run that only measured, without the judge.

The guard decides from a run's evaluations and nothing else. So the same functions give its verdicts
afterwards, and no second run is needed. The judge is taken out, because it is the truth here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from burnish.config import Config
from burnish.evaluation.guard import over_optimised
from burnish.evaluation.paired import Evaluation

WATCHED = ("other_reader", "clip_similarity")
"""The measures that the guard gets."""


def guard_reasons(evaluations: Sequence[Evaluation], config: Config) -> list[tuple[str, ...]]:
    """Return why each evaluation after the first is over-optimised; () where it is not.

    Args:
        evaluations: of the training prompts; the first is that before training.
        config: the run's, with the guard's `drop`.
    """
    before, *later = [watched(evaluation) for evaluation in evaluations]
    return [over_optimised(before, now, torch.ones(1), config) for now in later]


def watched(evaluation: Evaluation) -> Evaluation:
    """Return an evaluation with only those measures that the guard gets."""
    panel = {name: values for name, values in evaluation.panel.items() if name in WATCHED}
    return replace(evaluation, judged=None, panel=panel)
