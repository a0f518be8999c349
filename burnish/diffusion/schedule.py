"""The noise schedule of a model: x_t = alpha_t * x0 + sigma_t * noise at each time t.

It is read once from a diffusers scheduler; from then on nothing is stateful and every function
takes one time per image, which diffusers' own `step` cannot. There are three:

`VariancePreserving`, with abar the cumulative product (DDPM, arXiv 2006.11239): times are training
timesteps, alpha = sqrt(abar) and sigma = sqrt(1 - abar). Networks predict one of three things, all
turned into x0 here:

    epsilon        x0 = (x_t - sigma * eps) / alpha
    v_prediction   x0 = alpha * x_t - sigma * v          (arXiv 2202.00512)
    sample         x0 itself

`Consistency` (arXiv 2303.01469), recognised by its `LCMScheduler`, which has in place of x0 the
consistency function

    f      = c_out * x0 + c_skip * x_t
    c_skip = s^2 / ((k t)^2 + s^2)
    c_out  = k t / sqrt((k t)^2 + s^2)

with s = 0.5 and k the scheduler's `timestep_scaling`; after its last call comes f itself, without
noise.

`Flow` (rectified flow, arXiv 2209.03003), recognised by its `FlowMatchEulerDiscreteScheduler`, or
by a solver with `use_flow_sigmas` (DPM-Solver, UniPC), of which it has the times, not the steps:
times are numbers between 0, the image, and 1, noise; alpha = 1 - t, sigma = t, and the network
predicts the velocity

    v = noise - x0,        x0 = x_t - t * v
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from burnish.types import Level

FINAL = -1
"""The time after the last step, where times are training timesteps.

It is the data itself, or the least noisy level of the model (`set_alpha_to_one`).
"""

SIGMA_DATA = 0.5
"""s above; a constant of diffusers' `LCMScheduler`."""

WITHOUT_FLOAT64 = ("mps",)
"""Kinds of devices that have no float64."""

PREDICTIONS = ("epsilon", "v_prediction", "sample")

Grid = Callable[[int], Tensor]
"""(steps) -> times (steps + 1,), noisiest first."""


class Schedule(Protocol):
    """The times, levels and predictions of a model."""

    consistency: bool = False
    """The network's output stands for the consistency function f."""

    variance_preserving: bool = True
    """alpha^2 + sigma^2 = 1."""

    def times(self, steps: int) -> Tensor:
        """Return the grid (steps + 1,) of a sampler with `steps` calls, noisiest first.

        Raises:
            ValueError: the model has no such grid.
        """
        ...

    def time_at(self, share: Tensor) -> Tensor:
        """Return the times (B,) below or at which a `share` (B,) in (0, 1] of all times lies.

        All times are those that the model was trained on, from the least noisy one on.
        """
        ...

    def level(self, t: Tensor, device: torch.device | str = "cpu") -> Level:
        """Return the noise levels at times `t` (B,), the last of a grid included."""
        ...

    def error_scale(self, level: Level) -> Tensor:
        """Return the factor from an error of x0 to the error of the network's own output.

        The network was trained on the latter, with x_t fixed.
        """
        ...

    def x0(self, x: Tensor, t: Tensor, out: Tensor) -> Tensor:
        """Return x0 for the network's output `out` at `x` and times `t`, at least float32.

        It is never clipped: latents have no fixed range.

        Args:
            x: (B, *latent) noisy latents.
            t: (B,) their times.
            out: (B, *latent) the network's output.
        """
        ...


def read_schedule(scheduler: Any, grid: Grid | None = None) -> Schedule:
    """Return the schedule of a diffusers scheduler.

    Any scheduler that DDIM can stand in for gives DDIM's, rebuilt with the same configuration;
    LCM's gives that of a consistency model, and Euler's flow scheduler, or a solver with
    `use_flow_sigmas`, that of a flow.

    Args:
        scheduler: of the pipeline.
        grid: the pipeline's own times of a flow; None: the scheduler's.

    Raises:
        ValueError: the scheduler belongs to another kind of model, or its prediction cannot give
            x0.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, LCMScheduler

    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return Flow(grid or flow_grid(scheduler))
    if scheduler.config.get("use_flow_sigmas"):
        return Flow(_solver_grid(scheduler))
    if isinstance(scheduler, LCMScheduler):
        return _read_tables(Consistency, LCMScheduler, scheduler)
    if hasattr(scheduler, "alphas_cumprod"):
        from diffusers import DDIMScheduler

        return _read_tables(VariancePreserving, DDIMScheduler, scheduler)

    raise ValueError(
        f"the scheduler {type(scheduler).__name__} has no alphas_cumprod and is not Euler's for "
        "flows: only diffusion models (epsilon, v or sample prediction) and flows can be sampled "
        "here"
    )


def _solver_grid(scheduler: Any) -> Grid:
    """Return the times of a diffusers solver that was made for noise levels of flows."""
    config = scheduler.config
    if config.prediction_type != "flow_prediction" or config.get("use_dynamic_shifting"):
        raise ValueError(
            f"the scheduler {type(scheduler).__name__} has use_flow_sigmas with prediction_type "
            f"{config.prediction_type!r} or use_dynamic_shifting: set "
            "pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=...) and save the pipeline anew"
        )
    return flow_grid(scheduler)


def _read_tables(
    schedule: type[VariancePreserving], kind: Any, scheduler: Any
) -> VariancePreserving:
    rebuilt = kind.from_config(scheduler.config)
    abar = rebuilt.alphas_cumprod.double()
    abar_final = 1.0 if schedule.consistency else float(rebuilt.final_alpha_cumprod)
    prediction = rebuilt.config.prediction_type

    if prediction not in PREDICTIONS:
        raise ValueError(
            f"the scheduler's prediction_type {prediction!r} is not one of {', '.join(PREDICTIONS)}"
        )
    if prediction == "epsilon" and bool((abar <= 0).any()):
        raise ValueError(
            "a schedule with rescale_betas_zero_snr cannot be used with prediction_type "
            "'epsilon', because x0 cannot be recovered from pure noise: use a v_prediction "
            "model"
        )

    return schedule(
        alpha=abar.sqrt(),
        sigma=(1 - abar).sqrt(),
        alpha_final=abar_final**0.5,
        sigma_final=(1 - abar_final) ** 0.5,
        prediction=prediction,
        config=rebuilt.config,
    )


@dataclass(frozen=True)
class VariancePreserving(Schedule):
    """The tables of a variance-preserving diffusion model.

    They are kept in float64, where 1 - abar_t/abar_s loses no digits.

    Attributes:
        alpha: (N,) by training timestep, float64, CPU.
        sigma: (N,) by training timestep, float64, CPU.
        alpha_final: at time FINAL.
        sigma_final: at time FINAL.
        prediction: one of PREDICTIONS.
        config: the diffusers configuration that the sampling grid is made from.
    """

    alpha: Tensor
    sigma: Tensor
    alpha_final: float
    sigma_final: float
    prediction: str
    config: Any = field(repr=False, compare=False)

    def times(self, steps: int) -> Tensor:
        """Return the grid (steps + 1,) int64 of a sampler with `steps` calls, noisiest first.

        The first `steps` are exactly diffusers' DDIM timesteps. Each is followed by the next one
        of the list, not by `t - N // steps`, which misses the grid for linspace and trailing
        spacing. After the last one comes what diffusers takes there, `t - N // steps`, or FINAL
        where that is negative.

        Raises:
            ValueError: `steps` is below 1 or too large for the model.
        """
        from diffusers import DDIMScheduler

        count = len(self.alpha)
        if not 1 <= steps <= count:
            raise ValueError(
                f"sampler.steps must be between 1 and {count}, the training timesteps, not {steps}"
            )

        ddim = DDIMScheduler.from_config(self.config)
        ddim.set_timesteps(steps)
        grid = ddim.timesteps.cpu()

        if int(grid.max()) >= count:
            raise ValueError(
                f"sampler.steps = {steps} asks for timestep {int(grid.max())}, beyond the model's "
                f"last, {count - 1}: use fewer steps"
            )

        last = max(int(grid[-1]) - count // steps, FINAL)
        return torch.cat([grid, grid.new_tensor([last])])

    def time_at(self, share: Tensor) -> Tensor:
        """Return training timesteps (B,) int64."""
        return (share * len(self.alpha)).ceil().long() - 1

    def level(self, t: Tensor, device: torch.device | str = "cpu") -> Level:
        """Return the noise levels at times `t` (B,), which may hold FINAL; each (B, 1, 1, 1)."""
        t = t.cpu()
        inside = t.clamp(min=0)
        alpha = torch.where(t < 0, self.alpha_final, self.alpha[inside])
        sigma = torch.where(t < 0, self.sigma_final, self.sigma[inside])
        return _level_on(device, alpha, sigma)

    def error_scale(self, level: Level) -> Tensor:
        """Return the factor from an error of x0 to that of the output.

        With x_t fixed, eps = (x_t - alpha x0) / sigma and v = (alpha x_t - x0) / sigma.
        """
        if self.prediction == "epsilon":
            return level.alpha / level.sigma
        if self.prediction == "v_prediction":
            return 1 / level.sigma

        return torch.ones_like(level.sigma)

    def x0(self, x: Tensor, t: Tensor, out: Tensor) -> Tensor:
        """Return x0 (B, *latent), at least float32."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        x = x.to(dtype)
        out = out.to(dtype)

        if self.prediction == "sample":
            return out

        level = self.level(t, x.device)
        alpha = level.alpha.to(dtype)
        sigma = level.sigma.to(dtype)

        if self.prediction == "epsilon":
            return (x - sigma * out) / alpha

        return alpha * x - sigma * out


@dataclass(frozen=True)
class Consistency(VariancePreserving):
    """The tables of a consistency model."""

    consistency = True

    def times(self, steps: int) -> Tensor:
        """Return the timesteps of diffusers' LCMScheduler, and FINAL: (steps + 1,) int64.

        Raises:
            ValueError: the model was not distilled from so many steps.
        """
        from diffusers import LCMScheduler

        lcm = LCMScheduler.from_config(self.config)
        distilled = self.config.original_inference_steps

        if not 1 <= steps <= distilled:
            raise ValueError(
                f"sampler.steps must be between 1 and {distilled}, the steps this consistency "
                f"model was distilled from, not {steps}"
            )

        lcm.set_timesteps(steps)
        return torch.cat([lcm.timesteps.cpu(), torch.tensor([FINAL])])

    def time_at(self, share: Tensor) -> Tensor:
        """Return timesteps (B,) int64 of the distillation."""
        distilled = self.config.original_inference_steps
        return (share * distilled).ceil().long() * (len(self.alpha) // distilled) - 1

    def error_scale(self, level: Level) -> Tensor:
        """Return 1: f is what the network was distilled to."""
        return torch.ones_like(level.sigma)

    def x0(self, x: Tensor, t: Tensor, out: Tensor) -> Tensor:
        """Return the consistency function f (B, *latent), at least float32."""
        x0 = super().x0(x, t, out)
        time = t.to(x.device).view(-1, 1, 1, 1).to(x0.dtype) * self.config.timestep_scaling
        square = time**2 + SIGMA_DATA**2
        return time / square.sqrt() * x0 + SIGMA_DATA**2 / square * x.to(x0.dtype)


@dataclass(frozen=True)
class Flow(Schedule):
    """A rectified flow: alpha = 1 - t, sigma = t.

    Attributes:
        grid: the times of a sampler, the model's shift included.
    """

    grid: Grid = field(repr=False, compare=False)
    variance_preserving = False

    def times(self, steps: int) -> Tensor:
        """Return the grid (steps + 1,) float64 from 1, noise, or a little less, to 0, the image.

        Raises:
            ValueError: `steps` is below 1.
        """
        if steps < 1:
            raise ValueError(f"sampler.steps must be at least 1, not {steps}")

        return self.grid(steps).double()

    def time_at(self, share: Tensor) -> Tensor:
        """Return the times (B,) float64."""
        return share.double()

    def level(self, t: Tensor, device: torch.device | str = "cpu") -> Level:
        """Return the noise levels at times `t` (B,); each (B, 1, 1, 1)."""
        t = t.cpu().double()
        return _level_on(device, 1 - t, t)

    def error_scale(self, level: Level) -> Tensor:
        """Return the factor from an error of x0 to that of the velocity, (x_t - x0) / t."""
        return 1 / level.sigma

    def x0(self, x: Tensor, t: Tensor, out: Tensor) -> Tensor:
        """Return x_t - t v (B, *latent), at least float32."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        return x.to(dtype) - self.level(t, x.device).sigma.to(dtype) * out.to(dtype)


def flow_grid(scheduler: Any, **options: Any) -> Grid:
    """Return the times of a diffusers flow scheduler, with its shift.

    Args:
        scheduler: Euler's for flows, or a solver with `use_flow_sigmas`.
        options: further arguments of its `set_timesteps`, or functions of the number of steps
            that return them: `mu`, `sigmas`.
    """

    def grid(steps: int) -> Tensor:
        if steps == 1 and scheduler.config.get("shift_terminal"):
            raise ValueError(
                "sampler.steps must be at least 2 for this model, not 1: its scheduler stretches "
                "the times so that the last call is at shift_terminal"
            )

        own = type(scheduler).from_config(scheduler.config)
        values = {name: get(steps) if callable(get) else get for name, get in options.items()}
        own.set_timesteps(steps, **values)
        return own.sigmas.cpu()

    return grid


def _level_on(device: torch.device | str, alpha: Tensor, sigma: Tensor) -> Level:
    """Return alpha and sigma (B,) as a level (B, 1, 1, 1) on a device."""
    return Level(
        on_device(alpha.view(-1, 1, 1, 1).double(), device),
        on_device(sigma.view(-1, 1, 1, 1).double(), device),
    )


def on_device(values: Tensor, device: torch.device | str) -> Tensor:
    """Return numbers of the CPU on a device, float64 as float32 where that has none."""
    if torch.device(device).type not in WITHOUT_FLOAT64:
        return values.to(device, non_blocking=True)

    # and it copies by itself: what an Apple GPU has not fetched yet may be overwritten meanwhile
    single = values.float() if values.dtype == torch.float64 else values
    return single.to(device)
