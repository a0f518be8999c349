"""The forward process against a plain denoising loss; the reverse against the sampler's replay."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import generator, perturb
from diffusers import DDPMScheduler
from torch import Tensor

from burnish.config import ForwardConfig
from burnish.diffusion.guidance import CFG
from burnish.diffusion.kernels import DDIM
from burnish.diffusion.policy import Policy
from burnish.diffusion.process import ForwardProcess, ReverseProcess
from burnish.diffusion.sampler import Sampler
from burnish.types import Prompt, Trajectory

PROMPTS = [Prompt("a cat"), Prompt("a cat"), Prompt("two dogs"), Prompt("two dogs")]
IMAGES = torch.tensor([0, 3, 2])
TRANSITIONS = torch.tensor([1, 0, 5])


def roll(policy: Policy, sampler: Sampler) -> Trajectory:
    return sampler.rollout(policy, policy.encode(PROMPTS), torch.tensor([0, 0, 1, 1]), generator())


def forward(
    policy: Policy, trajectory: Trajectory, draws: int = 8, **settings: Any
) -> ForwardProcess:
    """Return the forward process of trajectories that `CFG(3.0)` sampled in 3 steps."""
    sampler = Sampler(DDIM(), 3, CFG(3.0))
    latent = trajectory.latent
    key = ("key",)
    return ForwardProcess(
        policy, sampler, trajectory, latent, key, draws, ForwardConfig(**settings)
    )


@pytest.mark.parametrize("weight", [1.0, 3.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_error_is_the_networks_training_loss(
    make_pipeline: Callable[..., Path], prediction: str, weight: float
) -> None:
    """Against diffusers: its scheduler adds the noise, and gives the target of the network."""
    policy = Policy.load(make_pipeline(prediction), train="full", reference=True)
    sampler = Sampler(DDIM(), 3, CFG(3.0))
    trajectory = roll(policy, sampler)
    perturb(policy)
    process = forward(policy, trajectory, guided=weight > 1)
    anchor = process.predictions([(IMAGES, TRANSITIONS)], policy.reference())
    replay = replace(process, anchor=anchor).replay(IMAGES, TRANSITIONS, reference=True)
    t, noise = process.times_and_noises(IMAGES, TRANSITIONS)
    clean = trajectory.latent[IMAGES]
    ddpm = DDPMScheduler.from_config(policy.pipe.scheduler.config)
    x = ddpm.add_noise(clean, noise, t)
    target = {
        "epsilon": noise,
        "sample": clean,
        "v_prediction": ddpm.get_velocity(clean, noise, t),
    }[prediction]

    def guided() -> torch.Tensor:
        text = trajectory.cond["text"][IMAGES]
        null = policy.null(3)["text"]
        with_text, without = (
            policy.pipe.unet(x, t, states, return_dict=False)[0] for states in (text, null)
        )
        return without + weight * (with_text - without)

    out = guided()
    assert (process.latent.shape, replay.dims, replay.logp.shape) == ((4, 4, 8, 8), 256, (3, 1))
    torch.testing.assert_close(
        -replay.logp[:, 0], (out - target).square().mean((1, 2, 3)), rtol=2e-3, atol=1e-4
    )

    with policy.reference():
        reference = guided()

    assert replay.kl is not None and replay.logp_ref is not None
    torch.testing.assert_close(
        replay.kl[:, 0], (out - reference).square().sum((1, 2, 3)) / 2, rtol=2e-3, atol=1e-3
    )
    torch.testing.assert_close(
        -replay.logp_ref[:, 0], (reference - target).square().mean((1, 2, 3)), rtol=2e-3, atol=1e-4
    )


def test_a_pair_always_has_the_same_time_and_noise(tiny_pipeline: Path) -> None:
    policy = Policy.load(tiny_pipeline)
    process = forward(policy, roll(policy, Sampler(DDIM(), 3, CFG(3.0))))
    t, noise = process.times_and_noises(IMAGES, TRANSITIONS)
    single_t, single_noise = process.times_and_noises(IMAGES[1:2], TRANSITIONS[1:2])
    assert single_t.equal(t[1:2])
    assert single_noise.equal(noise[1:2])
    assert len(t.unique()) == 3
    assert not noise[0].equal(noise[2])


def test_images_of_a_prompt_share_times_and_noises(tiny_pipeline: Path) -> None:
    policy = Policy.load(tiny_pipeline)
    process = forward(policy, roll(policy, Sampler(DDIM(), 3, CFG(3.0))))
    t, noise = process.times_and_noises(torch.arange(4), torch.full((4,), 5))
    assert t[0] == t[1] and t[2] == t[3] and t[0] != t[2]
    assert noise[0].equal(noise[1]) and noise[2].equal(noise[3]) and not noise[0].equal(noise[2])


@pytest.mark.parametrize(
    ("times", "quantiles"),
    [
        # by scipy: expit(norm.ppf([0.25, 0.5, 0.75]))
        ("uniform", [0.25, 0.5, 0.75]),
        ("logit_normal", [0.337485, 0.5, 0.662515]),
        ("noisy", [0.5, 0.5**0.5, 0.75**0.5]),
    ],
)
def test_times_of_an_image_are_spread_over_their_range(
    tiny_pipeline: Path, times: str, quantiles: list[float]
) -> None:
    policy = Policy.load(tiny_pipeline)
    process = forward(policy, roll(policy, Sampler(DDIM(), 3, CFG(3.0))), draws=4, times=times)
    transitions = torch.arange(400)
    t, _ = process.times_and_noises(torch.zeros(400, dtype=torch.long), transitions)
    bounds = [0.0, *quantiles, 1.0]

    for part in range(4):
        drawn = (t[transitions % 4 == part] + 1) / 1000
        assert bounds[part] < drawn.min() < drawn.max() < bounds[part + 1] + 0.002
        middle = (bounds[part] + bounds[part + 1]) / 2
        assert abs(float(drawn.mean()) - middle) < 0.3 * (bounds[part + 1] - bounds[part])


def test_times_may_be_a_part_of_them_or_the_samplers(tiny_pipeline: Path) -> None:
    policy = Policy.load(tiny_pipeline)
    trajectory = roll(policy, Sampler(DDIM(), 3, CFG(3.0)))
    share = torch.arange(1, 1001) / 1000
    part = forward(policy, trajectory, range=[0.2, 0.6]).time_at(share)
    assert (part.min(), part.max()) == (200, 599)

    steps = forward(policy, trajectory, times="steps").time_at(share)
    times, counts = steps.unique(return_counts=True)
    assert times.flip(0).equal(trajectory.t[:3])
    assert counts.tolist() == [333, 333, 334]
    noisiest = forward(policy, trajectory, times="steps", range=[0.7, 1.0]).time_at(share)
    assert noisiest.unique().equal(times[-1:])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_errors_of_noise_velocity_and_x0_are_one_error(
    make_pipeline: Callable[..., Path], prediction: str
) -> None:
    """Against the identities x0 = (x - sigma eps) / alpha = alpha x - sigma v."""
    policy = Policy.load(make_pipeline(prediction))
    trajectory = roll(policy, Sampler(DDIM(), 3, CFG(3.0)))
    own = {"epsilon": "noise", "v_prediction": "velocity"}[prediction]
    errors = {
        name: -forward(policy, trajectory, error=name).replay(IMAGES, TRANSITIONS).logp.detach()
        for name in ("output", "noise", "velocity", "x0")
    }
    t, _ = forward(policy, trajectory).times_and_noises(IMAGES, TRANSITIONS)
    level = policy.schedule.level(t)
    alpha, sigma = (part.view(-1, 1).float() for part in (level.alpha, level.sigma))
    torch.testing.assert_close(errors["output"], errors[own])
    torch.testing.assert_close(errors["velocity"] * sigma**2, errors["x0"])
    torch.testing.assert_close(errors["noise"], errors["velocity"] * alpha**2)


def test_the_old_prediction_is_the_one_before_the_updates(tiny_pipeline: Path) -> None:
    policy = Policy.load(tiny_pipeline)
    process = forward(policy, roll(policy, Sampler(DDIM(), 3, CFG(3.0))), error="x0")
    old = process.predictions(
        [(IMAGES[:2], TRANSITIONS[:2]), (IMAGES[2:], TRANSITIONS[2:])], nullcontext()
    )
    process = replace(process, old=old, mixtures=(2.0,))
    before = process.replay(IMAGES, TRANSITIONS)
    assert before.kl_old is not None
    assert float((before.logp - before.logp_old).detach().abs().max()) < 1e-6
    assert float(before.kl_old.detach().max()) < 1e-6

    perturb(policy)
    after = process.replay(IMAGES, TRANSITIONS)
    assert after.logp_old.equal(before.logp_old)
    assert float((after.logp - after.logp_old).detach().abs().min()) > 1e-6

    noised = process.noised(process.latent, IMAGES, TRANSITIONS)
    now = process.predict(noised).detach()
    moved = (now - old[IMAGES, TRANSITIONS]).square().sum((1, 2, 3)) / 2
    mixed = 2 * now - old[IMAGES, TRANSITIONS] - noised.clean
    assert after.kl_old is not None and after.mixture_errors is not None
    torch.testing.assert_close(after.kl_old[:, 0].detach(), moved, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        after.mixture_errors[:, 0], mixed.abs().mean((1, 2, 3)).double(), check_dtype=False
    )


def test_anchor_images_are_denoised_in_place_of_the_kl(tiny_pipeline: Path) -> None:
    policy = Policy.load(tiny_pipeline)
    trajectory = roll(policy, Sampler(DDIM(), 3, CFG(3.0)))
    drawn: Tensor = torch.randn(trajectory.latent.shape, generator=generator(8))
    process = replace(forward(policy, trajectory), latent=drawn)
    anchor = process.predictions([(IMAGES, TRANSITIONS)], nullcontext())
    before = process.replay(IMAGES, TRANSITIONS).logp.detach()

    perturb(policy)
    other = forward(policy, trajectory)
    replay = replace(other, anchor_images=drawn, anchor=anchor).replay(IMAGES, TRANSITIONS, True)
    after = process.replay(IMAGES, TRANSITIONS).logp
    assert replay.kl is not None and replay.kl.requires_grad
    torch.testing.assert_close(2 * replay.kl / replay.dims, before - after)


def test_reverse_is_the_samplers_replay(tiny_pipeline: Path) -> None:
    policy = Policy.load(tiny_pipeline)
    sampler = Sampler(DDIM(), 3, CFG(3.0))
    trajectory = roll(policy, sampler)
    transitions = torch.tensor([1, 0, 2])
    replay = ReverseProcess(policy, sampler, trajectory).replay(IMAGES, transitions)
    expected = sampler.replay(policy, trajectory, IMAGES, transitions[:, None])
    assert replay.logp.equal(expected.logp)


def test_a_sampler_without_noise_solves_the_ode_and_suffices_for_the_forward_process(
    tiny_pipeline: Path,
) -> None:
    policy = Policy.load(tiny_pipeline)
    sampler = Sampler(DDIM(0.0), 3, CFG(3.0))
    trajectory = roll(policy, sampler)
    pipe = policy.pipe
    pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    texts = [prompt.text for prompt in PROMPTS]
    stock = pipe(
        texts,
        num_inference_steps=3,
        guidance_scale=3.0,
        generator=generator(),
        output_type="latent",
    ).images
    torch.testing.assert_close(trajectory.latent, stock, rtol=1e-4, atol=1e-4)
    assert trajectory.logp.shape == (4, 0)

    with pytest.raises(ValueError, match="none of 3 transitions has noise"):
        sampler.transitions(policy)


def test_encoding_a_decoded_image_is_the_autoencoders_posterior(tiny_pipeline: Path) -> None:
    policy = Policy.load(tiny_pipeline)
    images = policy.decode(torch.randn(3, 4, 8, 8, generator=generator()))
    vae = policy.pipe.vae
    posterior = vae.encode(images * 2 - 1).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator(5))
    expected = (posterior.mean + posterior.std * noise) * vae.config.scaling_factor
    torch.testing.assert_close(policy.embed(images, generator(5)), expected)
