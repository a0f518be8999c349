"""Flow models against the stock pipelines: sampling, replay, an adapter's file, an iteration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import generator, perturb
from diffusers import DiffusionPipeline
from torch import Tensor

from burnish import config as configuration
from burnish.diffusion.guidance import CFG, NoGuidance
from burnish.diffusion.kernels import CPS, ODE
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.runs import Run
from burnish.training.loop import train
from burnish.types import Prompt, Trajectory


def normalised_patches(pipe: Any, latents: Tensor) -> Tensor:
    """Return FLUX.2's latents (B, 4 C, h / 2, w / 2), normalised, of its pipeline's result."""
    rows, channels, height, width = latents.shape
    patches = latents.view(rows, channels, height // 2, 2, width // 2, 2)
    patches = patches.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
    statistics = pipe.vae.bn
    spread = (statistics.running_var + pipe.vae.config.batch_norm_eps).sqrt()
    return (patches - statistics.running_mean.view(1, -1, 1, 1)) / spread.view(1, -1, 1, 1)


PROMPTS = [Prompt("a cat"), Prompt("a cat"), Prompt("two dogs"), Prompt("two dogs")]
TEXTS = [prompt.text for prompt in PROMPTS]
GROUP = torch.tensor([0, 0, 1, 1])
# what each stock pipeline is called with, at a guidance weight w of ours
CALLS = {
    "tiny_z_image": lambda w: {"guidance_scale": w - 1, "height": 32, "width": 32},
    "tiny_klein": lambda w: {"guidance_scale": w, "height": 32, "width": 32},
    "tiny_sana": lambda w: {
        "guidance_scale": w,
        "height": 32,
        "width": 32,
        "use_resolution_binning": False,
    },
}
# the latents that a stock pipeline returns, as networks take them; others return these
NETWORK_LATENTS = {"tiny_klein": normalised_patches}


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
        prompt=list(TEXTS),
        num_inference_steps=steps,
        generator=generator(3),
        output_type="latent",
        **CALLS[model.name](weight),
    ).images
    as_network = NETWORK_LATENTS.get(model.name)
    return as_network(pipe, result) if as_network else result


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


def settings(model: Path, **sampler: Any) -> dict[str, Any]:
    return {
        "iterations": 2,
        "model": {"id": str(model)},
        "sampler": {"steps": 4, "guidance": {"use": "cfg", "weight": 3.0}, **sampler},
        "batch": {"prompts": 2, "images_per_prompt": 2, "minibatches": 2},
        "evaluation": {"images_per_prompt": 1},
        "run": {"sample_every": 0},
    }


@pytest.mark.parametrize(
    "kernel", ["cps", "precise", "churn", "renoise", "flow_grpo", "dance_grpo"]
)
def test_a_run_learns_from_its_transitions(
    model: Path, kernel: str, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe(**settings(model, kernel={"use": kernel}))
    run = Run(train(configuration.load(recipe), tmp_path / "run", progress=False))
    records = run.records()
    assert len(records) == 2 and all(record["grad_norm"] > 0 for record in records)
    assert all(record["ratio_deviation"] < 1e-4 for record in records)
    expected = latents(model, stock(model, run.adapter), 3.0, 4)
    assert (expected - latents(model, stock(model), 3.0, 4)).abs().max() > 0


def test_without_noise_the_forward_process_learns(
    model: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe(**settings(model, kernel={"use": "ode"}))
    changes = ["objective.use=awm", "advantage.use=group"]
    run = Run(train(configuration.load(recipe, changes), tmp_path / "run", progress=False))
    assert all(record["grad_norm"] > 0 for record in run.records())
    with pytest.raises(ValueError, match="without noise a transition has no probability"):
        configuration.load(recipe)


def test_kernels_of_other_models_are_refused(
    model: Path, tiny_sd1: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    for folder, kernel, message in (
        (
            model,
            "ddim",
            "kernel 'ddim' needs a diffusion model, and .* is a flow; use kernel 'cps'",
        ),
        (model, "lcm", "kernel 'lcm' needs a consistency model"),
        (tiny_sd1, "flow_grpo", "kernel 'flow_grpo' needs a flow model"),
    ):
        recipe = write_recipe(**settings(folder, kernel={"use": kernel}))
        with pytest.raises(ValueError, match=message):
            train(configuration.load(recipe), tmp_path / "run", progress=False)
