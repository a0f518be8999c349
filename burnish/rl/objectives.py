"""Objectives: a loss from log-probabilities of stored transitions and the images' advantages.

Called with (replay, advantages); the loss is the mean over images and transitions. With l = mean
log-density per latent dimension, l_old the same under the weights that sampled, A the image's
advantage and rho = exp(l - l_old):

    reinforce   -A * l                                          (DDPO-SF, arXiv 2305.13301)
    clipped     max(-A * rho, -A * clip(rho, 1 - c, 1 + c))     (DDPO-IS: PPO, arXiv 1707.06347;
                normalised, GRPO-Guard's, arXiv 2510.22319)
    dppo        -A * rho, but 0 where the KL to the old policy is above its limit and rho moves the
                way A pushes                                    (Flow-DPPO, arXiv 2606.11025)
    rebel       (k (S_i - S_j) - (A_i - A_j))^2, the mean over all pairs i, j of a prompt's images,
                with S the sum of l - l_old over an image's transitions
                                                                (REBEL, arXiv 2404.16767; RLCM's
                                                                 code)

Those on the forward process are in `rl.forward_objectives`.

All but rebel may add kl * KL(policy || reference) / D. Dividing by the latent's D dimensions puts
it in the unit of l; the record shows it in nats. This is the formula of Flow-GRPO (arXiv
2505.05470). Its authors' code divides the squared distance of the means by 2 g^2 in place of
2 g^2 |h|, so that of a step h the KL is weaker by |h|: their 0.01 is about 0.001 here with ten
steps. Metrics of every objective with a ratio:

    ratio_deviation   max |rho - 1|: 0 up to rounding before the first update of an iteration, if
                      no old policy lags behind
    approx_kl         mean of 0.5 * (D * (l - l_old))^2, the KL to the sampling weights in nats per
                      image and transition
    kl_old            that KL itself, where the objective knows it
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
        check_setting("kl", self.kl, self.kl >= 0)

    def __call__(self, replay: Replay, adv: Tensor) -> Loss:
        """Return the loss for advantages (b,)."""
        value = -(column(adv, replay) * replay.logp).mean()
        return Loss(value + penalty(self.kl, replay), replay_metrics(replay))


@dataclass(frozen=True)
class Clipped(Objective):
    """Importance sampling with PPO's clip: several optimizer steps per batch of images.

    Attributes:
        clip: in nats per image and transition, c = clip / D: the published 1e-4 at D = 16384 is
            1.64, and 1.64 is the same trust region at every latent size (see `kernels.log_prob`).
        kl: coefficient of the KL to the reference.
        normalise: GRPO-Guard's ratio. With x the old mean + std z and d how far the mean has moved,
            l - l_old = mean(z d) / std - mean(d^2) / (2 std^2): below 0 on average, and the wider
            the smaller the std. Normalised it is mean(z d), centred and alike at all times; clip
            is then divided by std to be in nats, and the published 2e-6 is 0.13 at D = 65536.
    """

    clip: float = 1.64
    kl: float = 0.0
    normalise: bool = False
    uses_ratio = True

    def __post_init__(self) -> None:
        check_setting("clip", self.clip, self.clip > 0)
        check_setting("kl", self.kl, self.kl >= 0)

    @property
    def uses_old_prediction(self) -> bool:  # type: ignore[override]
        """True where the ratio is normalised."""
        return self.normalise

    def __call__(self, replay: Replay, adv: Tensor) -> Loss:
        """Return the loss for advantages (b,)."""
        ratio = self.log_ratio(replay).exp()
        c = self.clip / replay.dims
        a = column(adv, replay)

        # the larger of the two losses: a transition that already went too far the right way gets no
        # gradient, but one that went the wrong way always does
        value = torch.maximum(-a * ratio, -a * ratio.clamp(1 - c, 1 + c)).mean()
        outside = (ratio.detach() - 1).abs() > c
        metrics = {**replay_metrics(replay), "clip_fraction": fraction(outside)}
        return Loss(value + penalty(self.kl, replay), metrics)

    def log_ratio(self, replay: Replay) -> Tensor:
        """Return the logarithm (b, k) of the ratio that is clipped.

        Raises:
            ValueError: it is to be normalised, but the replay is not of Gaussian transitions.
        """
        change = replay.logp - replay.logp_old
        if not self.normalise:
            return change
        if replay.std is None:
            raise ValueError("objective.normalise needs sampled transitions, with a std")

        return replay.std * (change + old_divergence(replay) / replay.dims)


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
            change: (b, T) whose sum over an image's transitions is S.
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

        error = self.rate * change.sum(1) - adv
        mean = error.new_zeros(len(count)).index_add_(0, index, error) / count
        n = count[index]

        targets: Tensor = -4 * self.rate * transitions * (error - mean[index]) * n / (n - 1)
        return targets

    def __call__(self, replay: Replay, adv: Tensor) -> Loss:
        """Return the loss, with in `adv` (b,) what `targets` made of the advantages."""
        return Loss(-(column(adv, replay) * replay.logp).mean(), replay_metrics(replay))


@dataclass(frozen=True)
class DPPO(Objective):
    """Importance sampling with a divergence in place of the clip (Flow-DPPO, arXiv 2606.11025).

    A ratio is one sample of how far a transition's distribution has moved; between Gaussians the
    divergence itself is known. A pair whose transition has gone beyond it, the way its advantage
    pushes, gets no gradient any more.

    Attributes:
        divergence: the largest KL to the old policy, in nats per image and transition: the
            published 1e-5, a mean over D = 65536 dimensions, is 0.66.
        kl: coefficient of the KL to the reference.
    """

    divergence: float = 0.66
    kl: float = 0.0
    uses_ratio = True
    uses_old_prediction = True

    def __post_init__(self) -> None:
        check_setting("divergence", self.divergence, self.divergence > 0)
        check_setting("kl", self.kl, self.kl >= 0)

    def __call__(self, replay: Replay, adv: Tensor) -> Loss:
        """Return the loss for advantages (b,).

        Raises:
            ValueError: the replay has no KL to the old policy.
        """
        a = column(adv, replay)
        ratio = (replay.logp - replay.logp_old).exp()
        far = old_divergence(replay).detach() >= self.divergence
        masked = far & (a * (ratio.detach() - 1) > 0)

        value = -(a * torch.where(masked, 0.0, ratio)).mean()
        metrics = {
            **replay_metrics(replay),
            "kl_old": float(old_divergence(replay).detach().mean()),
            "clip_fraction": fraction(masked),
        }
        return Loss(value + penalty(self.kl, replay), metrics)


def check_setting(name: str, value: float, good: bool) -> None:
    """Refuse an objective's number that is not `good`.

    Raises:
        ValueError: the message names the setting.
    """
    if not (good and math.isfinite(value)):
        bound = ">= 0" if name == "kl" else "> 0"
        raise ValueError(f"objective.{name} must be {bound}, not {value}")


def column(adv: Tensor, replay: Replay) -> Tensor:
    """Return advantages as a column (b, 1) beside the log-densities."""
    return adv.to(replay.logp.device, replay.logp.dtype)[:, None]


def penalty(coefficient: float, replay: Replay) -> Tensor | float:
    """Return what the KL adds to a loss.

    Raises:
        ValueError: there is none in the replay.
    """
    if coefficient == 0:
        return 0.0
    if replay.kl is None:
        raise ValueError("objective.kl > 0 needs a replay with reference=True")
    return coefficient * replay.kl.mean() / replay.dims


def old_divergence(replay: Replay) -> Tensor:
    """Return the KL (b, k) to the old policy.

    Raises:
        ValueError: the replay has none.
    """
    if replay.kl_old is None:
        raise ValueError("this objective needs a replay with kl_old: set uses_old_prediction")
    return replay.kl_old


def fraction(mask: Tensor) -> float:
    """Return the part of a mask that is true; exactly, on devices without float64 too."""
    return int(mask.sum()) / mask.numel()


@torch.no_grad()
def replay_metrics(replay: Replay) -> dict[str, float]:
    """Return the metrics that objectives with a ratio have in common."""
    change = replay.logp - replay.logp_old
    metrics = {
        "ratio_deviation": float(change.expm1().abs().max()),
        "approx_kl": float(0.5 * (replay.dims * change).square().mean()),
    }

    if replay.kl is not None:
        metrics["kl"] = float(replay.kl.mean())
    return metrics
