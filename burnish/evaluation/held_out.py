"""Held-out measures of an evaluation, which distinguish a better model from a hacked reward.

No training ever sees them. Each is one number an image:

    rewards     other rewards than those that are trained on
    diversity   mean over the other images of the prompt of 1 - cosine of their CLIP embeddings;
                0 if all are alike
    kl          of the trained policy to the untrained one, summed over an image's transitions, in
                nats: how far training has moved it
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.rewards import STRICT, Tolerance, score
from burnish.rewards.clip import Clip
from burnish.types import Prompt, Reward, Trajectory

KL_IMAGES = 16
"""The KL is measured on the first images only: it costs two network calls a transition."""


@dataclass(frozen=True)
class Panel:
    """The held-out measures that are taken beside the reward; by default none."""

    rewards: Mapping[str, Reward] = field(default_factory=dict)
    clip: Clip | None = None  # embeds the images, for diversity
    kl: bool = False
    tolerance: Tolerance = STRICT

    def divergence(
        self, policy: Policy, sampler: Sampler, trajectory: Trajectory, first: int, together: int
    ) -> list[float]:
        """Return the KL of the images of a chunk of which it is measured, the first ones.

        Args:
            policy: the current weights.
            sampler: drew the trajectories.
            trajectory: of the chunk's images.
            first: the index of the chunk's first image among all images of the evaluation.
            together: that of the first image that any process has drawn at the same time: a sharded
                network is called by all or by none.
        """
        earliest = together if policy.sharded else first
        if not self.kl or earliest >= KL_IMAGES or not trajectory.logp.shape[1]:
            return []
        return divergence(policy, sampler, trajectory)[: max(KL_IMAGES - first, 0)].tolist()

    def measure(
        self, images: Tensor, prompts: Sequence[Prompt], kl: Sequence[float] = ()
    ) -> tuple[list[dict[str, float]], list[list[float]]]:
        """Return the measures and the embedding of each image of a chunk.

        Args:
            images: (B, 3, H, W) in [0, 1].
            prompts: B of them.
            kl: of the first ones.

        Returns:
            B rows of measures by name, and B embeddings, which are empty without a CLIP.
        """
        rows: list[dict[str, float]] = [{} for _ in prompts]

        if self.rewards:
            scores = score(self.rewards, images, prompts, self.tolerance)
            for row, values in zip(rows, scores.parts.tolist(), strict=True):
                row.update(zip(scores.names, values, strict=True))

        for row, value in zip(rows, kl, strict=False):
            row["kl"] = value

        if self.clip is None:
            return rows, [[] for _ in prompts]
        return rows, self.clip.images(images).tolist()

    def columns(
        self,
        rows: Sequence[Mapping[str, float]],
        embeddings: Sequence[Sequence[float]],
        images_per_prompt: int,
    ) -> dict[str, list[float]]:
        """Return the values of each measure by its name, one number an image, NaN where missing.

        Args:
            rows: the measures of each image; images of one prompt are neighbours.
            embeddings: of each image.
            images_per_prompt: of all prompts.
        """
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: [row.get(name, math.nan) for row in rows] for name in names}

        if self.clip is not None and images_per_prompt > 1:
            embedded = torch.tensor(embeddings)
            columns["diversity"] = diversity(embedded, images_per_prompt).tolist()

        return columns


def diversity(embeddings: Tensor, images_per_prompt: int) -> Tensor:
    """Return each image's mean distance (B,) to the other images of its prompt.

    Args:
        embeddings: (B, D) of length 1; images of one prompt are neighbours.
        images_per_prompt: at least 2.
    """
    groups = embeddings.double().view(-1, images_per_prompt, embeddings.shape[1])
    similarity = groups @ groups.transpose(1, 2)
    to_others = similarity.sum(2) - similarity.diagonal(dim1=1, dim2=2)
    return (1 - to_others / (images_per_prompt - 1)).flatten()


@torch.no_grad()
def divergence(policy: Policy, sampler: Sampler, trajectory: Trajectory) -> Tensor:
    """Return the KL (B,) of the current policy to the untrained one, in nats an image.

    The trajectories are those that the policy drew. The sum of the KL of their transitions is then
    an unbiased estimate of the trajectories' KL.
    """
    count, transitions = trajectory.logp.shape
    rows = torch.arange(count)
    total = torch.zeros(count, dtype=torch.float64)

    for transition in range(transitions):
        index = torch.full((count, 1), transition)
        replay = sampler.replay(policy, trajectory, rows, index, reference=True)
        assert replay.kl is not None
        total += replay.kl[:, 0].cpu().double()

    return total
