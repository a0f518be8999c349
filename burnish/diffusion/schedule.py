"""The noise schedule of a diffusion model: x_t = alpha_t * x0 + sigma_t * noise at each timestep.

It is read once from a diffusers scheduler; from then on nothing is stateful and every function
takes one time per image, which diffusers' own `step` cannot. With abar the cumulative product
(DDPM, arXiv 2006.11239): alpha = sqrt(abar) and sigma = sqrt(1 - abar). Networks predict one of
three things, all turned into x0 here:

    epsilon        x0 = (x_t - sigma * eps) / alpha
    v_prediction   x0 = alpha * x_t - sigma * v          (arXiv 2202.00512)
    sample         x0 itself

A consistency model (arXiv 2303.01469), recognised by its `LCMScheduler`, has in place of x0 the
consistency function

    f      = c_out * x0 + c_skip * x_t
    c_skip = s^2 / ((k t)^2 + s^2)
    c_out  = k t / sqrt((k t)^2 + s^2)

with s = 0.5 and k the scheduler's `timestep_scaling`; after its last call comes f itself, without
noise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from burnish.types import Level

FINAL = -1
"""The time after the last step.

It is the data itself, or the least noisy level of the model (`set_alpha_to_one`).
"""

SIGMA_DATA = 0.5
"""s above; a constant of diffusers' `LCMScheduler`."""

PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class Schedule:
    """The tables of a variance-preserving diffusion model.

    They are kept in float64, where 1 - abar_t/abar_s loses no digits.

    Attributes:
        alpha: (N,) by training timestep, float64, CPU.
        sigma: (N,) by training timestep, float64, CPU.
        alpha_final: at time FINAL.
        sigma_final: at time FINAL.
        prediction: one of PREDICTIONS.
        config: the diffusers configuration that the sampling grid is made from.
        consistency: True if the network's output stands for the consistency function f.
    """

    alpha: Tensor
    sigma: Tensor
    alpha_final: float
    sigma_final: float
    prediction: str
    config: Any = field(repr=False, compare=False)
    consistency: bool = False

    @classmethod
    def of(cls, scheduler: Any) -> Schedule:
        """Return the schedule of any diffusers scheduler that DDIM can stand in for.

        DDIM's scheduler is rebuilt with the same configuration (LCM's for a consistency model).

        Raises:
            ValueError: the scheduler belongs to another kind of model, or its prediction cannot
                give x0.
        """
        from diffusers import DDIMScheduler, LCMScheduler

        if not hasattr(scheduler, "alphas_cumprod"):
            raise ValueError(
                f"the scheduler {type(scheduler).__name__} has no alphas_cumprod: only diffusion "
                "models (epsilon, v or sample prediction) can be sampled here"
            )

        consistency = isinstance(scheduler, LCMScheduler)
        kind = LCMScheduler if consistency else DDIMScheduler
        rebuilt = kind.from_config(scheduler.config)
        abar = rebuilt.alphas_cumprod.double()
        abar_final = 1.0 if consistency else float(rebuilt.final_alpha_cumprod)
        prediction = rebuilt.config.prediction_type

        if prediction not in PREDICTIONS:
            raise ValueError(
                f"the scheduler's prediction_type {prediction!r} is not one of "
                f"{', '.join(PREDICTIONS)}"
            )
        if prediction == "epsilon" and bool((abar <= 0).any()):
            raise ValueError(
                "a schedule with rescale_betas_zero_snr cannot be used with prediction_type "
                "'epsilon', because x0 cannot be recovered from pure noise: use a v_prediction "
                "model"
            )

        return cls(
            alpha=abar.sqrt(),
            sigma=(1 - abar).sqrt(),
            alpha_final=abar_final**0.5,
            sigma_final=(1 - abar_final) ** 0.5,
            prediction=prediction,
            config=rebuilt.config,
            consistency=consistency,
        )

    def times(self, steps: int) -> Tensor:
        """Return the grid (steps + 1,) int64 of a sampler with `steps` calls, noisiest first.

        The first `steps` are exactly diffusers' DDIM timesteps. Each is followed by the next one
        of the list, not by `t - N // steps`, which misses the grid for linspace and trailing
        spacing. After the last one comes what diffusers takes there, `t - N // steps`, or FINAL
        where that is negative. For a consistency model: the timesteps of diffusers' LCMScheduler,
        and FINAL.

        Raises:
            ValueError: `steps` is below 1 or too large for the model.
        """
        from diffusers import DDIMScheduler

        if self.consistency:
            return self._consistency_times(steps)

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

    def _consistency_times(self, steps: int) -> Tensor:
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

    def level(self, t: Tensor, device: torch.device | str = "cpu") -> Level:
        """Return the noise levels at times `t` (B,), which may hold FINAL; each (B, 1, 1, 1)."""
        t = t.cpu()
        inside = t.clamp(min=0)
        alpha = torch.where(t < 0, self.alpha_final, self.alpha[inside])
        sigma = torch.where(t < 0, self.sigma_final, self.sigma[inside])
        # mps is the one device without float64
        dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64

        return Level(
            alpha.view(-1, 1, 1, 1).to(dtype).to(device, non_blocking=True),
            sigma.view(-1, 1, 1, 1).to(dtype).to(device, non_blocking=True),
        )

    def error_scale(self, level: Level) -> Tensor:
        """Return the factor from an error of x0 to the error of the network's own output.

        The network was trained on the latter. With x_t fixed, eps = (x_t - alpha x0) / sigma and
        v = (alpha x_t - x0) / sigma.
        """
        if self.prediction == "epsilon":
            return level.alpha / level.sigma
        if self.prediction == "v_prediction":
            return 1 / level.sigma

        return torch.ones_like(level.sigma)

    def x0(self, x: Tensor, t: Tensor, out: Tensor) -> Tensor:
        """Return x0 for the network's output `out` at `x` and times `t`, at least float32.

        For a consistency model it is f. It is never clipped: latents have no fixed range.

        Args:
            x: (B, *latent) noisy latents.
            t: (B,) their times.
            out: (B, *latent) the network's output.
        """
        dtype = torch.promote_types(x.dtype, torch.float32)
        x0 = self._denoised(x.to(dtype), t, out.to(dtype))

        if not self.consistency:
            return x0

        time = t.to(x.device).view(-1, 1, 1, 1).to(dtype) * self.config.timestep_scaling
        square = time**2 + SIGMA_DATA**2
        return time / square.sqrt() * x0 + SIGMA_DATA**2 / square * x.to(dtype)

    def _denoised(self, x: Tensor, t: Tensor, out: Tensor) -> Tensor:
        if self.prediction == "sample":
            return out

        dtype = x.dtype
        level = self.level(t, x.device)
        alpha = level.alpha.to(dtype)
        sigma = level.sigma.to(dtype)

        if self.prediction == "epsilon":
            return (x - sigma * out) / alpha

        return alpha * x - sigma * out
