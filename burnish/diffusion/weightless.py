"""Pipelines without weights, on the meta device, made of configurations.

They come from the configurations of well-known models (`shapes`), from a folder, or from the hub's
cache on this machine; nothing is downloaded and no weight is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from burnish import pretrained
from burnish.diffusion.allocations import META, Allocations
from burnish.diffusion.families import family_of
from burnish.diffusion.family import CONTROLNET, Family
from burnish.diffusion.loading import network_classes, read_index, without_progress_bars
from burnish.diffusion.shapes import KNOWN, KNOWN_CLIP

NETWORK = "network"
TEXT = "text encoders"
DECODER = "decoder"


def weightless_pipeline(
    model: str,
    memory: Allocations,
    dtype: torch.dtype,
    network_dtype: torch.dtype,
    revision: str = "",
) -> Any:
    """Return a diffusers pipeline whose networks are on the meta device.

    Args:
        model: `zoo:NAME`, a folder or a hub id.
        memory: counts the networks, each for its purpose.
        dtype: the precision of its parts.
        network_dtype: of the network that is trained.
        revision: of the hub.

    Raises:
        FileNotFoundError, ValueError: there is no such model, or its configuration is not known.
    """
    folder = configuration_folder(model, "model.id", "model_index.json", revision)
    made = {}
    makers = _makers_known(model) if folder is None else _makers_in(folder)
    trained = _pipeline_family(model, folder).network

    for name, make in makers:
        with memory.purpose(purpose_of(name, trained)), META:
            made[name] = make()
            cast(made[name], network_dtype if name == trained else dtype)

    pipe = KNOWN[model].pipe(made) if folder is None else _pipe_in(folder, made)
    made.clear()  # an error in a library's import may keep this frame, and text encoders are to go
    return pipe


def purpose_of(name: str, network: str) -> str:
    """Return what the memory of a pipeline's part is for."""
    if name in (network, CONTROLNET):
        return NETWORK
    return TEXT if name.startswith(("text_encoder", "image_encoder")) else DECODER


def attach_weightless_controlnet(pipe: Any, memory: Allocations, dtype: torch.dtype) -> Any:
    """Return the pipeline with a ControlNet of the network's own size beside it.

    Raises:
        ValueError: the pipeline takes none.
    """
    import diffusers

    family = family_of(type(pipe).__name__)
    if not family.controlnet_pipeline:
        raise ValueError(f"model.controlnet: a {type(pipe).__name__} takes none here")

    with memory.purpose(NETWORK), META:
        controlnet = diffusers.ControlNetModel.from_unet(pipe.unet, load_weights_from_unet=False)
        cast(controlnet, dtype)

    kind = getattr(diffusers, family.controlnet_pipeline)
    keys = ("force_zeros_for_empty_prompt", "requires_safety_checker")
    settings = {key: pipe.config[key] for key in keys if key in pipe.config}
    return kind(**pipe.components, controlnet=controlnet, **settings)


def weightless_clip(model: str) -> Any:
    """Return a CLIPModel in float32 on the meta device, as rewards load it.

    Raises:
        FileNotFoundError, ValueError: there is no such model, or its configuration is not known.
    """
    from transformers import CLIPConfig, CLIPModel

    folder = configuration_folder(model, "model", "config.json")
    config = (
        CLIPConfig(**KNOWN_CLIP[model]) if folder is None else CLIPConfig.from_pretrained(folder)
    )
    with META:
        return CLIPModel(config).eval().requires_grad_(False)


def configuration_folder(model: str, key: str, file: str, revision: str = "") -> Path | None:
    """Return the folder with a model's configuration; None: it is one of the known.

    Args:
        model: `zoo:NAME`, a folder or a hub id.
        key: of the configuration that names it, for messages.
        file: that such a model has.
        revision: of the hub.

    Raises:
        FileNotFoundError, ValueError: it is neither on this machine nor known.
    """
    from huggingface_hub import try_to_load_from_cache

    is_id = not model.startswith("zoo:") and not Path(model).expanduser().exists()
    if not is_id or pretrained.looks_like_a_path(model):
        found: Path = pretrained.find(model, key, file=file)
        return found

    cached = try_to_load_from_cache(model, file, revision=revision or None)
    if isinstance(cached, str):
        return Path(cached).parent
    if model in KNOWN or model in KNOWN_CLIP:
        return None

    raise ValueError(
        f"{key}: memory is predicted from a model's configuration, and that of {model} is not on "
        f'this machine: fetch it by hf download {model} --include "*.json" "*.txt" "*.model"'
    )


def cast(network: nn.Module, dtype: torch.dtype) -> None:
    """Give a network's weights a precision, but for those that its library keeps in float32."""
    wide = getattr(network, "_keep_in_fp32_modules", None) or ()

    for path, module in network.named_modules():
        if dtype == torch.float16 and any(part in path.split(".") for part in wide):
            continue
        for weight in module.parameters(recurse=False):
            weight.data = weight.data.to(dtype)
        for name, value in module.named_buffers(recurse=False):
            if value.is_floating_point():
                setattr(module, name, value.to(dtype))  # not its data: it may be a view

    network.eval()


def assign_parts(memory: Allocations, pipe: Any, family: Family, texts: str = TEXT) -> None:
    """Count the pipeline's frozen weights again for what they are, after they were moved.

    Args:
        memory: that counts.
        pipe: the pipeline.
        family: its family.
        texts: what the memory of the text encoders counts as.
    """
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            frozen = (tensor for _, tensor in _named_tensors(part) if not tensor.requires_grad)
            purpose = purpose_of(name, family.network)
            memory.assign(frozen, texts if purpose == TEXT else purpose)


def _named_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()


def _pipeline_family(model: str, folder: Path | None) -> Family:
    if folder is None:
        return family_of(KNOWN[model].pipeline)
    return family_of(read_index(folder).get("_class_name", "(unnamed)"))


def _makers_known(model: str) -> list[tuple[str, Any]]:
    return [(name, part.make) for name, part in KNOWN[model].parts.items()]


def _makers_in(folder: Path) -> list[tuple[str, Any]]:
    """Return the networks of a folder by name, as functions that make them."""
    return [
        (name, lambda kind=kind, name=name: _network_in(folder / name, kind))
        for name, kind in network_classes(read_index(folder)).items()
    ]


def _network_in(folder: Path, kind: Any) -> nn.Module:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"the model folder {folder.parent} misses {folder.name}/config.json"
        )

    if hasattr(kind, "config_class"):  # of transformers
        made: nn.Module = kind(kind.config_class.from_pretrained(folder))
    else:
        made = kind.from_config(kind.load_config(folder))
    return made


def _pipe_in(folder: Path, made: dict[str, nn.Module]) -> Any:
    from diffusers import DiffusionPipeline

    index = read_index(folder)
    settings: dict[str, Any] = {
        name: None for name, value in index.items() if value == [None, None]
    }
    if "safety_checker" in index:
        settings |= {"safety_checker": None, "requires_safety_checker": False}
    with without_progress_bars():
        return DiffusionPipeline.from_pretrained(folder, **settings, **made)
