"""Statistics of an iteration's rewards, for the record."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from burnish.types import Scores


def describe(scores: Scores, group: Tensor) -> dict[str, dict[str, float]]:
    """Return mean, std, min and max of each reward in an iteration; NaN where there is none.

    With several rewards, `within` is the mean over prompts of the standard deviation within one:
    the spread that advantages are made of. With identifiers, `targeted` is the mean over the images
    whose target is this reward.
    """
    described = {}

    for index, (name, column) in enumerate(zip(scores.names, scores.parts.T, strict=True)):
        finite = column.isfinite()
        described[name] = _moments(column[finite])

        if len(scores.names) > 1:
            spreads = [
                column[finite & (group == number)].std(correction=0)
                for number in group[finite].unique()
            ]
            spread = float(torch.stack(spreads).mean()) if spreads else math.nan
            described[name]["within"] = spread

        if scores.target_reward is not None:
            targeted = column[finite & (scores.target_reward == index)]
            described[name]["targeted"] = float(targeted.mean())

    return described


def missing_rewards(scores: Scores) -> dict[str, Any]:
    """Return how many images lack a reward, by reward, and why; nothing if all have theirs."""
    counts = (~scores.parts.isfinite()).sum(0).tolist()
    if not any(counts):
        return {}
    return {
        "missing": dict(zip(scores.names, counts, strict=True)),
        "problems": list(scores.problems[:5]),
    }


def _moments(column: Tensor) -> dict[str, float]:
    if len(column) == 0:
        return dict.fromkeys(("mean", "std", "min", "max"), math.nan)

    low, high = column.aminmax()
    return {
        "mean": float(column.mean()),
        "std": float(column.std(correction=0)),
        "min": float(low),
        "max": float(high),
    }
