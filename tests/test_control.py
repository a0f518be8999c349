"""ControlNets: rollout against the stock pipelines, replay against rollout, adapters, and runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_controlnet, generator, perturb
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
)
from PIL import Image
from torch import Tensor

from burnish import config as configuration
from burnish.config import ControlConfig
from burnish.diffusion.control import check_controls, control_images, control_window
from burnish.diffusion.guidance import CFG, EmbeddedGuidance, NoGuidance
from burnish.diffusion.kernels import DDIM, LCM
from burnish.diffusion.lora import FILE
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler, join_trajectories
from burnish.report.page import write_report
from burnish.runs import Run
from burnish.training import checkpoint
from burnish.training.assembly import load_prompts
from burnish.training.loop import train
from burnish.training.requirements import check_prompt_images
from burnish.types import Prompt, Trajectory

GROUP = torch.tensor([0, 0, 1])
TEXTS = ["a cat", "a cat", "two dogs"]


@pytest.fixture
def prompts(tmp_path: Path) -> list[Prompt]:
    """Three prompts with a control image each."""
    random = np.random.default_rng(0)
    for number in range(3):
        pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((32, 32), Image.Resampling.NEAREST).save(
            tmp_path / f"{number}.png"
        )

    return [Prompt(text, {"control": str(tmp_path / f"{i}.png")}) for i, text in enumerate(TEXTS)]


@pytest.fixture(params=["sd", "sdxl"])
def model(request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A pipeline and its ControlNet."""
    names = {
        "sd": ("tiny_pipeline", "tiny_controlnet"),
        "sdxl": ("tiny_sdxl", "tiny_sdxl_controlnet"),
    }[request.param]
    base, controlnet = (request.getfixturevalue(name) for name in names)
    return base, controlnet


def load(model: tuple[Path, Path], **settings: Any) -> Policy:
    return Policy.load(model[0], controlnet=str(model[1]), **settings)


def roll(policy: Policy, sampler: Sampler, prompts: list[Prompt]) -> Trajectory:
    return sampler.rollout(policy, policy.encode(prompts), GROUP, generator(3))


def ratios(policy: Policy, sampler: Sampler, traj: Trajectory) -> Tensor:
    """Return each transition's density in replay over that in rollout."""
    transitions = torch.arange(traj.logp.shape[1]).expand(3, -1)
    replay = sampler.replay(policy, traj, torch.arange(3), transitions)
    return (replay.logp - traj.logp).exp()


def stock(model: tuple[Path, Path]) -> Any:
    plain = DiffusionPipeline.from_pretrained(model[0])
    kind: Any = StableDiffusionControlNetPipeline
    if hasattr(plain, "text_encoder_2"):
        kind = StableDiffusionXLControlNetPipeline

    pipe = kind(**plain.components, controlnet=ControlNetModel.from_pretrained(model[1]))
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)

    return pipe


@pytest.mark.parametrize(
    "control",
    [
        ControlConfig(),
        ControlConfig(0.7),
        ControlConfig(1.3, 0.2, 0.8),
        ControlConfig(2.0, 0.0, 0.41),
    ],
)
@pytest.mark.parametrize("weight", [1.0, 5.0])
def test_a_rollout_is_the_stock_pipeline(
    model: tuple[Path, Path], prompts: list[Prompt], control: ControlConfig, weight: float
) -> None:
    policy = load(model)
    traj = roll(policy, Sampler(DDIM(0.8), 5, CFG(weight), control), prompts)
    expected = stock(model)(
        TEXTS,
        image=control_images(prompts, 32, 32),
        num_inference_steps=5,
        guidance_scale=weight,
        eta=0.8,
        generator=generator(3),
        output_type="latent",
        controlnet_conditioning_scale=control.scale,
        control_guidance_start=control.start,
        control_guidance_end=control.end,
    ).images
    torch.testing.assert_close(traj.latent, expected, rtol=1e-5, atol=1e-4)


def test_the_control_image_and_its_scale_have_an_effect(
    model: tuple[Path, Path], prompts: list[Prompt]
) -> None:
    policy = load(model)

    def latents(scale: float, prompts: list[Prompt]) -> Tensor:
        return roll(policy, Sampler(DDIM(), 3, NoGuidance(), ControlConfig(scale)), prompts).latent

    swapped = [
        Prompt(prompt.text, other.metadata)
        for prompt, other in zip(prompts, prompts[::-1], strict=True)
    ]
    torch.testing.assert_close(latents(0.0, prompts), latents(0.0, swapped))

    without = roll(Policy.load(model[0]), Sampler(DDIM(), 3, NoGuidance()), prompts)
    torch.testing.assert_close(latents(0.0, prompts), without.latent)

    for scale in (0.5, 1.0):
        assert (latents(scale, prompts) - latents(scale, swapped)).abs().max() > 0.01

    assert (latents(0.5, prompts) - latents(1.0, prompts)).abs().max() > 0.01


@pytest.mark.parametrize("train", ["lora", "full"])
@pytest.mark.parametrize("parts", ["", "controlnet", "both"])
def test_a_fresh_trajectory_replays_to_ratio_one(
    model: tuple[Path, Path], prompts: list[Prompt], train: str, parts: str
) -> None:
    policy = load(model, train=train, trainable_parts=parts, reference=True)
    expected = {"": {"unet"}, "controlnet": {"controlnet"}, "both": {"unet", "controlnet"}}
    assert _trainable_parts(policy) == expected[parts]

    sampler = Sampler(DDIM(), 4, CFG(5.0), ControlConfig(1.2, 0.0, 0.8))
    first = roll(policy, sampler, prompts)
    perturb(policy, 0.1)
    traj = roll(policy, sampler, prompts)
    assert (traj.latent - first.latent).abs().max() > 1e-3, "the trainable weights have an effect"
    assert (ratios(policy, sampler, traj) - 1).abs().max() < 1e-5
    other = Sampler(DDIM(), 4, CFG(5.0), ControlConfig(0.3))
    same = torch.equal(ratios(policy, other, traj), ratios(policy, sampler, traj))
    assert same, "the stored scale counts"

    with policy.reference():
        torch.testing.assert_close(roll(policy, sampler, prompts).latent, first.latent)


def _trainable_parts(policy: Policy) -> set[str]:
    """Return the names of the pipeline's parts with weights that learn."""
    modules = {
        name: part
        for name, part in policy.pipe.components.items()
        if isinstance(part, torch.nn.Module)
    }
    return {
        name
        for name, module in modules.items()
        if any(parameter.requires_grad for parameter in module.parameters())
    }


def test_the_gradient_reaches_all_trainable_weights(
    model: tuple[Path, Path], prompts: list[Prompt]
) -> None:
    policy = load(model, trainable_parts="both", gradient_checkpointing=True)
    perturb(policy, 0.1)
    sampler = Sampler(DDIM(), 3, CFG(3.0), ControlConfig(1.0))
    traj = roll(policy, sampler, prompts)
    transitions = torch.arange(3).expand(3, -1)
    sampler.replay(policy, traj, torch.arange(3), transitions).logp.sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in policy.trainable)


def test_each_image_has_its_scale(model: tuple[Path, Path], prompts: list[Prompt]) -> None:
    """Trajectories of several scales, joined, are replayed together."""
    policy = load(model)
    samplers = [Sampler(DDIM(), 3, CFG(3.0), ControlConfig(scale)) for scale in (0.5, 1.5)]
    parts = [roll(policy, sampler, prompts) for sampler in samplers]
    both = join_trajectories(parts)
    transitions = torch.arange(3).expand(6, -1)
    logp = samplers[0].replay(policy, both, torch.arange(6), transitions).logp
    expected = torch.cat([part.logp for part in parts])
    torch.testing.assert_close(logp, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("train", ["lora", "full"])
@pytest.mark.parametrize("parts", ["controlnet", "both"])
def test_an_adapter_is_saved_and_read(
    model: tuple[Path, Path], prompts: list[Prompt], tmp_path: Path, train: str, parts: str
) -> None:
    policy = load(model, train=train, trainable_parts=parts)
    sampler = Sampler(DDIM(), 3, CFG(3.0))
    perturb(policy, 0.1)
    latent = roll(policy, sampler, prompts).latent
    policy.save_adapter(tmp_path / "adapter")

    for mode in (train, "none"):
        again = load(model, train=mode, trainable_parts=parts, adapter=tmp_path / "adapter")
        torch.testing.assert_close(
            roll(again, sampler, prompts).latent, latent, rtol=1e-4, atol=1e-4
        )

    pipe = stock(model)  # and diffusers reads it

    if train == "full":
        pipe.controlnet = ControlNetModel.from_pretrained(tmp_path / "adapter" / "controlnet")
        if parts == "both":
            pipe.unet = type(pipe.unet).from_pretrained(tmp_path / "adapter")
    else:
        pipe.controlnet.load_lora_adapter(
            tmp_path / "adapter" / "controlnet", prefix=None, weight_name=FILE
        )
        if parts == "both":
            pipe.load_lora_weights(tmp_path / "adapter")

    images = pipe(
        TEXTS,
        image=control_images(prompts, 32, 32),
        num_inference_steps=3,
        guidance_scale=3.0,
        eta=1.0,
        generator=generator(3),
        output_type="latent",
    ).images
    torch.testing.assert_close(images, latent, rtol=1e-4, atol=2e-4)


def test_names_in_a_state(model: tuple[Path, Path]) -> None:
    policy = load(model, trainable_parts="both")
    perturb(policy)
    state = policy.state()
    assert {name.split(".")[0] for name in state} == {"unet", "controlnet"}
    other = load(model, trainable_parts="both")
    other.load_state(state)
    assert all(torch.equal(a, b) for a, b in zip(policy.trainable, other.trainable, strict=True))


def test_a_controlnet_of_the_loaded_pipeline_is_trained_in_float32(
    model: tuple[Path, Path], tmp_path: Path
) -> None:
    load(model, train="none").pipe.save_pretrained(tmp_path)
    policy = Policy.load(tmp_path, train="full", trainable_parts="controlnet", dtype="bfloat16")
    assert {p.dtype for p in policy.trainable} == {torch.float32}
    assert {p.dtype for p in policy.pipe.unet.parameters()} == {torch.bfloat16}


def test_windows() -> None:
    """Step i of n acts if start <= i/n and (i+1)/n <= end."""
    times = torch.tensor([801, 601, 401, 201, 1, -1])

    def active(start: float, end: float) -> list[int]:
        highest, below = control_window(ControlConfig(1.0, start, end), times)
        return [t for t in [999, *times[:-1].tolist(), 0] if below < t <= highest]

    assert active(0, 1) == [999, 801, 601, 401, 201, 1, 0]
    assert active(0.2, 0.8) == [601, 401, 201] and active(0.1, 0.85) == [601, 401, 201]
    assert active(0.0, 0.4) == [999, 801, 601] and active(0.6, 1.0) == [201, 1, 0]

    with pytest.raises(
        ValueError, match=r"no step of 5 lies between sampler.control.start = 0.5 and end = 0.6"
    ):
        active(0.5, 0.6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": -1.0}, "sampler.control.scale must be a finite number, at least 0, not -1.0"),
        ({"scale": float("nan")}, "sampler.control.scale must be a finite number"),
        ({"start": 0.5, "end": 0.5}, "0 <= start < end <= 1, not 0.5 and 0.5"),
        ({"end": 1.1}, "0 <= start < end <= 1, not 0.0 and 1.1"),
    ],
)
def test_settings_out_of_range(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ControlConfig(**settings)


def test_prompts_without_a_control_image(model: tuple[Path, Path], tmp_path: Path) -> None:
    policy = load(model)
    with pytest.raises(
        ValueError, match=r'the prompt "a cat" has nothing for the ControlNet to follow: give it a'
    ):
        policy.encode([Prompt("a cat")])

    for wrong in (5, ["a.png"], {"path": "a.png"}):
        with pytest.raises(ValueError, match=r'the prompt "a cat" has control = .* give the path'):
            policy.encode([Prompt("a cat", {"control": wrong})])

    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    for name in ("none.png", "torn.png"):
        with pytest.raises(ValueError, match=rf'{name} of the prompt "a cat" cannot be read'):
            policy.encode([Prompt("a cat", {"control": str(tmp_path / name)})])


def test_prompts_are_checked_before_anything_is_drawn(tmp_path: Path) -> None:
    prompts = [
        Prompt("a cat", {"payload": text}) for text in ("HELLO", "AB12C", "X" * 90, "Y" * 90)
    ]
    check_controls(prompts[:2], 64, 64)
    with pytest.raises(
        ValueError, match=r"'a cat': .*XX.* \(1 further prompts have such codes too"
    ):
        check_controls(prompts, 64, 64)
    with pytest.raises(ValueError, match="needs a square image, not one of 64 x 128"):
        check_controls(prompts[:2], 128, 64)
    with pytest.raises(ValueError, match="nothing for the ControlNet to follow"):
        check_controls([Prompt("a cat")], 64, 64)
    with pytest.raises(ValueError, match=r'has control = "none.png": no such image'):
        check_controls([Prompt("a cat", {"control": "none.png"})], 64, 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (['prompts.code={error="X"}'], "take one of L, M, Q, H"),
        (["evaluation.prompts.length=200"], "does not fit a canvas of 128 px"),
        (['prompts.base="{noun}.png"', 'rewards=[{use="picture_similarity"}]'], "no such image"),
    ],
)
def test_a_training_refuses_them_before_it_begins(changes: list[str], message: str) -> None:
    config = configuration.load("emoji-qr", ["prompts.random=50", *changes])
    policy = SimpleNamespace(latent_pixel=4, latent_shape=(4, 32, 32), has_controlnet=True)
    tables = (config.prompts, config.evaluation.prompts)
    prompts = [prompt for table in tables for prompt in load_prompts(table, "prompts")]
    with pytest.raises(ValueError, match=message):
        check_prompt_images(config, policy, prompts)  # type: ignore[arg-type]


def test_models_that_do_not_fit(
    tiny_sd1: Path,
    tiny_lcm: Path,
    tiny_controlnet: Path,
    tiny_sdxl_controlnet: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(
        ValueError,
        match=r"was made for another network: its cross_attention_dim is 20, that of the",
    ):
        Policy.load(tiny_sd1, controlnet=str(tiny_sdxl_controlnet))

    with pytest.raises(ValueError, match=r"was made for another network: its block_out_channels"):
        Policy.load(tiny_lcm, controlnet=str(tiny_controlnet))

    combined = tmp_path / "combined"
    policy = Policy.load(tiny_sd1, controlnet=str(tiny_controlnet), train="none")
    policy.pipe.save_pretrained(combined)
    assert Policy.load(combined).has_controlnet, "a pipeline with its ControlNet is a model too"

    with pytest.raises(
        ValueError,
        match="a StableDiffusionControlNetPipeline takes none here; these do: StableDiffu",
    ):
        Policy.load(combined, controlnet=str(tiny_controlnet))

    with pytest.raises(FileNotFoundError, match="has no weights"):
        Policy.load(tiny_sd1, controlnet=str(tiny_sd1))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Policy.load(tiny_sd1, controlnet="./nowhere")

    with pytest.raises(
        ValueError,
        match=r"model.trainable_parts = 'controlnet' needs a ControlNet: set model.controlnet",
    ):
        Policy.load(tiny_sd1, trainable_parts="controlnet")

    with pytest.raises(
        ValueError, match=r"model.trainable_parts must be 'controlnet', 'both' or ''"
    ):
        Policy.load(tiny_sd1, trainable_parts="vae")


@pytest.fixture
def recipe(
    tiny_controlnet: Path,
    prompts: list[Prompt],
    tmp_path: Path,
    write_recipe: Callable[..., Path],
) -> Path:
    """The file of a ControlNet's run, gated by a reward that is small at first and grows."""
    rows = [json.dumps({"prompt": prompt.text, **prompt.metadata}) for prompt in prompts]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    return write_recipe(
        "calls = []\n"
        "def rising(images, prompts):\n"
        "    calls.append(1)\n"
        "    return images.mean((1, 2, 3)) + 10 * (len(calls) > 3)\n",
        iterations=4,
        model={"controlnet": str(tiny_controlnet), "trainable_parts": "controlnet"},
        sampler={"control": {"scale": 0.5}},
        prompts={"use": "jsonl", "path": "HERE/prompts.jsonl"},
        rewards=[{"use": "HERE/reward.py:rising"}],
        advantage={"use": "tracker", "buffer": 8, "min_count": 2},
        optimizer={"lr": 1e-3},
        batch={
            "prompts": 2,
            "images_per_prompt": 4,
            "sample_batch": 8,
            "train_batch": 8,
            "minibatches": 2,
        },
        evaluation={"images_per_prompt": 1},
        run={"sample_every": 0, "checkpoint_every": 1},
        curriculum={
            "use": "gated",
            "first": 2.0,
            "last": 1.0,
            "reward": "rising",
            "above": 5,
            "below": -5,
            "by": 0.25,
            "smoothing": 0,
        },
    )


def test_a_run_follows_its_curriculum(recipe: Path, tmp_path: Path) -> None:
    """Scored once before training and once an iteration: the third and fourth iteration succeed."""
    run = Run(train(configuration.load(recipe), tmp_path / "run"))
    records = run.records()
    assert [record["control_scale"] for record in records] == [2.0, 2.0, 2.0, 1.75]
    assert all(record["ratio_deviation"] < 1e-5 for record in records)
    state = checkpoint.restore(run.checkpoints)
    assert state is not None
    assert state.memory["curriculum"] == {"scale": 1.5, "success": None, "streak": 0}
    rewards = state.memory["advantage"]["seen"]
    assert len(rewards) > 3, "a prompt at another scale is another prompt"
    assert max(len(values) for values in rewards.values()) <= 8
    assert (run.adapter / "controlnet" / FILE).is_file()
    page = write_report(run.folder).read_text("utf-8")
    assert page.index("Reward</h2>") < page.index("Control scale") < page.index("Diagnostics</h2>")


def test_a_curriculum_may_begin_where_every_image_succeeds(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(
        "def easy(images, prompts):\n    return images.mean((1, 2, 3)) * 0 + 1\n"
    )
    changes = [
        "iterations=1",
        "evaluation.images_per_prompt=0",
        f'rewards=[{{use="{tmp_path}/reward.py:easy"}}]',
    ]
    run = Run(
        train(configuration.load(recipe, [*changes, "curriculum.reward=easy"]), tmp_path / "run")
    )
    assert run.records()[0]["zero_advantage"] == 1

    with pytest.raises(ValueError, match=r"reward 'easy' gave \[1.0\] to all"):
        train(configuration.load(recipe, [*changes, "curriculum={}"]), tmp_path / "plain")


def test_a_run_goes_on_at_its_scale(recipe: Path, tmp_path: Path) -> None:
    config = configuration.load(recipe)
    train(config, tmp_path / "run", stop=lambda: len(Run(tmp_path / "run").records()) >= 3)
    assert len(Run(tmp_path / "run").records()) == 3
    train(config, tmp_path / "run", resume=True)
    assert Run(tmp_path / "run").records()[-1]["control_scale"] == 1.75


def test_curricula_that_do_not_fit(recipe: Path) -> None:
    for change, message in (
        ("curriculum.reward=rise", 'curriculum.reward = "rise" is none of the rewards rising'),
        ("model={id='x'}", "curriculum is one of the control scale: set model.controlnet"),
        (
            "curriculum={use='linear',first=2.0,last=-1.0}",
            "curriculum.last must be a finite number, at least 0",
        ),
        ("curriculum={use='linear',first=2.0}", "needs last"),
    ):
        with pytest.raises(ValueError, match=message):
            configuration.load(recipe, [change])


def test_images_of_another_size(model: tuple[Path, Path], tmp_path: Path) -> None:
    """As the stock pipeline samples them; the control image is resized too."""
    Image.new("RGB", (32, 32), "white").save(tmp_path / "white.png")
    prompts = [Prompt(text, {"control": str(tmp_path / "white.png")}) for text in TEXTS]
    policy = load(model, size=64)
    assert policy.latent_shape == (4, 16, 16)
    traj = roll(policy, Sampler(DDIM(0.8), 3, CFG(3.0)), prompts)
    assert policy.decode(traj.latent).shape == (3, 3, 64, 64)
    expected = stock(model)(
        TEXTS,
        image=control_images(prompts, 64, 64),
        num_inference_steps=3,
        guidance_scale=3.0,
        eta=0.8,
        generator=generator(3),
        output_type="latent",
    ).images
    torch.testing.assert_close(traj.latent, expected, rtol=1e-5, atol=1e-4)

    with pytest.raises(
        ValueError,
        match=r"model.size = 36: this model's images have sides of a multiple of (8|16)",
    ):
        load(model, size=36)


def test_a_consistency_model(tiny_lcm: Path, prompts: list[Prompt], tmp_path: Path) -> None:
    """Its guidance weight stays an input of the network; the stock pipeline does the same."""
    lcm_pipe = DiffusionPipeline.from_pretrained(tiny_lcm)
    # like the ControlNet of an undistilled model
    build_controlnet(lcm_pipe, copied=False).save_pretrained(tmp_path / "net")
    policy = load((tiny_lcm, tmp_path / "net"))
    sampler = Sampler(LCM(), 4, EmbeddedGuidance(4.0), ControlConfig(0.8))
    assert policy.takes_weight and policy.schedule.consistency
    traj = roll(policy, sampler, prompts)
    components = {
        name: part for name, part in lcm_pipe.components.items() if name != "image_encoder"
    }
    pipe = StableDiffusionControlNetPipeline(
        **components,
        controlnet=ControlNetModel.from_pretrained(tmp_path / "net"),
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        TEXTS,
        image=control_images(prompts, 32, 32),
        num_inference_steps=4,
        guidance_scale=4.0,
        generator=generator(3),
        output_type="latent",
        controlnet_conditioning_scale=0.8,
    ).images
    torch.testing.assert_close(traj.latent, expected, rtol=1e-4, atol=1e-4)
    perturb(policy, 0.1)
    assert (ratios(policy, sampler, roll(policy, sampler, prompts)) - 1).abs().max() < 1e-5
