"""The two processes that an objective may look at, behind one question: what do the current weights
say about this?

    reverse    the noisy moves that were sampled; l is the log-density of a move       (DDPO, RLCM)
    forward    the finished images, noised again to any time; -l is the denoising error (RWR, AWM)

A pair (image, move) names a stored move in the one, and in the other a time and a noise: others for
every number of a "move", the same for the same one, and never stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.seeds import generator
from burnish.types import Replay, Trajectory


@dataclass(frozen=True)
class ReverseProcess:
    """The moves of trajectories."""

    policy: Policy
    sampler: Sampler
    trajectory: Trajectory

    def replay(self, images: Tensor, moves: Tensor, reference: bool = False) -> Replay:
        """What is said of the pairs (b,), (b,); every entry of the record is (b, 1)."""
        return self.sampler.replay(self.policy, self.trajectory, images, moves[:, None], reference)


@dataclass(frozen=True)
class ForwardProcess:
    """Finished images, noised again. ``key`` names the stream of chance."""

    policy: Policy
    sampler: Sampler
    trajectory: Trajectory
    latent: Tensor  # (B, *latent) the clean images, float32
    key: tuple[object, ...]
    # (B, moves) what the weights that sampled said; None: as the current ones
    old: Tensor | None = None

    def replay(self, images: Tensor, moves: Tensor, reference: bool = False) -> Replay:
        """What is said of the pairs (b,), (b,); every entry of the record is (b, 1)."""
        t, noise = self.draw(images, moves)
        rows = images.to(self.latent.device)
        cond = {
            name: value[images.to(value.device)] for name, value in self.trajectory.cond.items()
        }
        said = self.sampler.renoise(self.policy, cond, self.latent[rows], t, noise, reference)

        return (
            said
            if self.old is None
            else replace(said, logp_old=self.old[images, moves][:, None].to(said.logp))
        )

    def draw(self, images: Tensor, moves: Tensor) -> tuple[Tensor, Tensor]:
        """A time (b,), evenly from all that the model was trained on, and a noise (b, *latent) for
        each pair.
        """
        count = len(self.policy.schedule.alpha)
        shape = self.latent.shape[1:]
        times = []
        noises = []

        for image, move in zip(images.tolist(), moves.tolist(), strict=True):
            stream = generator(*self.key, image, move)
            times.append(int(torch.randint(count, (), generator=stream)))
            noises.append(torch.randn(shape, generator=stream))

        return torch.tensor(times), torch.stack(noises)

    @torch.no_grad()
    def remembering(self, pairs: Iterable[tuple[Tensor, Tensor]], chunk: int) -> ForwardProcess:
        """The same, knowing what the current weights say of all these pairs."""
        images, moves = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        old = torch.full((len(self.latent), int(moves.max()) + 1), torch.nan)

        with self.policy.merged():
            for rows, columns in zip(images.split(chunk), moves.split(chunk), strict=True):
                old[rows, columns] = self.replay(rows, columns).logp[:, 0].float().cpu()

        return replace(self, old=old)
