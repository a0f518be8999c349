"""FLUX.2 [klein] and Sana beyond what all flows share: their images, times, prompts and sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import generator
from diffusers import (
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
)
from tiny_klein_sana import SANA_SCHEDULER, build_klein, build_sana
from torch import Tensor

from burnish import config as configuration
from burnish.diffusion.guidance import CFG, NoGuidance
from burnish.diffusion.kernels import ODE
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.diffusion.schedule import Flow, read_schedule
from burnish.runs import Run
from burnish.tools.gallery import open_source
from burnish.training.loop import train
from burnish.types import Guidance, Prompt

PROMPTS = [Prompt("a cat"), Prompt("two dogs")]
SIZES: dict[str, Any] = {"height": 32, "width": 32}


def stock(model: Path) -> Any:
    pipe = DiffusionPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, steps: int, **arguments: Any) -> Tensor:
    result: Tensor = pipe(
        prompt=[prompt.text for prompt in PROMPTS],
        num_inference_steps=steps,
        generator=generator(3),
        **{"output_type": "latent", **SIZES, **arguments},
    ).images
    return result


def sample(policy: Policy, steps: int, guidance: Guidance | None = None) -> tuple[Tensor, Tensor]:
    """Return latents and images of the two prompts, sampled by Euler's steps."""
    sampler = Sampler(ODE(), steps, guidance or NoGuidance())
    traj, images = sampler.sample(policy, PROMPTS, torch.arange(2), generator(3))
    return traj.latent, images


def test_images_of_klein_are_the_stock_pipelines(tiny_klein: Path) -> None:
    _, images = sample(Policy.load(tiny_klein), 3, CFG(4.0))
    expected = draw(stock(tiny_klein), 3, guidance_scale=4.0, output_type="pt")
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)


def test_images_of_sana_are_the_stock_pipelines(tiny_sana: Path) -> None:
    _, images = sample(Policy.load(tiny_sana), 3, CFG(4.0))
    settings = {"guidance_scale": 4.0, "use_resolution_binning": False, "output_type": "pt"}
    expected = draw(stock(tiny_sana), 3, **settings)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)


def test_a_negative_prompt_of_sana_has_no_instruction_before_it(tiny_sana: Path) -> None:
    latent, _ = sample(Policy.load(tiny_sana), 3, CFG(4.0, negative="blue"))
    settings = {"guidance_scale": 4.0, "use_resolution_binning": False}
    expected = draw(stock(tiny_sana), 3, negative_prompt="blue", **settings)
    torch.testing.assert_close(latent, expected, rtol=0, atol=1e-5)

    empty = draw(stock(tiny_sana), 3, **settings)
    assert (expected - empty).abs().max() > 1e-4


@pytest.mark.parametrize("steps", [2, 4])
def test_a_distilled_klein_is_called_without_guidance(
    tiny_klein_distilled: Path, steps: int
) -> None:
    policy = Policy.load(tiny_klein_distilled)
    _, images = sample(policy, steps)
    expected = draw(stock(tiny_klein_distilled), steps, guidance_scale=1.0, output_type="pt")
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(sample(policy, steps, CFG(1.0))[1], images, rtol=0, atol=0)

    with pytest.raises(ValueError, match=r"this model is distilled .* use = \"none\""):
        sample(policy, steps, CFG(4.0))


def test_a_distilled_klein_learns_by_being_noised_again(
    tiny_klein_distilled: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe(
        iterations=2,
        model={"id": str(tiny_klein_distilled)},
        sampler={"steps": 4, "kernel": {"use": "renoise"}, "guidance": {"use": "none"}},
        batch={"prompts": 2, "images_per_prompt": 2, "minibatches": 2},
        evaluation={"images_per_prompt": 1},
        run={"sample_every": 0},
    )
    run = Run(train(configuration.load(recipe), tmp_path / "run", progress=False))
    records = run.records()
    assert len(records) == 2 and all(record["grad_norm"] > 0 for record in records)
    assert all(record["ratio_deviation"] < 1e-4 for record in records)

    pipe = stock(tiny_klein_distilled)
    before = draw(pipe, 4)
    pipe.load_lora_weights(run.adapter)
    assert (draw(pipe, 4) - before).abs().max() > 0


@pytest.mark.parametrize(("pixels", "steps"), [(32, 4), (64, 8), (1088, 20)])
def test_times_of_klein_follow_the_number_of_patches(pixels: int, steps: int) -> None:
    """Shifted by exp(mu) after FLUX.2's own fit; above 4300 patches its other branch."""
    policy = Policy.load(build_klein())
    policy.resize(pixels)
    patches = (pixels // 8) ** 2
    assert policy.latent_shape == (8, pixels // 8, pixels // 8)

    many = 0.00016927 * patches + 0.45666666
    few = 8.73809524e-05 * patches + 1.89833333
    mu = torch.tensor(many if patches > 4300 else many + (few - many) / 190 * (200 - steps))
    even = torch.linspace(1, 1 / steps, steps, dtype=torch.float64)
    shifted = mu.exp() / (mu.exp() + 1 / even - 1)
    expected = torch.cat([shifted, torch.zeros(1, dtype=torch.float64)])
    torch.testing.assert_close(policy.schedule.times(steps), expected, rtol=0, atol=1e-6)


# numpy says so of diffusers' DPM-Solver
@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_times_of_sanas_own_solver_are_read(tiny_sana_solver: Path) -> None:
    """Of one step after another: DPM-Solver's first order is Euler's step of a flow.

    The stock solver gives the network whole times, and here so does the hook.
    """
    policy = Policy.load(tiny_sana_solver)
    assert isinstance(policy.schedule, Flow)
    pipe = stock(tiny_sana_solver)
    pipe.scheduler.set_timesteps(5)
    torch.testing.assert_close(
        policy.schedule.times(5), pipe.scheduler.sigmas.double(), rtol=0, atol=0
    )

    first = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, solver_order=1)
    pipe.scheduler = first
    expected = draw(pipe, 5, guidance_scale=1.0, use_resolution_binning=False)

    def with_whole_times(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return args, {**kwargs, "timestep": kwargs["timestep"].floor()}

    policy.pipe.transformer.register_forward_pre_hook(with_whole_times, with_kwargs=True)
    torch.testing.assert_close(sample(policy, 5)[0], expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_sanas_own_solver_takes_one_step(tiny_sana_solver: Path) -> None:
    schedule = Policy.load(tiny_sana_solver).schedule
    assert len(schedule.times(1)) == 2 and float(schedule.times(1)[1]) == 0


def test_sana_is_refused_in_float16(tiny_sana: Path) -> None:
    with pytest.raises(ValueError, match=r'"float16" overflows .* use "bfloat16" or "float32"'):
        Policy.load(tiny_sana, dtype="float16")


@pytest.mark.parametrize(
    "changes",
    [
        {"prediction_type": "epsilon"},
        {"use_dynamic_shifting": True, "time_shift_type": "exponential"},
    ],
)
def test_a_solver_of_another_kind_is_refused(changes: dict[str, Any]) -> None:
    scheduler = DPMSolverMultistepScheduler(**{**SANA_SCHEDULER, **changes})
    with pytest.raises(ValueError, match=r"pipe.scheduler = FlowMatchEulerDiscreteScheduler"):
        read_schedule(scheduler)


def test_embedded_images_of_klein_are_the_posterior_in_normalised_patches() -> None:
    pipe = build_klein()
    policy = Policy.load(pipe)
    images = torch.rand(2, 3, 32, 32, generator=generator())
    embedded = policy.embed(images, generator(1))
    assert embedded.shape == (2, *policy.latent_shape)

    with torch.no_grad():
        posterior = pipe.vae.encode(images * 2 - 1).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator(1))
        decoded = pipe.vae.decode(posterior.mean + posterior.std * noise).sample
    torch.testing.assert_close(policy.decode(embedded), (decoded / 2 + 0.5).clamp(0, 1))
    drawn = posterior.mean + posterior.std * noise
    corner = (drawn[:, :1, 0, 0] - pipe.vae.bn.running_mean[:1]) / (
        pipe.vae.bn.running_var[:1] + pipe.vae.config.batch_norm_eps
    ).sqrt()
    torch.testing.assert_close(embedded[:, :1, 0, 0], corner)


def test_embedded_images_of_sana_are_its_autoencoders() -> None:
    pipe = build_sana()
    policy = Policy.load(pipe)
    images = torch.rand(2, 3, 32, 32, generator=generator())
    with torch.no_grad():
        expected = pipe.vae.encode(images * 2 - 1).latent * pipe.vae.config.scaling_factor
    torch.testing.assert_close(policy.embed(images, generator()), expected)


def test_other_sizes() -> None:
    """They are no part of the network, whose configuration is written with its weights."""
    for pipe, unit in ((build_klein(), 8), (build_sana(), 4)):
        config = dict(pipe.transformer.config)
        policy = Policy.load(pipe, size=64)
        assert dict(pipe.transformer.config) == config
        assert policy.latent_shape[1:] == (64 // unit, 64 // unit)
        assert policy.decode(policy.noise(1, generator())).shape == (1, 3, 64, 64)
        with pytest.raises(ValueError, match=rf"a multiple of {unit} pixels"):
            policy.resize(30)


def test_large_images_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts are the images' pixels: Sana's latents are small."""
    for pipe in (build_klein(), build_sana()):
        policy = Policy.load(pipe)
        latent = policy.noise(3, generator())
        rows: list[int] = []
        decode = pipe.vae.decode

        def counted(x: Tensor, decode: Any = decode, rows: Any = rows, **settings: Any) -> Any:
            rows.append(len(x))
            return decode(x, **settings)

        monkeypatch.setattr(pipe.vae, "decode", counted)
        policy.decode(latent)
        monkeypatch.setattr("burnish.diffusion.policy.LARGE_IMAGE", 32 * 32 - 1)
        policy.decode(latent)
        assert rows == [3, 1, 1, 1]
        monkeypatch.undo()


def test_models_are_drawn_from_as_they_come(tiny_klein: Path, tiny_klein_distilled: Path) -> None:
    for model, steps, weight, arguments in (
        (tiny_klein, 28, 4.5, {}),
        (tiny_klein, 2, 3.0, {"steps": 2, "guidance": 3.0}),
        (tiny_klein_distilled, 4, 1.0, {}),
    ):
        policy, sampler = open_source(str(model), **arguments)
        assert sampler.steps == steps
        short = replace(sampler, steps=2)
        traj, _ = short.sample(policy, PROMPTS, torch.arange(2), generator(3))
        expected, _ = sample(Policy.load(model), 2, CFG(weight))
        torch.testing.assert_close(traj.latent, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("build", "tokens"), [(build_klein, 500), (build_sana, 299)])
def test_words_beyond_what_is_read_are_reported(build: Callable[[], Any], tokens: int) -> None:
    """Its tokenizer reads more than the pipeline takes of it."""
    pipe = build()
    pipe.tokenizer.model_max_length = 1 << 20
    policy = Policy.load(pipe)
    count = len(pipe.tokenizer("").input_ids)
    policy.encode([Prompt("a" * (tokens - count))])
    with pytest.warns(UserWarning, match=rf"longer than the text encoder reads \({tokens} tokens"):
        policy.encode([Prompt("a" * (tokens - count + 1))])


def test_what_sana_reads_of_a_long_prompt() -> None:
    """The last letter that is read changes its states, and the next one does not."""
    policy = Policy.load(build_sana())
    read = 299 - len(policy.pipe.tokenizer("").input_ids)
    texts = ["a" * (read - 1) + "b", "a" * read, "a" * read + "b"]
    with pytest.warns(UserWarning, match="than the text encoder reads|differ only"):
        states = policy.encode([Prompt(text) for text in texts])["text"]
    assert not torch.equal(states[0], states[1]) and torch.equal(states[1], states[2])


def test_a_flow_is_no_consistency_model(tiny_klein: Path) -> None:
    with pytest.raises(ValueError, match=r'model.scheduler = "lcm" .* is a flow; leave it out'):
        Policy.load(tiny_klein, scheduler="lcm")
