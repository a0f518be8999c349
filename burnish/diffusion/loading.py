"""Loading: a complete diffusers pipeline of a known family.

It comes from the zoo, a folder, the hub or memory. A ControlNet can be put beside it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from burnish import pretrained
from burnish.annotations import DeviceName, complaint, shown
from burnish.diffusion.families import FAMILIES, family_of
from burnish.diffusion.family import CONTROLNET, Family
from burnish.diffusion.single_file import (
    configuration_of,
    controlnet_config,
    find_missing_part,
    find_single_file,
    load_network_file,
    load_single_file,
    missing_parts,
)
from burnish.diffusion.weight_files import choose_variant, find_network, folder_variant
from burnish.errors import first_line

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

LIBRARIES = (None, "diffusers", "transformers", "stable_diffusion")
"""Where the classes of a pipeline's parts may come from; the last is of old safety checkers."""

REQUIRED_FILES = {
    "scheduler": "scheduler_config.json",
    "feature_extractor": "preprocessor_config.json",
    "tokenizer": "tokenizer.json vocab.json spiece.model",
    "tokenizer_2": "tokenizer.json vocab.json spiece.model",
    "tokenizer_3": "tokenizer.json vocab.json spiece.model",
}
"""Parts without weights, and the files of which each needs one."""

UNUSED_TENSORS = (
    rf"{pretrained.COMPUTED}|^(vision_model|visual_projection|text_projection|logit_scale)"
)
"""Tensors that a pipeline's part may have beside its own: of CLIP, if it is its text tower."""


def choose_device(name: str | torch.device, where: str = "model.device") -> torch.device:
    """Return the device; for "auto" this process's GPU (torchrun numbers them), or the CPU.

    Args:
        name: as torch writes it, or "auto".
        where: it is configured, for messages.

    Raises:
        ValueError: it is no device, or this machine does not have it.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("cpu")

    if isinstance(name, str) and (wrong := complaint(name, DeviceName, where)):
        raise ValueError(wrong)

    device = torch.device(name)
    if missing := _missing_device(device):
        raise ValueError(f'{where} = "{name}", but {missing}; set it to "auto" or "cpu"')
    return device


def present_device(name: str) -> str:
    """Return the device's name, or "auto" with a warning if this machine does not have it."""
    missing = "" if name == "auto" else _missing_device(torch.device(name))
    if not missing:
        return name

    warnings.warn(f'model.device = "{name}", but {missing}; "auto" is taken', stacklevel=3)
    return "auto"


def _missing_device(device: torch.device) -> str:
    """Return why this machine does not have a device; "" if it has."""
    if device.type == "mps" and not torch.backends.mps.is_available():
        return "this machine has no Apple GPU that PyTorch can use"
    if device.type != "cuda":
        return ""
    if not torch.cuda.is_available():
        build = (
            "" if torch.backends.cuda.is_built() else f" (torch {torch.__version__} has no CUDA)"
        )
        return f"PyTorch finds no CUDA device here{build}"

    count = torch.cuda.device_count()
    return f"there are only {count} CUDA devices, from 0 on" if (device.index or 0) >= count else ""


def load_pipeline(
    model: str | Path | DiffusionPipeline,
    *,
    dtype: torch.dtype = torch.float32,
    network_dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    revision: str | None = None,
    variant: str | None = None,
    config: str = "",
    waits: bool = False,
) -> Any:
    """Return a diffusers pipeline without safety checker, from safetensors only.

    Args:
        model: `zoo:NAME`, a folder, a hub id, a single file (see `single_file`), or a pipeline in
            memory. The latter is taken over as it is, but for its safety checker, the types and the
            device.
        dtype: the precision of its parts.
        network_dtype: of the network that is trained, where it differs.
        device: where to put it.
        revision: of the hub.
        variant: of the weight files, such as "fp16", where there are any of it.
        config: of a single file: the model whose configuration it has.
        waits: nothing is computed on that device, so diffusers need not warn of float16 on a CPU.

    Raises:
        FileNotFoundError: there is no such model, or the folder misses a part (which is named).
        ValueError: the model is of an unsupported kind, or its files cannot be read.
    """
    if not isinstance(model, (str, Path)):
        return _take_over(model, dtype, network_dtype or dtype, device)

    file = find_single_file(str(model), revision)
    if file is not None:
        pipe = _load_checkpoint(file, config, dtype, network_dtype or dtype, variant)
        return pipe.to(device, silence_dtype_warnings=waits)
    if config:
        raise ValueError(f"model.config is for checkpoints in a single file, and {model} is none")

    source = pretrained.find(str(model), "model.id", file="model_index.json", revision=revision)
    # downloads show their progress
    folder = source if isinstance(source, Path) else _download(source, revision, variant)

    with without_progress_bars():
        index = read_index(folder)
        family = family_of(index.get("_class_name", "(unnamed)"))
        _check_parts(folder, index)
        dtypes = {family.network: network_dtype or dtype}

        settings = _settings(index)
        from diffusers import DiffusionPipeline

        try:
            for name, kind in network_classes(index).items():
                chosen = folder_variant(folder / name, variant)
                settings[name] = _load_part(
                    kind, folder / name, name, dtypes.get(name, dtype), chosen
                )
            pipe = DiffusionPipeline.from_pretrained(folder, use_safetensors=True, **settings)
        except Exception as error:  # a damaged file makes the libraries below raise anything
            raise ValueError(f"the model {model} cannot be loaded: {first_line(error)}") from error

    return pipe.to(device, silence_dtype_warnings=waits)


def _settings(index: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a pipeline's class that its model_index.json asks for."""
    # a part that the folder was saved without, such as T5
    settings: dict[str, Any] = {
        name: None for name, value in index.items() if value in ([None, None], (None, None))
    }
    # black images from the checker would be rewarded for their compressibility
    if "safety_checker" in index:
        settings |= {"safety_checker": None, "requires_safety_checker": False}
    return settings


def _load_part(kind: Any, folder: Path, name: str, dtype: torch.dtype, variant: str | None) -> Any:
    """Return a part of a pipeline that has weights."""
    return pretrained.load(
        kind,
        folder,
        part=name,
        unused=UNUSED_TENSORS,
        dtype=dtype,
        variant=variant,
        use_safetensors=True,
    )


def _load_checkpoint(
    file: Path,
    config: str,
    dtype: torch.dtype,
    network_dtype: torch.dtype,
    variant: str | None,
) -> Any:
    """Return the pipeline of a checkpoint in a single file."""
    import diffusers

    folder = configuration_of(file, config)
    index = read_index(folder)
    name = index.get("_class_name", "(unnamed)")
    family = family_of(name)
    largest = torch.promote_types(dtype, network_dtype)

    settings = _settings(index)
    classes = network_classes(index)
    for part in missing_parts(file, classes):
        place, chosen = find_missing_part(file, part, folder, config, variant)
        with without_progress_bars():
            settings[part] = _load_part(classes.pop(part), place, part, dtype, chosen)

    with without_progress_bars():
        kind = getattr(diffusers, name)
        pipe = load_single_file(kind, file, folder, largest, settings, classes)

    _cast(pipe, {family.network: network_dtype}, dtype)
    return pipe


def _cast(pipe: Any, dtypes: Mapping[str, torch.dtype], others: torch.dtype) -> None:
    """Give each part of a pipeline its precision."""
    for name, part in pipe.components.items():
        wanted = dtypes.get(name, others)
        # diffusers warns of every cast, even of one that changes nothing
        if isinstance(part, nn.Module) and getattr(part, "dtype", None) != wanted:
            part.to(wanted)


def attach_vae(pipe: Any, source: str, dtype: torch.dtype, variant: str | None = None) -> None:
    """Give the pipeline another autoencoder of the same latents.

    Args:
        pipe: a pipeline.
        source: a folder, a hub id, OWNER/NAME/FOLDER of the hub, or a file.
        dtype: its precision.
        variant: of its weight files that is wanted.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the hub does not give it, it cannot be read, or its latents are others.
    """
    file = find_single_file(source, key="model.vae")
    if file is None:
        vae = _load_network(type(pipe.vae), source, "model.vae", "vae", dtype, variant)
    else:
        vae = load_network_file(type(pipe.vae), file, pipe.vae.config, "vae", dtype)

    for key in ("latent_channels", "scaling_factor", "shift_factor"):
        ours, theirs = pipe.vae.config.get(key), vae.config.get(key)
        if ours != theirs:
            raise ValueError(
                f"model.vae: {source} was made for other latents: its {key} is {theirs}, that of "
                f"the model's own {ours}"
            )

    pipe.vae = vae.to(pipe.vae.device)


def _load_network(
    kind: Any, source: str, key: str, part: str, dtype: torch.dtype, variant: str | None
) -> Any:
    """Return a network that is named by itself."""
    folder, variant = find_network(source, key, variant)

    try:
        with without_progress_bars():
            return pretrained.load(
                kind, folder, part=part, dtype=dtype, use_safetensors=True, variant=variant
            )
    except Exception as error:  # a damaged file makes the libraries below raise anything
        raise ValueError(f"{key}: {source} cannot be loaded: {first_line(error)}") from error


def attach_controlnet(
    pipe: Any, source: str, dtype: torch.dtype, variant: str | None = None
) -> Any:
    """Return the pipeline with a ControlNet beside it, on the network's device.

    Args:
        pipe: a pipeline without one.
        source: `zoo:NAME`, a folder, a hub id, OWNER/NAME/FOLDER of the hub, or a file.
        dtype: the precision of the ControlNet.
        variant: of its weight files that is wanted.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the hub does not give it, the pipeline takes none, or the ControlNet cannot be
            read or was made for another network.
    """
    import diffusers

    name = type(pipe).__name__
    family = family_of(name)

    if not family.controlnet_pipeline:
        fitting = ", ".join(key for key, value in FAMILIES.items() if value.controlnet_pipeline)
        raise ValueError(f"model.controlnet: a {name} takes none here; these do: {fitting}")

    kind = diffusers.ControlNetModel
    file = find_single_file(source, key="model.controlnet")
    if file is None:
        controlnet = _load_network(kind, source, "model.controlnet", CONTROLNET, dtype, variant)
    else:
        config = controlnet_config(file, family.network_of(pipe))
        controlnet = load_network_file(kind, file, config, CONTROLNET, dtype)
    _check_controlnet(controlnet.config, pipe, family, source)

    # not by from_pipe, which would cast everything to float32
    keys = ("force_zeros_for_empty_prompt", "requires_safety_checker")
    settings = {key: pipe.config[key] for key in keys if key in pipe.config}
    whole = getattr(diffusers, family.controlnet_pipeline)
    controlnet.to(family.network_of(pipe).device)
    return whole(**pipe.components, controlnet=controlnet, **settings)


def _check_controlnet(theirs: Any, pipe: Any, family: Family, source: str) -> None:
    """Raise ValueError if a ControlNet's configuration does not fit the pipeline."""
    ours = family.network_of(pipe).config

    for key in family.controlnet_config:
        if _as_read(theirs[key]) != _as_read(ours[key]):
            raise ValueError(
                f"model.controlnet: {source} was made for another network: its {key} is "
                f"{theirs[key]}, that of the model {ours[key]}"
            )

    shrinks = 2 ** (len(theirs.conditioning_embedding_out_channels) - 1)
    if shrinks != pipe.vae_scale_factor:
        raise ValueError(
            f"model.controlnet: {source} reads images {shrinks} times as large as its latents, but "
            f"the model's autoencoder makes them {pipe.vae_scale_factor} times as large"
        )


def _as_read(value: Any) -> Any:
    """Return a value of a configuration as it is after it was written into JSON."""
    return list(value) if isinstance(value, tuple) else value


def place_parts(
    pipe: Any, device: torch.device | str, texts: bool, left: Collection[nn.Module] = ()
) -> None:
    """Move a pipeline's text encoders to a device, or all of its parts but these and `left`."""
    for name, part in pipe.components.items():
        chosen = name.startswith("text_encoder") == texts and part not in left
        if isinstance(part, nn.Module) and chosen:
            part.to(device)


def _take_over(
    pipe: Any, dtype: torch.dtype, network_dtype: torch.dtype, device: torch.device | str
) -> Any:
    """Return a pipeline in memory, as `load_pipeline` would have made it."""
    family = family_of(type(pipe).__name__)

    for name, part in pipe.components.items():
        if isinstance(part, nn.Module) and getattr(part, "peft_config", None):
            raise ValueError(
                f"the given pipeline's {name} has an adapter already: take it out by "
                "pipe.unload_lora_weights(), and name its folder as `adapter` to start from it"
            )

    if getattr(pipe, "safety_checker", None) is not None:
        pipe.safety_checker = None

    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.to(device)
    _cast(pipe, {family.network: network_dtype}, dtype)

    return pipe


def _download(model: str, revision: str | None, variant: str | None) -> Path:
    """Return the folder in the hub's cache of a model, whose files are fetched where they lack."""
    from diffusers import DiffusionPipeline

    variant = _pipeline_variant(model, revision, variant)
    try:
        folder = DiffusionPipeline.download(
            model, revision=revision, variant=variant, use_safetensors=True, safety_checker=None
        )
    except Exception as error:  # network, authorisation, disk: each library has its own
        raise pretrained.hub_error(error, model, "model.id", revision) from error
    return Path(folder)


def _pipeline_variant(model: str, revision: str | None, wanted: str | None) -> str | None:
    """Return the variant to fetch of a pipeline on the hub: the only one, where all parts have it.

    diffusers reads parts without it as they are, but not the other way round.
    """
    cached, files = pretrained.ask_hub(model, "model.id", "model_index.json", revision)
    if cached is not None or wanted is not None:
        return wanted

    parts: dict[str, list[str]] = {}
    for name in files:
        folder, _, file = name.rpartition("/")
        if file.endswith(".safetensors") and folder not in ("", "safety_checker"):
            parts.setdefault(folder, []).append(file)

    chosen = {choose_variant(names, None, f"{model}/{part}") for part, names in parts.items()}
    return next((variant for variant in chosen if variant is not None), None)


def read_index(folder: Path) -> Mapping[str, Any]:
    """Return the content of the pipeline's model_index.json."""
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            f"model.id: {folder} has no model_index.json: give the folder of a whole diffusers "
            "pipeline"
        )

    from diffusers import DiffusionPipeline

    try:
        index: Mapping[str, Any] = DiffusionPipeline.load_config(folder)
    except Exception as error:  # damaged JSON
        raise ValueError(f"the model {folder} cannot be read: {first_line(error)}") from error

    _check_index(index, folder)
    return index


def _check_index(index: Any, source: Path | str) -> None:
    """Refuse a model_index.json that is none, or whose classes are not those of the libraries.

    Another library would be imported by its name, and a file in the folder would be its code.
    """
    file = f"{source}: model_index.json"
    if not isinstance(index, Mapping) or not isinstance(index.get("_class_name", ""), str):
        raise ValueError(
            f"{file} must be an object that names one class of diffusers by _class_name; give the "
            "folder of a whole diffusers pipeline"
        )

    for part, value in index.items():
        if not isinstance(value, (list, tuple)):
            continue
        names = all(name is None or isinstance(name, str) for name in value)
        if len(value) != 2 or not names or value[0] not in LIBRARIES:
            raise ValueError(
                f"{file}: {part} is {shown(value)}; it must be [library, class] with the library "
                "diffusers or transformers, and no other code is run"
            )


def network_classes(index: Mapping[str, Any]) -> dict[str, Any]:
    """Return the classes of a pipeline's parts that have weights, but for the safety checker."""
    import diffusers
    import transformers

    libraries = {"diffusers": diffusers, "transformers": transformers}
    found = {}

    for name, value in index.items():
        if name == "safety_checker" or not (isinstance(value, (list, tuple)) and value[0]):
            continue

        library, kind = value
        made = getattr(libraries.get(library), kind, None)
        if isinstance(made, type) and issubclass(made, nn.Module):
            found[name] = made

    return found


def _check_parts(folder: Path, index: Mapping[str, Any]) -> None:
    """Raise FileNotFoundError with the part of a pipeline folder that is missing.

    The libraries below would say the same at length.
    """
    for part, value in index.items():
        if not (isinstance(value, (list, tuple)) and value[0]) or part == "safety_checker":
            continue

        subfolder = folder / part
        if not subfolder.is_dir():
            raise FileNotFoundError(
                f"the model folder {folder} misses its part '{part}': copy the whole pipeline"
            )

        files = REQUIRED_FILES.get(part, "config.json").split()
        if not any((subfolder / file).is_file() for file in files):
            raise FileNotFoundError(
                f"the model folder {folder} misses {files[0]} in its part '{part}'"
            )
        if part not in REQUIRED_FILES and not any(subfolder.glob("*.safetensors")):
            raise FileNotFoundError(
                f"the model folder {folder} misses the weights (*.safetensors) in its part '{part}'"
            )


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Show no progress bars while files are read: they would tear the command line's own."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    enabled = [
        module
        for module in (diffusers_logging, transformers_logging)
        if module.is_progress_bar_enabled()
    ]

    for module in enabled:
        module.disable_progress_bar()

    try:
        yield
    finally:
        for module in enabled:
            module.enable_progress_bar()
