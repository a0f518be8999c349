"""Kernels against diffusers' scheduler steps, densities against torch.distributions."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from burnish.diffusion import kernels
from burnish.diffusion.kernels import DDIM
from burnish.diffusion.schedule import read_schedule
from burnish.types import Gaussian, Level

SD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def diffusers_step(
    scheduler: DDIMScheduler, x: Tensor, out: Tensor, t: int, s: int, eta: float
) -> Gaussian:
    """Return the oracle: one row's transition from t to s, in float64."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    # diffusers computes s as t - N // steps; a fraction makes that exact for every grid
    scheduler.num_inference_steps = Fraction(scheduler.config.num_train_timesteps, t - s)
    mean, shifted = (
        scheduler.step(out, t, x, eta=eta, variance_noise=noise).prev_sample
        for noise in (torch.zeros_like(x), torch.ones_like(x))
    )

    return Gaussian(mean, (shifted - mean).flatten(1)[:, :1, None, None])


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_ddim_is_diffusers_for_all_times_at_once(prediction: str, spacing: str, eta: float) -> None:
    scheduler = DDIMScheduler(**SD, prediction_type=prediction, timestep_spacing=spacing)
    schedule = read_schedule(scheduler)
    times = schedule.times(13)
    t = times[:-1]
    s = times[1:]
    x = randn(13, 4, 3, 3)
    out = randn(13, 4, 3, 3, seed=1)
    transition = DDIM(eta)(x, schedule.x0(x, t, out), schedule.level(t), schedule.level(s))
    assert transition.std.shape == (13, 1, 1, 1)

    for i in range(13):
        oracle = diffusers_step(scheduler, x[i : i + 1], out[i : i + 1], int(t[i]), int(s[i]), eta)
        torch.testing.assert_close(transition.mean[i : i + 1], oracle.mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(transition.std[i : i + 1], oracle.std, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_ddim_from_pure_noise(prediction: str) -> None:
    scheduler = DDIMScheduler(
        **SD, prediction_type=prediction, timestep_spacing="trailing", rescale_betas_zero_snr=True
    )
    schedule = read_schedule(scheduler)
    t = torch.tensor([999])
    s = torch.tensor([979])
    x = randn(1, 4, 3, 3)
    out = randn(1, 4, 3, 3, seed=1)
    transition = DDIM(0.7)(x, schedule.x0(x, t, out), schedule.level(t), schedule.level(s))
    torch.testing.assert_close(
        transition.mean, diffusers_step(scheduler, x, out, 999, 979, 0.7).mean
    )


def test_stable_diffusion_stds() -> None:
    schedule = read_schedule(DDIMScheduler(**SD))
    t = torch.tensor([981, 601, 201, 41, 21, 1])
    zero = torch.zeros(6, 1, 1, 1)
    std = DDIM()(zero, zero, schedule.level(t), schedule.level((t - 20).clamp(min=-1))).std
    torch.testing.assert_close(
        std.flatten(),
        torch.tensor([0.4545, 0.330, 0.185, 0.0999, 0.0395, 0.0206]),
        rtol=0,
        atol=6e-4,
    )


def test_ddim_keeps_the_marginals_of_gaussian_data() -> None:
    """With unit-variance data and the best x0 = alpha x, every x has unit variance, for any eta."""
    schedule = read_schedule(DDIMScheduler(**SD))
    times = schedule.times(1000 // 2)

    for eta in (0.2, 1.0):
        variance = 1.0
        x = torch.ones(1, 1, 1, 1, dtype=torch.float64)

        for t, s in zip(times[:-1, None], times[1:, None], strict=True):
            level = schedule.level(t)
            transition = DDIM(eta)(x, level.alpha * x, level, schedule.level(s))
            variance = transition.mean.item() ** 2 * variance + transition.std.item() ** 2

        assert variance == pytest.approx(1, abs=0.02)


def test_half_precision_becomes_float32_and_autocast_changes_nothing() -> None:
    schedule = read_schedule(DDIMScheduler(**SD))
    t = torch.tensor([21, 1])
    s = torch.tensor([1, -1])
    x = randn(2, 4, 3, 3).float()
    x0 = randn(2, 4, 3, 3, seed=1).bfloat16()
    plain = DDIM()(x, x0, schedule.level(t), schedule.level(s))

    with torch.autocast("cpu", torch.bfloat16):
        inside = DDIM()(x, x0, schedule.level(t), schedule.level(s))
        assert torch.equal(kernels.log_prob(inside, x), kernels.log_prob(plain, x))

    logp = kernels.log_prob(plain, x.bfloat16())
    assert plain.mean.dtype == plain.std.dtype == logp.dtype == torch.float32
    assert torch.equal(inside.mean, plain.mean)


@pytest.mark.parametrize("eta", [-0.1, -0.5, 1.5, float("nan")])
def test_eta_out_of_range(eta: float) -> None:
    with pytest.raises(ValueError, match="eta must lie between 0 and 1"):
        DDIM(eta)


def gaussian(seed: int) -> Gaussian:
    return Gaussian(randn(5, 4, 3, 3, seed=seed), randn(5, 1, 1, 1, seed=seed + 1).abs() + 0.02)


def test_log_prob_is_the_mean_of_normal() -> None:
    p = gaussian(0)
    x = randn(5, 4, 3, 3, seed=9)
    torch.testing.assert_close(
        kernels.log_prob(p, x), Normal(p.mean, p.std).log_prob(x).flatten(1).mean(1)
    )


def test_kl_is_the_sum_of_normal() -> None:
    p = gaussian(0)
    q = gaussian(5)
    expected = kl_divergence(
        *(Independent(Normal(g.mean, g.std.expand_as(g.mean)), 3) for g in (p, q))
    )
    torch.testing.assert_close(kernels.kl(p, q), expected)
    assert torch.equal(kernels.kl(p, p), torch.zeros(5, dtype=torch.float64))


def test_expected_score_is_zero_and_actions_carry_no_gradient() -> None:
    mean = torch.zeros(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    transition = Gaussian(
        mean.expand(4000, -1, -1, -1), torch.full((4000, 1, 1, 1), 0.3, dtype=torch.float64)
    )
    x = kernels.sample(transition, torch.Generator().manual_seed(0))
    (score,) = torch.autograd.grad(kernels.log_prob(transition, x).mean(), mean)
    assert score.abs().max() < 5 / (0.3 * 36 * 4000**0.5)
    assert x.std().item() == pytest.approx(0.3, rel=0.02)


def test_samples_follow_the_generator() -> None:
    level = Level(torch.tensor(0.5), torch.tensor(0.8))
    less_noisy = Level(torch.tensor(0.8), torch.tensor(0.6))
    ones = torch.ones(2, 4, 3, 3)
    transition = DDIM()(ones, ones, level, less_noisy)
    first, same, other = (
        kernels.sample(transition, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
