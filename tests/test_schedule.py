"""The schedule against diffusers' own tables and grids."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from conftest import SDXL_SCHEDULER
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
)

from burnish.diffusion.kernels import DDIM
from burnish.diffusion.schedule import FINAL, read_schedule

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def ddim(**changes: object) -> DDIMScheduler:
    return DDIMScheduler(**{**SD, "clip_sample": False, "set_alpha_to_one": False, **changes})


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("steps", [1, 7, 25, 50])
def test_grid_is_diffusers_and_every_time_is_followed_by_the_next(spacing: str, steps: int) -> None:
    scheduler = ddim(timestep_spacing=spacing)
    times = read_schedule(scheduler).times(steps)
    scheduler.set_timesteps(steps)
    assert times[:-1].tolist() == scheduler.timesteps.tolist()
    assert times[-1] == max(times[-2] - 1000 // steps, FINAL)

    if spacing == "leading" or (1000 % steps == 0 and spacing == "trailing"):
        assert (times[:-2] - 1000 // steps).tolist() == times[1:-1].tolist(), (
            "diffusers' own previous timestep"
        )


def test_stable_diffusion_grid() -> None:
    times = read_schedule(ddim()).times(50)
    assert times[:2].tolist() == [981, 961] and times[-3:].tolist() == [21, 1, FINAL]


def test_last_time_may_stay_on_the_schedule() -> None:
    # 600 steps leave a stride of 1, so diffusers goes from t = 1 to t = 0, not to the final level
    assert read_schedule(ddim()).times(600)[-2:].tolist() == [1, 0]


def test_levels_are_the_table_in_float64_and_one_per_image() -> None:
    scheduler = ddim()
    level = read_schedule(scheduler).level(torch.tensor([981, 1, FINAL]))
    abar = torch.stack(
        [scheduler.alphas_cumprod[981], scheduler.alphas_cumprod[1], scheduler.final_alpha_cumprod]
    )
    assert level.alpha.shape == (3, 1, 1, 1)
    torch.testing.assert_close(level.alpha.flatten(), abar.double().sqrt(), rtol=1e-14, atol=0)
    torch.testing.assert_close(
        level.sigma.flatten(), (1 - abar.double()).sqrt(), rtol=1e-14, atol=0
    )
    clean = read_schedule(ddim(set_alpha_to_one=True)).level(torch.tensor([FINAL]))
    assert (clean.alpha.item(), clean.sigma.item()) == (1.0, 0.0)


@pytest.mark.parametrize("scheduler", [PNDMScheduler, EulerDiscreteScheduler])
def test_other_schedulers_of_diffusion_models_are_read_as_ddim(scheduler: type) -> None:
    schedule = read_schedule(scheduler(**SD, prediction_type="v_prediction"))
    assert schedule.prediction == "v_prediction"
    assert torch.equal(schedule.alpha, read_schedule(ddim()).alpha)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_true_predictions_give_back_x0(prediction: str) -> None:
    schedule = read_schedule(ddim(prediction_type=prediction))
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 3, 4, 8, 8, generator=generator, dtype=torch.float64)
    t = torch.tensor([981, 500, 1])
    level = schedule.level(t)
    out = {"epsilon": eps, "v_prediction": level.alpha * eps - level.sigma * x0, "sample": x0}[
        prediction
    ]
    torch.testing.assert_close(schedule.x0(level.alpha * x0 + level.sigma * eps, t, out), x0)


def test_x0_of_half_precision_is_float32() -> None:
    x = torch.zeros(1, 4, 8, 8)
    assert read_schedule(ddim()).x0(x, torch.tensor([1]), x.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_impossible_step_counts(steps: int) -> None:
    with pytest.raises(ValueError, match="sampler.steps must be between 1 and 1000"):
        read_schedule(ddim()).times(steps)


def test_grid_beyond_the_table() -> None:
    with pytest.raises(ValueError, match="asks for timestep 1000, beyond the model's last, 999"):
        read_schedule(ddim()).times(1000)


def test_unsuitable_schedulers() -> None:
    with pytest.raises(ValueError, match="x0 cannot be recovered from pure noise"):
        read_schedule(ddim(rescale_betas_zero_snr=True))
    read_schedule(ddim(rescale_betas_zero_snr=True, prediction_type="v_prediction"))


# a scheduler of diffusers with numpy 2
@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize("spacing", ["leading", "trailing"])  # SDXL's and Turbo's
@pytest.mark.parametrize("steps", [4, 25, 50])
def test_the_scheduler_of_sdxl_is_ddim_in_other_coordinates(steps: int, spacing: str) -> None:
    """Euler's ancestral step in x / alpha is DDIM's with eta = 1.

    Only its very last one, which goes on to x0 itself, is not compared.
    """
    config = {**SDXL_SCHEDULER, "timestep_spacing": spacing}
    scheduler = EulerAncestralDiscreteScheduler.from_config(config)
    scheduler.set_timesteps(steps)
    schedule = read_schedule(EulerDiscreteScheduler.from_config(config))
    times = schedule.times(steps)
    assert times[:-1].tolist() == scheduler.timesteps.tolist() and times[-1] == FINAL
    level = schedule.level(times[:-1])
    ratio = (level.sigma / level.alpha).flatten()
    torch.testing.assert_close(ratio, scheduler.sigmas[:-1].double(), rtol=1e-4, atol=0)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    for i, (t, s) in enumerate(pairwise(times[:-1].split(1))):
        eps = torch.tanh(x).roll(1, 2)  # stands in for the network
        level_t = schedule.level(t)
        level_s = schedule.level(s)
        transition = DDIM(1.0)(x, schedule.x0(x, t, eps), level_t, level_s)
        noise = torch.randn(
            x.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float32
        )
        x_s = transition.mean + transition.std * noise
        expected = scheduler.step(
            eps.float(),
            scheduler.timesteps[i],
            (x / level_t.alpha).float(),
            generator=torch.Generator().manual_seed(i),
        ).prev_sample
        torch.testing.assert_close(x_s / level_s.alpha, expected.double(), rtol=1e-4, atol=1e-3)
        x = x_s

    # otherwise diffusers starts with 0.2 % less noise than there is at that time
    if spacing == "leading":
        assert scheduler.init_noise_sigma.item() == pytest.approx(
            float((1 / level.alpha[0]).squeeze()), rel=1e-5
        )
