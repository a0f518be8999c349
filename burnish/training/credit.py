"""Credit: from the rewards of all processes' images to the advantage of each of this process's.

gather -> advantages -> selection -> what the record says about them
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from burnish.rl.pareto import ParetoAdvantage
from burnish.seeds import seed_of
from burnish.training.assembly import Parts
from burnish.training.batch import Credit, RolloutBatch
from burnish.training.reward_stats import describe, missing_rewards
from burnish.types import Scores
from burnish.world import World

FIRST_ITERATIONS = 3
"""Iterations without anything to learn after which a run ends; in a single one it may be chance."""

SCALE_BUCKET = 0.05
"""Control scales that differ by less than about this share what is remembered of a prompt."""


def first_iterations(iterations: int) -> int:
    """Return after how many of a run's iterations without anything to learn it ends."""
    return max(2, min(FIRST_ITERATIONS, iterations))


def gather_scores(scores: Scores, world: World) -> Scores:
    """Return the scores of all processes' images, by rank."""
    problems = sorted(set(world.gather_list(list(scores.problems))))
    target = None if scores.target_reward is None else world.gather(scores.target_reward)
    return Scores(world.gather(scores.parts), scores.names, tuple(problems), target)


def assign_credit(parts: Parts, batch: RolloutBatch, scores: Scores, world: World) -> Credit:
    """Return the credit of this process's images, compared with those of all processes.

    Args:
        parts: the advantage, the objective and the rewards' weights.
        batch: this process's images.
        scores: of all processes' images, see `gather_scores`.
        world: the processes.
    """
    valid = scores.valid
    global_group = world.gather(batch.group)
    if batch.control_scale is not None:
        global_group = group_by_scale(global_group, batch.control_scale)

    global_adv = parts.advantage(scores, parts.weights, global_group)
    counted = valid
    metrics: dict[str, Any] = {"rewards": describe(scores, global_group)}

    if batch.control_scale is not None:
        metrics["control_scale"] = batch.control_scale

    selects = parts.advantage.selects
    if selects or len(scores.names) > 1:
        has_front = selects or isinstance(parts.advantage, ParetoAdvantage)
        selection = parts.advantage if has_front else ParetoAdvantage()
        front = selection.front(scores, parts.weights, global_group)
        counted = front if selects else valid
        if len(scores.names) > 1:
            metrics["pareto_front"] = float(front[valid].float().mean())

    metrics["zero_advantage"] = float((global_adv == 0).float().mean())
    metrics |= missing_rewards(scores)

    local = slice(world.rank * len(batch.group), (world.rank + 1) * len(batch.group))
    return Credit(
        advantages=global_adv[local],
        valid=valid[local],
        counted=counted[local],
        group=global_group[local],
        loss_scale=loss_scale(parts, global_adv[local], counted),
        empty=not bool(valid.any()),
        metrics=metrics,
    )


def loss_scale(parts: Parts, adv: Tensor, counted: Tensor) -> float:
    """Return the factor that makes losses means over the images that count.

    Those are the `counted` ones: the valid images, or the front of an advantage that selects; only
    they are replayed. Where images are imitated, those with a weight, because the others are left
    out of the minibatches. An objective that compares images makes up for the others by itself.

    Args:
        parts: the objective.
        adv: (b,) advantages of this process's images.
        counted: (B,) bool, of all processes' images; as many of each.
    """
    if parts.objective.compares_images:
        return 1.0

    count = max(1, int(counted.sum()))
    if parts.objective.imitates:
        return float((adv != 0).sum()) * (len(counted) // len(adv)) / count
    return len(counted) / count


def group_by_scale(group: Tensor, scale: float) -> Tensor:
    """Return the groups (images,) at a control scale: other numbers at another scale.

    The rewards of a prompt at one scale are no measure of it at the next, and an advantage that
    remembers must not compare them.
    """
    bucket = round(scale / SCALE_BUCKET)
    return torch.tensor([seed_of("scale", number, bucket) for number in group.tolist()])
