"""Checkpoints in a single file, as the first programs of Stable Diffusion wrote them.

Such a file has weights only. Classes, sizes, tokenizers and the scheduler come from a folder in
diffusers' format (`model.config`), and so do the weights of parts that the file lacks.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from burnish import pretrained
from burnish.diffusion.weight_files import check_is_no_pickle
from burnish.errors import first_line

CONFIGURATIONS = ["*.json", "*/*.json", "*.txt", "*/*.txt", "*/*.model"]
"""The files of a model on the hub that have no weights."""


def find_single_file(model: str, revision: str | None = None) -> Path | None:
    """Return the checkpoint that a model's name stands for; None if it is no single file.

    Args:
        model: a file, or OWNER/NAME/FILE.safetensors of the hub.
        revision: of the hub.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a pickle, or the hub does not give it.
    """
    check_is_no_pickle(model, "model.id")
    place = Path(model).expanduser()
    if place.is_dir() or not model.endswith(".safetensors"):
        return None
    if place.is_file():
        return place

    inside = re.fullmatch(r"([\w-][\w.-]*/[\w.-]+)/(.+)", model)
    if inside is None or pretrained.looks_like_a_path(inside[1]):
        raise FileNotFoundError(f"model.id: {model} does not exist")

    repository, name = inside.groups()
    cached, _ = pretrained.ask_hub(repository, "model.id", name, revision)
    if cached is not None:
        return cached / Path(name).name

    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except Exception as error:  # network, authorisation, no such file
        raise pretrained.hub_error(error, repository, "model.id", revision) from error


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
    guessed = config or _usual_model(file)
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
    kind: Any, file: Path, folder: Path, dtype: torch.dtype, settings: dict[str, Any]
) -> Any:
    """Return the pipeline of a checkpoint.

    Args:
        kind: the pipeline's class.
        file: the checkpoint.
        folder: its configuration.
        dtype: the precision of its parts.
        settings: for the class.

    Raises:
        ValueError: the checkpoint is damaged, lacks a part, or is of another model.
    """
    try:
        pipe = kind.from_single_file(
            str(file), config=str(folder), torch_dtype=dtype, local_files_only=True, **settings
        )
        _check_weights(pipe)
    except Exception as error:  # a damaged file makes the libraries below raise anything
        raise ValueError(
            f"the checkpoint {file} cannot be loaded as a {kind.__name__} with the configuration "
            f"in {folder}: {first_line(error)}"
        ) from error

    return pipe


def _check_weights(pipe: Any) -> None:
    """Raise ValueError for a weight that the file lacks or that is not finite."""
    for part, network in pipe.components.items():
        if not isinstance(network, nn.Module):
            continue
        for name, value in network.named_parameters():
            if value.is_meta:
                raise ValueError(f"it lacks the weight {name} of its {part}")
            if not value.isfinite().all():
                raise ValueError(f"the weight {name} of its {part} is not finite")


def _usual_model(file: Path) -> str:
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
