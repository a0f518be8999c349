"""Objectives on the forward process: finished images are noised again, and l = -e.

e is the mean squared error of the network's prediction for a noised image. No transition needs a
likelihood, so any sampler will do, one without noise too. With A the image's advantage, e_old and
e_ref the errors of the old policy (which sampled) and of the reference, and d_old and d_ref the
mean squared distances of the current prediction to theirs:

    rwr   w e, with weights w >= 0: imitation of the better images      (RWR, arXiv 2305.13301, 4.1)
    awm   `clipped` with rho = exp(e_old - e): the evidence lower bound stands in for the
          likelihood                                                     (AWM, arXiv 2509.25050)
    rvm   A e / 2                                                        (RVM, arXiv 2608.23664)
    ram   m A (e - d_old) / 2 + d_ref / 2: linear in the prediction but for the anchor, so that bad
          images cannot push it away for ever                            (RAM, arXiv 2605.10759)
    nft   A_max (r / b e_+ / m_+  +  (1 - r) / b e_- / m_-),  r = clip(A / (2 A_max) + 1/2, 0, 1):
          e_+ and e_- are the errors of (1 - b) old + b current and of (1 + b) old - b current, m_+
          and m_- their mean absolute errors                             (DiffusionNFT, 2509.16117)
    dgpo  w A e, w = sigmoid(beta mean over the prompt's images of A (e - e_ref)), and no gradient
          where exp(e_old - e) has left its clip range the way A pushes  (DGPO, arXiv 2510.08425)

All are functions of five numbers of a noised image, because the error of a mixture is

    e of (1 - c) old + c current  =  (1 - c) e_old + c e - c (1 - c) d_old

but for the mean absolute errors of NFT. All may add kl / 2 d of the distance d to an anchor
(`forward.anchor`), in RAM with kl = 1. `forward` also says what errors are measured in, and at
which times. Metrics of those without a ratio:

    denoising_error   mean of e
    kl_old            mean of D / 2 d_old, in nats per noised image, of those that read d_old; 0
                      before the first update, unless the old policy lags
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from burnish.rl.objectives import (
    Clipped,
    check_setting,
    column,
    fraction,
    old_divergence,
    penalty,
    replay_metrics,
)
from burnish.types import Loss, Objective, Replay

LEAST_ERROR = 1e-5
"""The least mean absolute error by which NFT divides, as in its code."""


@dataclass(frozen=True)
class RWR(Objective):
    """Weighted denoising, for advantages that give weights (softmax, top_fraction).

    It is made for many updates a batch.

    Attributes:
        data: "latent" denoises the latents that were sampled; "encoded", as in DDPO's code, those
            that the autoencoder makes of the decoded images, drawn once an iteration: what a data
            set of images would hold.
        kl: coefficient of the KL to the anchor.
    """

    data: Literal["latent", "encoded"] = "latent"
    kl: float = 0.0
    process = "forward"
    imitates = True

    def __post_init__(self) -> None:
        if self.data not in ("latent", "encoded"):
            raise ValueError(f'objective.data must be "latent" or "encoded", not "{self.data}"')
        check_setting("kl", self.kl, self.kl >= 0)

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

        value = -(column(adv, replay) * replay.logp).mean()
        return Loss(value + penalty(self.kl, replay), denoising_metrics(replay))


@dataclass(frozen=True)
class AWM(Clipped):
    """Policy gradient on the forward process: `clipped` with minus the denoising error as l.

    Attributes:
        clip: the largest change of that error times D; the published 1e-5 at D = 65536 is 0.66.
        kl: coefficient of the KL to the anchor.
        normalise: is of transitions, so it is refused here.
    """

    clip: float = 0.66
    process = "forward"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normalise:
            raise ValueError(
                "objective.normalise is for transitions, whose noise has a size, and 'awm' has "
                "none; leave it out, or take objective 'clipped'"
            )


@dataclass(frozen=True)
class RVM(Objective):
    """The gradient of the advantage-weighted error, without a limit of its own.

    Where advantages are negative it pushes the prediction away, the faster the farther it is: limit
    optimizer.max_grad_norm, the updates an iteration, or take an anchor.

    Attributes:
        kl: coefficient of the KL to the anchor.
    """

    kl: float = 0.0
    process = "forward"

    def __post_init__(self) -> None:
        check_setting("kl", self.kl, self.kl >= 0)

    def __call__(self, replay: Replay, adv: Tensor) -> Loss:
        """Return the loss for advantages (b,)."""
        value = -(column(adv, replay) * replay.logp).mean() / 2
        return Loss(value + penalty(self.kl, replay), denoising_metrics(replay))


@dataclass(frozen=True)
class RAM(Objective):
    """Regression on the reference's prediction, moved by the advantage: half the published loss.

    Attributes:
        strength: m, how far an advantage of 1 moves the target: in units of the old policy's error
            where kl = 1. The smaller it is, the closer the policy stays to the anchor. The paper
            has 100 and 1000 for rewards less their mean; divided by their spread, as advantages are
            here, that is about 30 for both. Its learning rate is 3e-4 without a limit of the
            gradient, its times are forward.times = "noisy", eight of an image.
        kl: coefficient of the KL to the anchor, 1 in the paper.
    """

    strength: float = 10.0
    kl: float = 1.0
    process = "forward"
    uses_old_prediction = True

    def __post_init__(self) -> None:
        check_setting("strength", self.strength, self.strength > 0)
        check_setting("kl", self.kl, self.kl >= 0)

    def __call__(self, replay: Replay, adv: Tensor) -> Loss:
        """Return the loss for advantages (b,)."""
        error = -replay.logp - distance_to_old(replay)
        value = self.strength * (column(adv, replay) * error).mean() / 2
        return Loss(value + penalty(self.kl, replay), denoising_metrics(replay))


@dataclass(frozen=True)
class NFT(Objective):
    """Better images pull a mixture with the old policy, worse ones pull its mirror image.

    Attributes:
        mix: b, the current prediction's part of the mixture; 1 and 0.1 in the paper. The gradient
            does not shrink with it.
        most: A_max; an advantage beyond it counts as it.
        kl: coefficient of the KL to the anchor.

    The paper measures errors of x0 at the times of the sampler: forward.error = "x0" and
    forward.times = "steps".
    """

    mix: float = 1.0
    most: float = 5.0
    kl: float = 0.0
    process = "forward"
    uses_old_prediction = True

    def __post_init__(self) -> None:
        check_setting("mix", self.mix, self.mix > 0)
        check_setting("most", self.most, self.most > 0)
        check_setting("kl", self.kl, self.kl >= 0)

    @property
    def mixtures(self) -> tuple[float, ...]:  # type: ignore[override]
        """The two mixtures whose mean absolute errors weigh the loss."""
        return (self.mix, -self.mix)

    def __call__(self, replay: Replay, adv: Tensor) -> Loss:
        """Return the loss for advantages (b,).

        Raises:
            ValueError: the replay has no errors of the mixtures.
        """
        if replay.mixture_errors is None:
            raise ValueError("objective 'nft' needs the errors of its mixtures in the replay")

        better = (column(adv, replay) / (2 * self.most) + 0.5).clamp(0, 1)
        towards, away = replay.mixture_errors.clamp(min=LEAST_ERROR).split(1, 1)
        pull = better * mixture_error(replay, self.mix) / towards
        push = (1 - better) * mixture_error(replay, -self.mix) / away
        value = self.most / self.mix * (pull + push).mean()
        return Loss(value + penalty(self.kl, replay), denoising_metrics(replay))


@dataclass(frozen=True)
class DGPO(Objective):
    """A preference between the better and the worse images of a prompt, as one group.

    The group's weight needs all its images at once, its gradient does not: `targets` turns the
    change from the reference, computed without gradient, into weights.

    Attributes:
        beta: of the preference; the paper has 100, and 10 for PickScore.
        clip: in nats, as of AWM: the published 1e-3 at D = 65536 is 66.
        kl: coefficient of the KL to the anchor.
    """

    beta: float = 100.0
    clip: float = 66.0
    kl: float = 0.0
    process = "forward"
    compares_images = True
    compares_with_reference = True
    uses_ratio = True

    def __post_init__(self) -> None:
        check_setting("beta", self.beta, self.beta > 0)
        check_setting("clip", self.clip, self.clip > 0)
        check_setting("kl", self.kl, self.kl >= 0)

    def targets(self, change: Tensor, adv: Tensor, group: Tensor, transitions: int) -> Tensor:
        """Return the advantages weighted by their group's preference, (b, T).

        Args:
            change: (b, T) of the log-probabilities from the reference.
            adv: (b,) advantages.
            group: (b,) prompts.
            transitions: of one image.
        """
        _, index, count = group.unique(return_inverse=True, return_counts=True)
        worse = -adv[:, None] * change
        sums = worse.new_zeros(len(count), worse.shape[1]).index_add_(0, index, worse)
        weight = (self.beta * sums / count[:, None]).sigmoid()
        weighted: Tensor = weight[index] * adv[:, None]
        return weighted

    def __call__(self, replay: Replay, adv: Tensor) -> Loss:
        """Return the loss, with in `adv` (b,) what `targets` made of the advantages."""
        a = column(adv, replay)
        ratio = (replay.logp - replay.logp_old).exp().detach()
        c = self.clip / replay.dims
        gone = ((a > 0) & (ratio > 1 + c)) | ((a < 0) & (ratio < 1 - c))
        value = -(a * torch.where(gone, replay.logp.detach(), replay.logp)).mean()
        metrics = {**replay_metrics(replay), "clip_fraction": fraction(gone)}
        return Loss(value + penalty(self.kl, replay), metrics)


@torch.no_grad()
def denoising_metrics(replay: Replay) -> dict[str, float]:
    """Return the metrics of objectives without a ratio."""
    metrics = {"denoising_error": float(-replay.logp.cpu().double().mean())}

    if replay.kl_old is not None:
        metrics["kl_old"] = float(replay.kl_old.mean())
    if replay.kl is not None:
        metrics["kl"] = float(replay.kl.mean())

    return metrics


def distance_to_old(replay: Replay) -> Tensor:
    """Return d_old (b, k), the mean squared distance to the old policy's prediction."""
    return 2 * old_divergence(replay) / replay.dims


def mixture_error(replay: Replay, c: float) -> Tensor:
    """Return the error (b, k) of (1 - c) old + c current predictions."""
    mixed = -(1 - c) * replay.logp_old - c * replay.logp
    return mixed - c * (1 - c) * distance_to_old(replay)
