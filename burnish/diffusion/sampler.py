"""Rollout and replay: trajectories out of a policy, and their densities under the current weights.

Both go through `Sampler._transition`, the only place where a transition is computed, so sampling
and training cannot drift apart: before the first update the ratio of the two densities is 1 up to
rounding. Trajectories are kept in float32 for the same reason: rounded to half precision, the last
states would lie off their own densities by many clip ranges.

T counts the transitions whose noise reaches the image. A last transition without noise (a schedule
that ends in the data itself) is made, but it is no action: nothing is learned from it. With a
window (see `window`) T is its size, and the transitions before and after it are the ODE's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from burnish.config import ControlConfig
from burnish.diffusion import kernels
from burnish.diffusion.control import CONTROL_KEYS, add_control
from burnish.diffusion.guidance import ORIGINAL_PREFIX
from burnish.diffusion.policy import Policy
from burnish.diffusion.window import SharedStarts
from burnish.stages import advance
from burnish.types import Cond, Gaussian, Guidance, Kernel, Prompt, Replay, Trajectory


@dataclass(frozen=True)
class Sampler:
    """A way to sample images: calls of the network, each followed by a transition.

    Attributes:
        kernel: makes the transitions.
        steps: the number of network calls.
        guidance: the way in which the network is called.
        control: how closely a ControlNet is followed, for a model that has one.
        window: the numbers of the transitions that are the kernel's, from 0; all others are the
            ODE's. None: all are the kernel's; `range(0)`: none is.
    """

    kernel: Kernel
    steps: int
    guidance: Guidance
    control: ControlConfig = field(default_factory=ControlConfig)
    window: range | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"sampler.steps must be at least 1, not {self.steps}")
        if self.window and self.window != range(self.steps)[self.window.start : self.window.stop]:
            raise ValueError(
                f"the window {self.window} is not one of transitions side by side in {self.steps} "
                "steps"
            )

    def encode(self, policy: Policy, prompts: Sequence[Prompt]) -> Cond:
        """Return the prompts as the network reads them under this guidance, one row a prompt.

        A guidance that is centred on the original of an expanded prompt (`needs_original`) finds
        its states beside the others, each under its name with "original." before it.

        Args:
            policy: whose text encoders and control images are used.
            prompts: one a row.

        Raises:
            ValueError: a prompt's original is not a text.
        """
        cond = policy.encode(prompts)
        if not self.guidance.needs_original:
            return cond

        originals = policy.encode([prompt.unexpanded() for prompt in prompts])
        return cond | {
            ORIGINAL_PREFIX + name: value
            for name, value in originals.items()
            if name not in CONTROL_KEYS
        }

    def times(self, policy: Policy) -> Tensor:
        """Return the grid (steps + 1,), noisiest first; the last may be -1, the data itself.

        Args:
            policy: whose noise schedule is used.
        """
        return policy.schedule.times(self.steps)

    def transitions(self, policy: Policy, least_noise: float = 0.0) -> int:
        """Return the number of transitions, from the first stored one on, with noise to learn from.

        By default that is all T of a trajectory.

        Args:
            policy: gives the noise schedule.
            least_noise: the std from which on a transition counts. The x0 that the network predicts
                shifts a transition by up to 24 times its std at the end of a DDIM schedule and by
                about 1 before, so there the density's gradient is 24 times as large; the noise
                itself is hardly visible in the image, so what it adds to a policy gradient is
                variance. Others leave these transitions out too (the last one in Flow-GRPO and
                DanceGRPO).

        Raises:
            ValueError: no transition has noise, or only some before the last have.
        """
        noisy = _noisy_transitions(self, policy)
        count = len(noisy)

        if count == 0:
            remedy = " or a larger sampler.kernel.eta"
            if policy.schedule.consistency:
                remedy = (
                    ", at least 2, because a consistency model's last call ends in the image and "
                    "is no action"
                )

            raise ValueError(
                f"none of {self.steps} transitions has noise, so there is nothing to learn "
                f"from: use more sampler.steps{remedy}"
            )

        if least_noise:
            stds = _transition_stds(self, policy)[noisy.start : noisy.stop]
            noisy_enough = stds >= least_noise
            count = int(noisy_enough.cumprod(0).sum())

            if count == 0:
                raise ValueError(
                    f"no transition has noise of batch.least_noise = {least_noise}; lower it"
                )

        return count

    @torch.no_grad()
    def rollout(
        self,
        policy: Policy,
        cond: Cond,
        group: Tensor,
        generator: torch.Generator,
        keep_x0_pred: bool = False,
        starts: SharedStarts | None = None,
        keep_ode: bool = False,
    ) -> Trajectory:
        """Return the trajectories of one image a row of `cond` (B rows), sampled at once.

        Where no transition has noise (T = 0: eta = 0, or a consistency model's only call), the
        images are sampled, but no transition can be learned from.

        Args:
            policy: the weights to sample with.
            cond: B prompts, encoded by `encode`.
            group: (B,) the prompt's number of each image.
            generator: of the CPU; all noise comes from it, but for that of `starts`.
            keep_x0_pred: keep the x0 that the network predicted before each transition.
            starts: those that the images of a group have in common; None: each has its own.
            keep_ode: keep the states after transitions without noise.
        """
        times = self.times(policy)
        noisy = _noisy_transitions(self, policy)
        rows = len(group)
        cond = add_control(cond, self.control, times)
        ends = self if self.window is None else replace(self, kernel=kernels.ODE())
        ode: list[Tensor] = []

        def to_window(x: Tensor, cond: Cond) -> Tensor:
            return _without_noise(ends, policy, x, cond, times[: noisy.start + 1])

        with policy.merged():
            if starts is None:
                x = to_window(policy.noise(rows, generator), cond)
            else:
                x = starts.states(policy, group, cond, to_window)

            states = x.new_empty(rows, len(noisy) + 1, *policy.latent_shape)
            logp = x.new_empty(rows, len(noisy))
            x0_preds = torch.empty_like(states[:, 1:]) if keep_x0_pred else None
            states[:, 0] = x

            for j, i in enumerate(noisy):
                t = times[i].expand(rows)
                s = times[i + 1].expand(rows)
                transition, x0 = self._transition(policy, x, t, s, cond)
                x = kernels.sample(transition, generator)
                states[:, j + 1] = x
                logp[:, j] = kernels.log_prob(transition, x)

                if x0_preds is not None:
                    x0_preds[:, j] = x0

            stored = ode if keep_ode else None
            x = _without_noise(ends, policy, x, cond, times[noisy.stop :], stored)

        # kept on the CPU: 256 trajectories of Stable Diffusion at 50 steps are 0.9 GB, the text
        # states of FLUX.2 for as many 2 GB, and a replay needs a few transitions
        return Trajectory(
            x=states.cpu(),
            t=times[noisy.start : noisy.stop + 1],
            logp=logp.cpu(),
            latent=x,
            cond={name: value.cpu() for name, value in cond.items()},
            group=group,
            x0_pred=None if x0_preds is None else x0_preds.cpu(),
            ode=torch.stack(ode, 1) if ode else None,
        )

    def sample(
        self,
        policy: Policy,
        prompts: Sequence[Prompt],
        group: Tensor,
        generator: torch.Generator,
        keep_x0_pred: bool = False,
        starts: SharedStarts | None = None,
        keep_ode: bool = False,
    ) -> tuple[Trajectory, Tensor]:
        """Return the trajectories of B prompts and their images (B, 3, H, W), sampled at once.

        Args:
            policy: the weights to sample with.
            prompts: one an image.
            group: (B,) the prompt's number of each image.
            generator: of the CPU; all noise comes from it, but for that of `starts`.
            keep_x0_pred: keep the x0 that the network predicted before each transition.
            starts: those that the images of a group have in common; None: each has its own.
            keep_ode: keep the states after transitions without noise.
        """
        cond = self.encode(policy, prompts)
        trajectory = self.rollout(policy, cond, group, generator, keep_x0_pred, starts, keep_ode)
        return trajectory, policy.decode(trajectory.latent)

    def images(
        self,
        policy: Policy,
        prompts: Sequence[Prompt],
        generator: torch.Generator,
        chunk: int = 32,
    ) -> Tensor:
        """Return images (B, 3, H, W) in [0, 1] of the prompts, on the CPU, sampled in chunks.

        Args:
            policy: the weights to sample with.
            prompts: one an image.
            generator: of the CPU; all noise comes from it.
            chunk: images sampled at once.
        """
        images = []

        for start in range(0, len(prompts), chunk):
            batch = prompts[start : start + chunk]
            _, decoded = self.sample(policy, batch, torch.arange(len(batch)), generator)
            images.append(decoded.cpu())
            advance(len(batch))

        return torch.cat(images)

    def replay(
        self,
        policy: Policy,
        trajectory: Trajectory,
        images: Tensor,
        transitions: Tensor,
        reference: bool = False,
    ) -> Replay:
        """Return the log-densities of stored transitions under the current weights.

        They have a gradient, and are computed as one flat batch. Where the trajectory has kept what
        was predicted, the KL to the old policy is there too.

        Args:
            policy: the current weights.
            trajectory: the stored trajectories.
            images: (b,) int64, rows of `trajectory`.
            transitions: (b, k) int64 in 0..T-1, the transitions of each image.
            reference: also use the weights before training, for `logp_ref` and `kl`.
        """
        shape = transitions.shape
        i = images.cpu().repeat_interleave(shape[1])
        j = transitions.cpu().flatten()
        t = trajectory.t[j]
        s = trajectory.t[j + 1]
        x_t = trajectory.x[i, j].to(policy.device)
        x_s = trajectory.x[i, j + 1].to(policy.device)
        logp_old = trajectory.logp[i, j].to(policy.device).view(shape)
        cond = trajectory.condition(i, policy.device)
        dims = x_t[0].numel()

        current, _ = self._transition(policy, x_t, t, s, cond)
        logp = kernels.log_prob(current, x_s).view(shape)
        replay = Replay(logp, logp_old, dims, std=current.std.view(shape))

        if trajectory.x0_pred is not None:
            x0_old = trajectory.x0_pred[i, j].to(policy.device)
            level_t = policy.schedule.level(t, policy.device)
            level_s = policy.schedule.level(s, policy.device)
            old = self.kernel(x_t, x0_old, level_t, level_s)
            replay = replace(replay, kl_old=kernels.kl(current, old).view(shape))

        if not reference:
            return replay

        with torch.no_grad(), policy.reference():
            before, _ = self._transition(policy, x_t, t, s, cond)

        logp_ref = kernels.log_prob(before, x_s).view(shape)
        return replace(replay, logp_ref=logp_ref, kl=kernels.kl(current, before).view(shape))

    def _transition(
        self, policy: Policy, x: Tensor, t: Tensor, s: Tensor, cond: Cond
    ) -> tuple[Gaussian, Tensor]:
        """Return the transition of each row of `x`, and the x0 that the network predicts there.

        It leads from time `t` (B,) to `s` (B,), both on the CPU.
        """
        x0 = policy.predict(x, t, cond, self.guidance)
        level_t = policy.schedule.level(t, policy.device)
        level_s = policy.schedule.level(s, policy.device)
        return self.kernel(x, x0, level_t, level_s), x0


def _transition_stds(sampler: Sampler, policy: Policy) -> Tensor:
    """Return the standard deviations (steps,) of the sampler's transitions."""
    times = sampler.times(policy)
    level_t = policy.schedule.level(times[:-1])
    level_s = policy.schedule.level(times[1:])
    zeros = torch.zeros(sampler.steps, 1, 1, 1)
    return sampler.kernel(zeros, zeros, level_t, level_s).std.flatten()


def _noisy_transitions(sampler: Sampler, policy: Policy) -> range:
    """Return the T transitions with noise: the window's, or else all, all but the last, or none.

    Raises:
        ValueError: others have noise, or one of the window has none.
    """
    noisy = _transition_stds(sampler, policy) > kernels.LEAST_STD
    window = sampler.window
    if window is not None:
        if not bool(noisy[window.start : window.stop].all()):
            raise ValueError(
                f"a transition of the window {window} has no noise: move it, or use a larger "
                "sampler.kernel.eta"
            )
        return window

    count = int(noisy.sum())
    if count and (not bool(noisy[:count].all()) or count < sampler.steps - 1):
        raise ValueError(
            f"only {count} of {sampler.steps} transitions have noise: use more sampler.steps or "
            "a larger sampler.kernel.eta"
        )

    return range(count)


def _without_noise(
    sampler: Sampler,
    policy: Policy,
    x: Tensor,
    cond: Cond,
    times: Tensor,
    stored: list[Tensor] | None = None,
) -> Tensor:
    """Return the states (B, *latent) that the transitions' means lead to from `x`, along `times`.

    Args:
        sampler: makes the transitions.
        policy: the weights to sample with.
        x: (B, *latent) the states at the first time.
        cond: B encoded prompts.
        times: (n + 1,) for n transitions.
        stored: gets each of the n states, on the CPU.
    """
    for t, s in pairwise(times):
        transition, _ = sampler._transition(policy, x, t.expand(len(x)), s.expand(len(x)), cond)
        x = transition.mean
        if stored is not None:
            stored.append(x.cpu())

    return x


def join_trajectories(parts: Sequence[Trajectory]) -> Trajectory:
    """Return the trajectories of several chunks as one; group numbers are kept as they are."""
    first = parts[0]

    def joined(values: Sequence[Tensor | None]) -> Tensor | None:
        found = [value for value in values if value is not None]
        return torch.cat(found) if found else None

    return Trajectory(
        x=torch.cat([part.x for part in parts]),
        t=first.t,
        logp=torch.cat([part.logp for part in parts]),
        latent=torch.cat([part.latent for part in parts]),
        cond={name: torch.cat([part.cond[name] for part in parts]) for name in first.cond},
        group=torch.cat([part.group for part in parts]),
        x0_pred=joined([part.x0_pred for part in parts]),
        ode=joined([part.ode for part in parts]),
    )
