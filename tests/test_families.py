"""SDXL and Stable Diffusion 2.x against the stock pipelines.

Sampling, replay, an iteration, and the adapter's file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_sdxl, generator, perturb
from diffusers import DDIMScheduler, DiffusionPipeline, LCMScheduler, UNet2DConditionModel
from torch import Tensor

from burnish import config as configuration
from burnish.diffusion.families import SDXL
from burnish.diffusion.guidance import CFG, EmbeddedGuidance, NoGuidance
from burnish.diffusion.kernels import DDIM, LCM
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.runs import Run
from burnish.training.loop import train
from burnish.types import Prompt, Trajectory

PROMPTS = [Prompt("a cat"), Prompt("a cat"), Prompt("two dogs"), Prompt("two dogs")]
TEXTS = [prompt.text for prompt in PROMPTS]
GROUP = torch.tensor([0, 0, 1, 1])
# of an autoencoder's latents
MEAN = [0.1, -0.2, 0.3, 0.0]
STD = [1.5, 0.5, 2.0, 1.0]


@pytest.fixture(params=["tiny_sd2", "tiny_sdxl"])
def model(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


@pytest.fixture(params=["tiny_sd2", "tiny_zero_snr", "tiny_sdxl"])
def schedule(request: pytest.FixtureRequest) -> Path:
    """The folder of a tiny model; one has another schedule."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


def roll(policy: Policy, sampler: Sampler) -> Trajectory:
    return sampler.rollout(policy, policy.encode(PROMPTS), GROUP, generator(3))


def ratios(policy: Policy, sampler: Sampler, traj: Trajectory) -> Tensor:
    """Return each transition's density in replay over that in rollout."""
    transitions = torch.arange(traj.logp.shape[1]).expand(4, -1)
    replay = sampler.replay(policy, traj, torch.arange(4), transitions)
    return (replay.logp - traj.logp).exp()


def stock(model: Path, adapter: Path | None = None) -> Any:
    pipe = DiffusionPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)

    if adapter is not None:
        pipe.load_lora_weights(adapter)

    return pipe


def latents(pipe: Any, weight: float, steps: int = 5, **changes: object) -> Tensor:
    settings = {
        "guidance_scale": weight,
        "generator": generator(3),
        "output_type": "latent",
        **changes,
    }
    result: Tensor = pipe(TEXTS, num_inference_steps=steps, **settings).images
    return result


def test_a_rollout_is_the_stock_pipeline(schedule: Path) -> None:
    """With eta, so that every transition's noise is compared too.

    SDXL uses zeros in place of a negative prompt.
    """
    policy = Policy.load(schedule)
    pipe = stock(schedule)

    for weight in (1.0, 5.0):
        traj = roll(policy, Sampler(DDIM(0.8), 5, CFG(weight)))
        torch.testing.assert_close(
            traj.latent, latents(pipe, weight, eta=0.8), rtol=1e-5, atol=5e-5
        )


def test_models_trained_with_the_empty_text(tmp_path: Path) -> None:
    build_sdxl(force_zeros_for_empty_prompt=False).save_pretrained(tmp_path)  # type: ignore[attr-defined]
    policy = Policy.load(tmp_path)
    expected = latents(stock(tmp_path), 5.0, 2, eta=0.8)
    torch.testing.assert_close(
        roll(policy, Sampler(DDIM(0.8), 2, CFG(5.0))).latent, expected, rtol=1e-5, atol=5e-5
    )
    assert all(
        torch.equal(policy.null(2)[name], policy.encode([Prompt("")] * 2)[name])
        for name in policy.null(2)
    )


def test_no_prompt_is_zeros_and_an_empty_prompt_is_not(tiny_sdxl: Path) -> None:
    policy = Policy.load(tiny_sdxl)
    null = policy.null(3)
    empty = policy.encode([Prompt("")] * 3)
    shapes = {name: tuple(value.shape) for name, value in null.items()}
    assert shapes == {"text": (3, 24, 20), "pooled": (3, 6), "size": (3, 6)}
    assert not null["text"].any()
    assert not null["pooled"].any()
    assert torch.equal(null["size"], empty["size"])
    assert empty["text"].any()
    assert empty["pooled"].any()
    assert null["size"][0].tolist() == [32, 32, 0, 0, 32, 32]


def test_a_fresh_trajectory_replays_to_ratio_one(schedule: Path) -> None:
    policy = Policy.load(schedule)
    samplers = (Sampler(DDIM(), 4, NoGuidance()), Sampler(DDIM(), 4, CFG(5.0)))

    for sampler in samplers:
        assert (ratios(policy, sampler, roll(policy, sampler)) - 1).abs().max() < 5e-6

    perturb(policy)
    for sampler in samplers:
        assert (ratios(policy, sampler, roll(policy, sampler)) - 1).abs().max() < 1e-5, (
            "merged and unmerged are the same"
        )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_replays_to_ratio_one(tiny_sdxl: Path, dtype: str) -> None:
    policy = Policy.load(tiny_sdxl, dtype=dtype)
    sampler = Sampler(DDIM(), 3, CFG(5.0))
    perturb(policy, 0.1)
    traj = roll(policy, sampler)
    assert (ratios(policy, sampler, traj) - 1).abs().max() < 1e-5 and traj.x.dtype == torch.float32
    assert policy.decode(traj.latent).isfinite().all()


def test_gradient_checkpointing_replays_bit_for_bit(model: Path) -> None:
    """The same log-densities and gradients: nothing is dropped out, so nothing is drawn anew."""
    results = []

    for checkpointing in (False, True):
        policy = Policy.load(model, gradient_checkpointing=checkpointing)
        sampler = Sampler(DDIM(), 3, CFG(3.0))
        perturb(policy)
        traj = roll(policy, sampler)
        logp = sampler.replay(policy, traj, torch.arange(4), torch.arange(3).expand(4, -1)).logp
        results.append((logp, *torch.autograd.grad(logp.sum(), policy.trainable)))

    assert torch.equal(results[0][0], results[1][0])
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-5, atol=1e-6)


def test_two_texts_a_latent_are_a_plain_call(tiny_sdxl: Path) -> None:
    """Hooks, faster layers and repeated latents against diffusers' network, in float64.

    Their gradients too.
    """
    policy = Policy.load(tiny_sdxl, train="full")
    plain = UNet2DConditionModel.from_pretrained(tiny_sdxl / "unet")
    network = policy.pipe.unet.double()
    pipe = policy.pipe
    plain = plain.double().eval()
    x = torch.randn(2, 4, 8, 8, generator=generator(), dtype=torch.float64)
    t = torch.tensor([901, 33])
    cond = {name: value.double() for name, value in policy.encode(PROMPTS).items()}
    cond["text"] = cond["text"] + torch.randn(
        cond["text"].shape, generator=generator(1), dtype=torch.float64
    )
    added = {"text_embeds": cond["pooled"], "time_ids": cond["size"]}
    expected = plain(
        torch.cat([x, x]), torch.cat([t, t]), cond["text"], added_cond_kwargs=added
    ).sample
    out = SDXL.call(pipe, x, t, cond)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    grads = torch.autograd.grad(out.square().sum(), list(network.parameters()))
    expected_grads = torch.autograd.grad(expected.square().sum(), list(plain.parameters()))

    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-8, atol=1e-10)
    for name in ("text", "pooled", "size"):
        other = SDXL.call(pipe, x, t, {**cond, name: cond[name] * 2 + 1})
        assert not torch.allclose(other, out, rtol=1e-5), f"{name} reaches the network"


def test_an_adapter_in_the_stock_pipeline(model: Path, tmp_path: Path) -> None:
    policy = Policy.load(model, rank=2, alpha=6)
    sampler = Sampler(DDIM(0.8), 4, CFG(4.0))
    perturb(policy, 0.1)  # so little that the network does not magnify rounding
    policy.save_adapter(tmp_path)
    latent = roll(policy, sampler).latent
    plain = latents(stock(model), 4.0, 4, eta=0.8)
    torch.testing.assert_close(
        latents(stock(model, tmp_path), 4.0, 4, eta=0.8), latent, rtol=1e-5, atol=1e-4
    )
    assert not torch.allclose(latent, plain, atol=1e-1)
    again = Policy.load(model, rank=2, alpha=6, adapter=tmp_path)
    torch.testing.assert_close(roll(again, sampler).latent, latent, rtol=1e-4, atol=1e-5)


def test_a_full_network_in_the_stock_pipeline(tiny_sdxl: Path, tmp_path: Path) -> None:
    policy = Policy.load(tiny_sdxl, train="full")
    sampler = Sampler(DDIM(0.8), 4, CFG(4.0))
    perturb(policy, 0.1)
    policy.save_adapter(tmp_path)
    pipe = stock(tiny_sdxl)
    pipe.unet = UNet2DConditionModel.from_pretrained(tmp_path)
    torch.testing.assert_close(
        latents(pipe, 4.0, 4, eta=0.8), roll(policy, sampler).latent, rtol=1e-5, atol=1e-4
    )


# the stock pipeline holds two adapters
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_an_lcm_lora_on_sdxl(tiny_sdxl: Path, tmp_path: Path) -> None:
    first = Policy.load(tiny_sdxl, rank=2)  # its adapter stands in for an LCM-LoRA
    perturb(first)
    fused = tmp_path / "lcm"
    first.save_adapter(fused)
    policy = Policy.load(tiny_sdxl, scheduler="lcm", fused_lora=fused)
    sampler = Sampler(LCM(), 4, CFG(1.5))
    perturb(policy)
    trained = tmp_path / "trained"
    policy.save_adapter(trained)
    traj = roll(policy, sampler)
    assert (ratios(policy, sampler, traj) - 1).abs().max() < 1e-5
    pipe = DiffusionPipeline.from_pretrained(tiny_sdxl)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)

    for adapter in (fused, trained):
        pipe.load_lora_weights(adapter, adapter_name=adapter.name)

    pipe.set_adapters(["lcm", "trained"])
    torch.testing.assert_close(traj.latent, latents(pipe, 1.5, 4), rtol=1e-3, atol=1e-3)


def test_a_consistency_model_of_the_sdxl_kind(tmp_path: Path) -> None:
    pipe: Any = build_sdxl()
    config = {key: value for key, value in pipe.unet.config.items() if not key.startswith("_")}
    pipe.unet = UNet2DConditionModel(**{**config, "time_cond_proj_dim": 16}).eval()
    torch.nn.init.normal_(pipe.unet.time_embedding.cond_proj.weight, generator=generator())
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path)
    policy = Policy.load(tmp_path)
    sampler = Sampler(LCM(), 3, EmbeddedGuidance(6.0))
    traj = roll(policy, sampler)
    assert policy.takes_weight and (ratios(policy, sampler, traj) - 1).abs().max() < 1e-6
    reference = DiffusionPipeline.from_pretrained(tmp_path)
    reference.set_progress_bar_config(disable=True)
    torch.testing.assert_close(traj.latent, latents(reference, 6.0, 3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("upcast", "dtype"), [(True, torch.float32), (False, torch.float16)])
def test_the_decoder_of_a_float16_sdxl(upcast: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    pipe: Any = build_sdxl()
    pipe.vae.register_to_config(force_upcast=upcast)
    pipe.save_pretrained(tmp_path)
    half = Policy.load(tmp_path, dtype="float16").pipe
    assert half.vae.dtype == dtype
    assert half.unet.dtype == half.text_encoder_2.dtype == torch.float16
    assert Policy.load(tmp_path, dtype="bfloat16").pipe.vae.dtype == torch.bfloat16


@pytest.mark.parametrize("statistics", [False, True])
def test_images_are_the_stock_pipelines(statistics: bool, tmp_path: Path) -> None:
    pipe: Any = build_sdxl()
    if statistics:
        pipe.vae.register_to_config(latents_mean=MEAN, latents_std=STD)

    pipe.save_pretrained(tmp_path)
    policy = Policy.load(tmp_path)
    traj = roll(policy, Sampler(DDIM(0.8), 2, NoGuidance()))
    expected = latents(stock(tmp_path), 1.0, 2, eta=0.8, output_type="pt")
    images = policy.decode(traj.latent)
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-4)

    with torch.no_grad():
        posterior = policy.pipe.vae.encode(images * 2 - 1).latent_dist

    latent = posterior.mean + posterior.std * torch.randn(4, 4, 8, 8, generator=generator(1))
    if statistics:
        latent = (latent - torch.tensor(MEAN).view(4, 1, 1)) / torch.tensor(STD).view(4, 1, 1)

    embedded = policy.embed(images, generator(1))
    torch.testing.assert_close(embedded, latent * 0.13025, rtol=1e-4, atol=1e-5)


def test_an_iteration_from_end_to_end(
    model: Path, tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    recipe = write_recipe(
        iterations=1,
        model={"id": str(model), "gradient_checkpointing": True},
        sampler={"guidance": {"use": "cfg", "weight": 3.0}},
        prompts={"use": "list", "texts": ["a cat", "a dog"]},
        objective={"use": "clipped", "kl": 0.01},
        batch={
            "prompts": 2,
            "images_per_prompt": 4,
            "sample_batch": 4,
            "train_batch": 5,
            "minibatches": 2,
        },
        evaluation={"images_per_prompt": 0},
        run={"sample_every": 0},
    )
    folder = train(configuration.load(recipe), tmp_path / "run")
    records = Run(folder).records()
    assert len(records) == 1
    assert records[0]["ratio_deviation"] < 1e-6
    assert records[0]["grad_norm"] > 0
    stock(model, folder / "adapter")
