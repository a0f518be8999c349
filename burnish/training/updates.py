"""The generator's updates: which (image, transition) pairs are learned from, and in which steps.

credit -> pairs -> [x0 baseline] -> process -> for each minibatch:
    micro-batches of (replay -> objective -> backward) -> optimizer step
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from burnish.config import Config
from burnish.diffusion.process import Pairs, ReverseProcess
from burnish.seeds import generator
from burnish.stages import advance
from burnish.training.assembly import Parts
from burnish.training.baseline import x0_baseline
from burnish.training.batch import Credit, RolloutBatch
from burnish.training.chain import ChainProcesses
from burnish.training.credit import first_iterations
from burnish.training.forward import ForwardProcesses, transition_count
from burnish.training.image_choice import by_draw, compared_pairs, counted_pairs
from burnish.training.metrics import merged_metrics, summary
from burnish.training.weights import WeightUpdater
from burnish.types import Process
from burnish.world import World


class GeneratorUpdates:
    """The optimizer steps that a generator takes in an iteration."""

    def __init__(self, config: Config, world: World, parts: Parts, weights: WeightUpdater) -> None:
        self.config = config
        self.world = world
        self.parts = parts
        self.weights = weights
        self.forward = ForwardProcesses(config, world, parts, weights)
        self.chain = ChainProcesses(config, world, parts, self.forward)
        self.still_iterations = 0  # with advantages, but a gradient of exactly 0
        self.has_gradient = False  # some gradient was not 0

    def run(self, batch: RolloutBatch, credit: Credit) -> dict[str, float]:
        """Learn from an iteration's images; return the means of the updates' metrics."""
        # weights of imitation are divided by all images, the KL of imitation is not
        imitates = self.parts.objective.imitates
        adv = credit.advantages * (credit.loss_scale if imitates else 1.0)
        pairs = self.pairs(batch.iteration, adv)
        if credit.empty or not (self.parts.policy.trainable or self.parts.embeddings):
            return {}
        if self.parts.objective.compares_images:
            credit = by_draw(credit, self.config.batch.images_per_prompt)
            pairs = compared_pairs(self.parts.objective, credit, pairs)

        metrics = {}
        if self.config.batch.baseline:
            adv, metrics["explained_variance"] = x0_baseline(
                self.parts, batch, adv, credit.valid, pairs, self.config.batch.sample_batch
            )

        credit = replace(credit, advantages=adv, loss_scale=1.0 if imitates else credit.loss_scale)
        if self.parts.embeddings:
            watched = self.parts.embeddings.gradients.watch(batch.trajectory, batch.prompts)
            batch = replace(batch, trajectory=watched)
        process = self.process(batch, pairs)
        updates = []
        for number, minibatch in enumerate(pairs):
            self.set_learning_rate(batch.iteration, number)
            first = number == 0 and not self.weights.old_policy.lags
            updates.append(self.update(process, credit, minibatch, first))
            advance()

        means = summary(updates)
        if self.parts.policy.trainable:
            self.check_gradient(means["grad_norm"], credit)
        return metrics | means

    def check_gradient(self, norm: float, credit: Credit) -> None:
        """Refuse first iterations in which images have advantages, but the weights no gradient.

        Raises:
            RuntimeError: from the start every gradient was exactly 0.
        """
        self.has_gradient = self.has_gradient or norm != 0
        self.still_iterations += norm == 0 and credit.metrics.get("zero_advantage", 0) < 1
        if not self.has_gradient and self.still_iterations >= first_iterations(
            self.config.iterations
        ):
            raise RuntimeError(
                f"the gradient of the first {self.still_iterations} iterations is exactly 0, so "
                f"nothing is learned: objective {self.config.objective['use']} gives none, or what "
                "is trained has no part in the image"
            )

    def pairs(self, iteration: int, adv: Tensor) -> list[Pairs]:
        """Return the (image, transition) pairs of each optimizer step of an iteration."""
        transitions = transition_count(self.config, self.parts)
        rank = self.world.rank
        return list(
            minibatches(self.config, self.parts, len(adv), transitions, iteration, adv, rank)
        )

    def process(self, batch: RolloutBatch, pairs: list[Pairs]) -> Process:
        """Return what the objective learns from: transitions, images noised again, or calls."""
        kind = self.parts.objective.process
        if kind == "reverse":
            return ReverseProcess(self.parts.policy, self.parts.sampler, batch.trajectory)
        if kind == "chain":
            return self.chain.process(batch, pairs)

        return self.forward.process(batch.trajectory, pairs, batch.iteration)

    def set_learning_rate(self, iteration: int, number: int) -> None:
        """Give the optimizer the rate of an iteration's update `number`, the first being 0."""
        settings = self.config.optimizer
        batch = self.config.batch
        step = (iteration - 1) * batch.minibatches * batch.epochs + number + 1
        warmup = min(1.0, step / max(1, settings.warmup))
        decay = 1 - (1 - settings.final_lr) * (iteration - 1) / self.config.iterations

        for group in self.weights.optimizer.param_groups:
            group["lr"] = settings.lr * decay * warmup

    def update(
        self, process: Process, credit: Credit, pairs: Pairs, first: bool
    ) -> dict[str, float]:
        """Take one optimizer step on the mean loss of a minibatch; return its metrics.

        Images without all their rewards, or outside a selected front, are not replayed.

        Args:
            process: what is replayed.
            credit: with the advantages (B,) of the images, or (B, T) of their transitions.
            pairs: to learn from.
            first: the weights are still those that sampled.
        """
        objective = self.parts.objective
        if objective.compares_images:
            credit = self.with_targets(process, credit, pairs, first)

        adv = credit.advantages
        (images, transitions), share = counted_pairs(credit.counted, pairs)
        scale = share * credit.loss_scale
        metrics: dict[str, float] = {}

        for rows, columns, part in self.forward.calls((images, transitions)):
            replay = process.replay(rows, columns, reference=objective.kl > 0)
            pair_adv = adv[rows] if adv.dim() == 1 else adv[rows, columns]
            loss = objective(replay, pair_adv)
            self.weights.scaler.scale(loss.value * (part * scale)).backward()
            metrics = merged_metrics(metrics, loss.metrics, part)

        if self.parts.embeddings:
            self.parts.embeddings.gradients.end_step(self.weights.scaler.get_scale())
        if not self.parts.policy.trainable:
            return metrics

        norm = self.weights.step(
            self.world,
            "the gradient is not finite any more, so training ends here; earlier checkpoints are "
            "kept: start again with a lower optimizer.lr",
        )
        rate = self.weights.optimizer.param_groups[0]["lr"]
        return {**metrics, "grad_norm": norm, "lr": rate}

    def with_targets(self, process: Process, credit: Credit, pairs: Pairs, first: bool) -> Credit:
        """Return the credit with what an objective that compares images makes of its advantages.

        They are (B,), or (B, T) of transitions. Only images with all their rewards are compared,
        and only where a group has two of them; the loss is a mean over these.
        """
        objective = self.parts.objective
        adv, group = credit.advantages, credit.group
        images, transitions = pairs
        change = adv.new_zeros(len(adv), int(transitions.max()) + 1)

        # before the first update nothing has changed
        if not first or objective.compares_with_reference:
            with torch.no_grad():
                for rows, columns, _ in self.forward.calls(pairs):
                    replay = process.replay(rows, columns, objective.compares_with_reference)
                    before = replay.logp_ref if replay.logp_ref is not None else replay.logp_old
                    change[rows, columns] = (replay.logp - before)[:, 0].to(change)

        chosen = images.unique()
        rows = chosen[credit.valid[chosen]]
        rows = rows[(group[rows][:, None] == group[rows]).sum(1) > 1]
        global_rows = int(self.world.gather(torch.tensor([len(rows)])).sum())
        if not len(rows):
            return replace(credit, advantages=torch.zeros_like(adv), loss_scale=0.0)

        each = len(images) // len(chosen)
        compared = objective.targets(change[rows], adv[rows], group[rows], each)
        targets = adv.new_zeros(len(adv), *compared.shape[1:])
        targets[rows] = compared.to(targets)
        scale = self.world.count * len(chosen) / global_rows
        return replace(credit, advantages=targets, loss_scale=scale)


def minibatches(
    config: Config,
    parts: Parts,
    images: int,
    transitions: int,
    iteration: int,
    adv: Tensor,
    rank: int = 0,
) -> Iterator[Pairs]:
    """Yield the flat (image, transition) pairs of each optimizer step.

    Each epoch shuffles the images, and draws `batch.transitions` different ones of an image's
    `transitions`; with the x0 baseline the same for all images of a prompt, so that these can be
    compared. An objective that compares the images of a prompt gets them together, and one that
    imitates only those with a weight in `adv` (B,). Noised again, an image has other transitions
    in each epoch.
    """
    batch = config.batch
    count = batch.transitions or transitions
    block = batch.images_per_prompt if parts.objective.compares_images else 1
    alike = batch.images_per_prompt if batch.baseline else 1
    offset = transitions if parts.objective.process == "forward" else 0

    for epoch in range(batch.epochs):
        stream = generator(config.seed, iteration, "order", epoch, rank)
        order = torch.randperm(images // block, generator=stream)

        if parts.objective.imitates and bool(adv.any()):
            order = order[adv[order] != 0]
            # each minibatch needs an image
            order = order.repeat(math.ceil(batch.minibatches / len(order)))

        shuffled = torch.rand(images // alike, transitions, generator=stream).argsort(1)
        chosen = shuffled[:, :count].repeat_interleave(alike, 0)

        for blocks in order.tensor_split(batch.minibatches):
            rows = (blocks[:, None] * block + torch.arange(block)).flatten()
            yield rows.repeat_interleave(count), chosen[rows].flatten() + epoch * offset
