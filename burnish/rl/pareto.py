"""Pareto selection (Parrot, arXiv 2401.05675): only images that no other beats are learned from.

Image j dominates image i if it is at least as good in every reward and better in one. With P the
images that none dominates and r_k the image's target reward (all rewards, weighted, if it has
none):

    gradient = (1 / |P|) sum over i in P of r_k(i) grad log p(i)

A weighted sum may be raised by giving up one reward for another; an image that is left out here has
another beside it that is no worse in any reward. A batch of the paper, images of a single prompt
with a single identifier, is here the images of one number in `group`.

Two settings go beyond the paper. `dominated = "avoided"` learns from what is not selected too, with
A the advantage of `group`: max(A, 0) for an image of P, min(A, 0) for any other. Images that
sum and selection judge alike are what is left: nothing that is selected is pushed away, nothing
that is dominated is imitated. `others` is the part of their weights that rewards keep which are not
an image's target, so that no image is asked to please one reward at any cost.

How much this selects depends on how many images are compared. Of N images with K independent
rewards the expected fraction a(N, K) / N is on the front, a(N, K) = sum over m <= N of
a(m, K - 1) / m and a(N, 1) = 1: for K = 4 it is 73 % of 8, 46 % of 32 and 17 % of 256. Rewards that
agree leave fewer, rewards in conflict more.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from burnish.rl.advantages import (
    GroupAdvantage,
    checked_within,
    weighted_sum,
    weights_per_image,
    z_scores,
)
from burnish.types import Scores


class ParetoAdvantage(GroupAdvantage):
    """The advantage of `group` for the images that none dominates, exactly 0 for all others.

    Args:
        within: the images that an image is compared with: "prompt", as in the paper, or "batch":
            all images of the iteration, by their z-scores within their prompts, for when a prompt
            has too few.
        standardise: False gives the paper's weight, the raw reward. It imitates every image of the
            front, so rewards must be positive; `clip` does not limit it.
        clip: advantages are limited to [-clip, clip].
        dominated: "ignored": dominated images are not learned from, as in the paper; "avoided":
            they keep a negative advantage, and the front keeps a positive one.
        others: with identifiers, the part of its weight, from 0 (the paper) to 1, that a reward
            keeps for images with another target.
    """

    def __init__(
        self,
        within: str = "prompt",
        standardise: bool = True,
        clip: float = 5.0,
        dominated: Literal["ignored", "avoided"] = "ignored",
        others: float = 0.0,
    ) -> None:
        super().__init__(clip)
        if dominated not in ("ignored", "avoided"):
            raise ValueError(
                f'advantage.dominated must be "ignored" or "avoided", not "{dominated}"'
            )
        if not 0 <= others <= 1:
            raise ValueError(f"advantage.others must lie in [0, 1], not {others}")
        if dominated == "avoided" and not standardise:
            raise ValueError(
                'advantage.dominated = "avoided" needs advantages below 0, and raw rewards have '
                "none; set advantage.standardise = true"
            )

        self.within = checked_within(within)
        self.standardise = standardise
        self.compares_images = standardise or within == "prompt"
        self.dominated = dominated
        self.others = others

    @property
    def selects(self) -> bool:  # type: ignore[override]
        """The loss is the mean over the images of `front`, and the others need no replay."""
        return self.dominated == "ignored"

    def front(self, scores: Scores, weights: Tensor, group: Tensor) -> Tensor:
        """Return the images that none dominates, (B,) bool; never those with a missing reward.

        Of a reward with a negative weight less is better. A reward with weight 0 does not count,
        and nor does one that is the same for all images of a prompt but for rounding.
        """
        # z-scores keep a prompt's order and its ties
        values = z_scores(scores, group) * weights.detach().cpu().double().sign()
        compared = group.cpu() if self.within == "prompt" else torch.zeros(len(values))
        return nondominated(values, compared)

    def __call__(self, scores: Scores, weights: Tensor, group: Tensor) -> Tensor:
        """Return the advantages, (B,) float32."""
        own_weights = weights_per_image(weights, scores, self.others)
        front = self.front(scores, weights, group)
        scores = replace(scores, target_reward=None)  # the weights say it all

        if self.standardise:
            adv = super().__call__(scores, own_weights, group)
        else:
            adv = weighted_sum(scores, own_weights).float()
            if (adv[front] < 0).any():
                warnings.warn(
                    "advantage.standardise = false takes the rewards as they are, and some of the "
                    "images that are selected have less than 0: they are pushed away; use rewards "
                    "above 0, or set advantage.standardise = true",
                    stacklevel=2,
                )

        if self.selects:
            return torch.where(front, adv, 0.0)
        return torch.where(front, adv.clamp(min=0), adv.clamp(max=0))


def nondominated(values: Tensor, group: Tensor) -> Tensor:
    """Return the rows that no other row of their group dominates, (B,) bool.

    Equal rows do not dominate each other, so duplicates stay or go together. With one column it is
    the largest value, as often as it occurs. Rows with a number that is not finite dominate none
    and are never chosen.

    Args:
        values: (B, K), more is better.
        group: (B,), only rows with the same number are compared.
    """
    valid = values.isfinite().all(1)
    at_least = (group[:, None] == group) & valid[:, None]  # (j, i): j is a row that may dominate i
    better = torch.zeros_like(at_least)

    for column in values.T:  # one by one: B * B numbers at a time, not K times as many
        at_least &= column[:, None] >= column
        better |= column[:, None] > column

    return valid & ~(at_least & better).any(0)


def expected_share(images: int, rewards: int) -> float:
    """Return the expected fraction of images that none of the others dominates.

    Args:
        images: that are compared.
        rewards: independent ones that are never equal.
    """
    size = torch.ones(images, dtype=torch.float64)
    for _ in range(rewards - 1):
        size = (size / torch.arange(1, images + 1)).cumsum(0)
    return float(size[-1]) / images
