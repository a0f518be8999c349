"""Models as people have them: single files, half-precision variants, subfolders, other parts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import alike, build_pipeline, build_sdxl, generator
from diffusers import AutoencoderKL, DiffusionPipeline
from huggingface_hub import constants
from ldm import single_file
from safetensors.torch import load_file, save_file
from tiny_flow_models import build_sd3
from torch import Tensor

from burnish.cli import main
from burnish.config import load, parse
from burnish.diffusion.guidance import NoGuidance
from burnish.diffusion.policy import Policy
from burnish.references import rebased
from burnish.tools.gallery import open_source
from burnish.types import Prompt

CATS = [Prompt("a cat")]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return build_pipeline()


@pytest.fixture(scope="module")
def folder(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder. Shared: do not write into it."""
    path = tmp_path_factory.mktemp("model")
    pipe.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def checkpoint(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a single file."""
    path = tmp_path_factory.mktemp("file") / "mine.safetensors"
    save_file(single_file(pipe), path)
    return path


@pytest.fixture
def configuration(folder: Path, tmp_path: Path) -> Path:
    """The model's folder without weights."""
    path = shutil.copytree(folder, tmp_path / "config")
    for weights in path.rglob("*.safetensors"):
        weights.unlink()
    return path


def predict(policy: Policy, text: str = "a cat") -> Tensor:
    x = torch.randn(1, *policy.latent_shape, generator=generator())
    cond = policy.encode([Prompt(text)])
    with torch.no_grad():
        return policy.predict(x, torch.tensor([500]), cond, NoGuidance())


def bare(source: Any, **settings: Any) -> Policy:
    return Policy.load(source, train="none", device="cpu", **settings)


# A single file ----------------------------------------------------------------------------------


def test_a_single_file_is_the_model_of_its_folder(
    checkpoint: Path, configuration: Path, folder: Path
) -> None:
    policy = bare(checkpoint, config=str(configuration))
    assert alike(predict(policy), predict(bare(folder)))
    latent = torch.randn(1, 4, 8, 8, generator=generator())
    assert alike(policy.decode(latent), bare(folder).decode(latent))

    half = Policy.load(checkpoint, config=str(configuration), dtype="bfloat16", train="full")
    assert half.pipe.vae.dtype == torch.bfloat16 and half.trainable[0].dtype == torch.float32


def test_a_run_of_a_single_file_is_trained_and_exported(
    checkpoint: Path, configuration: Path, tmp_path: Path
) -> None:
    from burnish.runs import Run
    from burnish.tools.export import export_run
    from burnish.training.loop import train

    tree = {
        "iterations": 1,
        "model": {"id": str(checkpoint), "config": str(configuration), "device": "cpu"},
        "sampler": {"steps": 1, "guidance": {"use": "none"}},
        "prompts": ["a cat"],
        "rewards": [{"use": "compressibility"}],
        "batch": {"prompts": 1, "images_per_prompt": 2, "minibatches": 1},
        "evaluation": {"images_per_prompt": 0},
        "run": {"sample_every": 0, "thumbnails": 0},
    }
    run = Run(train(parse(tree), tmp_path / "run", progress=False))
    assert (export_run(run, "kohya") / "run.safetensors").is_file()
    assert "mine.safetensors" in (run.folder / "exports/kohya/README.md").read_text("utf-8")


def without(tensors: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    if how == "a weight":
        name = "model.diffusion_model.time_embed.0.weight"
        return {key: value for key, value in tensors.items() if key != name}
    if how == "the autoencoder":
        return {key: v for key, v in tensors.items() if not key.startswith("first_stage")}
    name = "model.diffusion_model.out.2.bias"
    return {**tensors, name: torch.full_like(tensors[name], torch.nan)}


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("a weight", r"part.safetensors cannot be loaded as a Stable"),
        (
            "the autoencoder",
            r"part.safetensors has no weights of the model's vae: set model.con",
        ),
        ("a number", r"part.safetensors cannot be loaded as a Stable"),
    ],
)
def test_a_file_that_is_not_whole(
    checkpoint: Path, configuration: Path, tmp_path: Path, how: str, words: str
) -> None:
    save_file(without(load_file(checkpoint), how), tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=words) as error:
        bare(tmp_path / "part.safetensors", config=str(configuration))
    assert "\n" not in str(error.value)


def test_what_is_no_checkpoint(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "old.ckpt").write_bytes(b"x")
    (tmp_path / "bad.safetensors").write_bytes(b"x")
    cases: list[tuple[str, str, type[Exception], str]] = [
        ("old.ckpt", "", ValueError, "old.ckpt is a pickle, which can run code when it is read"),
        ("bad.safetensors", "", ValueError, "bad.safetensors cannot be read"),
        ("bad.safetensors", str(folder), ValueError, "bad.safetensors cannot be read"),
        ("none.safetensors", "", FileNotFoundError, "none.safetensors does not exist"),
        (str(folder), str(folder), ValueError, "model.config is for checkpoints in a single file"),
    ]
    for name, config, kind, words in cases:
        with pytest.raises(kind, match=words):
            bare(tmp_path / name, config=config)


def test_sample_reads_the_configuration_that_a_file_has(
    folder: Path, checkpoint: Path, configuration: Path, tmp_path: Path
) -> None:
    drawn = []
    for name, arguments in (
        ("file", [checkpoint, "--config", configuration]),
        ("folder", [folder]),
    ):
        out = tmp_path / f"{name}.png"
        options = ["--prompt", "a cat", "--n", 1, "--steps", 1, "--out", out]
        with pytest.raises(SystemExit) as ended:
            main([str(one) for one in ("sample", *arguments, *options)])
        assert not ended.value.code
        drawn.append(out.read_bytes())
    assert drawn[0] == drawn[1]

    (tmp_path / "config.toml").touch()
    with pytest.raises(ValueError, match=r"--config is for a model in a single file.* is a run"):
        open_source(str(tmp_path), model_config=str(configuration))


def test_a_file_without_a_configuration_says_what_it_looks_like(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"has weights only, and looks like .*: set model.config"):
        bare(checkpoint)


# Variants and subfolders ------------------------------------------------------------------------


def rename(folder: Path, parts: tuple[str, ...], variant: str) -> None:
    for part in parts:
        for file in list((folder / part).glob("*.safetensors")):
            file.rename(file.with_name(f"{file.stem}.{variant}.safetensors"))


@pytest.mark.parametrize("parts", [("unet", "vae", "text_encoder"), ("unet",)])
@pytest.mark.parametrize("wanted", ["", "fp16"])
def test_half_precision_files_alone_or_in_part(
    folder: Path, tmp_path: Path, parts: tuple[str, ...], wanted: str
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    rename(copy, parts, "fp16")
    assert alike(predict(bare(copy, variant=wanted or None)), predict(bare(folder)))


def test_the_variant_that_is_wanted_is_read(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    halved = {name: value / 2 for name, value in load_file(file).items()}
    save_file(halved, file.with_name("diffusion_pytorch_model.ema.safetensors"))

    assert alike(predict(bare(copy)), predict(bare(folder)))
    unet = bare(copy, variant="ema").pipe.unet
    assert torch.equal(unet.conv_in.weight, halved["conv_in.weight"])


def test_variants_that_leave_a_choice_are_named(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    shutil.copytree(copy / "unet", copy / "again")
    rename(copy, ("unet",), "fp16")
    rename(copy, ("again",), "bf16")
    for file in (copy / "again").glob("*.safetensors"):
        file.rename(copy / "unet" / file.name)
    shutil.rmtree(copy / "again")
    with pytest.raises(ValueError, match=r'variants bf16, fp16 .* model.variant = "bf16"'):
        bare(copy)


def test_a_controlnet_in_half_precision(
    folder: Path, tiny_controlnet: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_controlnet, tmp_path / "control")
    rename(tmp_path, ("control",), "fp16")
    policy = bare(folder, controlnet=str(copy))
    expected = bare(folder, controlnet=str(tiny_controlnet))
    ours, theirs = (p.pipe.controlnet.state_dict() for p in (policy, expected))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    for file in copy.glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    with pytest.raises(FileNotFoundError, match="has no weights .*; what it has are pickles"):
        bare(folder, controlnet=str(copy))


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_controlnet_in_a_subfolder_of_the_hub(
    folder: Path,
    tiny_controlnet: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variant: str | None,
) -> None:
    shutil.copytree(tiny_controlnet, tmp_path / "hub" / "v2")
    weights = f"v2/diffusion_pytorch_model.{'fp16.' if variant else ''}safetensors"
    if variant:
        rename(tmp_path / "hub", ("v2",), variant)
    files = ["README.md", "config.json", "v2/config.json", weights, "v2/old.fp32.safetensors"]
    fetched: list[list[str]] = []

    def download(repository: str, allow_patterns: list[str]) -> str:
        assert repository == "owner/name"
        fetched.append(allow_patterns)
        return str(tmp_path / "hub")

    monkeypatch.setattr("burnish.pretrained.ask_hub", lambda *arguments: (None, files))
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    policy = bare(folder, controlnet="owner/name/v2", variant=variant)

    assert policy.has_controlnet and fetched == [["v2/config.json", weights]]
    with pytest.raises(ValueError, match=r"owner/name has no network in v3; it has v2"):
        bare(folder, controlnet="owner/name/v3")


def test_what_is_relative_and_what_is_on_the_hub(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    new = tmp_path / "run"
    new.mkdir()
    for name, expected in (
        ("models/sd/unet", "../models/sd/unet"),
        ("owner/name/v2", "owner/name/v2"),
        ("owner/name/sub/a.safetensors", "owner/name/sub/a.safetensors"),
    ):
        assert rebased(name, tmp_path, new, hub=True) == expected


# Other parts ------------------------------------------------------------------------------------


def test_another_autoencoder(folder: Path, tmp_path: Path) -> None:
    other = AutoencoderKL.from_pretrained(folder / "vae")
    with torch.no_grad():
        other.decoder.conv_out.bias += 0.3
    other.save_pretrained(tmp_path / "vae")

    policy = bare(folder, vae=str(tmp_path / "vae"))
    latent = torch.randn(1, 4, 8, 8, generator=generator())
    with torch.no_grad():
        expected = other.decode(latent / other.config.scaling_factor).sample / 2 + 0.5
    assert torch.allclose(policy.decode(latent), expected.clamp(0, 1), atol=1e-5)

    build_sdxl().vae.save_pretrained(tmp_path / "sdxl")
    with pytest.raises(ValueError, match=r"model.vae: .* other latents: its scaling_factor is"):
        bare(folder, vae=str(tmp_path / "sdxl"))


def test_clip_skip_is_that_of_diffusers(tmp_path: Path) -> None:
    from conftest import build_sd2

    build_sd2().save_pretrained(tmp_path / "m")
    stock = DiffusionPipeline.from_pretrained(tmp_path / "m")
    tower = getattr(stock.text_encoder, "text_model", stock.text_encoder)
    tokens = stock.tokenizer("a cat", padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        layers = stock.text_encoder(tokens, output_hidden_states=True).hidden_states

    for skipped in (0, 1, 2):
        with torch.no_grad():  # as diffusers' encode_prompt with clip_skip
            expected = tower.final_layer_norm(layers[-(skipped + 1)])
        policy = bare(tmp_path / "m", clip_skip=skipped)
        assert torch.allclose(policy.encode(CATS)["text"], expected, atol=1e-6)

    with pytest.raises(ValueError, match="clip_skip = 3, but the text encoder has 3 layers"):
        bare(tmp_path / "m", clip_skip=3)
    with pytest.raises(ValueError, match="not for a StableDiffusionXLPipeline"):
        bare(build_sdxl(), clip_skip=1)


FAMILIES: dict[str, tuple[Callable[[], Any], int]] = {
    "sd": (build_pipeline, 4),
    "sdxl": (build_sdxl, 4),
    "sd3": (build_sd3, 4),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_images_wider_than_high(family: str) -> None:
    build, pixel = FAMILIES[family]
    policy = bare(build(), size=[64, 32])
    assert policy.latent_shape[1:] == (32 // pixel, 64 // pixel)
    assert policy.decode(torch.zeros(1, *policy.latent_shape)).shape == (1, 3, 32, 64)
    assert predict(policy).shape == (1, *policy.latent_shape)

    with pytest.raises(ValueError, match=r"model.size = \[64, 30\]: .* a multiple of"):
        policy.resize([64, 30])
    with pytest.raises(ValueError, match=r"give a number of pixels, or \[width, height\]"):
        policy.resize([1, 2, 3])


def test_wide_images_are_those_of_the_stock_pipeline(folder: Path) -> None:
    from burnish.diffusion.guidance import CFG
    from burnish.diffusion.kernels import DDIM
    from burnish.diffusion.sampler import Sampler

    policy = bare(folder, size=[64, 32])
    images = Sampler(DDIM(0.0), 3, CFG(3.0)).images(policy, CATS, generator())

    stock = DiffusionPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 16, generator=generator())
    expected = stock(
        ["a cat"],
        height=32,
        width=64,
        num_inference_steps=3,
        guidance_scale=3.0,
        latents=noise,
        output_type="pt",
    ).images
    assert torch.allclose(images, expected, atol=1e-4)


@pytest.mark.parametrize("size", ["[64]", "[64,0]", "-1", '"big"', "[1,2,3]"])
def test_a_size_that_is_none(size: str) -> None:
    with pytest.raises(ValueError, match="model.size"):
        load("demo", [f"model.size={size}"])
    assert load("demo", ["model.size=[64,32]"]).model.size == [64, 32]
