"""Held-out measures of an evaluation's pictures: what training never sees, to tell a better model
from a hacked one.

    rewards     other rewards than those trained on
    diversity   mean over an image's siblings (same prompt) of 1 - cosine of their CLIP embeddings: 0 if all are alike
    kl          of the trained policy to the untrained one, summed over an image's moves, in nats: how far it has gone

Each is one number an image.
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
"""The KL is measured on so many images: it costs two network calls a move."""


@dataclass(frozen=True)
class Panel:
    """What is measured beside the reward; nothing by default."""

    rewards: Mapping[str, Reward] = field(default_factory=dict)
    clip: Clip | None = None  # that embeds the pictures, for diversity
    kl: bool = False
    tolerance: Tolerance = STRICT

    def measure(
        self,
        policy: Policy,
        sampler: Sampler,
        trajectory: Trajectory,
        images: Tensor,
        prompts: Sequence[Prompt],
        first: int,
    ) -> tuple[list[dict[str, float]], list[list[float]]]:
        """What is said of each image of a chunk, whose first is number ``first`` of all, and its
        embedding.
        """
        rows: list[dict[str, float]] = [{} for _ in prompts]
        if self.rewards:
            scores = score(self.rewards, images, prompts, self.tolerance)
            for row, values in zip(rows, scores.parts.tolist(), strict=True):
                row.update(zip(scores.names, values, strict=True))

        if self.kl and first < KL_IMAGES and trajectory.logp.shape[1]:
            for row, value in zip(
                rows,
                divergence(policy, sampler, trajectory)[: KL_IMAGES - first].tolist(),
                strict=False,
            ):
                row["kl"] = value

        embeddings = self.clip.images(images).tolist() if self.clip else [[] for _ in prompts]
        return rows, embeddings

    def columns(
        self, rows: Sequence[Mapping[str, float]], embeddings: Sequence[Sequence[float]], each: int
    ) -> dict[str, list[float]]:
        """By measure one number an image, NaN where there is none; ``each`` images a prompt are
        neighbours.
        """
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: [row.get(name, math.nan) for row in rows] for name in names}
        if self.clip is not None and each > 1:
            columns["diversity"] = diversity(torch.tensor(embeddings), each).tolist()
        return columns


def diversity(embeddings: Tensor, each: int) -> Tensor:
    """(B, D) of length 1, ``each`` neighbours of one prompt -> (B,): mean distance to the others of
    the prompt.
    """
    groups = embeddings.double().view(-1, each, embeddings.shape[1])
    alike = groups @ groups.transpose(1, 2)
    others = alike.sum(2) - alike.diagonal(dim1=1, dim2=2)
    return (1 - others / (each - 1)).flatten()


@torch.no_grad()
def divergence(policy: Policy, sampler: Sampler, trajectory: Trajectory) -> Tensor:
    """(B,) the KL of the current policy to the untrained one along trajectories it drew, in nats an
    image.

    Over trajectories drawn from the policy, the sum of its moves' KL is an unbiased estimate of the
    trajectories' KL.
    """
    count, moves = trajectory.logp.shape
    total = torch.zeros(count, dtype=torch.float64)

    for move in range(moves):
        replay = sampler.replay(
            policy, trajectory, torch.arange(count), torch.full((count, 1), move), reference=True
        )
        assert replay.kl is not None
        total += replay.kl[:, 0].double().cpu()

    return total
