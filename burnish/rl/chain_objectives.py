"""Objectives on the chain: how far a prediction lies in the direction that its image has.

The network's calls that drew an image are replayed at the states that were stored. With one
direction d an image, l = <d, x0> times a factor of the call (see `diffusion.chain`), and l_old the
same under the policy that sampled:

    latent   -l with d = the gradient of the rewards to the finished latent: reward gradients
             without a graph through the chain            (DRTune, arXiv 2405.00760; DRaFT-1,
             arXiv 2309.17400; read at predictions instead, ReFL, arXiv 2304.05977)
    fdfo     -A rho + |A| / (2 c) (rho - 1)^2 with d = delta / ms(delta), delta an image less the
             mean of its prompt's: a finite difference of any reward   (FDFO, arXiv 2603.12893)

In fdfo, with ms the mean of squares, -ms(out - (out_old + delta / ms(delta))) takes the place of a
log-density, out being the network's output in the sense in which x0 grows with it. Its ratio is

    rho = exp(2 (l - l_old) - d_old),      d_old the mean squared distance to the old output

so before the first update the loss falls by 2 A <delta, d out> / |delta|^2: the difference of the
rewards along the difference of the images. The second term leads rho to 1 + c or 1 - c (simple
policy optimisation), where a clip would only cut the gradient off.

Both may add kl / 2 of the mean squared distance to the reference's output.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from burnish.rl.objectives import (
    check_setting,
    column,
    fraction,
    old_divergence,
    penalty,
)
from burnish.types import Loss, Objective, Replay


@dataclass(frozen=True)
class Latent(Objective):
    """Differentiable rewards: their own gradient in place of an advantage.

    Section [chain] says which calls carry it. Read it with the images in view: nothing follows a
    reward's weaknesses faster.

    Attributes:
        kl: coefficient of the KL to the reference.
    """

    kl: float = 0.0
    process = "chain"
    direction = "gradient"

    def __post_init__(self) -> None:
        check_setting("kl", self.kl, self.kl >= 0)

    def __call__(self, replay: Replay, adv: Tensor) -> Loss:
        """Return the loss; advantages (b,) are 1, see advantage "none"."""
        value = -(column(adv, replay) * replay.logp).mean()
        return Loss(value + penalty(self.kl, replay), chain_metrics(replay))


@dataclass(frozen=True)
class FDFO(Objective):
    """Finite differences: images of a prompt from one start, that differ by a little noise.

    For any reward: it needs kernel "churn" with a small gamma (0.0025 in the paper),
    sampler.shared_noise and two images a prompt.

    Attributes:
        limit: c, by how much rho is to grow or shrink; 0.03 in the paper. A prediction then moves
            by about c / 2 of delta in an iteration: with images that are nearly the same, many
            iterations of many pairs are needed (in the paper 100 of 432).
        kl: coefficient of the KL to the reference.
    """

    limit: float = 0.03
    kl: float = 0.0
    process = "chain"
    direction = "difference"
    uses_ratio = True
    uses_old_prediction = True

    def __post_init__(self) -> None:
        check_setting("limit", self.limit, self.limit > 0)
        check_setting("kl", self.kl, self.kl >= 0)

    def __call__(self, replay: Replay, adv: Tensor) -> Loss:
        """Return the loss for advantages (b,)."""
        a = column(adv, replay)
        moved = 2 * old_divergence(replay) / replay.dims
        ratio = (2 * (replay.logp - replay.logp_old) - moved).exp()
        excess = a.abs() / (2 * self.limit) * (ratio - 1).square()
        value = (excess - a * ratio).mean()

        change = (ratio.detach() - 1).abs()
        metrics = {
            **chain_metrics(replay),
            "ratio_deviation": float(change.max()),
            "beyond_limit": fraction(change > self.limit),
            "kl_old": float(old_divergence(replay).detach().mean()),
        }
        return Loss(value + penalty(self.kl, replay), metrics)


@torch.no_grad()
def chain_metrics(replay: Replay) -> dict[str, float]:
    """Return the metrics that both have in common."""
    return {} if replay.kl is None else {"kl": float(replay.kl.mean())}
