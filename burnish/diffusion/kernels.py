"""Kernels: one transition of a sampler, x_t -> x_s, as a Gaussian that can be sampled and scored.

A kernel is called with (x_t, x0, level_t, level_s) and returns Gaussian(mean, std); x0 is the
network's prediction, so the gradient reaches the network through the mean alone. With
x_t = alpha_t x0 + sigma_t eps, so that eps = (x_t - alpha_t x0) / sigma_t, most of them keep a
share rho of the noise that is in x_t and draw the rest anew, and all these have the same marginals:

    x_s = alpha_s x0 + sigma_s (rho eps + sqrt(1 - rho^2) z),       z standard normal

    ode      rho = 1, no new noise: DDIM with eta = 0, Euler's step for a flow
    cps      rho = cos(eta pi / 2)                         coefficients preserving, arXiv 2509.05952
    precise  rho = (sigma_s alpha_t / (sigma_t alpha_s))^(a^2 / 2)       Flow-GRPO's SDE, solved
    churn    rho = 1 / (1 + gamma)                         EDM's churn, arXiv 2206.00364
    renoise  rho = 0: what consistency models and distilled flows do
    ddim     std = eta sigma_s / sigma_t sqrt(1 - abar_t / abar_s), abar = alpha^2 (arXiv
             2010.02502, eq. 12 and 16): for diffusion models, with eta = 1 DDPM's posterior
    lcm      renoise, for a consistency model, which gives x0 at once (arXiv 2310.04378,
             algorithm 3)

Precise is the exact solution of the SDE  dx = [v + g^2 / (2t) (x + (1 - t) v)] dt + g dw  with x0
held fixed (arXiv 2605.23522) for g = a sqrt(t / (1 - t)), Flow-GRPO's. Two kernels take a step of
Euler and Maruyama of such an SDE instead, with h = s - t < 0, for parity with their papers; it
leaves more noise than belongs there where steps are large:

    flow_grpo   mean = x + [v + g^2 / (2t) (x + (1 - t) v)] h,  std = g sqrt(-h)  arXiv 2505.05470
    dance_grpo  the same with g = eta                                             arXiv 2505.07818

The last transition of a consistency model ends in x0 itself: it has no noise, so it is no action.
(An action whose noise the image never shows would add nothing but variance: its expected policy
gradient is zero.) The same is true of all kernels with a rho on a flow, which ends at sigma = 0.

Everything is computed in at least float32, whatever the network's precision: in half precision the
last transitions, whose std is 0.02 to 0.04, lose their log-density. Autocast leaves elementwise
operations alone, so nothing has to be switched off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from burnish.types import Gaussian, Kernel, Level

LEAST_STD = 1e-4
"""A transition with a smaller std has no usable density and counts as deterministic."""


@dataclass(frozen=True)
class DDIM(Kernel):
    """The DDIM transition.

    Attributes:
        eta: in [0, 1], the fraction of DDPM's noise that each transition adds. 1 is ancestral
            sampling; 0 adds none, so that transitions have no density and only an objective on the
            forward process can learn.
    """

    eta: float = 1.0
    schedule = "diffusion"

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"kernel.eta must lie between 0 and 1, not {self.eta}")

    @property
    def deterministic(self) -> bool:  # type: ignore[override]
        """True if no transition has noise."""
        return self.eta == 0

    def __call__(self, x_t: Tensor, x0: Tensor, level_t: Level, level_s: Level) -> Gaussian:
        """Return the transition from level t to level s.

        Args:
            x_t: (B, *latent) the states.
            x0: (B, *latent) the network's predictions.
            level_t: one level a row.
            level_s: one level a row, less noisy than t.
        """
        signal = (level_t.alpha / level_s.alpha) ** 2
        std = self.eta * level_s.sigma / level_t.sigma * (1 - signal).clamp(min=0).sqrt()

        noise = (level_s.sigma**2 - std**2).clamp(min=0).sqrt()
        return _keeping(noise, std, x_t, x0, level_t, level_s)


@dataclass(frozen=True)
class LCM(Kernel):
    """The re-noising of latent consistency models; RLCM's policy (arXiv 2404.03673)."""

    schedule = "consistency"

    def __call__(self, x_t: Tensor, x0: Tensor, level_t: Level, level_s: Level) -> Gaussian:
        """Return the transition from level t to level s.

        `x_t` matters only through `x0` (B, *latent).
        """
        dtype = torch.promote_types(x_t.dtype, torch.float32)
        std = level_s.sigma.to(dtype).expand(len(x0), *[1] * (x0.dim() - 1))
        return Gaussian(level_s.alpha.to(dtype) * x0.to(dtype), std)


class Marginal(Kernel):
    """A kernel that keeps a share rho of the noise and so has the model's own marginals."""

    def rho(self, level_t: Level, level_s: Level) -> Tensor:
        """Return the share (B, 1, 1, 1) of the noise that is kept, in [0, 1]."""
        raise NotImplementedError

    def __call__(self, x_t: Tensor, x0: Tensor, level_t: Level, level_s: Level) -> Gaussian:
        """Return the transition from level t to level s.

        Args:
            x_t: (B, *latent) the states.
            x0: (B, *latent) the network's predictions.
            level_t: one level a row.
            level_s: one level a row, less noisy than t.
        """
        rho = self.rho(level_t, level_s)
        std = level_s.sigma * (1 - rho**2).clamp(min=0).sqrt()

        return _keeping(level_s.sigma * rho, std, x_t, x0, level_t, level_s)


@dataclass(frozen=True)
class ODE(Marginal):
    """No noise: only objectives on the forward process can learn from it."""

    deterministic = True

    def rho(self, level_t: Level, level_s: Level) -> Tensor:
        """Return 1: all noise is kept."""
        return torch.ones_like(level_t.sigma)


@dataclass(frozen=True)
class CPS(Marginal):
    """Coefficients-preserving sampling.

    Attributes:
        eta: in (0, 1]: from hardly any new noise to new noise alone; the paper has 0.8.
    """

    eta: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.eta <= 1:
            raise ValueError(f"kernel.eta must lie above 0 and at most at 1, not {self.eta}")

    def rho(self, level_t: Level, level_s: Level) -> Tensor:
        """Return cos(eta pi / 2) at every level."""
        return torch.full_like(level_t.sigma, math.cos(self.eta * math.pi / 2))


@dataclass(frozen=True)
class Precise(Marginal):
    """Flow-GRPO's stochastic differential equation, solved exactly with x0 held fixed.

    Attributes:
        a: the noise level, above 0; Flow-GRPO has 0.7, and sqrt(2) is DDPM's on a diffusion model.
    """

    a: float = 0.7

    def __post_init__(self) -> None:
        if not (self.a > 0 and math.isfinite(self.a)):
            raise ValueError(f"kernel.a must be a number above 0, not {self.a}")

    def rho(self, level_t: Level, level_s: Level) -> Tensor:
        """Return the ratio of the noise-to-signal ratios to the power of a^2 / 2."""
        ratio = level_s.sigma * level_t.alpha / (level_t.sigma * level_s.alpha)
        return ratio ** (self.a**2 / 2)


@dataclass(frozen=True)
class Churn(Marginal):
    """The noise is raised by a factor before each step without noise (EDM).

    Attributes:
        gamma: above 0, by how much.
    """

    gamma: float = 0.1

    def __post_init__(self) -> None:
        if not (self.gamma > 0 and math.isfinite(self.gamma)):
            raise ValueError(f"kernel.gamma must be a number above 0, not {self.gamma}")

    def rho(self, level_t: Level, level_s: Level) -> Tensor:
        """Return 1 / (1 + gamma) at every level."""
        return torch.full_like(level_t.sigma, 1 / (1 + self.gamma))


@dataclass(frozen=True)
class Renoise(Marginal):
    """New noise alone, as distilled flows are sampled."""

    def rho(self, level_t: Level, level_s: Level) -> Tensor:
        """Return 0: no noise is kept."""
        return torch.zeros_like(level_t.sigma)


class EulerMaruyama(Kernel):
    """One step of Euler and Maruyama of a flow's stochastic differential equation."""

    schedule = "flow"

    def diffusion(self, t: Tensor, s: Tensor) -> Tensor:
        """Return the diffusion coefficient g (B, 1, 1, 1) at time t; the step leads to s."""
        raise NotImplementedError

    def __call__(self, x_t: Tensor, x0: Tensor, level_t: Level, level_s: Level) -> Gaussian:
        """Return the transition from level t to level s of a flow, where sigma is the time.

        Args:
            x_t: (B, *latent) the states.
            x0: (B, *latent) the network's predictions.
            level_t: one level a row.
            level_s: one level a row, less noisy than t.
        """
        dtype = torch.promote_types(x_t.dtype, torch.float32)
        t = level_t.sigma
        h = level_s.sigma - t
        g = self.diffusion(t, level_s.sigma)

        # v = (x - x0) / t and x + (1 - t) v = eps, both linear in x and x0
        drift = g**2 / (2 * t)
        weight_v = (1 + drift * (1 - t)) * h / t
        weight_x = 1 + drift * h + weight_v
        mean = weight_x.to(dtype) * x_t.to(dtype) - weight_v.to(dtype) * x0.to(dtype)

        return Gaussian(mean, (g * (-h).sqrt()).to(dtype))


@dataclass(frozen=True)
class FlowGRPO(EulerMaruyama):
    """Flow-GRPO's step.

    Attributes:
        a: the noise level, above 0; the paper has 0.7.
    """

    a: float = 0.7

    def __post_init__(self) -> None:
        if not (self.a > 0 and math.isfinite(self.a)):
            raise ValueError(f"kernel.a must be a number above 0, not {self.a}")

    def diffusion(self, t: Tensor, s: Tensor) -> Tensor:
        """Return a sqrt(t / (1 - t)); at t = 1, where that has no value, 1 - s is divided by."""
        return self.a * (t / (1 - torch.where(t < 1, t, s))).sqrt()


@dataclass(frozen=True)
class DanceGRPO(EulerMaruyama):
    """DanceGRPO's step.

    Attributes:
        eta: the diffusion coefficient at all times, above 0; the paper has 0.3.
    """

    eta: float = 0.3

    def __post_init__(self) -> None:
        if not (self.eta > 0 and math.isfinite(self.eta)):
            raise ValueError(f"kernel.eta must be a number above 0, not {self.eta}")

    def diffusion(self, t: Tensor, s: Tensor) -> Tensor:
        """Return eta at every time."""
        return torch.full_like(t, self.eta)


def _keeping(
    noise: Tensor, std: Tensor, x_t: Tensor, x0: Tensor, level_t: Level, level_s: Level
) -> Gaussian:
    """Return N(alpha_s x0 + noise eps, std), where eps is the noise in x_t.

    The mean is a sum of x_t and x0, so eps = (x_t - alpha_t x0) / sigma_t is never formed.
    """
    dtype = torch.promote_types(x_t.dtype, torch.float32)
    weight_x_t = noise / level_t.sigma
    weight_x0 = level_s.alpha - weight_x_t * level_t.alpha
    mean = weight_x0.to(dtype) * x0.to(dtype) + weight_x_t.to(dtype) * x_t.to(dtype)
    return Gaussian(mean, std.to(dtype))


def sample(gaussian: Gaussian, generator: torch.Generator) -> Tensor:
    """Return one sample (B, *latent).

    The noise is drawn by the CPU `generator`, so that it is the same on every device.

    Args:
        gaussian: the transition.
        generator: of the CPU.
    """
    return gaussian.mean + gaussian.std * noise_like(gaussian.mean, generator)


def noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return unit Gaussian noise of x's shape, type and device, drawn on the CPU."""
    return torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)


def log_prob(gaussian: Gaussian, x: Tensor) -> Tensor:
    """Return the MEAN log-density (B,) per latent dimension of `x` (B, *latent).

    This is the one place where the mean over dimensions is taken. A latent of Stable Diffusion has
    D = 16384 scalars, and the ratio of two densities of that many is astronomically far from 1;
    DDPO (arXiv 2305.13301) therefore works with exp(mean log-ratio) and clips it at 1e-4, which is
    1e-4 * 16384 = 1.64 nats of the true log-ratio per image and transition. Objectives take their
    clip range in those nats, so that it means the same at every latent size.

    Args:
        gaussian: the transition.
        x: the states that it led to. No gradient goes through them: they are actions that were
            taken.
    """
    mean = gaussian.mean
    std = gaussian.std
    z = (x.detach().to(mean.dtype) - mean) / std
    return (-0.5 * z**2 - std.log() - 0.5 * math.log(2 * math.pi)).flatten(1).mean(1)


def kl(p: Gaussian, q: Gaussian) -> Tensor:
    """Return KL(p || q) (B,) in nats per image and transition, SUMMED over the dimensions.

    Args:
        p: the transition under the current weights.
        q: the same transition under the reference weights.
    """
    ratio = p.std / q.std
    distance = ((p.mean - q.mean) / q.std) ** 2
    return (0.5 * (distance + ratio**2 - 1) - ratio.log()).flatten(1).sum(1)
