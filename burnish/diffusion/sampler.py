"""Rollout and replay: trajectories out of a policy, and what the current weights say about their
moves.

Both go through ``Sampler._transition``, the only place where a step is computed, so sampling and
training cannot
drift apart: before the first update the ratio of the two densities is 1 up to rounding.
Trajectories are kept in
float32 for the same reason: rounded to half precision, the last steps would lie off their own
densities by many clip ranges.

T counts the moves whose noise reaches the image. A last step without noise (a schedule that ends in
the data itself)
is taken, but it is no action: nothing is learned from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from burnish.diffusion import kernels
from burnish.diffusion.control import KEYS, Control
from burnish.diffusion.guidance import ORIGINAL
from burnish.diffusion.policy import Policy
from burnish.types import Cond, Gaussian, Guidance, Kernel, Prompt, Replay, Trajectory


@dataclass(frozen=True)
class Sampler:
    """How images are drawn: ``steps`` calls of the network under ``guidance``, each followed by a
    ``kernel`` move.
    """

    kernel: Kernel
    steps: int
    guidance: Guidance
    control: Control = field(default_factory=Control)  # of a model with a ControlNet

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"sampler.steps must be at least 1, not {self.steps}.")

    def encode(self, policy: Policy, prompts: Sequence[Prompt]) -> Cond:
        """The prompts as the network reads them under this guidance, one row a prompt.

        A guidance that is centred on the original of an expanded prompt (``needs_original``) finds its
        states beside the others, each under its name with "original." before it.

        Raises:
            ValueError: what a prompt calls its original is no text.
        """
        cond = policy.encode(prompts)
        if not self.guidance.needs_original:
            return cond
        first = policy.encode([prompt.unexpanded() for prompt in prompts])
        return cond | {ORIGINAL + name: value for name, value in first.items() if name not in KEYS}

    def times(self, policy: Policy) -> Tensor:
        """The grid (steps + 1,), noisiest first; the last may be -1, the data itself."""
        return policy.schedule.times(self.steps)

    def transitions(self, policy: Policy, least_noise: float = 0.0) -> int:
        """How many moves, from the first on, have noise to learn from: by default all T of a
        trajectory.

        ``least_noise``: the std from which on a move counts. A guess of x0 shifts a move by up to
        24 times its std at the end of a DDIM schedule and by about 1 before, so there the density's
        gradient is 24 times as large; the noise itself is hardly seen in the picture, so what it
        adds to a policy gradient is variance. Others leave these moves out too (the last one in
        Flow-GRPO and DanceGRPO).

        Raises:
            ValueError: no move has.
        """
        count = self._noisy(policy)

        if count and least_noise:
            enough = self._std(policy)[:count] >= least_noise
            count = int(enough.cumprod(0).sum())

            if count == 0:
                raise ValueError(
                    f"no move has noise of batch.least_noise = {least_noise}; lower it"
                )

        if count == 0:
            remedy = " or a larger sampler.kernel.eta"
            if policy.schedule.consistency:
                remedy = ", at least 2, because a consistency model's last call ends in the image and is no action"

            raise ValueError(
                f"none of {self.steps} steps has noise, so there is nothing to learn from: use more "
                f"sampler.steps{remedy}."
            )

        return count

    def _noisy(self, policy: Policy) -> int:
        noisy = self._std(policy) > kernels.LEAST_STD
        count = int(noisy.sum())

        if count and (not bool(noisy[:count].all()) or count < self.steps - 1):
            raise ValueError(
                f"only {count} of {self.steps} steps have noise: use more sampler.steps or a larger sampler.kernel.eta."
            )

        return count

    def _std(self, policy: Policy) -> Tensor:
        """(steps,) the noise of each move."""
        times = self.times(policy)
        nothing = torch.zeros(self.steps, 1, 1, 1)
        return self.kernel(
            nothing, nothing, policy.schedule.level(times[:-1]), policy.schedule.level(times[1:])
        ).std.flatten()

    @torch.no_grad()
    def rollout(
        self,
        policy: Policy,
        cond: Cond,
        group: Tensor,
        generator: torch.Generator,
        keep_x0_pred: bool = False,
    ) -> Trajectory:
        """Draws one image a row of ``cond`` (B rows) and ``group`` (B,). All noise comes from the
        CPU ``generator``.

        ``keep_x0_pred`` keeps x0 as the network saw it before each move. Where no move has noise (T
        = 0: eta = 0, or a consistency model's only call), the images are there, but no move can be
        learned from.
        """
        times = self.times(policy)
        count = self._noisy(policy)
        rows = len(group)
        cond = self.control.over(cond, times)
        x = policy.noise(rows, generator)
        states = x.new_empty(rows, count + 1, *policy.latent_shape)
        logp = x.new_empty(rows, count)
        states[:, 0] = x
        seen = states.new_empty(rows, count, *policy.latent_shape) if keep_x0_pred else None

        with policy.merged():
            for i in range(self.steps):
                move, x0 = self._transition(
                    policy, x, times[i].expand(rows), times[i + 1].expand(rows), cond
                )

                if i >= count:
                    x = move.mean
                    continue

                x = kernels.sample(move, generator)
                states[:, i + 1], logp[:, i] = x, kernels.log_prob(move, x)

                if seen is not None:
                    seen[:, i] = x0

        # kept on the CPU: 256 trajectories of Stable Diffusion at 50 steps are 0.9 GB, and a replay
        # needs a few moves
        return Trajectory(
            states.cpu(),
            times[: count + 1],
            logp.cpu(),
            x,
            cond,
            group,
            None if seen is None else seen.cpu(),
        )

    def sample(
        self,
        policy: Policy,
        prompts: Sequence[Prompt],
        group: Tensor,
        generator: torch.Generator,
        keep_x0_pred: bool = False,
    ) -> tuple[Trajectory, Tensor]:
        """Return the trajectories of B prompts and their images (B, 3, H, W), sampled at once."""
        cond = self.encode(policy, prompts)
        trajectory = self.rollout(policy, cond, group, generator, keep_x0_pred)
        return trajectory, policy.decode(trajectory.latent)

    def images(
        self,
        policy: Policy,
        prompts: Sequence[Prompt],
        generator: torch.Generator,
        chunk: int = 32,
    ) -> Tensor:
        """Return images (B, 3, H, W) in [0, 1] of the prompts, on the CPU, sampled in chunks."""
        images = []

        for start in range(0, len(prompts), chunk):
            some = prompts[start : start + chunk]
            _, decoded = self.sample(policy, some, torch.arange(len(some)), generator)
            images.append(decoded.cpu())

        return torch.cat(images)

    def replay(
        self,
        policy: Policy,
        traj: Trajectory,
        images: Tensor,
        steps: Tensor,
        reference: bool = False,
    ) -> Replay:
        """The log-density of stored moves under the current weights, with gradient, as one flat
        batch.

        Args:
            policy: the current weights.
            traj: what was sampled.
            images: (b,) int64, rows of ``traj``.
            steps: (b, k) int64 in 0..T-1, the moves of each image.
            reference: also ask the weights before training, for ``logp_ref`` and ``kl``.
        """
        shape = steps.shape
        i = images.cpu().repeat_interleave(shape[1])
        j = steps.cpu().flatten()
        t = traj.t[j]
        s = traj.t[j + 1]
        x, y, logp_old = (
            part.to(policy.device) for part in (traj.x[i, j], traj.x[i, j + 1], traj.logp[i, j])
        )
        cond = {name: value[i].to(policy.device) for name, value in traj.cond.items()}

        now, _ = self._transition(policy, x, t, s, cond)
        logp = kernels.log_prob(now, y).view(shape)

        if not reference:
            return Replay(logp, logp_old.view(shape), x[0].numel())

        with torch.no_grad(), policy.reference():
            first, _ = self._transition(policy, x, t, s, cond)

        logp_ref = kernels.log_prob(first, y).view(shape)
        kl = kernels.kl(now, first).view(shape)
        return Replay(logp, logp_old.view(shape), x[0].numel(), logp_ref, kl)

    def renoise(
        self,
        policy: Policy,
        cond: Cond,
        clean: Tensor,
        t: Tensor,
        noise: Tensor,
        reference: bool = False,
    ) -> Replay:
        """The forward process: how well the current weights denoise ``clean`` (b, *latent) noised
        to times ``t`` (b,).

        In the record, each entry (b, 1), stands in place of a log-density minus the mean squared
        error per dimension of what the network was trained to predict (epsilon, v or the sample),
        guidance included; ``logp_old`` is the same number without gradient, and ``kl`` half the
        squared distance of that prediction to the reference's, summed over the dimensions.

        Args:
            policy: the current weights.
            cond: b encoded prompts.
            clean: finished latents, float32.
            t: (b,) int64 training timesteps, on the CPU.
            noise: (b, *latent) standard normal.
            reference: also ask the weights before training, for ``logp_ref`` and ``kl``.
        """
        clean = clean.to(policy.device)
        noise = noise.to(policy.device)
        cond = {name: value.to(policy.device) for name, value in cond.items()}
        level = policy.schedule.level(t, policy.device)
        scale = policy.schedule.error_scale(level)
        x = (level.alpha * clean + level.sigma * noise).float()
        guess = policy.predict(x, t, cond, self.guidance)
        logp = -_mean_square(scale * (guess - clean))

        if not reference:
            return Replay(logp, logp.detach(), clean[0].numel())

        with torch.no_grad(), policy.reference():
            first = policy.predict(x, t, cond, self.guidance)

        kl = _mean_square(scale * (guess - first)) * clean[0].numel() / 2
        return Replay(
            logp, logp.detach(), clean[0].numel(), -_mean_square(scale * (first - clean)), kl
        )

    def _transition(
        self, policy: Policy, x: Tensor, t: Tensor, s: Tensor, cond: Cond
    ) -> tuple[Gaussian, Tensor]:
        """The move of each row of ``x`` from time ``t`` (B,) to ``s`` (B,), both on the CPU; and
        the x0 it aims at.
        """
        x0 = policy.predict(x, t, cond, self.guidance)
        level_t = policy.schedule.level(t, policy.device)
        level_s = policy.schedule.level(s, policy.device)
        return self.kernel(x, x0, level_t, level_s), x0


def _mean_square(error: Tensor) -> Tensor:
    """(b, *latent) -> (b, 1) float32."""
    return error.square().flatten(1).mean(1, keepdim=True).float()


def join_trajectories(parts: Sequence[Trajectory]) -> Trajectory:
    """The trajectories of several chunks as one; group numbers are kept as they are."""
    first = parts[0]
    return Trajectory(
        x=torch.cat([part.x for part in parts]),
        t=first.t,
        logp=torch.cat([part.logp for part in parts]),
        latent=torch.cat([part.latent for part in parts]),
        cond={name: torch.cat([part.cond[name] for part in parts]) for name in first.cond},
        group=torch.cat([part.group for part in parts]),
        x0_pred=None
        if first.x0_pred is None
        else torch.cat([part.x0_pred for part in parts if part.x0_pred is not None]),
    )
