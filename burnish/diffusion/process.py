"""The two processes that an objective may learn from, replayed under the current weights.

    reverse    the transitions that were sampled; l is the log-density of a transition (DDPO, RLCM)
    forward    the finished images, noised again to any time; -l is the denoising error (RWR, AWM,
               RAM, NFT, DGPO, RVM)

A pair (image, transition) names a stored transition in the first. In the second it names a time and
a noise, which are the same for all images of a prompt and never stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from burnish.config import ForwardConfig
from burnish.diffusion.guidance import Unguided
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.seeds import generator
from burnish.types import Guidance, Level, Process, Replay, Trajectory

LEAST_SHARE = 1e-4
"""The quantile of "logit_normal" times nearest to the image; its logit is not finite at 0."""

Pairs = tuple[Tensor, Tensor]
"""(image, transition) pairs of one minibatch: two int64 tensors of one length."""


@dataclass(frozen=True)
class ReverseProcess(Process):
    """The stored transitions of trajectories."""

    policy: Policy
    sampler: Sampler
    trajectory: Trajectory

    def replay(self, images: Tensor, transitions: Tensor, reference: bool = False) -> Replay:
        """Return the log-densities (b, 1) of the pairs `images` (b,), `transitions` (b,)."""
        pairs = transitions[:, None]
        return self.sampler.replay(self.policy, self.trajectory, images, pairs, reference)


@dataclass(frozen=True)
class Noised:
    """The pairs of a replay, noised again; all on the policy's device but for the times."""

    x: Tensor  # (b, *latent) float32
    t: Tensor  # (b,)
    clean: Tensor  # (b, *latent) float32
    cond: dict[str, Tensor]
    scale: Tensor  # (b, 1, 1, 1) from an error of x0 to what errors are measured in


@dataclass(frozen=True)
class ForwardProcess(Process):
    """Finished images, noised again.

    Attributes:
        policy: the current weights.
        sampler: its guidance and times are used.
        trajectory: its condition and groups are used.
        latent: (B, *latent) the clean images, float32.
        key: names the random stream of times and noises.
        draws: of an image in an epoch, over which its times are spread: draw j lies in the j-th
            part of their range.
        settings: how images are noised and errors measured.
        mixtures: of the old and the current prediction, see `Replay.mixture_errors`.
        with_kl_old: give the KL to the old policy.
        old: (B, transitions, *latent) predicted x0 of the old policy; None: the current weights.
        anchor: (B, transitions, *latent) predicted x0 that the KL is the distance to.
        anchor_images: (B, *latent) latents that the reference drew: the KL is then how much worse
            than the reference, whose predictions for them are the anchor, the policy denoises them.
    """

    policy: Policy
    sampler: Sampler
    trajectory: Trajectory
    latent: Tensor
    key: tuple[object, ...]
    draws: int = 1
    settings: ForwardConfig = field(default_factory=ForwardConfig)
    mixtures: tuple[float, ...] = ()
    with_kl_old: bool = True
    old: Tensor | None = None
    anchor: Tensor | None = None
    anchor_images: Tensor | None = None

    def replay(self, images: Tensor, transitions: Tensor, reference: bool = False) -> Replay:
        """Return minus the errors (b, 1) of the pairs `images` (b,), `transitions` (b,).

        An error is the mean square over the latent's dimensions; a KL half the squared distance of
        two predictions, summed over them.

        Raises:
            ValueError: `reference`, but there is no anchor.
        """
        noised = self.noised(self.latent, images, transitions)
        x0 = self.predict(noised)
        old = x0.detach() if self.old is None else self.old[images, transitions].to(x0)
        error = noised.scale * (x0 - noised.clean)
        error_old = noised.scale * (old - noised.clean)
        dims = noised.clean[0].numel()

        moved = mean_square(error - error_old) * dims / 2 if self.with_kl_old else None

        replay = Replay(
            logp=-mean_square(error),
            logp_old=-mean_square(error_old),
            dims=dims,
            kl_old=moved,
            mixture_errors=self._mixture_errors(error.detach(), error_old),
        )
        return self._anchored(replay, noised, x0, images, transitions) if reference else replay

    def _mixture_errors(self, error: Tensor, error_old: Tensor) -> Tensor | None:
        """Return the mean absolute errors (b, mixtures) of the objective's mixtures."""
        if not self.mixtures:
            return None

        mixed = [(1 - c) * error_old + c * error for c in self.mixtures]
        return torch.stack([one.abs().flatten(1).mean(1) for one in mixed], 1)

    def _anchored(
        self, replay: Replay, noised: Noised, x0: Tensor, images: Tensor, transitions: Tensor
    ) -> Replay:
        """Return a replay with the KL to the anchor."""
        if self.anchor is None:
            raise ValueError("a replay with reference=True needs a process with an anchor")

        anchor = self.anchor[images, transitions].to(x0)
        if self.anchor_images is not None:
            drawn = self.noised(self.anchor_images, images, transitions)
            error = mean_square(drawn.scale * (self.predict(drawn) - drawn.clean))
            reference = mean_square(drawn.scale * (anchor - drawn.clean))
            return replace(replay, kl=(error - reference) * replay.dims / 2)

        return replace(
            replay,
            logp_ref=-mean_square(noised.scale * (anchor - noised.clean)),
            kl=mean_square(noised.scale * (x0 - anchor)) * replay.dims / 2,
        )

    def predict(self, noised: Noised, guided: bool = False) -> Tensor:
        """Return the x0 (b, *latent) that the policy's weights predict.

        Args:
            noised: the pairs.
            guided: as the sampler does, whatever the settings say.
        """
        guidance: Guidance = self.sampler.guidance
        if not (guided or self.settings.guided):
            guidance = Unguided(guidance)

        return self.policy.predict(noised.x, noised.t, noised.cond, guidance)

    def noised(self, latent: Tensor, images: Tensor, transitions: Tensor) -> Noised:
        """Return pairs noised again, the images being rows of `latent` (B, *latent)."""
        device = self.policy.device
        t, noise = self.times_and_noises(images, transitions)
        clean = latent[images.to(latent.device)].to(device)
        level = self.policy.schedule.level(t, device)
        cond = self.trajectory.condition(images, device)

        x = (level.alpha * clean + level.sigma * noise.to(device)).float()
        return Noised(x, t, clean, cond, self._scale(level))

    def _scale(self, level: Level) -> Tensor:
        """Return the factor (b, 1, 1, 1) from an error of x0 to the error that is measured."""
        if self.settings.error == "output":
            return self.policy.schedule.error_scale(level)
        if self.settings.error == "velocity":
            return 1 / level.sigma
        if self.settings.error == "noise":
            return level.alpha / level.sigma

        return torch.ones_like(level.sigma)

    def times_and_noises(self, images: Tensor, transitions: Tensor) -> tuple[Tensor, Tensor]:
        """Return a time (b,) and a noise (b, *latent) for each pair, on the CPU."""
        shape = self.latent.shape[1:]
        groups = self.trajectory.group[images.to(self.trajectory.group.device)].tolist()
        pairs = list(zip(groups, transitions.tolist(), strict=True))
        drawn: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

        for group, transition in pairs:
            if (group, transition) not in drawn:
                stream = generator(*self.key, group, transition)
                place = torch.rand((), generator=stream, dtype=torch.float64)
                share = (transition % self.draws + 1 - place) / self.draws
                drawn[group, transition] = (share, torch.randn(shape, generator=stream))

        shares = torch.stack([drawn[pair][0] for pair in pairs])
        return self.time_at(shares), torch.stack([drawn[pair][1] for pair in pairs])

    def time_at(self, share: Tensor) -> Tensor:
        """Return the times (b,) below which a `share` (b,) in (0, 1] of those drawn lies."""
        if self.settings.times == "logit_normal":
            share = torch.special.ndtri(share.clamp(LEAST_SHARE, 1 - LEAST_SHARE)).sigmoid()
        elif self.settings.times == "noisy":
            share = share.sqrt()

        low, high = self.settings.range
        share = low + (high - low) * share
        if self.settings.times == "steps":
            grid = self.sampler.times(self.policy)[:-1].flip(0)
            return grid[(share * len(grid)).ceil().long() - 1]

        return self.policy.schedule.time_at(share)

    @torch.no_grad()
    def predictions(
        self, pairs: Iterable[Pairs], weights: AbstractContextManager[None], guided: bool = False
    ) -> Tensor:
        """Return the x0 (B, transitions, *latent) that some weights predict, on the CPU.

        Args:
            pairs: (images (b,), transitions (b,)) of each training call; others are left empty.
            weights: a context in which the policy has these weights.
            guided: as the sampler does, whatever the settings say.
        """

        def predict(images: Tensor, transitions: Tensor) -> Tensor:
            return self.predict(self.noised(self.latent, images, transitions), guided)

        with weights:
            return predictions_of(predict, pairs, self.latent)


def predictions_of(
    predict: Callable[[Tensor, Tensor], Tensor], pairs: Iterable[Pairs], latent: Tensor
) -> Tensor:
    """Return the x0 (B, transitions, *latent) float32 of pairs, on the CPU; others are left empty.

    Args:
        predict: (images (b,), transitions (b,)) -> x0 (b, *latent).
        pairs: of each training call.
        latent: (B, *latent), for its shape.
    """
    pairs = list(pairs)
    count = 1 + max(int(transitions.max()) for _, transitions in pairs)
    x0 = torch.empty(len(latent), count, *latent.shape[1:])

    for images, transitions in pairs:
        x0[images, transitions] = predict(images, transitions).float().cpu()

    return x0


def mean_square(error: Tensor) -> Tensor:
    """Return the mean square (b, 1) float32 of each row of (b, *latent)."""
    return error.square().flatten(1).mean(1, keepdim=True).float()
