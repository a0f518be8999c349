"""The two processes that an objective may learn from, replayed under the current weights.

    reverse    the transitions that were sampled; l is the log-density of a transition (DDPO, RLCM)
    forward    the finished images, noised again to any time; -l is the denoising error (RWR, AWM)

A pair (image, transition) names a stored transition in the first. In the second it names a time and
a noise: different ones for every number of a "transition", the same ones for the same number, and
never stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.seeds import generator
from burnish.types import Process, Replay, Trajectory


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
class ForwardProcess(Process):
    """Finished images, noised again.

    Attributes:
        policy: the current weights.
        sampler: its guidance is used.
        trajectory: its condition is used.
        latent: (B, *latent) the clean images, float32.
        key: names the random stream of times and noises.
        logp_old: (B, transitions) the log-probabilities under the weights that sampled; None: the
            current weights are these.
    """

    policy: Policy
    sampler: Sampler
    trajectory: Trajectory
    latent: Tensor
    key: tuple[object, ...]
    logp_old: Tensor | None = None

    def replay(self, images: Tensor, transitions: Tensor, reference: bool = False) -> Replay:
        """Return minus the errors (b, 1) of the pairs `images` (b,), `transitions` (b,)."""
        t, noise = self.times_and_noises(images, transitions)
        latent = self.latent[images.to(self.latent.device)]
        cond = {
            name: value[images.to(value.device)] for name, value in self.trajectory.cond.items()
        }
        replay = self.sampler.renoise(self.policy, cond, latent, t, noise, reference)

        if self.logp_old is None:
            return replay

        logp_old = self.logp_old[images, transitions][:, None]
        return replace(replay, logp_old=logp_old.to(replay.logp))

    def times_and_noises(self, images: Tensor, transitions: Tensor) -> tuple[Tensor, Tensor]:
        """Return a time (b,) and a noise (b, *latent) for each pair.

        Times are drawn evenly from all that the model was trained on.
        """
        shape = self.latent.shape[1:]
        times = []
        noises = []

        for image, transition in zip(images.tolist(), transitions.tolist(), strict=True):
            stream = generator(*self.key, image, transition)
            times.append(self.policy.schedule.draw_time(stream))
            noises.append(torch.randn(shape, generator=stream))

        return torch.stack(times), torch.stack(noises)

    @torch.no_grad()
    def remembering(self, pairs: Iterable[tuple[Tensor, Tensor]], chunk: int) -> ForwardProcess:
        """Return this process with the log-probabilities of all these pairs as `logp_old`.

        Args:
            pairs: (images (b,), transitions (b,)) of each optimizer step.
            chunk: pairs that are replayed at a time.
        """
        images, transitions = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        logp = torch.full((len(self.latent), int(transitions.max()) + 1), torch.nan)

        with self.policy.merged():
            for rows, columns in zip(images.split(chunk), transitions.split(chunk), strict=True):
                logp[rows, columns] = self.replay(rows, columns).logp[:, 0].float().cpu()

        return replace(self, logp_old=logp)
