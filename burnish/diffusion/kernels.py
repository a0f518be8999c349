"""Kernels: one transition of a sampler, x_t -> x_s, as a Gaussian that can be sampled and scored.

A kernel is called with (x_t, x0, level_t, level_s) and returns Gaussian(mean, std); x0 is the
network's prediction, so the gradient reaches the network through the mean alone.

DDIM (arXiv 2010.02502, eq. 12 and 16), with x_t = alpha_t x0 + sigma_t eps and abar = alpha^2:

    std  = eta * sigma_s / sigma_t * sqrt(1 - abar_t / abar_s)
    mean = alpha_s x0 + sqrt(sigma_s^2 - std^2) eps,       eps = (x_t - alpha_t x0) / sigma_t

LCM (arXiv 2310.04378, algorithm 3), where a consistency model gives x0 at once and the sampler
noises it again:

    std  = sigma_s,        mean = alpha_s x0

The last transition of a consistency model ends in x0 itself: it has no noise, so it is no action.
(An action whose noise the image never shows would add nothing but variance: its expected policy
gradient is zero.)

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
        dtype = torch.promote_types(x_t.dtype, torch.float32)
        signal = (level_t.alpha / level_s.alpha) ** 2
        std = self.eta * level_s.sigma / level_t.sigma * (1 - signal).clamp(min=0).sqrt()

        # the mean as a sum of x_t and x0: eps is never formed
        weight_x_t = (level_s.sigma**2 - std**2).clamp(min=0).sqrt() / level_t.sigma
        weight_x0 = level_s.alpha - weight_x_t * level_t.alpha
        mean = weight_x0.to(dtype) * x0.to(dtype) + weight_x_t.to(dtype) * x_t.to(dtype)

        return Gaussian(mean, std.to(dtype))


@dataclass(frozen=True)
class LCM(Kernel):
    """The re-noising of latent consistency models; RLCM's policy (arXiv 2404.03673)."""

    consistency_only = True

    def __call__(self, x_t: Tensor, x0: Tensor, level_t: Level, level_s: Level) -> Gaussian:
        """Return the transition from level t to level s.

        `x_t` matters only through `x0` (B, *latent).
        """
        dtype = torch.promote_types(x_t.dtype, torch.float32)
        std = level_s.sigma.to(dtype).expand(len(x0), *[1] * (x0.dim() - 1))
        return Gaussian(level_s.alpha.to(dtype) * x0.to(dtype), std)


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
