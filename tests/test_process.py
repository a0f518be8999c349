"""The forward process against a plain denoising loss; the reverse against the sampler's replay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import generator, perturb
from diffusers import DDPMScheduler

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


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_error_is_the_networks_training_loss(
    make_pipeline: Callable[..., Path], prediction: str
) -> None:
    """Against diffusers: its scheduler adds the noise, and gives the target of the network."""
    policy = Policy.load(make_pipeline(prediction), train="full", reference=True)
    sampler = Sampler(DDIM(), 3, CFG(3.0))
    trajectory = roll(policy, sampler)
    perturb(policy)
    process = ForwardProcess(policy, sampler, trajectory, trajectory.latent, ("key",))
    replay = process.replay(IMAGES, TRANSITIONS, reference=True)
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
        return without + 3.0 * (with_text - without)

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
    sampler = Sampler(DDIM(), 3, CFG(3.0))
    trajectory = roll(policy, sampler)
    process = ForwardProcess(policy, sampler, trajectory, trajectory.latent, ("key",))
    t, noise = process.times_and_noises(IMAGES, TRANSITIONS)
    single_t, single_noise = process.times_and_noises(IMAGES[1:2], TRANSITIONS[1:2])
    assert single_t.equal(t[1:2])
    assert single_noise.equal(noise[1:2])
    assert len(t.unique()) == 3
    assert not noise[0].equal(noise[2])

    times, _ = process.times_and_noises(torch.zeros(4000, dtype=torch.long), torch.arange(4000))
    assert times.min() < 10
    assert times.max() > 989
    assert abs(float(times.double().mean()) - 499.5) < 20


def test_the_remembered_log_probability_is_the_ratio_s_denominator(tiny_pipeline: Path) -> None:
    policy = Policy.load(tiny_pipeline)
    sampler = Sampler(DDIM(), 3, CFG(3.0))
    trajectory = roll(policy, sampler)
    process = ForwardProcess(policy, sampler, trajectory, trajectory.latent, ("key",))
    process = process.remembering([(IMAGES, TRANSITIONS)], chunk=2)
    before = process.replay(IMAGES, TRANSITIONS)
    assert float((before.logp - before.logp_old).detach().abs().max()) < 1e-6
    perturb(policy)
    after = process.replay(IMAGES, TRANSITIONS)
    assert after.logp_old.equal(before.logp_old)
    assert float((after.logp - after.logp_old).detach().abs().min()) > 1e-6


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
