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
MOVES = torch.tensor([1, 0, 5])


def rolled(policy: Policy, sampler: Sampler) -> Trajectory:
    return sampler.rollout(policy, policy.encode(PROMPTS), torch.tensor([0, 0, 1, 1]), generator())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_error_is_the_networks_training_loss(
    make_pipeline: Callable[..., Path], prediction: str
) -> None:
    """Against diffusers: noise added by its scheduler, the guided output of the bare network
    against its own target.
    """
    policy = Policy.load(make_pipeline(prediction), train="full", reference=True)
    sampler = Sampler(DDIM(), 3, CFG(3.0))
    trajectory = rolled(policy, sampler)
    perturb(policy)
    process = ForwardProcess(policy, sampler, trajectory, trajectory.latent, ("key",))
    replay = process.replay(IMAGES, MOVES, reference=True)
    t, noise = process.draw(IMAGES, MOVES)
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
        first = guided()

    assert replay.kl is not None and replay.logp_ref is not None
    torch.testing.assert_close(
        replay.kl[:, 0], (out - first).square().sum((1, 2, 3)) / 2, rtol=2e-3, atol=1e-3
    )
    torch.testing.assert_close(
        -replay.logp_ref[:, 0], (first - target).square().mean((1, 2, 3)), rtol=2e-3, atol=1e-4
    )


def test_a_pair_always_meets_the_same_noise(tiny_pipeline: Path) -> None:
    policy = Policy.load(tiny_pipeline)
    sampler = Sampler(DDIM(), 3, CFG(3.0))
    trajectory = rolled(policy, sampler)
    process = ForwardProcess(policy, sampler, trajectory, trajectory.latent, ("key",))
    t, noise = process.draw(IMAGES, MOVES)
    alone_t, alone = process.draw(IMAGES[1:2], MOVES[1:2])
    assert alone_t.equal(t[1:2]) and alone.equal(noise[1:2])
    assert len(t.unique()) == 3 and not noise[0].equal(noise[2])
    many = process.draw(torch.zeros(4000, dtype=torch.long), torch.arange(4000))[0].double()
    assert many.min() < 10 and many.max() > 989 and abs(float(many.mean()) - 499.5) < 20


def test_what_is_remembered_is_the_ratio_s_denominator(tiny_pipeline: Path) -> None:
    policy = Policy.load(tiny_pipeline)
    sampler = Sampler(DDIM(), 3, CFG(3.0))
    trajectory = rolled(policy, sampler)
    process = ForwardProcess(policy, sampler, trajectory, trajectory.latent, ("key",)).remembering(
        [(IMAGES, MOVES)], chunk=2
    )
    before = process.replay(IMAGES, MOVES)
    assert float((before.logp - before.logp_old).detach().abs().max()) < 1e-6
    perturb(policy)
    after = process.replay(IMAGES, MOVES)
    assert (
        after.logp_old.equal(before.logp_old)
        and float((after.logp - after.logp_old).detach().abs().min()) > 1e-6
    )


def test_reverse_is_the_samplers_replay(tiny_pipeline: Path) -> None:
    policy = Policy.load(tiny_pipeline)
    sampler = Sampler(DDIM(), 3, CFG(3.0))
    trajectory = rolled(policy, sampler)
    moves = torch.tensor([1, 0, 2])
    assert (
        ReverseProcess(policy, sampler, trajectory)
        .replay(IMAGES, moves)
        .logp.equal(sampler.replay(policy, trajectory, IMAGES, moves[:, None]).logp)
    )


def test_a_sampler_without_noise_draws_the_ode_and_is_enough_for_the_forward_process(
    tiny_pipeline: Path,
) -> None:
    policy = Policy.load(tiny_pipeline)
    sampler = Sampler(DDIM(0.0), 3, CFG(3.0))
    trajectory = rolled(policy, sampler)
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

    with pytest.raises(ValueError, match="none of 3 steps has noise"):
        sampler.transitions(policy)


def test_encoding_a_decoded_picture_is_the_autoencoders_posterior(tiny_pipeline: Path) -> None:
    policy = Policy.load(tiny_pipeline)
    images = policy.decode(torch.randn(3, 4, 8, 8, generator=generator()))
    vae = policy.pipe.vae
    posterior = vae.encode(images * 2 - 1).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator(5))
    expected = (posterior.mean + posterior.std * noise) * vae.config.scaling_factor
    torch.testing.assert_close(policy.embed(images, generator(5)), expected)
