"""Statistics of an iteration's rewards, for the record."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from burnish.evaluation.paired import Evaluation
from burnish.types import Prompt, Scores
from burnish.world import World


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


def gains(
    scores: Scores, prompts: Sequence[Prompt], initial: Evaluation, world: World
) -> dict[str, dict[str, float]]:
    """Return each reward's change since before training, over the images of all processes.

    Each image is compared with its prompt's mean in the evaluation before training, so that which
    prompts an iteration draws does not move the curve. Images of other prompts are left out.

    Args:
        scores: of this process's images.
        prompts: of these images.
        initial: the evaluation before training; it lacks rewards of training images only.
        world: the processes.

    Returns:
        `gain`, `gain_std` and `gain_images` (how many images are compared) by reward; {} of a
        reward without any.
    """
    tables = [
        _prompt_means(initial, name) if name in initial.rewards else {} for name in scores.names
    ]
    means = torch.tensor(
        [[_mean_of(prompt, table) for table in tables] for prompt in prompts], dtype=torch.float64
    )
    changes = world.gather(scores.parts - means)
    found = {}

    for name, column in zip(scores.names, changes.T, strict=True):
        known = column[column.isfinite()]
        if len(known):
            spread = float(known.std(correction=0))
            found[name] = {"gain": float(known.mean()), "gain_std": spread}
            found[name]["gain_images"] = len(known)

    return found


def _prompt_means(initial: Evaluation, name: str) -> dict[str, float]:
    """Return the mean of a reward before training by the prompt's text; NaN where missing."""
    values = torch.tensor(initial.reward(name), dtype=torch.float64)
    rows: dict[str, list[float]] = {}
    by_prompt = values.view(-1, initial.images_per_prompt)
    for text, row in zip(initial.prompts, by_prompt.tolist(), strict=True):
        rows.setdefault(text, []).extend(row)

    return {
        text: float(torch.tensor(row, dtype=torch.float64).nanmean()) for text, row in rows.items()
    }


def _mean_of(prompt: Prompt, means: Mapping[str, float]) -> float:
    """Return a prompt's mean, or that of the prompt that it was expanded from."""
    return means.get(prompt.text, means.get(prompt.original, math.nan))


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
