"""A pipeline without weights: the classes and shapes that a model's configuration files name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from burnish import pretrained
from burnish.diffusion.families import family_of
from burnish.diffusion.loading import network_classes, read_index
from burnish.diffusion.single_file import configuration_of, configurations, find_single_file
from burnish.errors import first_line


def load_skeleton(model: str, revision: str | None = None, config: str = "") -> Any:
    """Return what a LoRA of a model is read with: the parts that may have one, on torch's "meta".

    Of the hub only configuration files are fetched. The type has the name of the pipeline's class.

    Args:
        model: `zoo:NAME`, a folder, a hub id or a single file.
        revision: of the hub.
        config: of a single file: the model whose configuration it has.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: it is of an unsupported kind, or a configuration cannot be read.
    """
    file = find_single_file(model, revision)
    if file is not None:
        folder = configuration_of(file, config)
    else:
        found = pretrained.find(model, "model.id", file="model_index.json", revision=revision)
        folder = found if isinstance(found, Path) else configurations(found, "model.id", revision)

    index = read_index(folder)
    name = index.get("_class_name", "(unnamed)")
    family_of(name)

    import diffusers

    kind = getattr(diffusers, name)
    classes = network_classes(index)
    parts = {}

    for part in kind._lora_loadable_modules:
        if part in classes:
            try:
                parts[part] = _blank_part(classes[part], folder / part)
            except Exception as error:  # a damaged file makes the libraries below raise anything
                raise ValueError(
                    f"the configuration in {folder / part} cannot be read: {first_line(error)}"
                ) from error

    return type(name, (SimpleNamespace,), {})(
        components=parts,
        lora_state_dict=kind.lora_state_dict,
        _lora_loadable_modules=kind._lora_loadable_modules,
        **parts,
    )


def _blank_part(kind: Any, folder: Path) -> Any:
    """Return a network of diffusers or transformers without weights."""
    with torch.device("meta"):
        if hasattr(kind, "load_config"):
            return kind.from_config(kind.load_config(folder))
        return kind._from_config(kind.config_class.from_pretrained(folder))
