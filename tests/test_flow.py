"""Flows: their schedule and the kernels, each against its published formula in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from burnish.diffusion import kernels
from burnish.diffusion.kernels import (
    CPS,
    DDIM,
    ODE,
    Churn,
    DanceGRPO,
    FlowGRPO,
    Marginal,
    Precise,
    Renoise,
)
from burnish.diffusion.schedule import Flow, flow_grid, read_schedule
from burnish.types import Gaussian, Kernel, Level

TIMES = torch.tensor([1.0, 0.93, 0.6, 0.35, 0.1, 0.0], dtype=torch.float64)
T = TIMES[1:-2].view(-1, 1, 1, 1)  # inside: no formula divides by zero
S = TIMES[2:-1].view(-1, 1, 1, 1)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def level(t: Tensor) -> Level:
    return Level(1 - t, t)


def euler(shift: float = 3.0, **changes: object) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=shift, **changes)


@pytest.fixture
def states() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States, velocities, and the x0 and noise that they stand for."""
    x = randn(len(T), 2, 3, 3)
    v = randn(len(T), 2, 3, 3, seed=1)
    return x, v, x - T * v, x + (1 - T) * v


# The schedule


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4, 10, 28])
def test_grid_is_the_schedulers(steps: int, shift: float) -> None:
    scheduler = euler(shift)
    times = read_schedule(scheduler).times(steps)
    scheduler.set_timesteps(steps)
    assert times.tolist() == scheduler.sigmas.double().tolist()
    assert times[-1] == 0 and times.dtype == torch.float64


def test_grid_with_dynamic_shift_and_own_sigmas() -> None:
    scheduler = euler(use_dynamic_shifting=True)
    sigmas = {4: [1.0, 0.7, 0.4, 0.2]}
    grid = flow_grid(scheduler, mu=0.8, sigmas=sigmas.get)
    times = read_schedule(scheduler, grid).times(4)
    shifted = [math.exp(0.8) / (math.exp(0.8) + (1 / s - 1)) for s in sigmas[4]]
    assert times.tolist() == pytest.approx([*shifted, 0.0], abs=1e-6)


def test_levels_velocity_and_errors() -> None:
    flow = read_schedule(euler())
    t = torch.tensor([1.0, 0.4, 0.0])
    found = flow.level(t)
    assert found.alpha.flatten().tolist() == pytest.approx([0, 0.6, 1])
    assert found.sigma.flatten().tolist() == pytest.approx([1, 0.4, 0])

    x0 = randn(3, 2, 3, 3)
    noise = randn(3, 2, 3, 3, seed=1)
    x = found.alpha * x0 + found.sigma * noise
    torch.testing.assert_close(flow.x0(x, t, noise - x0), x0)

    # an error of the velocity is 1/t times that of x0
    scale = flow.error_scale(flow.level(t[1:2]))
    wrong = flow.x0(x[1:2], t[1:2], (noise - x0)[1:2] + 0.1)
    torch.testing.assert_close(scale * (wrong - x0[1:2]), torch.full_like(x0[1:2], -0.1))
    assert flow.x0(x.bfloat16(), t, noise.bfloat16()).dtype == torch.float32


def test_times_of_the_forward_process_are_even() -> None:
    flow = read_schedule(euler())
    share = torch.arange(1, 9) / 8
    assert flow.time_at(share).equal(share.double())


def test_other_schedulers_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="EDMEulerScheduler has no alphas_cumprod and is not Eul"):
        read_schedule(EDMEulerScheduler())


def test_no_steps() -> None:
    with pytest.raises(ValueError, match=r"sampler.steps must be at least 1, not 0"):
        read_schedule(euler()).times(0)


# Kernels with the model's marginals


def transition(kernel: Kernel, x: Tensor, x0: Tensor) -> Gaussian:
    found = kernel(x, x0, level(T), level(S))
    assert found.std.shape == (len(x), 1, 1, 1)
    return found


def test_ode_is_the_schedulers_euler_step(states: tuple[Tensor, ...]) -> None:
    x, v, x0, _ = states
    found = transition(ODE(), x, x0)
    torch.testing.assert_close(found.mean, x + (S - T) * v)
    assert not found.std.any() and ODE().deterministic

    scheduler = euler()
    scheduler.set_timesteps(5)
    flow = read_schedule(scheduler)
    times = flow.times(5)
    stock = x[:1]
    ours = x[:1]
    for i, t in enumerate(scheduler.timesteps):
        stock = scheduler.step(v[:1], t, stock, return_dict=False)[0]
        x0 = flow.x0(ours, times[i : i + 1], v[:1])
        step = ODE()(ours, x0, flow.level(times[i : i + 1]), flow.level(times[i + 1 : i + 2]))
        ours = step.mean

    torch.testing.assert_close(ours, stock.double(), rtol=0, atol=1e-6)


def test_cps(states: tuple[Tensor, ...]) -> None:
    x, _, x0, noise = states
    found = transition(CPS(0.8), x, x0)
    std = S * math.sin(0.8 * math.pi / 2)
    torch.testing.assert_close(found.std, std)
    torch.testing.assert_close(found.mean, (1 - S) * x0 + (S**2 - std**2).sqrt() * noise)


def test_precise_solves_the_equation(states: tuple[Tensor, ...]) -> None:
    x, _, x0, noise = states
    a = 0.7
    found = transition(Precise(a), x, x0)
    # rho = exp(-1/2 the integral of g^2 / u^2 from s to t), by the midpoint rule
    steps = 20_000
    middles = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    u = S + (T - S) * middles
    integral = (a**2 / (u * (1 - u))).mean(-1, keepdim=True) * (T - S)
    rho = (-0.5 * integral).exp()
    torch.testing.assert_close(found.std, S * (1 - rho**2).sqrt(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.mean, (1 - S) * x0 + S * rho * noise, rtol=1e-6, atol=1e-9)


def test_precise_on_a_diffusion_model_is_ddpm() -> None:
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    schedule = read_schedule(scheduler)
    t, s = torch.tensor([901, 401, 61]), torch.tensor([801, 381, 1])
    x, x0 = randn(3, 2, 3, 3), randn(3, 2, 3, 3, seed=1)
    ddpm = DDIM(1.0)(x, x0, schedule.level(t), schedule.level(s))
    found = Precise(math.sqrt(2))(x, x0, schedule.level(t), schedule.level(s))
    torch.testing.assert_close(found.std, ddpm.std)
    torch.testing.assert_close(found.mean, ddpm.mean)


def test_churn_raises_the_noise_then_steps_without(states: tuple[Tensor, ...]) -> None:
    x, _, x0, noise = states
    gamma = 0.3
    found = transition(Churn(gamma), x, x0)
    # EDM, with y = x / alpha = x0 + k noise: k is raised to (1 + gamma) k by fresh noise z, and
    # the step without noise leads from there to the next k
    k, k_next = T / (1 - T), S / (1 - S)
    share = k / ((1 + gamma) * k)
    fresh = ((1 + gamma) ** 2 * k**2 - k**2).sqrt() / ((1 + gamma) * k)
    torch.testing.assert_close(found.mean, (1 - S) * (x0 + k_next * share * noise))
    torch.testing.assert_close(found.std, (1 - S) * k_next * fresh)


def test_renoise_keeps_no_noise(states: tuple[Tensor, ...]) -> None:
    x, _, x0, _ = states
    found = transition(Renoise(), x, x0)
    torch.testing.assert_close(found.mean, (1 - S) * x0)
    torch.testing.assert_close(found.std, S)


# Euler and Maruyama


def test_flow_grpo(states: tuple[Tensor, ...]) -> None:
    x, v, x0, _ = states
    a = 0.7
    found = transition(FlowGRPO(a), x, x0)
    h = S - T
    # the paper's mean with this g, simplified
    mean = x * (1 + a**2 * h / (2 * (1 - T))) + v * (1 + a**2 / 2) * h
    torch.testing.assert_close(found.mean, mean)
    torch.testing.assert_close(found.std, a * (T / (1 - T)).sqrt() * (-h).sqrt())


def test_flow_grpo_starts_from_noise_alone() -> None:
    t, s = level(torch.ones(1, 1, 1, 1).double()), level(torch.full((1, 1, 1, 1), 0.9).double())
    found = FlowGRPO(0.7)(randn(1, 2, 3, 3), randn(1, 2, 3, 3), t, s)
    assert found.std.item() == pytest.approx(0.7 * math.sqrt(1 / 0.1) * math.sqrt(0.1))
    assert found.mean.isfinite().all()


def test_dance_grpo(states: tuple[Tensor, ...]) -> None:
    x, v, x0, _ = states
    eta = 0.3
    found = transition(DanceGRPO(eta), x, x0)
    h = S - T
    score = -(x - (1 - T) * x0) / T**2
    torch.testing.assert_close(found.mean, x + v * h - eta**2 / 2 * score * h)
    torch.testing.assert_close(found.std, eta * (-h).sqrt())


# What all of them must do


MARGINAL: list[Marginal] = [ODE(), CPS(0.5), Precise(0.7), Churn(0.05), Renoise()]
SMALL_STEPS = [ODE(), CPS(0.1), Precise(0.7), Churn(0.02), FlowGRPO(0.7), DanceGRPO(0.3)]


@pytest.mark.parametrize("kernel", MARGINAL, ids=lambda kernel: type(kernel).__name__)
def test_marginals_are_kept_exactly(kernel: Marginal) -> None:
    # with the true x0 and noise, x_s has alpha_s x0 and variance sigma_s^2, whatever the step
    for t, s in itertools.pairwise(TIMES):
        start, end = level(t.view(1, 1, 1, 1)), level(s.view(1, 1, 1, 1))
        x0 = torch.full((1, 1, 1, 1), 0.5).double()
        zero = kernel(start.alpha * x0, x0, start, end)
        one = kernel(start.alpha * x0 + start.sigma, x0, start, end)
        assert zero.mean.item() == pytest.approx(end.alpha.item() * 0.5)
        share = (one.mean - zero.mean).item()
        assert share**2 + one.std.item() ** 2 == pytest.approx(end.sigma.item() ** 2, abs=1e-12)


@pytest.mark.parametrize("kernel", SMALL_STEPS, ids=lambda kernel: type(kernel).__name__)
def test_a_gaussian_is_sampled_with_its_variance(kernel: Kernel) -> None:
    # data N(1, 0.5^2) has a known x0hat; the last step to 0 is left out, as it adds no noise
    mean, spread = 1.0, 0.5
    x = 0.98 * randn(60_000, 1, 1, 1) + 0.02 * mean
    stream = torch.Generator().manual_seed(1)
    grid = torch.linspace(0.98, 0.02, 401, dtype=torch.float64)

    for t, s in itertools.pairwise(grid):
        gain = (1 - t) * spread**2 / ((1 - t) ** 2 * spread**2 + t**2)
        x0 = mean + gain * (x - (1 - t) * mean)
        start, end = level(t.view(1, 1, 1, 1)), level(s.view(1, 1, 1, 1))
        x = kernels.sample(kernel(x, x0, start, end), stream)

    assert x.mean().item() == pytest.approx(0.98 * mean, abs=0.01)
    assert x.var().item() == pytest.approx(0.98**2 * spread**2 + 0.02**2, rel=0.03)


@pytest.mark.parametrize("kernel", [*MARGINAL, FlowGRPO(), DanceGRPO()])
def test_half_precision_is_computed_in_float32(kernel: Kernel) -> None:
    half = torch.zeros(len(T), 2, 3, 3, dtype=torch.bfloat16)
    found = kernel(half, half, level(T), level(S))
    assert found.mean.dtype == torch.float32 and found.std.dtype == torch.float32


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CPS(0.0), "kernel.eta must lie above 0"),
        (lambda: CPS(1.1), "kernel.eta must lie above 0"),
        (lambda: Precise(math.nan), "kernel.a must be"),
        (lambda: FlowGRPO(0.0), "kernel.a must be"),
        (lambda: Churn(-1.0), "kernel.gamma must be"),
        (lambda: DanceGRPO(math.inf), "kernel.eta must be"),
    ],
)
def test_arguments_out_of_range(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]


def test_flow_is_compared_without_its_grid() -> None:
    assert Flow(flow_grid(euler())) == Flow(flow_grid(euler()))
