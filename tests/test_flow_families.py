"""Flow models against the stock pipelines: sampling, replay, an adapter's file, an iteration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import generator, perturb
from diffusers import DiffusionPipeline
from torch import Tensor

from burnish.diffusion.guidance import CFG, NoGuidance
from burnish.diffusion.kernels import CPS, ODE
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.types import Prompt, Trajectory

PROMPTS = [Prompt("a cat"), Prompt("a cat"), Prompt("two dogs"), Prompt("two dogs")]
TEXTS = [prompt.text for prompt in PROMPTS]
GROUP = torch.tensor([0, 0, 1, 1])
# what each stock pipeline is called with, at a guidance weight w of ours
CALLS = {"tiny_z_image": lambda w: {"guidance_scale": w - 1, "height": 32, "width": 32}}


@pytest.fixture(params=list(CALLS))
def model(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


def roll(policy: Policy, sampler: Sampler) -> Trajectory:
    return sampler.rollout(policy, sampler.encode(policy, PROMPTS), GROUP, generator(3))


def stock(model: Path, adapter: Path | None = None) -> Any:
    pipe = DiffusionPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    if adapter is not None:
        pipe.load_lora_weights(adapter)

    return pipe


def latents(model: Path, pipe: Any, weight: float, steps: int) -> Tensor:
    result: Tensor = pipe(
        list(TEXTS),
        num_inference_steps=steps,
        generator=generator(3),
        output_type="latent",
        **CALLS[model.name](weight),
    ).images
    return result


@pytest.mark.parametrize("weight", [1.0, 4.0])
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_sampling_without_noise_is_the_stock_pipelines(
    model: Path, steps: int, weight: float
) -> None:
    policy = Policy.load(model)
    guidance = NoGuidance() if weight == 1 else CFG(weight)
    traj = roll(policy, Sampler(ODE(), steps, guidance))
    expected = latents(model, stock(model), weight, steps)
    torch.testing.assert_close(traj.latent, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_ratio_is_one_before_training(model: Path, dtype: str) -> None:
    policy = Policy.load(model, dtype=dtype)
    sampler = Sampler(CPS(), 4, CFG(3.0))
    traj = roll(policy, sampler)
    assert traj.logp.shape == (4, 3), "the last transition of a flow has no noise"

    transitions = torch.arange(3).expand(4, -1)
    replay = sampler.replay(policy, traj, torch.arange(4), transitions)
    assert (replay.logp - traj.logp).abs().max() * replay.dims < 0.05  # nats; the clip has 1.64


def test_the_stock_pipeline_draws_the_same_with_the_exported_adapter(
    model: Path, tmp_path: Path
) -> None:
    policy = Policy.load(model, rank=4, alpha=8)
    perturb(policy, 0.1)
    policy.save_adapter(tmp_path)
    traj = roll(policy, Sampler(ODE(), 3, CFG(4.0)))
    expected = latents(model, stock(model, tmp_path), 4.0, 3)
    before = latents(model, stock(model), 4.0, 3)
    torch.testing.assert_close(traj.latent, expected, rtol=0, atol=1e-5)
    assert (expected - before).abs().max() > 1e-3
