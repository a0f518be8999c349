"""The x0 baseline: a transition is credited only with what came after it.

    baseline of transition t = reward of the image decoded from the network's x0 before t

A transition late in a trajectory has no part in what the network already predicted before it.
Subtracting a baseline that depends on the transition's state alone leaves the expected gradient as
it is and takes variance out of it; see `rl.advantages.per_transition`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from burnish.diffusion.process import Pairs
from burnish.rewards import score
from burnish.rl.advantages import per_transition
from burnish.training.assembly import Parts
from burnish.training.batch import RolloutBatch


def x0_baseline(
    parts: Parts,
    batch: RolloutBatch,
    adv: Tensor,
    valid: Tensor,
    pairs: list[Pairs],
    chunk: int,
) -> tuple[Tensor, float]:
    """Return the advantage of each transition (B, T), and the explained variance.

    The baseline of a transition is the score of the image that the network predicted before it. The
    explained variance is the part of the advantages' variance that these baselines take out. An
    image that is not `valid` (B,) has no baseline.

    Args:
        parts: the rewards and the policy that decodes.
        batch: the images, their trajectories with `x0_pred`, and their target rewards.
        adv: (B,) advantages of the images.
        valid: (B,) bool.
        pairs: the (image, transition) pairs that are trained; only these are scored.
        chunk: images decoded and scored at once.
    """
    trajectory = batch.trajectory
    x0_pred = trajectory.x0_pred
    if x0_pred is None:
        raise ValueError("the x0 baseline needs trajectories sampled with keep_x0_pred = True")

    images, transitions = trajectory.logp.shape
    rewards = len(parts.weights)
    x0_rewards = torch.full((images * transitions, rewards), torch.nan, dtype=torch.float64)
    chosen = torch.cat([rows * transitions + columns for rows, columns in pairs]).unique()

    for indices in chosen.split(chunk):
        rows = indices // transitions
        columns = indices % transitions
        prompts = [batch.prompts[row] for row in rows.tolist()]
        decoded = parts.policy.decode(x0_pred[rows, columns])
        x0_rewards[indices] = score(parts.rewards, decoded, prompts, parts.tolerance).parts

    x0_rewards = x0_rewards.view(images, transitions, rewards)
    x0_rewards[~valid] = torch.nan
    weights = parts.weights
    if batch.scores.target_reward is not None:
        weights = weights * one_hot(batch.scores.target_reward, rewards)

    remaining = per_transition(adv, x0_rewards, weights, trajectory.group)
    before = adv[chosen // transitions].square().sum()
    after = remaining.flatten()[chosen].square().sum()
    return remaining, float(1 - after / before) if before > 0 else 0.0
