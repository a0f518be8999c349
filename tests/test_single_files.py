"""Single files by the names of each model's first program, against the folders they came from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import alike, build_controlnet, build_pipeline, build_sdxl, build_z_image, generator
from diffusers import ControlNetModel
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from ldm import (
    controlnet_file,
    flux_file,
    klein_network,
    sd3_file,
    sdxl_file,
    single_file,
    vae,
    z_image_file,
)
from safetensors.torch import save_file
from tiny_flow_models import build_flux, build_qwen_image, build_sd3
from tiny_klein_sana import build_klein
from torch import Tensor

from burnish.diffusion.guidance import NoGuidance
from burnish.diffusion.policy import Policy
from burnish.types import Prompt

FLUX_WIDTH = 3072
"""The width of FLUX.1, which diffusers does not read from the file or its configuration."""


def sd3() -> Any:
    pipe = build_sd3()
    with torch.no_grad():  # as it is in every Stable Diffusion 3
        pipe.text_encoder.text_projection.weight.copy_(torch.eye(8))
    return pipe


MODELS: dict[str, tuple[Callable[[], Any], Callable[[Any], dict[str, Tensor]]]] = {
    "sdxl": (build_sdxl, sdxl_file),
    "sd3": (sd3, sd3_file),
    "flux": (lambda: build_flux(dev=False), flux_file),
}


@pytest.fixture
def tiny_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let diffusers read a FLUX.1 as wide as the tiny one."""
    code = convert_flux_transformer_checkpoint_to_diffusers.__code__
    assert FLUX_WIDTH in code.co_consts
    constants = tuple(16 if one == FLUX_WIDTH else one for one in code.co_consts)
    monkeypatch.setattr(
        convert_flux_transformer_checkpoint_to_diffusers,
        "__code__",
        code.replace(co_consts=constants),
    )


def bare(source: Any, **settings: Any) -> Policy:
    return Policy.load(source, train="none", device="cpu", **settings)


def outputs(policy: Policy) -> list[Tensor]:
    """Return what the text encoders, the network and the decoder make of one prompt and latent."""
    x = torch.randn(1, *policy.latent_shape, generator=generator())
    time = torch.tensor([500 if policy.schedule.variance_preserving else 0.5])
    cond = policy.encode([Prompt("a cat")])
    with torch.no_grad():
        predicted = policy.predict(x, time, cond, NoGuidance())
        return [*cond.values(), predicted, policy.decode(x)]


def same(first: Policy, second: Policy) -> bool:
    pairs = zip(outputs(first), outputs(second), strict=True)
    return all(alike(*pair) for pair in pairs)


def without_weights(folder: Path) -> Path:
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    return folder


@pytest.mark.usefixtures("tiny_width")
@pytest.mark.parametrize("name", MODELS)
def test_a_file_with_all_parts_is_the_model_of_its_folder(name: str, tmp_path: Path) -> None:
    build, written = MODELS[name]
    pipe = build()
    pipe.save_pretrained(tmp_path / "whole")
    config = without_weights(shutil.copytree(tmp_path / "whole", tmp_path / "config"))
    save_file(written(pipe), tmp_path / "all.safetensors")

    policy = bare(tmp_path / "all.safetensors", config=str(config))
    assert same(policy, bare(tmp_path / "whole"))


@pytest.mark.usefixtures("tiny_width")
@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_a_file_with_the_network_alone_takes_the_rest_from_the_configuration(
    name: str, tmp_path: Path
) -> None:
    build, written = MODELS[name]
    pipe = build()
    whole = tmp_path / "whole"
    pipe.save_pretrained(whole)
    prefix = "model.diffusion_model."
    network = {n: v for n, v in written(pipe).items() if n.startswith(prefix)}
    file = tmp_path / "network.safetensors"
    save_file({n.removeprefix(prefix): v + 0.01 for n, v in network.items()}, file)

    *texts, predicted, decoded = outputs(bare(file, config=str(whole)))
    *theirs, other, expected = outputs(bare(whole))
    assert all(alike(*pair) for pair in zip(texts, theirs, strict=True))
    assert alike(decoded, expected) and not alike(predicted, other)

    for weights in (whole / "vae").glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(ValueError, match=r"has no weights of the model's vae: set model.config"):
        bare(file, config=str(whole))


OF_OTHERS: dict[str, tuple[Callable[[], Any], Callable[[Any], dict[str, Tensor]]]] = {
    "klein": (build_klein, lambda pipe: klein_network(pipe.transformer)),
    "qwen_image": (build_qwen_image, lambda pipe: pipe.transformer.state_dict()),
    "z_image": (build_z_image, z_image_file),
}


@pytest.mark.parametrize("name", OF_OTHERS)
def test_files_without_the_text_encoders_that_diffusers_does_not_read_from_them(
    name: str, tmp_path: Path
) -> None:
    build, written = OF_OTHERS[name]
    pipe = build()
    whole = tmp_path / "whole"
    pipe.save_pretrained(whole)
    file = tmp_path / "file.safetensors"
    save_file(written(pipe), file)
    expected = outputs(bare(whole))

    for weights in (whole / "transformer").glob("*.safetensors"):
        weights.unlink()
    found = outputs(bare(file, config=str(whole)))
    assert all(alike(*pair) for pair in zip(found, expected, strict=True))


def test_what_a_file_lacks_is_fetched_part_by_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = build_pipeline()
    pipe.save_pretrained(tmp_path / "whole")
    config = without_weights(shutil.copytree(tmp_path / "whole", tmp_path / "config"))
    whole = single_file(pipe)
    save_file(
        {name: value for name, value in whole.items() if not name.startswith("first_stage_model")},
        tmp_path / "part.safetensors",
    )
    fetched: list[tuple[str, str, str | None]] = []

    def find_network(source: str, key: str, variant: str | None) -> tuple[Path, None]:
        fetched.append((source, key, variant))
        return tmp_path / "whole" / "vae", None

    single = "burnish.diffusion.single_file"
    monkeypatch.setattr(f"{single}.pretrained.find", lambda name, key, file: name)
    monkeypatch.setattr(f"{single}.configurations", lambda name, key: config)
    monkeypatch.setattr(f"{single}.find_network", find_network)
    policy = bare(tmp_path / "part.safetensors", config="owner/name")

    monkeypatch.undo()
    assert fetched == [("owner/name/vae", "model.config", None)]
    assert same(policy, bare(tmp_path / "whole"))


@pytest.mark.parametrize("names", ["first", "whole checkpoint", "diffusers"])
def test_an_autoencoder_in_a_file(names: str, tmp_path: Path) -> None:
    pipe = build_pipeline()
    other = build_sdxl()
    with torch.no_grad():
        other.vae.decoder.conv_out.bias += 0.3
    written = {
        "first": lambda: vae(other),
        "whole checkpoint": lambda: sdxl_file(other),
        "diffusers": other.vae.state_dict,
    }[names]()
    save_file({name: v.contiguous() for name, v in written.items()}, tmp_path / "vae.safetensors")

    policy = bare(pipe, vae=str(tmp_path / "vae.safetensors"))
    ours, theirs = policy.pipe.vae.state_dict(), other.vae.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert policy.pipe.vae.config.scaling_factor == 0.18215  # the model's own: the file has none


def test_a_file_of_another_autoencoder_is_refused(tmp_path: Path) -> None:
    save_file(vae(build_sd3()), tmp_path / "vae.safetensors")
    with pytest.raises(ValueError, match=r"vae in .*vae.safetensors cannot be read as one that"):
        bare(build_pipeline(), vae=str(tmp_path / "vae.safetensors"))
    with pytest.raises(FileNotFoundError, match="model.vae: .*none.safetensors does not exist"):
        bare(build_pipeline(), vae=str(tmp_path / "none.safetensors"))


@pytest.mark.parametrize("names", ["first", "diffusers"])
def test_a_controlnet_in_a_file(names: str, tmp_path: Path) -> None:
    pipe = build_pipeline()
    if names == "first":  # its programs know images eight times as large as latents only
        pipe.vae_scale_factor = 8
        net = ControlNetModel.from_unet(
            pipe.unet, "rgb", (4, 4, 8, 8), load_weights_from_unet=False
        )
        written = controlnet_file(net)
    else:
        net = build_controlnet(pipe)
        written = net.state_dict()
    save_file(written, tmp_path / "control.safetensors")

    policy = bare(pipe, controlnet=str(tmp_path / "control.safetensors"))
    ours, theirs = policy.pipe.controlnet.state_dict(), net.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_file_that_is_no_controlnet_is_refused(tmp_path: Path) -> None:
    save_file(vae(build_pipeline()), tmp_path / "vae.safetensors")
    with pytest.raises(ValueError, match="model.controlnet: .* so it is no ControlNet that"):
        bare(build_pipeline(), controlnet=str(tmp_path / "vae.safetensors"))

    net = build_controlnet(build_sdxl())
    save_file(net.state_dict(), tmp_path / "sdxl.safetensors")
    with pytest.raises(ValueError, match="controlnet in .* cannot be read as one that fits"):
        bare(build_pipeline(), controlnet=str(tmp_path / "sdxl.safetensors"))
