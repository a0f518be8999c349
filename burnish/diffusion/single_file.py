"""Models in a single file, as the first programs of each wrote them: checkpoints, and parts alone.

Such a file has weights only. Classes, sizes, tokenizers and the scheduler come from a folder in
diffusers' format (`model.config`), and so do the weights of parts that the file lacks. A file with
an autoencoder or a ControlNet alone is of the shape that the model beside it says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from burnish import pretrained
from burnish.diffusion.weight_files import check_is_no_pickle, find_network
from burnish.errors import first_line

CONFIGURATIONS = ["*.json", "*/*.json", "*.txt", "*/*.txt", "*/*.model"]
"""The files of a model on the hub that have no weights."""

T5 = "T5EncoderModel"
PREFIXES = {
    "vae": ("first_stage_model.", "vae."),
    "text_encoder": (
        "cond_stage_model.",
        "conditioner.embedders.0.",
        "text_encoders.clip_l.",
    ),
    "text_encoder_2": ("conditioner.embedders.1.", "text_encoders.clip_g."),
    T5: ("text_encoders.t5xxl.",),
}
"""Beginnings of the names that a checkpoint gives to a part's weights; T5 is no part's name."""

HINT_LAYERS = (
    ("controlnet_cond_embedding.conv_in", "controlnet_cond_embedding.blocks.{}", (1, 3, 5, 7, 9)),
    ("input_hint_block.0", "input_hint_block.{}", (4, 8, 12)),
)
"""The layers whose outputs are the widths of what a ControlNet makes of its image: by diffusers'
names, and by those of the first ControlNets, which have three beside the first."""


def find_single_file(model: str, revision: str | None = None, key: str = "model.id") -> Path | None:
    """Return the file that a model's name stands for; None if it is no single file.

    Args:
        model: a file, or OWNER/NAME/FILE.safetensors of the hub.
        revision: of the hub.
        key: what asks for it; begins the error message.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a pickle, or the hub does not give it.
    """
    check_is_no_pickle(model, key)
    place = Path(model).expanduser()
    if place.is_dir() or not model.endswith(".safetensors"):
        return None
    if place.is_file():
        return place

    inside = re.fullmatch(r"([\w-][\w.-]*/[\w.-]+)/(.+)", model)
    if inside is None or pretrained.looks_like_a_path(inside[1]):
        raise FileNotFoundError(f"{key}: {model} does not exist")

    repository, name = inside.groups()
    cached, _ = pretrained.ask_hub(repository, key, name, revision)
    if cached is not None:
        return cached / Path(name).name

    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except Exception as error:  # network, authorisation, no such file
        raise pretrained.hub_error(error, repository, key, revision) from error


def configuration_of(file: Path, config: str) -> Path:
    """Return a folder in diffusers' format that says what a checkpoint's weights are of.

    Args:
        file: the checkpoint.
        config: a folder, `zoo:NAME` or a hub id, of which only the files without weights are
            fetched; "": the model that diffusers takes the checkpoint for, from the hub.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the checkpoint is damaged, or the hub does not give the configuration.
    """
    guessed = config or usual_model(file)
    try:
        found = pretrained.find(guessed, "model.config", file="model_index.json")
        return found if isinstance(found, Path) else configurations(found, "model.config")
    except ValueError as error:
        if config:
            raise
        raise ValueError(
            f"model.id: {file} has weights only, and looks like {guessed}: set model.config to the "
            f"folder of such a model in diffusers' format ({first_line(error)})"
        ) from error


def load_single_file(
    kind: Any,
    file: Path,
    folder: Path,
    dtype: torch.dtype,
    settings: Mapping[str, Any],
    classes: Mapping[str, Any],
) -> Any:
    """Return the pipeline of a checkpoint.

    Args:
        kind: the pipeline's class.
        file: the checkpoint.
        folder: its configuration.
        dtype: the precision of its parts.
        settings: for the class, with parts that the checkpoint lacks.
        classes: of the parts that the checkpoint has, by name.

    Raises:
        ValueError: the checkpoint is damaged, lacks a part, or is of another model.
    """
    try:
        reading = {"config": str(folder), "torch_dtype": dtype, "local_files_only": True}
        together = hasattr(kind, "from_single_file")
        # the autoencoder always alone: in diffusers' hands Z-Image's network takes the rest of the
        # checkpoint with it
        alone = [part for part in classes if part == "vae" or not together]
        read = {
            part: classes[part].from_single_file(str(file), subfolder=part, **reading)
            for part in alone
        }

        if together:
            pipe = kind.from_single_file(str(file), **reading, **settings, **read)
        else:
            pipe = kind.from_pretrained(folder, **settings, **read)
        for part, network in pipe.components.items():
            if isinstance(network, nn.Module):
                _tie_weights(network)
                _check_weights(network, part)
    except Exception as error:  # a damaged file makes the libraries below raise anything
        raise ValueError(
            f"the checkpoint {file} cannot be loaded as a {kind.__name__} with the configuration "
            f"in {folder}: {first_line(error)}"
        ) from error

    return pipe


def missing_parts(file: Path, classes: Mapping[str, Any]) -> list[str]:
    """Return the parts of a pipeline, other than its network, of which a checkpoint has no weights.

    Args:
        file: the checkpoint.
        classes: of the pipeline's parts, by name.

    Raises:
        ValueError: the file cannot be read.
    """
    names = _shapes(file, "model.id")
    found = []

    for part, kind in classes.items():
        key = T5 if kind.__name__ == T5 else part
        known = key in PREFIXES or part.startswith("text_encoder")
        if known and not any(name.startswith(PREFIXES.get(key, ())) for name in names):
            found.append(part)
    return found


def find_missing_part(
    file: Path, part: str, folder: Path, config: str, variant: str | None
) -> tuple[Path, str | None]:
    """Return the folder with the weights of a part that a checkpoint lacks, and their variant.

    Args:
        file: the checkpoint.
        part: such as "text_encoder_2".
        folder: the checkpoint's configuration.
        config: `model.config`; a hub id's weights are fetched, of this part only.
        variant: of the weight files that is wanted.

    Raises:
        ValueError: there are none.
    """
    place = folder / part
    try:
        if not any(place.glob("*.safetensors")) and not config.startswith("zoo:"):
            config = config or usual_model(file)
            if not Path(config).expanduser().exists():
                return find_network(f"{config}/{part}", "model.config", variant)
        return find_network(str(place), "model.config", variant)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.id: {file} has no weights of the model's {part}: set model.config to a whole "
            f"model in diffusers' format, which has some ({first_line(error)})"
        ) from error


def load_network_file(
    kind: Any, file: Path, config: Mapping[str, Any], part: str, dtype: torch.dtype
) -> Any:
    """Return a network that a file has alone, or among others, by any names that diffusers knows.

    Args:
        kind: the network's class.
        file: with its weights.
        config: its configuration, which the file does not have.
        part: of a pipeline that it is, for messages.
        dtype: its precision.

    Raises:
        ValueError: the file is damaged, lacks a weight, or is of another network.
    """
    try:
        with TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(dict(config)), "utf-8")
            network = kind.from_single_file(
                str(file), config=folder, torch_dtype=dtype, local_files_only=True
            )
        _check_weights(network, part)
    except Exception as error:  # a damaged file makes the libraries below raise anything
        raise ValueError(
            f"the {part} in {file} cannot be read as one that fits the model: {first_line(error)}"
        ) from error

    return network


def controlnet_config(file: Path, unet: Any) -> Mapping[str, Any]:
    """Return the configuration of the ControlNet in a file, which is for a UNet.

    Raises:
        ValueError: the file cannot be read, or has no ControlNet.
    """
    from diffusers import ControlNetModel

    shapes = {
        name.removeprefix("control_model."): shape
        for name, shape in _shapes(file, "model.controlnet").items()
    }
    for first, others, numbers in HINT_LAYERS:
        layers = [first, *(others.format(number) for number in numbers)]
        widths = [shapes[name][0] for layer in layers if (name := f"{layer}.weight") in shapes]
        if f"{first}.weight" in shapes:
            with torch.device("meta"):
                blank = ControlNetModel.from_unet(
                    unet, "rgb", tuple(widths), load_weights_from_unet=False
                )
            config: Mapping[str, Any] = blank.config
            return config

    raise ValueError(
        f"model.controlnet: {file} has no layers that read a control image, so it is no ControlNet "
        "that diffusers knows"
    )


def _shapes(file: Path, key: str) -> dict[str, list[int]]:
    """Return the shapes of a file's tensors by name."""
    from safetensors import safe_open

    try:
        with safe_open(file, "pt") as opened:
            names = opened.keys()
            return {name: opened.get_slice(name).get_shape() for name in names}
    except Exception as error:  # whatever the library makes of a damaged header
        raise ValueError(f"{key}: {file} cannot be read: {first_line(error)}") from error


def _tie_weights(network: nn.Module) -> None:
    """Give a weight that a network has twice, and a file once, to both places, as T5's words."""
    if any(value.is_meta for value in network.parameters()) and hasattr(network, "tie_weights"):
        network.tie_weights()  # type: ignore[operator]


def _check_weights(network: nn.Module, part: str) -> None:
    """Raise ValueError for a weight that the file lacks or that is not finite."""
    for name, value in network.named_parameters():
        if value.is_meta:
            raise ValueError(f"it lacks the weight {name} of its {part}")
        if not value.isfinite().all():
            raise ValueError(f"the weight {name} of its {part} is not finite")


def usual_model(file: Path) -> str:
    """Return the hub's model whose configuration diffusers would take for a checkpoint."""
    from diffusers.loaders.single_file_utils import (
        fetch_diffusers_config,
        load_single_file_checkpoint,
    )

    try:
        checkpoint = load_single_file_checkpoint(str(file))
        return str(fetch_diffusers_config(checkpoint)["pretrained_model_name_or_path"])
    except Exception as error:
        raise ValueError(f"model.id: {file} cannot be read: {first_line(error)}") from error


def configurations(model: str, key: str, revision: str | None = None) -> Path:
    """Return the folder in the hub's cache with a model's files without weights.

    Raises:
        ValueError: the hub does not give it.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=CONFIGURATIONS))
    except Exception as error:  # network, authorisation, disk: each library has its own
        raise pretrained.hub_error(error, model, key, revision) from error
