"""Consistency models against diffusers: grid, kernel, guidance, rollout and adapters."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import generator, perturb
from diffusers import LatentConsistencyModelPipeline, LCMScheduler, StableDiffusionPipeline

from burnish import config as configuration
from burnish.diffusion import kernels
from burnish.diffusion.guidance import CFG, EmbeddedGuidance, NoGuidance
from burnish.diffusion.kernels import DDIM, LCM
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.diffusion.schedule import FINAL, read_schedule
from burnish.runs import Record, Run
from burnish.tools.gallery import draw, open_source
from burnish.training.loop import train
from burnish.types import Level, Prompt

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PROMPTS = [Prompt("a cat"), Prompt("a cat"), Prompt("two dogs"), Prompt("two dogs")]
TEXTS = [prompt.text for prompt in PROMPTS]
GROUP = torch.tensor([0, 0, 1, 1])


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("steps", "grid"),
    [
        (1, [999]),
        (2, [999, 499]),
        (4, [999, 759, 499, 259]),
        (8, [999, 879, 759, 639, 499, 379, 259, 139]),
    ],
)
def test_the_grid_is_that_of_current_diffusers(steps: int, grid: list[int]) -> None:
    scheduler = LCMScheduler(**SD)
    scheduler.set_timesteps(steps)
    assert read_schedule(scheduler).times(steps).tolist() == [*grid, FINAL]
    assert scheduler.timesteps.tolist() == grid


def test_more_steps_than_were_distilled() -> None:
    with pytest.raises(
        ValueError, match="between 1 and 50, the steps this consistency model was distilled from"
    ):
        read_schedule(LCMScheduler(**SD)).times(51)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_transition_is_diffusers_for_all_times_at_once(prediction: str) -> None:
    scheduler = LCMScheduler(**SD, prediction_type=prediction)
    schedule = read_schedule(scheduler)
    times = read_schedule(scheduler).times(6)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(6)
    x = randn(6, 4, 3, 3)
    out = randn(6, 4, 3, 3, seed=1)
    t = times[:-1]
    s = times[1:]
    transition = LCM()(x, schedule.x0(x, t, out), schedule.level(t), schedule.level(s))
    assert transition.std.shape == (6, 1, 1, 1)

    for i in range(6):
        noise = torch.randn(1, 4, 3, 3, dtype=torch.float64, generator=generator(i))
        step = scheduler.step(out[i : i + 1], t[i], x[i : i + 1], generator=generator(i))
        torch.testing.assert_close(
            transition.mean[i : i + 1] + transition.std[i] * noise, step.prev_sample
        )

    assert transition.std[-1] == 0, "the last call ends in the image"


def test_standard_deviations_of_the_first_transitions() -> None:
    schedule = read_schedule(LCMScheduler(**SD))
    # where both published grids agree
    zero = torch.zeros(3, 1, 1, 1)
    times = torch.tensor([879, 759, 639])
    std = LCM()(zero, zero, schedule.level(times + 1), schedule.level(times)).std.flatten()
    torch.testing.assert_close(std, torch.tensor([0.991, 0.974, 0.935]), rtol=0, atol=6e-4)


def test_transitions_do_not_depend_on_their_start() -> None:
    level = Level(*(torch.tensor(v, dtype=torch.float64) for v in (0.8, 0.6)))
    x0 = randn(2, 4, 3, 3)
    first = LCM()(randn(2, 4, 3, 3, seed=1), x0, level, level)
    second = LCM()(randn(2, 4, 3, 3, seed=2), x0, level, level)
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(first.std, second.std)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_rollout_is_the_stock_pipeline(tiny_lcm: Path, steps: int) -> None:
    policy = Policy.load(tiny_lcm)
    traj = Sampler(LCM(), steps, EmbeddedGuidance(7.0)).rollout(
        policy, policy.encode(PROMPTS), GROUP, generator(3)
    )
    pipe = LatentConsistencyModelPipeline.from_pretrained(tiny_lcm)
    pipe.set_progress_bar_config(disable=True)
    stock = pipe(
        TEXTS,
        num_inference_steps=steps,
        guidance_scale=7.0,
        generator=generator(3),
        output_type="latent",
    ).images
    torch.testing.assert_close(traj.latent, stock, rtol=1e-4, atol=1e-4)
    other = Sampler(LCM(), steps, EmbeddedGuidance(2.0)).rollout(
        policy, policy.encode(PROMPTS), GROUP, generator(3)
    )
    assert not torch.allclose(other.latent, stock, atol=1e-2), "the weight reaches the network"


def test_h_calls_are_h_minus_one_actions(tiny_lcm: Path) -> None:
    policy = Policy.load(tiny_lcm)
    sampler = Sampler(LCM(), 4, EmbeddedGuidance())
    assert sampler.transitions(policy) == 3
    traj = sampler.rollout(policy, policy.encode(PROMPTS), GROUP, generator())
    assert traj.logp.shape == (4, 3) and traj.t.tolist() == [999, 759, 499, 259]
    replay = sampler.replay(
        policy, traj, torch.arange(4), torch.arange(3).expand(4, -1), reference=True
    )
    assert (replay.logp - traj.logp).expm1().abs().max() < 1e-6
    assert replay.kl is not None and replay.kl.abs().max() < 1e-6

    with pytest.raises(
        ValueError, match=r"none of 1 transitions .* last call ends in the image and is no action"
    ):
        Sampler(LCM(), 1, EmbeddedGuidance()).transitions(policy)


def test_training_the_last_call_would_add_only_noise() -> None:
    """The published code re-noises after the last call and trains on that too.

    The image never shows that noise.
    """
    level = Level(*(torch.tensor(v, dtype=torch.float64) for v in (0.9, 0.4)))
    count = 40_000
    x = torch.zeros(count, 1, 1, 1)
    transition = LCM()(x, x.double(), level, level)
    action = kernels.sample(transition, generator(1))
    score = (action - transition.mean) / transition.std**2  # d log p / d mean of each draw

    for reward, visible in ((action, True), (randn(count, 1, 1, 1, seed=2), False)):
        gradient = (reward - reward.mean()) * score
        error = gradient.std() / count**0.5
        assert bool(gradient.mean().abs() > 4 * error) == visible


def test_guidance_that_does_not_fit_the_network(tiny_lcm: Path, tiny_pipeline: Path) -> None:
    consistency = Policy.load(tiny_lcm)
    diffusion = Policy.load(tiny_pipeline)

    for policy, guidance, message in (
        (consistency, CFG(3.0), "use guidance 'embedded'"),
        (consistency, NoGuidance(), "use guidance 'embedded'"),
        (diffusion, EmbeddedGuidance(3.0), "take 'cfg' or 'none'"),
    ):
        with pytest.raises(ValueError, match=message):
            Sampler(DDIM(), 3, guidance).rollout(policy, policy.encode(PROMPTS), GROUP, generator())

    with pytest.raises(ValueError, match="at least 0"):
        EmbeddedGuidance(-1.0)


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_a_trained_adapter_in_the_stock_pipeline(
    tiny_lcm: Path, tmp_path: Path, steps: int
) -> None:
    policy = Policy.load(tiny_lcm)
    perturb(policy)
    policy.save_adapter(tmp_path)
    noise = generator(5)
    x = policy.noise(4, noise)
    times = policy.schedule.times(steps)

    for t, s in pairwise(times):  # one call has no rollout: nothing could be learned from it
        with torch.no_grad():
            x0 = policy.predict(x, t.expand(4), policy.encode(PROMPTS), EmbeddedGuidance(5.0))
        transition = LCM()(x, x0, policy.schedule.level(t[None]), policy.schedule.level(s[None]))
        x = kernels.sample(transition, noise) if s != FINAL else transition.mean

    pipe = LatentConsistencyModelPipeline.from_pretrained(tiny_lcm)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(tmp_path)
    stock = pipe(
        TEXTS,
        num_inference_steps=steps,
        guidance_scale=5.0,
        generator=generator(5),
        output_type="latent",
    )
    torch.testing.assert_close(x, stock.images, rtol=1e-3, atol=1e-3)


# the stock pipeline holds two adapters
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_an_lcm_lora_stays_while_another_adapter_trains(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    first = Policy.load(tiny_pipeline, rank=2)  # its adapter stands in for an LCM-LoRA
    perturb(first)
    fused = tmp_path / "lcm"
    first.save_adapter(fused)
    policy = Policy.load(tiny_pipeline, scheduler="lcm", fused_lora=fused)
    sampler = Sampler(LCM(), 4, CFG(1.5))
    perturb(policy)
    trained = tmp_path / "trained"
    policy.save_adapter(trained)
    traj = sampler.rollout(policy, policy.encode(PROMPTS), GROUP, generator(5))
    replay = sampler.replay(policy, traj, torch.arange(4), torch.arange(3).expand(4, -1))
    assert (replay.logp - traj.logp).expm1().abs().max() < 1e-5

    def stock(*adapters: Path) -> torch.Tensor:
        pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline, safety_checker=None)
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)

        for adapter in adapters:
            pipe.load_lora_weights(adapter, adapter_name=adapter.name)

        pipe.set_adapters([adapter.name for adapter in adapters])
        return pipe(
            TEXTS,
            num_inference_steps=4,
            guidance_scale=1.5,
            generator=generator(5),
            output_type="latent",
        ).images

    torch.testing.assert_close(traj.latent, stock(fused, trained), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(traj.latent, stock(trained), atol=1e-2), (
        "both adapters have an effect"
    )

    with policy.reference():
        before = sampler.rollout(policy, policy.encode(PROMPTS), GROUP, generator(5))

    torch.testing.assert_close(before.latent, stock(fused), rtol=1e-3, atol=1e-3)


def test_a_lora_that_cannot_be_merged(tiny_pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model.fused_lora: the LoRA .* cannot be merged"):
        Policy.load(tiny_pipeline, fused_lora=tmp_path)


@pytest.fixture
def recipe(
    tiny_lcm: Path, write_recipe: Callable[..., Path]
) -> Callable[..., configuration.Config]:
    def load(objective: str, *changes: str, train_batch: int = 5) -> configuration.Config:
        path = write_recipe(
            iterations=2,
            model={"id": str(tiny_lcm)},
            sampler={"kernel": {"use": "lcm"}, "guidance": {"use": "embedded", "weight": 6.0}},
            prompts={"use": "list", "texts": ["a cat", "a dog", "an ox", "a bee"]},
            advantage={"use": "batch"},
            objective={"use": objective},
            optimizer={"lr": 1e-3, "warmup": 3, "final_lr": 0.5},
            batch={
                "prompts": 4,
                "images_per_prompt": 2,
                "sample_batch": 4,
                "train_batch": train_batch,
                "minibatches": 2,
            },
            evaluation={"images_per_prompt": 1},
            run={"sample_every": 0},
        )
        return configuration.load(path, changes)

    return load


def records(folder: Path) -> list[Record]:
    return Run(folder).records()


@pytest.mark.parametrize("objective", ["clipped", "rebel"])
def test_a_consistency_model_trains_by_either_objective(
    recipe: Callable[..., configuration.Config], tmp_path: Path, objective: str
) -> None:
    rows = records(train(recipe(objective), tmp_path / "run"))
    assert [row["iteration"] for row in rows] == [1, 2]
    assert all(row["ratio_deviation"] < 1e-6 and row["grad_norm"] > 0 for row in rows)
    # a third and two thirds of the warm-up, then its end on a line that has fallen a quarter of the
    # way
    assert [row["lr"] for row in rows] == pytest.approx([1e-3 * (1 / 3 + 2 / 3) / 2, 0.75e-3])


def test_rebel_in_micro_batches_is_rebel(
    recipe: Callable[..., configuration.Config], tmp_path: Path
) -> None:
    runs = [
        records(train(recipe("rebel", train_batch=size), tmp_path / str(size))) for size in (3, 100)
    ]
    for small, full in zip(*runs, strict=True):
        assert small["grad_norm"] == pytest.approx(full["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("batch.baseline=x0_preview", r"set batch.baseline = ''"),
        ("batch.transitions=1", r"set batch.transitions = 0"),
        ("batch.images_per_prompt=1", r"set batch.images_per_prompt to 2 or more"),
        ("batch.minibatches=5", r"batch.minibatches to at most batch.prompts"),
    ],
)
def test_settings_that_rebel_cannot_have(
    recipe: Callable[..., configuration.Config], tmp_path: Path, change: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(recipe("rebel", change), tmp_path / "run")


def test_an_x0_preview_baseline_needs_several_images_of_a_prompt(
    recipe: Callable[..., configuration.Config], tmp_path: Path
) -> None:
    changes = ("batch.baseline=x0_preview", "batch.images_per_prompt=1")
    with pytest.raises(ValueError, match=r"set batch.images_per_prompt to 4 or more"):
        train(recipe("clipped", *changes), tmp_path / "run")


def test_the_kernel_of_another_kind_of_model(
    recipe: Callable[..., configuration.Config], tiny_pipeline: Path, tmp_path: Path
) -> None:
    changes = (f'model.id="{tiny_pipeline}"', "sampler.guidance.use=cfg")
    with pytest.raises(
        ValueError, match=r"set model.scheduler = .lcm., otherwise use kernel 'ddim'"
    ):
        train(recipe("clipped", *changes), tmp_path / "run")

    train(
        recipe("clipped", *changes, "model.scheduler=lcm", "iterations=1"),
        tmp_path / "other",
    )


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_sampling_from_a_consistency_model_by_its_name(tiny_lcm: Path, steps: int) -> None:
    policy, sampler = open_source(str(tiny_lcm), steps=steps, guidance=7.0)
    assert isinstance(sampler.kernel, LCM)
    assert sampler.guidance == EmbeddedGuidance(7.0)
    assert sampler.steps == steps

    images = draw(policy, sampler, ["a cat", "a dog"], 2)
    assert images.shape == (4, 3, 32, 32)
    assert open_source(str(tiny_lcm))[1].steps == 4


def test_sampling_a_run_keeps_its_kind_of_guidance(
    recipe: Callable[..., configuration.Config], tmp_path: Path
) -> None:
    folder = train(recipe("clipped", "iterations=1"), tmp_path / "run")
    _, sampler = open_source(str(folder), steps=1, guidance=3.0)
    assert sampler.guidance == EmbeddedGuidance(3.0)
    assert sampler.steps == 1
    assert isinstance(sampler.kernel, LCM)
