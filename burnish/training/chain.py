"""The chain of an iteration's images, and the direction that each of them is to move in.

    gradient     g = sum_k w_k dR_k/dx, each of the rewards' gradients brought to a mean square of 1
                 over the images (`chain.normalise`), so that weights compare rewards and not units
    difference   delta / ms(delta), delta = the image's latent less the mean of its prompt's

g is taken once an iteration, a few images at a time through the decoder and the rewards, at the
finished latents, or at what calls predicted (`chain.read`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from burnish.config import Config
from burnish.diffusion.chain import ChainProcess, output_scales, sensitivities
from burnish.diffusion.policy import decoded_at_once
from burnish.diffusion.process import Pairs
from burnish.rewards.gradient import image_gradient
from burnish.rl.advantages import weights_per_image
from burnish.training.assembly import Parts
from burnish.training.batch import RolloutBatch
from burnish.training.forward import ForwardProcesses, transition_count
from burnish.training.requirements import needs_reference
from burnish.types import Prompt
from burnish.world import World

HALF_SCALE = 2.0**12
"""The gradient in a decoder of half precision is this times larger, so that it does not vanish."""


@dataclass(frozen=True)
class ChainProcesses:
    """Makes the chain process of an iteration, with all that its objective reads."""

    config: Config
    world: World
    parts: Parts
    forward: ForwardProcesses

    def process(self, batch: RolloutBatch, pairs: list[Pairs]) -> ChainProcess:
        """Return the calls that drew an iteration's images, with the images' directions.

        Args:
            batch: the images.
            pairs: of each optimizer step.
        """
        objective = self.parts.objective
        calls = [(rows, columns) for one in pairs for rows, columns, _ in self.forward.calls(one)]
        process = self.undirected(batch)

        if objective.direction == "difference":
            latent = batch.trajectory.latent.cpu()
            direction = differences(latent, batch.trajectory.group)
        elif self.config.chain.read == "prediction":
            predicted = process.predictions(calls, nullcontext())
            direction = self.gradients_at(predicted, calls, batch)
        else:
            rows = batch.scores.valid.nonzero().flatten()
            direction = torch.zeros_like(batch.trajectory.latent, device="cpu")
            direction[rows] = self.gradients(batch.trajectory.latent[rows], rows, batch)
        process = replace(process, direction=direction)

        if self.forward.needs_old(pairs):
            process = replace(process, old=process.predictions(calls, self.forward.old_weights()))
        if needs_reference(objective):
            anchor = process.predictions(calls, self.parts.policy.reference())
            process = replace(process, anchor=anchor)

        return process

    def undirected(self, batch: RolloutBatch) -> ChainProcess:
        """Return the calls without a direction; losses are means over them, and l sums."""
        policy = self.parts.policy
        sampler = self.parts.sampler
        settings = self.config.chain
        count = transition_count(self.config, self.parts)

        if self.parts.objective.direction == "difference":
            factors = output_scales(sampler, policy)[-count:] / batch.trajectory.latent[0].numel()
        elif settings.read == "prediction":
            factors = torch.ones(count)
        else:
            factors = count * sensitivities(sampler, policy)[-count:]
        if settings.ramp:
            factors = factors * torch.arange(1, count + 1) / count

        return ChainProcess(policy, sampler, batch.trajectory, torch.empty(0), factors)

    def gradients_at(
        self, predicted: Tensor, calls: Sequence[Pairs], batch: RolloutBatch
    ) -> Tensor:
        """Return the gradient (B, calls, *latent) at what calls predicted.

        Args:
            predicted: (B, calls, *latent) x0.
            calls: the pairs that are trained; all others are 0.
            batch: the images.
        """
        images, transitions = (torch.cat(column) for column in zip(*calls, strict=True))
        count = predicted.shape[1]
        chosen = (images * count + transitions)[batch.scores.valid[images]].unique()
        direction = torch.zeros_like(predicted)
        rows = chosen // count
        columns = chosen % count
        direction[rows, columns] = self.gradients(predicted[rows, columns], rows, batch)
        return direction

    def gradients(self, latent: Tensor, rows: Tensor, batch: RolloutBatch) -> Tensor:
        """Return the weighted gradient of the rewards to latents, (n, *latent) float32 on the CPU.

        Args:
            latent: (n, *latent).
            rows: (n,) the images of the batch whose prompts and target rewards count.
            batch: the images.
        """
        size = min(self.config.batch.train_batch, decoded_at_once(self.parts.policy))
        weights = weights_per_image(self.parts.weights, batch.scores)[rows]
        prompts = [batch.prompts[row] for row in rows.tolist()]
        found = torch.zeros(len(weights.T), *latent.shape)

        for start in range(0, len(rows), size):
            chunk = slice(start, start + size)
            found[:, chunk] = self.gradient_by_reward(latent[chunk], prompts[chunk])

        by_image = weights.T.to(found).view(*weights.T.shape, *[1] * (latent.dim() - 1))
        if self.config.chain.normalise:
            found = found / self.sizes(found * (by_image != 0), (weights != 0).sum(0))
        return (found * by_image).sum(0)

    def gradient_by_reward(self, latent: Tensor, prompts: list[Prompt]) -> Tensor:
        """Return each reward's gradient to a few latents, (K, n, *latent); 0 with weight 0."""
        policy = self.parts.policy
        scale = HALF_SCALE if policy.dtype == torch.float16 else 1.0
        leaf = latent.detach().to(policy.device, torch.float32, copy=True).requires_grad_()
        images = policy.decode(leaf, gradient=True)
        found = torch.zeros(len(self.parts.weights), *latent.shape)

        for number, (name, reward) in enumerate(self.parts.rewards.items()):
            if self.parts.weights[number] == 0:
                continue
            towards = scale * image_gradient(name, reward, images, prompts)
            (gradient,) = torch.autograd.grad(images, leaf, towards, retain_graph=True)
            found[number] = gradient.cpu() / scale

        if not bool(found.isfinite().all()):
            raise RuntimeError(
                "the gradient of a reward is not finite behind the decoder; set model.dtype to "
                "bfloat16 or float32"
            )
        return found

    def sizes(self, found: Tensor, counts: Tensor) -> Tensor:
        """Return the root mean square norm (K, 1, ..., 1) of each reward's gradients, never 0.

        Args:
            found: (K, n, *latent) of this process; 0 of an image that a reward does not count for.
            counts: (K,) images that each reward counts for.
        """
        squares = found.double().square().flatten(1).sum(1)
        sums = self.world.gather(torch.stack([squares, counts.double()])[None]).sum(0)
        sizes = (sums[0] / sums[1].clamp(min=1)).sqrt()
        sizes = torch.where(sizes > 0, sizes, 1.0)
        return sizes.to(found).view(-1, *[1] * (found.dim() - 1))


def differences(latent: Tensor, group: Tensor) -> Tensor:
    """Return delta / ms(delta) (B, *latent), delta an image's latent less its prompt's mean.

    It is 0 where the images of a prompt are all the same.

    Args:
        latent: (B, *latent) finished latents.
        group: (B,) prompts.
    """
    _, index, count = group.unique(return_inverse=True, return_counts=True)
    rows = latent.flatten(1).float()
    mean = rows.new_zeros(len(count), rows.shape[1]).index_add_(0, index, rows) / count[:, None]
    delta = rows - mean[index]
    size = delta.square().mean(1, keepdim=True)
    return torch.where(size > 0, delta / size, 0.0).view_as(latent)
