"""The chain: the network's calls while an image was sampled, replayed along a direction.

With the states x_i of the chain as constants for the network, the finished latent is a sum of what
the calls i predicted:

    x_N = const + sum_i c_i x0_i,      c_i = b_i prod_{j > i} (a_j + b_j p_j)

where a transition is x_{i+1} = a_i x_i + b_i x0_i + noise, and x0_i = p_i x_i + q_i out_i with the
network's output out_i. So the gradient of a reward R is a sum of products with one direction g,

    dR/dtheta = sum_i c_i <g, dx0_i/dtheta>,      g = dR/dx_N

and there is no graph through the chain. That is DRTune's gradient (arXiv 2405.00760); with the last
call alone DRaFT-1's (arXiv 2309.17400), and with some calls FlowBP-Sparse. For a flow that is drawn
by Euler's steps h_i > 0 it is the sum of -h_i <g, dv_i/dtheta>.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from burnish.diffusion.policy import Policy
from burnish.diffusion.process import Pairs, mean_square, predictions_of
from burnish.diffusion.sampler import Sampler
from burnish.types import Process, Replay, Trajectory


@dataclass(frozen=True)
class ChainProcess(Process):
    """The last calls of the network, in the order in which they were made.

    Attributes:
        policy: the current weights.
        sampler: its guidance and times are used.
        trajectory: whose states are stored, `ode` included.
        direction: (B, *latent) of each image, or (B, calls, *latent) with one for each call.
        factors: (calls,) l of a call is its factor times <direction, x0>, summed over the latent.
        old: (B, calls, *latent) predicted x0 of the old policy; None: the current weights.
        anchor: (B, calls, *latent) predicted x0 that the KL is the distance to.
    """

    policy: Policy
    sampler: Sampler
    trajectory: Trajectory
    direction: Tensor
    factors: Tensor
    old: Tensor | None = None
    anchor: Tensor | None = None

    def replay(self, images: Tensor, transitions: Tensor, reference: bool = False) -> Replay:
        """Return l (b, 1) of the pairs `images` (b,), `transitions` (b,), which are calls from 0.

        KLs are half the squared distance of two predictions, in units of the network's output.

        Raises:
            ValueError: `reference`, but there is no anchor.
        """
        x0 = self.predict(images, transitions)
        old = x0.detach() if self.old is None else self.old[images, transitions].to(x0)
        direction = self.direction[images]
        if self.direction.dim() > self.trajectory.latent.dim():
            direction = self.direction[images, transitions]

        factor = self.factors[transitions].to(x0)[:, None]
        along = direction.to(x0)
        replay = Replay(
            logp=factor * _product(along, x0),
            logp_old=factor * _product(along, old),
            dims=x0[0].numel(),
            kl_old=self.divergence(x0, old, transitions),
        )
        if not reference:
            return replay
        if self.anchor is None:
            raise ValueError("a replay with reference=True needs a process with an anchor")

        anchor = self.anchor[images, transitions].to(x0)
        kl = self.divergence(x0, anchor, transitions)
        return replace(replay, logp_ref=factor * _product(along, anchor), kl=kl)

    def divergence(self, x0: Tensor, other: Tensor, transitions: Tensor) -> Tensor:
        """Return half the squared distance (b, 1) of two predictions of x0."""
        schedule = self.policy.schedule
        level = schedule.level(self.times[transitions], self.policy.device)
        scale = schedule.error_scale(level).to(x0)
        return mean_square(scale * (x0 - other)) * x0[0].numel() / 2

    def predict(self, images: Tensor, transitions: Tensor) -> Tensor:
        """Return the x0 (b, *latent) that the policy's weights predict at the calls' states."""
        device = self.policy.device
        x = self.states(images, transitions).to(device)
        cond = {
            name: value[images.to(value.device)].to(device)
            for name, value in self.trajectory.cond.items()
        }
        return self.policy.predict(x, self.times[transitions], cond, self.sampler.guidance)

    def states(self, images: Tensor, transitions: Tensor) -> Tensor:
        """Return the states (b, *latent) that the network was called with, on the CPU."""
        first = self.trajectory.x
        calls = transitions + self.sampler.steps - len(self.factors)
        if self.trajectory.ode is None:
            return first[images, calls]

        late = calls >= first.shape[1]
        states = first[images, calls.clamp(max=first.shape[1] - 1)]
        states[late] = self.trajectory.ode[images[late], calls[late] - first.shape[1]]
        return states

    @property
    def times(self) -> Tensor:
        """The time (calls,) of each call."""
        return self.sampler.times(self.policy)[:-1][-len(self.factors) :]

    @torch.no_grad()
    def predictions(self, pairs: Iterable[Pairs], weights: AbstractContextManager[None]) -> Tensor:
        """Return the x0 (B, calls, *latent) that some weights predict, on the CPU.

        Args:
            pairs: (images (b,), transitions (b,)) of each training call; others are left empty.
            weights: a context in which the policy has these weights.
        """
        with weights:
            return predictions_of(self.predict, pairs, self.trajectory.latent)


def sensitivities(sampler: Sampler, policy: Policy) -> Tensor:
    """Return c (steps,) float64, the derivative of the finished latent by each call's x0.

    Args:
        sampler: its kernel and its times.
        policy: its noise schedule.

    Raises:
        ValueError: the kernel's mean is no sum of x_t and x0.
    """
    times = sampler.times(policy)
    level_t = policy.schedule.level(times[:-1])
    level_s = policy.schedule.level(times[1:])
    ones = torch.ones(sampler.steps, 1, 1, 1, dtype=torch.float64)

    def mean(x: float, x0: float) -> Tensor:
        return sampler.kernel(x * ones, x0 * ones, level_t, level_s).mean.flatten()

    by_x = mean(1, 0)
    by_x0 = mean(0, 1)
    if not torch.allclose(mean(2, 3), 2 * by_x + 3 * by_x0, rtol=1e-4, atol=1e-6):
        raise ValueError(
            "the kernel's mean is no weighted sum of x_t and x0, so the finished image cannot be "
            "followed back through it; take a kernel of Burnish's own"
        )

    # the network's input is a constant, what its output is made x0 with is not
    passed = by_x + by_x0 * policy.schedule.x0(ones, times[:-1], 0 * ones).flatten()
    later = torch.cat([passed[1:], passed.new_ones(1)]).flip(0).cumprod(0).flip(0)
    return by_x0 * later


def output_scales(sampler: Sampler, policy: Policy) -> Tensor:
    """Return the factor (steps,) from a change of each call's x0 to that of the network's output.

    Args:
        sampler: its times.
        policy: its noise schedule.
    """
    level = policy.schedule.level(sampler.times(policy)[:-1])
    return policy.schedule.error_scale(level).flatten()


def _product(direction: Tensor, x0: Tensor) -> Tensor:
    """Return the inner product (b, 1) of two latents (b, *latent)."""
    return (direction * x0).flatten(1).sum(1, keepdim=True)
