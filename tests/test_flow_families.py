"""Flow models against the stock pipelines: sampling, replay, an adapter's file, an iteration."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import generator, perturb
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_flow_models import build_flux, build_sd3
from torch import Tensor

from burnish import config as configuration
from burnish.diffusion.guidance import CFG, EmbeddedGuidance, NoGuidance
from burnish.diffusion.kernels import CPS, ODE
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.prompts import identifiers
from burnish.runs import Run
from burnish.tools.gallery import open_source
from burnish.training.loop import train
from burnish.types import Guidance, Prompt, Trajectory


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
    "tiny_z_image": lambda w: {"guidance_scale": w - 1},
    "tiny_sd3": lambda w: {"guidance_scale": w, "max_sequence_length": 40},
    "tiny_sd3_without_t5": lambda w: {"guidance_scale": w},  # and the shift by size
    "tiny_flux_dev": lambda w: {"guidance_scale": w, "max_sequence_length": 40},
    "tiny_flux_schnell": lambda w: {
        "true_cfg_scale": w,
        "negative_prompt": [""] * 4,
        "max_sequence_length": 40,
    },
    "tiny_klein": lambda w: {"guidance_scale": w},
    "tiny_sana": lambda w: {"guidance_scale": w, "use_resolution_binning": False},
    "tiny_qwen_image": lambda w: {"true_cfg_scale": w, "negative_prompt": [" "] * 4},
}
# the latents that a stock pipeline returns, as networks take them; others return these
NETWORK_LATENTS = {"tiny_klein": normalised_patches}
TAKE_THE_WEIGHT = ("tiny_flux_dev",)


MODELS = [name for name in CALLS if name != "tiny_sd3_without_t5"]
KERNELS = ("cps", "precise", "churn", "renoise", "flow_grpo", "dance_grpo")


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


def load(model: Path, **changes: Any) -> Policy:
    return Policy.load(model, size=32, **changes)


def guided(model: Path, weight: float) -> Guidance:
    if model.name in TAKE_THE_WEIGHT:
        return EmbeddedGuidance(weight)
    return NoGuidance() if weight == 1 else CFG(weight)


def roll(policy: Policy, sampler: Sampler) -> Trajectory:
    return sampler.rollout(policy, sampler.encode(policy, PROMPTS), GROUP, generator(3))


def stock(model: Path, adapter: Path | None = None) -> Any:
    lacking = {
        name: None
        for name, value in DiffusionPipeline.load_config(model).items()
        if value == [None, None]
    }
    pipe = DiffusionPipeline.from_pretrained(model, **lacking)
    pipe.set_progress_bar_config(disable=True)
    if adapter is not None:
        pipe.load_lora_weights(adapter)

    return pipe


def draw(model: Path, pipe: Any, weight: float, steps: int, output: str) -> Tensor:
    result: Tensor = pipe(
        prompt=list(TEXTS),
        num_inference_steps=steps,
        generator=generator(3),
        output_type=output,
        height=32,
        width=32,
        **CALLS[model.name](weight),
    ).images
    return result


def latents(model: Path, pipe: Any, weight: float, steps: int) -> Tensor:
    result = draw(model, pipe, weight, steps, "latent")
    if result.dim() == 3:
        unpacked: Tensor = pipe._unpack_latents(result, 32, 32, pipe.vae_scale_factor)
        return unpacked.view(4, -1, 8, 8)

    as_network = NETWORK_LATENTS.get(model.name)
    return as_network(pipe, result) if as_network else result


@pytest.mark.parametrize(("steps", "weight"), [(2, 4.0), (3, 1.0), (8, 4.0)])
def test_sampling_without_noise_is_the_stock_pipelines(
    model: Path, steps: int, weight: float
) -> None:
    policy = load(model)
    traj = roll(policy, Sampler(ODE(), steps, guided(model, weight)))
    expected = latents(model, stock(model), weight, steps)
    torch.testing.assert_close(traj.latent, expected, rtol=0, atol=1e-5)


def test_images_are_decoded_as_by_the_stock_pipelines(model: Path) -> None:
    policy = load(model)
    traj = roll(policy, Sampler(ODE(), 2, guided(model, 4.0)))
    expected = draw(model, stock(model), 4.0, 2, "pt")
    images = policy.decode(traj.latent)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-4)
    assert policy.embed(images, generator()).shape == traj.latent.shape


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_ratio_is_one_before_training(model: Path, dtype: str) -> None:
    policy = load(model, dtype=dtype)
    sampler = Sampler(CPS(), 4, guided(model, 3.0))
    traj = roll(policy, sampler)
    assert traj.logp.shape == (4, 3), "the last transition of a flow has no noise"

    transitions = torch.arange(3).expand(4, -1)
    replay = sampler.replay(policy, traj, torch.arange(4), transitions)
    assert (replay.logp - traj.logp).abs().max() * replay.dims < 0.05  # nats; the clip has 1.64


def test_the_stock_pipeline_draws_the_same_with_the_exported_adapter(
    model: Path, tmp_path: Path
) -> None:
    policy = load(model, rank=4, alpha=8)
    perturb(policy, 0.1)
    policy.save_adapter(tmp_path)
    traj = roll(policy, Sampler(ODE(), 3, guided(model, 4.0)))
    expected = latents(model, stock(model, tmp_path), 4.0, 3)
    before = latents(model, stock(model), 4.0, 3)
    torch.testing.assert_close(traj.latent, expected, rtol=0, atol=1e-5)
    assert (expected - before).abs().max() > 1e-3


def settings(model: Path, **sampler: Any) -> dict[str, Any]:
    guidance = "embedded" if model.name in TAKE_THE_WEIGHT else "cfg"
    return {
        "iterations": 2,
        "model": {"id": str(model), "size": 32},
        "sampler": {"steps": 4, "guidance": {"use": guidance, "weight": 3.0}, **sampler},
        "batch": {"prompts": 2, "images_per_prompt": 2, "minibatches": 2},
        "evaluation": {"images_per_prompt": 1},
        "run": {"sample_every": 0},
    }


@pytest.mark.parametrize(
    ("model", "kernel"),
    [*((MODELS[0], kernel) for kernel in KERNELS), *((model, "cps") for model in MODELS[1:])],
    indirect=["model"],
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


def test_dpo_learns_from_the_best_and_the_worst(
    tiny_sd3: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe(**settings(tiny_sd3, kernel={"use": "ode"}))
    batch = "batch={prompts=2,images_per_prompt=4,minibatches=1}"
    changes = ["objective={use='dpo',beta=5.0}", "advantage.use=group", batch]
    run = Run(train(configuration.load(recipe, changes), tmp_path / "run", progress=False))
    first, second = run.records()
    assert first["grad_norm"] > 0 and second["grad_norm"] > 0
    assert first["preference_margin"] == 0 != second["preference_margin"]
    expected = latents(tiny_sd3, stock(tiny_sd3, run.adapter), 3.0, 4)
    assert (expected - latents(tiny_sd3, stock(tiny_sd3), 3.0, 4)).abs().max() > 0


def test_dpo_learns_a_preference_offline(
    tiny_sd3: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    for side, colour in {"chosen": (250, 80, 10), "rejected": (10, 80, 250)}.items():
        (tmp_path / "pairs" / side).mkdir(parents=True)
        Image.new("RGB", (32, 32), colour).save(tmp_path / "pairs" / side / "a.png")
    (tmp_path / "pairs" / "chosen" / "a.txt").write_text("a cat")
    recipe = write_recipe(
        **{
            **settings(tiny_sd3, kernel={"use": "ode"}),
            "iterations": 6,
            "prompts": {"use": "pairs", "path": "HERE/pairs"},
            "rewards": [{"use": "chosen"}],
            "objective": {"use": "dpo", "beta": 5.0},
            "advantage": {"use": "group"},
            "optimizer": {"lr": 1e-2, "warmup": 0},
            "batch": {"prompts": 1, "images_per_prompt": 2, "minibatches": 1},
            "evaluation": {"images_per_prompt": 0},
        }
    )
    run = Run(train(configuration.load(recipe), tmp_path / "run", progress=False))
    margins = [record["preference_margin"] for record in run.records()]
    assert margins[0] == 0 < margins[-1]
    assert run.records()[-1]["preference_right"] == 1


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


def test_sd3_does_without_t5(tiny_sd3_without_t5: Path) -> None:
    policy = Policy.load(tiny_sd3_without_t5)
    traj = roll(policy, Sampler(ODE(), 3, CFG(4.0)))
    expected = latents(tiny_sd3_without_t5, stock(tiny_sd3_without_t5), 4.0, 3)
    torch.testing.assert_close(traj.latent, expected, rtol=0, atol=1e-5)
    fixed = Policy.load(build_sd3(with_t5=False))
    assert not torch.allclose(policy.schedule.times(3), fixed.schedule.times(3), atol=0.1)


def test_sd3_needs_its_clip_encoders() -> None:
    pipe = build_sd3()
    pipe.text_encoder_2 = None
    with pytest.raises(ValueError, match="this StableDiffusion3Pipeline has no text_encoder_2"):
        Policy.load(pipe).encode(PROMPTS)


def test_a_prompt_that_clip_cuts_is_read_by_t5() -> None:
    policy = Policy.load(build_sd3())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy.encode([Prompt("a fox beside a blue guitar")])  # 26 letters; CLIP reads 24 tokens

    with pytest.warns(UserWarning, match=r'reads \(40 tokens\).*"cdefgh ijk"'):
        policy.encode([Prompt("abcdefgh " * 5 + "ijk")])


def test_sd3_has_a_largest_size(tiny_sd3: Path) -> None:
    assert Policy.load(tiny_sd3, size=96).latent_shape == (4, 24, 24)
    for size, message in ((104, "at most 96 pixels"), (36, "a multiple of 8 pixels")):
        with pytest.raises(ValueError, match=f"model.size = {size}: .* {message}"):
            Policy.load(tiny_sd3, size=size)


def test_flux_takes_its_weight_as_an_input_or_not_at_all(
    tiny_flux_dev: Path, tiny_flux_schnell: Path
) -> None:
    dev, schnell = load(tiny_flux_dev), load(tiny_flux_schnell)
    assert dev.takes_weight and not schnell.takes_weight
    with pytest.raises(ValueError, match="takes its guidance weight as an input: use .*embedded"):
        roll(dev, Sampler(ODE(), 2, CFG(4.0)))
    with pytest.raises(ValueError, match="no input for a guidance weight"):
        roll(schnell, Sampler(ODE(), 2, EmbeddedGuidance(4.0)))


def test_schnell_reads_fewer_words_than_dev() -> None:
    for dev, tokens in ((True, 512), (False, 256)):
        pipe = build_flux(dev)
        pipe.tokenizer_2.model_max_length = 1000
        assert load(pipe).encode(PROMPTS)["text"].shape[1] == tokens


def test_qwen_image_needs_two_steps(tiny_qwen_image: Path) -> None:
    with pytest.raises(ValueError, match="sampler.steps must be at least 2 for this model"):
        roll(load(tiny_qwen_image), Sampler(ODE(), 1, NoGuidance()))


def test_qwen_image_does_not_depend_on_the_padding_of_other_prompts(tiny_qwen_image: Path) -> None:
    policy = load(tiny_qwen_image)
    x, t = policy.noise(2, generator()), torch.tensor([0.7, 0.7], dtype=torch.float64)
    cond = policy.encode([Prompt("a cat"), Prompt("two dogs in a field at night")])
    first = {name: value[:1] for name, value in cond.items()}
    alone = policy.predict(x[:1], t[:1], first, NoGuidance())
    together = policy.predict(x, t, cond, NoGuidance())
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-5)
    assert (together[1:] - alone).abs().max() > 1e-3


def write_lora(model: Path, file: Path, names: Callable[[str], str] = str) -> dict[str, Tensor]:
    """Write random layers of the transformer, and of what else diffusers loads layers for."""
    pipe = stock(model)
    draw = generator(5)
    tensors = {}

    for part in pipe._lora_loadable_modules:
        for name, layer in getattr(pipe, part).named_modules():
            if name.endswith(("to_q", "to_k", "to_v", "to_out.0", ".q_proj")):
                prefix = names(f"{part}.{name}")
                down = torch.randn(4, layer.in_features, generator=draw)
                up = torch.randn(layer.out_features, 4, generator=draw)
                tensors |= {f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up * 0.3}

    file.parent.mkdir(exist_ok=True)
    save_file(tensors, file)
    return tensors


@pytest.mark.parametrize("key", ["adapter", "fused_lora"])
def test_a_lora_with_text_layers_counts_as_a_whole(model: Path, key: str, tmp_path: Path) -> None:
    file = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    tensors = write_lora(model, file)
    policy = load(model, **{key: file})
    traj = roll(policy, Sampler(ODE(), 2, guided(model, 4.0)))
    expected = latents(model, stock(model, file.parent), 4.0, 2)
    torch.testing.assert_close(traj.latent, expected, rtol=0, atol=5e-5)

    if key == "adapter":
        policy.save_adapter(tmp_path / "again")
        again = load_file(tmp_path / "again" / "pytorch_lora_weights.safetensors")
        assert len(again) == len(tensors)
        expected = latents(model, stock(model, tmp_path / "again"), 4.0, 2)
        torch.testing.assert_close(traj.latent, expected, rtol=0, atol=1e-5)


def test_comfyuis_prefix_of_a_lora_is_known(tiny_qwen_image: Path, tmp_path: Path) -> None:
    write_lora(tiny_qwen_image, tmp_path / "a" / "a.safetensors")
    write_lora(
        tiny_qwen_image,
        tmp_path / "b" / "b.safetensors",
        lambda name: name.replace("transformer.", "diffusion_model."),
    )
    plain = load(tiny_qwen_image, adapter=tmp_path / "a").state()
    comfy = load(tiny_qwen_image, adapter=tmp_path / "b").state()
    torch.testing.assert_close(comfy, plain)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("lora_unet_double_blocks_0_nothing", "diffusers knows no layer lora_unet_double_bl"),
        ("text_encoder_2.encoder.block.0.layer.0.SelfAttention.q", "belongs to the text_encoder_2"),
        ("double_blocks.0.img_attn.proj", "no layer transformer.double_blocks.0.img_attn.proj"),
    ],
)
def test_a_lora_that_is_not_read_is_refused(
    tiny_flux_dev: Path, layer: str, message: str, tmp_path: Path
) -> None:
    ends = ("lora_down", "lora_up") if layer.startswith("lora_") else ("lora_A", "lora_B")
    tensors = {
        f"{layer}.{ends[0]}.weight": torch.zeros(4, 12),
        f"{layer}.{ends[1]}.weight": torch.zeros(8, 4),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=message):
        load(tiny_flux_dev, fused_lora=tmp_path / "a.safetensors")


def test_all_text_encoders_get_a_token_for_an_identifier() -> None:
    pipe = build_sd3()
    identifiers.add_tokens(pipe, rewards=2)
    for number in ("", "_2", "_3"):
        tokenizer = getattr(pipe, f"tokenizer{number}")
        table = getattr(pipe, f"text_encoder{number}").get_input_embeddings().weight
        tokens = tokenizer.convert_tokens_to_ids([identifiers.identifier(i) for i in range(2)])
        assert min(tokens) >= tokenizer.vocab_size and max(tokens) < len(table)


def test_a_model_is_drawn_without_noise(model: Path) -> None:
    policy, sampler = open_source(str(model))
    assert sampler.kernel == ODE() and sampler.steps == 28
    config = dict(policy.pipe.transformer.config)
    policy.resize(32)
    assert dict(policy.pipe.transformer.config) == config
    drawn = sampler.images(policy, PROMPTS[:1], generator())
    assert drawn.shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("recipe", "model"),
    [
        ("sd35-pickscore-ram", "tiny_sd3"),
        ("klein-pickscore-ram", "tiny_klein"),
        ("zimage-pickscore-ram", "tiny_z_image"),
    ],
)
def test_a_recipe_of_first_choice_learns_on_a_tiny_model(
    recipe: str, model: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    changes = [
        "iterations=2",
        f"model.id={request.getfixturevalue(model)}",
        "model.size=32",
        "model.device=cpu",
        "sampler.steps=3",
        'rewards=[{use="compressibility"}]',
        "batch.prompts=2",
        "batch.images_per_prompt=2",
        "evaluation.images_per_prompt=0",
        "run.sample_every=0",
    ]
    run = Run(train(configuration.load(recipe, changes), tmp_path / "run", progress=False))
    records = run.records()
    assert len(records) == 2 and all(record["grad_norm"] > 0 for record in records)
    assert records[1]["kl"] > 0, "the anchor is the untrained model"
