"""An objective in a file: PPO's clip with a wider range upwards (DAPO, arXiv 2503.14476).

    burnish train demo --set 'objective={use="examples/custom_objective.py:ClipHigher"}'

    loss = max(-A * rho, -A * clip(rho, 1 - low / D, 1 + high / D)),   rho = exp(l - l_old)

Unlikely transitions may become likelier by more than likely ones may become rarer. `low` and `high`
are in nats per image and transition; l is a mean over the D numbers of a latent, hence the
division.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from burnish.types import Loss, Objective, Replay


@dataclass(frozen=True)
class ClipHigher(Objective):
    """The clipped objective with two ranges, in nats per image and transition."""

    low: float = 1.64
    high: float = 3.28
    uses_ratio = True

    def __call__(self, replay: Replay, adv: Tensor) -> Loss:
        """Return the mean loss; `adv` is (b,)."""
        ratio = (replay.logp - replay.logp_old).exp()  # (b, 1)
        near = ratio.clamp(1 - self.low / replay.dims, 1 + self.high / replay.dims)
        gain = adv.to(ratio)[:, None]
        loss = torch.maximum(-gain * ratio, -gain * near).mean()
        metrics = {
            "ratio_deviation": float((ratio.detach() - 1).abs().max()),
            "clip_fraction": float((ratio.detach() != near.detach()).double().mean()),
        }
        return Loss(loss, metrics)
