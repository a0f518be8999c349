"""Objectives: a loss from log-probabilities of stored transitions and the images' advantages.

Called with (replay, advantages); the loss is the mean over images and transitions. With l = mean
log-density per latent dimension, l_old the same under the weights that sampled, A the image's
advantage and rho = exp(l - l_old):

    reinforce   -A * l                                          (DDPO-SF, arXiv 2305.13301)
    clipped     max(-A * rho, -A * clip(rho, 1 - c, 1 + c))     (DDPO-IS: PPO, arXiv 1707.06347)
    rebel       (k (S_i - S_j) - (A_i - A_j))^2, the mean over all pairs i, j of a prompt's images,
                with S the sum of l - l_old over an image's transitions
                                                                (REBEL, arXiv 2404.16767; RLCM's
                                                                 code)

Two more learn from the forward process (`process = "forward"`): the finished images are noised
again, and l is minus the mean squared error of the network's prediction (see `Sampler.renoise`).
No transition needs a likelihood, any sampler will do:

    rwr         -w * l with weights w >= 0: imitation of the better images
                                                                (RWR, DDPO section 4.1)
    awm         clipped, as above, with this l: the evidence lower bound stands in for the
                likelihood                                      (AWM, arXiv 2509.25050)

All but rebel may add kl * KL(policy || reference) / D. Dividing by the latent's D dimensions puts
it in the unit of l, so that the coefficients of Flow-GRPO (arXiv 2505.05470) mean the same here;
the record shows it in nats. Metrics of every objective but rwr, which has `denoising_error`:

    ratio_deviation   max |rho - 1|: 0 up to rounding before the first update of an iteration
    approx_kl         mean of 0.5 * (D * (l - l_old))^2, the KL to the sampling weights in nats per
                      image and transition
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from burnish.types import Loss, Objective, Replay


@dataclass(frozen=True)
class Reinforce(Objective):
    """The score function estimator, right for one optimizer step per batch of images.

    Attributes:
        kl: coefficient of the KL to the reference.
    """

    kl: float = 0.0

    def __post_init__(self) -> None:
        _check("kl", self.kl, self.kl >= 0)

    def __call__(self, replay: Replay, adv: Tensor) -> Loss:
        """Return the loss for advantages (b,)."""
        value = -(_column(adv, replay) * replay.logp).mean()
        return Loss(value + _penalty(self.kl, replay), _metrics(replay))


@dataclass(frozen=True)
class Clipped(Objective):
    """Importance sampling with PPO's clip: several optimizer steps per batch of images.

    Attributes:
        clip: in nats per image and transition, c = clip / D: the published 1e-4 at D = 16384 is
            1.64, and 1.64 is the same trust region at every latent size (see `kernels.log_prob`).
        kl: coefficient of the KL to the reference.
    """

    clip: float = 1.64
    kl: float = 0.0
    uses_ratio = True

    def __post_init__(self) -> None:
        _check("clip", self.clip, self.clip > 0)
        _check("kl", self.kl, self.kl >= 0)

    def __call__(self, replay: Replay, adv: Tensor) -> Loss:
        """Return the loss for advantages (b,)."""
        ratio = (replay.logp - replay.logp_old).exp()
        c = self.clip / replay.dims
        a = _column(adv, replay)

        # the larger of the two losses: a transition that already went too far the right way gets no
        # gradient, but one that went the wrong way always does
        value = torch.maximum(-a * ratio, -a * ratio.clamp(1 - c, 1 + c)).mean()
        outside = ((ratio.detach() - 1).abs() > c).double().mean()
        metrics = {**_metrics(replay), "clip_fraction": float(outside)}

        return Loss(value + _penalty(self.kl, replay), metrics)


@dataclass(frozen=True)
class Rebel(Objective):
    """Regression of the reward difference of two images of a prompt on their log-ratios.

    The loss needs all transitions of all images of a prompt at once. Its gradient does not: with
    d_i = k (S_i - mean S) - (A_i - mean A) over the n images of a prompt, the loss is the mean over
    prompts of 2 / (n - 1) sum d_i^2, and its gradient 4 k / (n - 1) sum d_i grad S_i. So
    `targets` turns S, computed without gradient, into weights, and the call weighs the
    log-densities with them, some transitions at a time: no more memory than any other objective,
    for one more pass without gradient. Before the first update of an iteration S is 0 and costs
    nothing.

    Attributes:
        rate: k above, 1 / eta of the paper, on mean log-densities as in RLCM's code.
    """

    rate: float = 1.0
    compares_images = True

    def __post_init__(self) -> None:
        if not (self.rate > 0 and math.isfinite(self.rate)):
            raise ValueError(f"objective.rate must be > 0, not {self.rate}")

    def targets(self, change: Tensor, adv: Tensor, group: Tensor, transitions: int) -> Tensor:
        """Return what replaces the advantages, (b,).

        Args:
            change: (b,) S of each image.
            adv: (b,) advantages.
            group: (b,) prompts.
            transitions: of one image.

        Raises:
            ValueError: a prompt has a single image.
        """
        _, index, count = group.unique(return_inverse=True, return_counts=True)
        if bool((count < 2).any()):
            raise ValueError(
                "objective 'rebel' compares images of a prompt: set batch.images_per_prompt to 2 "
                "or more"
            )

        error = self.rate * change - adv
        mean = error.new_zeros(len(count)).index_add_(0, index, error) / count
        n = count[index]

        targets: Tensor = -4 * self.rate * transitions * (error - mean[index]) * n / (n - 1)
        return targets

    def __call__(self, replay: Replay, adv: Tensor) -> Loss:
        """Return the loss, with in `adv` (b,) what `targets` made of the advantages."""
        return Loss(-(_column(adv, replay) * replay.logp).mean(), _metrics(replay))


@dataclass(frozen=True)
class RWR(Objective):
    """Weighted denoising, for advantages that give weights (softmax, top_fraction).

    It is made for many updates a batch.

    Attributes:
        data: "latent" denoises the latents that were sampled; "encoded", as in DDPO's code, those
            that the autoencoder makes of the decoded images, drawn once an iteration: what a data
            set of images would hold.
        kl: coefficient of the KL to the reference.
    """

    data: Literal["latent", "encoded"] = "latent"
    kl: float = 0.0
    process = "forward"
    imitates = True

    def __post_init__(self) -> None:
        if self.data not in ("latent", "encoded"):
            raise ValueError(f'objective.data must be "latent" or "encoded", not "{self.data}"')
        _check("kl", self.kl, self.kl >= 0)

    def __call__(self, replay: Replay, adv: Tensor) -> Loss:
        """Return the loss for weights (b,) >= 0.

        Raises:
            ValueError: there is a negative weight.
        """
        if bool((adv < 0).any()):
            raise ValueError(
                "objective 'rwr' imitates, so it needs weights: set advantage.use to softmax or "
                "top_fraction"
            )

        value = -(_column(adv, replay) * replay.logp).mean()
        metrics = {"denoising_error": float(-replay.logp.detach().double().mean())}

        if replay.kl is not None:
            metrics["kl"] = float(replay.kl.detach().mean())

        return Loss(value + _penalty(self.kl, replay), metrics)


@dataclass(frozen=True)
class AWM(Clipped):
    """Policy gradient on the forward process: `clipped` with minus the denoising error as l.

    Attributes:
        clip: the largest change of that error times D; the published 1e-5 at D = 65536 is 0.66.
        kl: coefficient of the KL to the reference.
    """

    clip: float = 0.66
    process = "forward"


def _check(name: str, value: float, good: bool) -> None:
    if not (good and math.isfinite(value)):
        bound = "> 0" if name == "clip" else ">= 0"
        raise ValueError(f"objective.{name} must be {bound}, not {value}")


def _column(adv: Tensor, replay: Replay) -> Tensor:
    """Return advantages as a column (b, 1) beside the log-densities."""
    return adv.to(replay.logp.device, replay.logp.dtype)[:, None]


def _penalty(coefficient: float, replay: Replay) -> Tensor | float:
    if coefficient == 0:
        return 0.0
    if replay.kl is None:
        raise ValueError("objective.kl > 0 needs a replay with reference=True")
    return coefficient * replay.kl.mean() / replay.dims


@torch.no_grad()
def _metrics(replay: Replay) -> dict[str, float]:
    change = replay.logp - replay.logp_old
    metrics = {
        "ratio_deviation": float(change.expm1().abs().max()),
        "approx_kl": float(0.5 * (replay.dims * change).square().mean()),
    }

    if replay.kl is not None:
        metrics["kl"] = float(replay.kl.mean())

    return metrics
