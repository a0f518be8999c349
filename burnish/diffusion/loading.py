"""Loading: a diffusers pipeline from the zoo, a folder, a hub id or memory, whole and of a known
family.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from burnish.diffusion.families import family_of
from burnish.errors import first_line

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


CONTROLNET_PIPELINES = {
    "StableDiffusionPipeline": "StableDiffusionControlNetPipeline",
    # a ControlNet of the undistilled model fits
    "LatentConsistencyModelPipeline": "StableDiffusionControlNetPipeline",
    "StableDiffusionXLPipeline": "StableDiffusionXLControlNetPipeline",
}
"""The pipeline that takes a ControlNet beside, of those that have none."""


def load_pipeline(
    model: str | Path | DiffusionPipeline,
    *,
    dtype: torch.dtype = torch.float32,
    network_dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    revision: str | None = None,
    variant: str | None = None,
) -> Any:
    """A diffusers pipeline from ``zoo:NAME``, a folder or a hub id, without safety checker, from
    safetensors only.

    One that is in memory already is taken over as it is, but for its safety checker, the types and
    the device. ``network_dtype`` is the precision of the network that is trained, where it differs
    from ``dtype``.

    Raises:
        FileNotFoundError: there is no such model, or the folder misses a part (which is named).
        ValueError: the model is of an unsupported kind, or its files cannot be read.
    """
    if not isinstance(model, (str, Path)):
        return _taken_over(model, dtype, network_dtype or dtype, device)

    source = _source(str(model))

    # downloads show their progress
    with _quiet() if isinstance(source, Path) else nullcontext():
        index = _index(source, revision)
        family = family_of(index.get("_class_name", "(unnamed)"))

        if isinstance(source, Path):
            _check_parts(source, index, variant)

        # black images from the checker would be rewarded for their compressibility
        checker = (
            {"safety_checker": None, "requires_safety_checker": False}
            if "safety_checker" in index
            else {}
        )
        from diffusers import DiffusionPipeline

        try:
            pipe = DiffusionPipeline.from_pretrained(
                source,
                dtype={"default": dtype, family.network: network_dtype or dtype},
                use_safetensors=True,
                revision=revision,
                variant=variant,
                **checker,
            )
        except Exception as error:  # a damaged file makes the libraries below raise anything
            raise ValueError(f"the model {model} cannot be loaded: {first_line(error)}") from error

    _check_whole(pipe, str(model))
    return pipe.to(device)


def resize(pipe: Any, size: int) -> None:
    """From now on the pipeline's pictures have sides of ``size`` pixels.

    Raises:
        ValueError: its network cannot halve such latents as often as it wants to.
    """
    unit = pipe.vae_scale_factor * 2 ** (len(pipe.unet.config.block_out_channels) - 1)
    if size % unit:
        raise ValueError(
            f"model.size = {size}: this model's pictures have sides of a multiple of {unit} pixels"
        )

    pipe.unet.register_to_config(sample_size=size // pipe.vae_scale_factor)


def attach_controlnet(
    pipe: Any, source: str, dtype: torch.dtype, device: torch.device | str
) -> Any:
    """The pipeline with the ControlNet from ``zoo:NAME``, a folder or a hub id beside it.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the pipeline takes none, or the ControlNet cannot be read or was made for
            another network.
    """
    import diffusers

    name = type(pipe).__name__

    if name not in CONTROLNET_PIPELINES:
        raise ValueError(
            f"model.controlnet: a {name} takes none here; these do: {', '.join(CONTROLNET_PIPELINES)}"
        )

    home = _source(source)

    try:
        with _quiet() if isinstance(home, Path) else nullcontext():
            controlnet = diffusers.ControlNetModel.from_pretrained(
                home, dtype=dtype, use_safetensors=True
            )
    except Exception as error:  # a damaged file makes the libraries below raise anything
        raise ValueError(
            f"model.controlnet: {source} cannot be loaded: {first_line(error)}"
        ) from error

    theirs = controlnet.config
    ours = pipe.unet.config

    for key in ("cross_attention_dim", "block_out_channels", "in_channels", "layers_per_block"):
        if theirs[key] != ours[key]:
            raise ValueError(
                f"model.controlnet: {source} was made for another network: its {key} is {theirs[key]}, that of the "
                f"model {ours[key]}"
            )

    shrinks = 2 ** (len(theirs.conditioning_embedding_out_channels) - 1)
    if shrinks != pipe.vae_scale_factor:
        raise ValueError(
            f"model.controlnet: {source} reads pictures {shrinks} times as large as its latents, but the model's "
            f"autoencoder makes them {pipe.vae_scale_factor} times as large"
        )

    # not by from_pipe, which would cast everything to float32
    wanted = ("force_zeros_for_empty_prompt", "requires_safety_checker")
    settings = {key: pipe.config[key] for key in wanted if key in pipe.config}
    return getattr(diffusers, CONTROLNET_PIPELINES[name])(
        **pipe.components, controlnet=controlnet.to(device), **settings
    )


def _taken_over(
    pipe: Any, dtype: torch.dtype, network_dtype: torch.dtype, device: torch.device | str
) -> Any:
    """A pipeline in memory, as ``load_pipeline`` would have made it."""
    trained = family_of(type(pipe).__name__).network
    if getattr(getattr(pipe, trained), "peft_config", None):
        raise ValueError(
            f"the given pipeline's {trained} has an adapter already: take it out by pipe.unload_lora_weights(), and "
            "name its folder as `adapter` to start from it"
        )

    if getattr(pipe, "safety_checker", None) is not None:
        pipe.safety_checker = None

    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            wanted = network_dtype if name == trained else dtype
            part.to(device)
            if getattr(part, "dtype", None) != wanted:  # or diffusers warns of a cast that is none
                part.to(wanted)

    return pipe


def _check_whole(pipe: Any, model: str) -> None:
    """diffusers only logs which weights a file lacks, and leaves them empty."""
    for name, part in pipe.components.items():
        empty = (
            [key for key, value in part.named_parameters() if value.is_meta]
            if isinstance(part, nn.Module)
            else []
        )

        if empty:
            raise ValueError(
                f"the model {model} lacks {len(empty)} weights of its {name}, such as {empty[0]}; if it was saved with "
                "a LoRA inside, as TRL does, load the model that it was made from, and that LoRA as an adapter"
            )


def _source(model: str) -> Path | str:
    """A folder, or the text of a hub id."""
    if model.startswith("zoo:"):
        from burnish import zoo

        return zoo.path(model)

    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    # a hub id is NAME or OWNER/NAME; everything else can only have been meant as a folder
    if (
        folder.is_absolute()
        or model.startswith((".", "~"))
        or model.count("/") > 1
        or "\\" in model
    ):
        raise FileNotFoundError(f"the model folder {model} does not exist.")

    return model


def _index(source: Path | str, revision: str | None) -> Mapping[str, Any]:
    """The pipeline's model_index.json."""
    if isinstance(source, Path) and not (source / "model_index.json").is_file():
        raise FileNotFoundError(
            f"{source} has no model_index.json: give the folder of a whole diffusers pipeline."
        )

    from diffusers import DiffusionPipeline

    try:
        index: Mapping[str, Any] = DiffusionPipeline.load_config(source, revision=revision)
    except Exception as error:  # network, authorisation, damaged JSON: each library has its own
        place = "read" if isinstance(source, Path) else "found as a folder or on the hub"
        raise ValueError(f"the model {source} cannot be {place}: {first_line(error)}") from error

    return index


def _check_parts(folder: Path, index: Mapping[str, Any], variant: str | None) -> None:
    """Says which part of a pipeline folder is missing, before a library does it at length."""
    for part, value in index.items():
        if not (isinstance(value, (list, tuple)) and value[0]) or part == "safety_checker":
            continue

        home = folder / part
        if not home.is_dir():
            raise FileNotFoundError(
                f"the model folder {folder} misses its part '{part}': copy the whole pipeline."
            )

        needed = _NEEDED.get(part, "config.json")
        if not any((home / name).is_file() for name in needed.split()):
            raise FileNotFoundError(
                f"the model folder {folder} misses {needed.split()[0]} in its part '{part}'."
            )

        weights = f"*.{variant}*.safetensors" if variant else "*.safetensors"
        if part not in _NEEDED and not any(home.glob(weights)):
            raise FileNotFoundError(
                f"the model folder {folder} misses the weights ({weights}) in its part '{part}'."
            )


_NEEDED = {
    "scheduler": "scheduler_config.json",
    "feature_extractor": "preprocessor_config.json",
    "tokenizer": "tokenizer.json vocab.json spiece.model",
    "tokenizer_2": "tokenizer.json vocab.json spiece.model",
}
"""Parts without weights, and the files of which each needs one."""


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars while files are read: they would tear the command line's own."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    shown = [
        module
        for module in (diffusers_logging, transformers_logging)
        if module.is_progress_bar_enabled()
    ]

    for module in shown:
        module.disable_progress_bar()

    try:
        yield
    finally:
        for module in shown:
            module.enable_progress_bar()
