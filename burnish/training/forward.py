"""The forward processes of updates: what is noised again, and what others predict for it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from burnish.config import Config
from burnish.diffusion.process import ForwardProcess, Pairs
from burnish.seeds import generator
from burnish.training.assembly import Parts
from burnish.training.requirements import needs_reference, reads_old
from burnish.training.weights import WeightUpdater
from burnish.types import Trajectory
from burnish.world import World


@dataclass(frozen=True)
class ForwardProcesses:
    """Makes the forward process of an iteration, with all that its objective reads."""

    config: Config
    world: World
    parts: Parts
    weights: WeightUpdater

    def process(self, trajectory: Trajectory, pairs: list[Pairs], iteration: int) -> ForwardProcess:
        """Return an iteration's images noised again.

        Args:
            trajectory: of the images.
            pairs: of each optimizer step.
            iteration: from 1 on.
        """
        process = ForwardProcess(
            self.parts.policy,
            self.parts.sampler,
            trajectory,
            self.clean_latents(trajectory, iteration),
            key=(self.config.seed, iteration, "renoise", 0),  # by prompt, so alike in all processes
            draws=transition_count(self.config, self.parts),
            settings=self.config.forward,
            mixtures=self.parts.objective.mixtures,
            with_kl_old=self.parts.objective.uses_old_prediction,
        )
        calls = [(rows, columns) for one in pairs for rows, columns, _ in self.calls(one)]

        if self.needs_old(pairs):
            process = replace(process, old=process.predictions(calls, self.old_weights()))
        if needs_reference(self.parts.objective):
            process = self.with_anchor(process, calls, iteration)

        return process

    def calls(self, pairs: Pairs) -> list[tuple[Tensor, Tensor, float]]:
        """Return the pairs of each training call of a minibatch, and their share of all its pairs.

        A sharded network is called by all processes together: those with fewer calls make their
        first one again, with a share of 0.
        """
        local_calls = training_calls(pairs, self.config.batch.train_batch)
        calls = [(rows, columns, len(rows) / len(pairs[0])) for rows, columns in local_calls]
        if self.parts.policy.sharded:
            most = int(self.world.gather(torch.tensor([len(local_calls)])).max())
            calls += [(*local_calls[0], 0.0)] * (most - len(local_calls))

        return calls

    def clean_latents(self, trajectory: Trajectory, iteration: int) -> Tensor:
        """Return the latents (B, *latent) that are noised, float32 on the CPU."""
        if self.parts.objective.data == "latent":
            return trajectory.latent.float().cpu()

        policy = self.parts.policy
        stream = generator(self.config.seed, iteration, "encode", self.world.rank)
        chunks = trajectory.latent.split(self.config.batch.sample_batch)
        images = (policy.decode(latents) for latents in chunks)
        return torch.cat([policy.embed(decoded, stream).cpu() for decoded in images])

    def needs_old(self, pairs: list[Pairs]) -> bool:
        """Return whether the old policy is read, and not the current one before its first update.

        With a single minibatch the weights have not changed since sampling.
        """
        objective = self.parts.objective
        drifts = len(pairs) > 1 or self.weights.old_policy.lags
        return drifts and reads_old(objective)

    @contextmanager
    def old_weights(self) -> Iterator[None]:
        """Return a context in which the policy is the one that sampled."""
        with self.weights.old_policy.applied(), self.parts.policy.merged():
            yield

    def with_anchor(
        self, process: ForwardProcess, calls: list[Pairs], iteration: int
    ) -> ForwardProcess:
        """Return a process with the anchor that `forward.anchor` names."""
        anchor = self.config.forward.anchor
        if anchor == "images":
            images = self.anchor_images(process.trajectory, iteration)
            drawn = replace(process, latent=images)
            predicted = drawn.predictions(calls, self.parts.policy.reference())
            return replace(process, anchor_images=images, anchor=predicted)

        weights = self.parts.policy.reference()
        if anchor == "average":
            weights = self.weights.average.applied()

        guided = anchor == "guided_reference"
        return replace(process, anchor=process.predictions(calls, weights, guided))

    @torch.no_grad()
    def anchor_images(self, trajectory: Trajectory, iteration: int) -> Tensor:
        """Return latents (B, *latent) that the reference draws for the texts of the images."""
        policy = self.parts.policy
        noise = generator(self.config.seed, iteration, "anchor", self.world.rank)
        drawn = []

        with policy.reference():
            for rows in torch.arange(len(trajectory.group)).split(self.config.batch.sample_batch):
                cond = trajectory.condition(rows, policy.device)
                sampled = self.parts.sampler.rollout(policy, cond, trajectory.group[rows], noise)
                drawn.append(sampled.latent.float().cpu())

        return torch.cat(drawn)


def training_calls(pairs: Pairs, size: int) -> list[Pairs]:
    """Return a minibatch as the pairs of each training call, at most `size` of them."""
    images, transitions = pairs
    pieces = math.ceil(len(images) / size)
    return list(zip(images.tensor_split(pieces), transitions.tensor_split(pieces), strict=True))


def transition_count(config: Config, parts: Parts) -> int:
    """Return how many transitions an image has to learn from."""
    if parts.objective.process == "forward":
        return config.batch.transitions or config.sampler.steps
    if parts.objective.process == "chain":
        return config.chain.last or config.sampler.steps
    window = config.sampler.window.size
    return window or parts.sampler.transitions(parts.policy, config.batch.least_noise)
