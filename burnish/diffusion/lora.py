"""LoRA adapters (arXiv 2106.09685): added by peft, merged, read, and saved for diffusers."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from burnish.diffusion.families import CONTROLNET
from burnish.errors import first_line

FILE = "pytorch_lora_weights.safetensors"


def add_lora(network: nn.Module, rank: int, alpha: float, targets: Sequence[str]) -> None:
    """Add a fresh float32 adapter to the layers whose names end in one of `targets`.

    Its B is 0, so it changes nothing yet. A is drawn from a generator of its own, so that a policy
    is the same whenever it is loaded.

    Raises:
        ValueError: no layer's name ends in one of the targets.
    """
    from peft import LoraConfig

    modules = [
        name
        for name, module in network.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ]

    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in modules):
            raise ValueError(
                f"model.targets: the network has no layer whose name ends in '{target}'"
            )

    config = LoraConfig(
        r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(targets)
    )
    with fixed_seed():
        network.add_adapter(config)  # type: ignore[operator]

    sort_targets(network)
    cast_trainable(network)


def sort_targets(network: nn.Module) -> None:
    """Name an adapter's layers in one order, which a set has not: files are made of it."""
    for config in network.peft_config.values():  # type: ignore[operator]
        config.target_modules = sorted(config.target_modules)


@contextmanager
def fixed_seed() -> Iterator[None]:
    """Let peft draw a new adapter from a generator of its own, the same at every load."""
    with torch.random.fork_rng(devices=[]):  # peft draws on the CPU
        torch.default_generator.manual_seed(0)
        yield


def cast_trainable(network: nn.Module) -> None:
    """Make the parameters that learn float32."""
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def set_lora_scale(network: nn.Module, strength: float) -> None:
    """Multiply the output of every adapter layer: 0 is the base model, 1 is as trained."""
    from peft.tuners.lora import LoraLayer

    for layer in network.modules():
        if isinstance(layer, LoraLayer):
            layer.scale_layer(strength)


def copied_state(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a copy of the parameters `named`, on the CPU."""
    return {
        name: p.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, p in named.items()
    }


@torch.no_grad()
def copy_state(named: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    """Copy `state` into the parameters `named`; nothing changes if it does not fit.

    Args:
        named: the parameters by name.
        state: their new values by name.
        source: begins the error message: where `state` comes from.

    Raises:
        ValueError: names or shapes differ.
    """
    for name in sorted(named.keys() ^ state.keys()):
        how = "lacks" if name in named else "has the unknown"
        raise ValueError(
            f"{source} belongs to another model or to other model.targets: it {how} {name}"
        )

    for name, parameter in named.items():
        _check_shape(name, tuple(parameter.shape), tuple(state[name].shape), source)

    for name, parameter in named.items():
        parameter.copy_(state[name])


def _check_shape(name: str, ours: tuple[int, ...], theirs: tuple[int, ...], source: str) -> None:
    if theirs == ours:
        return

    if ".lora_" in name:
        axis = 0 if ".lora_A." in name else 1
        raise ValueError(
            f"{source} has rank {theirs[axis]}, but this adapter has rank {ours[axis]}: "
            f"set model.rank = {theirs[axis]}"
        )

    raise ValueError(f"{source} belongs to another model: its {name} is {theirs}, not {ours}")


def write_adapter(pipe: Any, part: str, folder: Path, full: bool = False) -> None:
    """Write the adapter of the pipeline's `part`, or with `full` the whole network.

    A network's adapter is for `pipe.load_lora_weights(folder)`, a ControlNet's for
    `load_lora_adapter`.
    """
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    network = getattr(pipe, part)

    if full:
        network.save_pretrained(folder)
        return

    config = network.peft_config["default"].to_dict()
    state = get_peft_model_state_dict(network)

    if part == CONTROLNET:
        _write_controlnet_lora(_on_cpu(state), config, folder)
        return

    # without its configuration diffusers would take alpha = rank
    layers = {
        f"{part}_lora_layers": _on_cpu(convert_state_dict_to_diffusers(state)),
        f"{part}_lora_adapter_metadata": config,
    }
    pipe.save_lora_weights(folder, **layers)


def _on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().contiguous().cpu() for name, value in state.items()}


def _write_controlnet_lora(
    layers: dict[str, Tensor], config: Mapping[str, Any], folder: Path
) -> None:
    """Write a ControlNet's LoRA, for which the pipelines' own files have no place.

    As diffusers' save_lora_adapter does, without a cast.
    """
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
    from safetensors.torch import save_file

    described = json.dumps(config, sort_keys=True, default=list)  # a set in it becomes a list
    metadata = {"format": "pt", LORA_ADAPTER_METADATA_KEY: described}
    save_file(layers, folder / FILE, metadata=metadata)


def read_adapter(pipe: Any, part: str, folder: Path, train: str, alpha: float) -> None:
    """Load what `Policy.save_adapter` wrote for the pipeline's `part`.

    Args:
        pipe: the diffusers pipeline.
        part: the attribute with the network.
        folder: with a LoRA, or with a whole network.
        train: "lora" reads a LoRA, "full" a network, "none" either: then any LoRA that diffusers
            reads will do, of whatever rank.
        alpha: of the adapter in the network, which the file has to share.

    Raises:
        FileNotFoundError: the folder has neither.
        ValueError: the folder's content is damaged or does not fit.
    """
    has_lora = (folder / FILE).is_file()
    has_network = (folder / "config.json").is_file()
    _check_adapter(folder, train, has_lora, has_network)

    network = getattr(pipe, part)

    try:
        if has_network:
            state = type(network).from_pretrained(folder, use_safetensors=True).state_dict()
        elif train == "none":
            _attach_lora(pipe, part, folder)
            return
        else:
            state, trained_alpha = _lora_state(pipe, part, folder, alpha)
    except Exception as error:  # a damaged file makes the libraries below raise anything
        raise ValueError(f"the adapter in {folder} cannot be read: {first_line(error)}") from error

    if has_network:
        copy_state(dict(network.state_dict(keep_vars=True)), state, str(folder))
        return

    trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
    copy_state(trainable, state, str(folder))

    if trained_alpha != alpha:
        raise ValueError(
            f"{folder} was trained with alpha {trained_alpha}: set model.alpha = {trained_alpha}"
        )


def _check_adapter(folder: Path, train: str, has_lora: bool, has_network: bool) -> None:
    if not (has_lora or has_network):
        raise FileNotFoundError(
            f"the adapter folder {folder} has neither {FILE} nor a network's config.json"
        )
    if has_lora and train == "full":
        raise ValueError(f"{folder} holds a LoRA adapter: set model.train = 'lora'")
    if not has_lora and train == "lora":
        raise ValueError(f"{folder} holds a whole network: set model.train = 'full'")


def _attach_lora(pipe: Any, part: str, folder: Path) -> None:
    """Let diffusers read the LoRA, of whatever rank."""
    if part == CONTROLNET:
        getattr(pipe, part).load_lora_adapter(folder, prefix=None, weight_name=FILE)
        return

    with _without_text_encoder_warning():
        pipe.load_lora_weights(folder, weight_name=FILE)


def _lora_state(
    pipe: Any, part: str, folder: Path, alpha: float
) -> tuple[dict[str, Tensor], float]:
    """Return a LoRA file's tensors under the names of the part's parameters, and its alpha.

    `alpha` is returned for a file that does not state its own.
    """
    if part == CONTROLNET:
        return _controlnet_lora(folder / FILE)

    tensors, _, metadata = pipe.lora_state_dict(folder, weight_name=FILE, return_lora_metadata=True)
    return _peft_names(tensors, part), (metadata or {}).get(f"{part}.lora_alpha", alpha)


def _controlnet_lora(file: Path) -> tuple[dict[str, Tensor], float]:
    """Return the tensors under the names of the ControlNet's parameters, and alpha."""
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(file, "pt") as opened:
        config = json.loads(opened.metadata()[LORA_ADAPTER_METADATA_KEY])

    return _default_names(load_file(file)), config["lora_alpha"]


def _peft_names(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Return a LoRA file's tensors under the names of the parameters of `part`."""
    from diffusers.utils import convert_unet_state_dict_to_peft

    prefix = f"{part}."
    of_part = {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
    return _default_names(convert_unet_state_dict_to_peft(of_part))


def _default_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the names of peft's adapter "default"."""
    return {name.replace(".weight", ".default.weight"): value for name, value in tensors.items()}


def merge_lora(pipe: Any, source: str | Path) -> None:
    """Merge a LoRA (folder, file or hub id) into the pipeline's weights for good.

    Raises:
        ValueError: the LoRA cannot be read or belongs to another architecture.
    """
    try:
        with _without_text_encoder_warning():
            pipe.load_lora_weights(source, use_safetensors=True)
            pipe.fuse_lora()
            pipe.unload_lora_weights()
    # network, damaged file, other architecture: the libraries below raise anything
    except Exception as error:
        raise ValueError(
            f"model.fused_lora: the LoRA {source} cannot be merged: {first_line(error)}"
        ) from error


def sort_metadata(file: Path) -> None:
    """Rewrite the header of a safetensors file with its metadata sorted by key.

    The library writes it in an order that differs from process to process.
    """
    if file.suffix != ".safetensors":
        return

    with open(file, "rb+") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))

        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:  # filled up with spaces, as it was
            opened.seek(8)
            opened.write(text.ljust(size))


@contextmanager
def _without_text_encoder_warning() -> Iterator[None]:
    """Silence the one warning that a LoRA of the network alone has nothing for a text encoder."""
    logger = logging.getLogger("diffusers.loaders.lora_base")

    def is_another_message(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("No LoRA keys associated to ")

    logger.addFilter(is_another_message)

    try:
        yield
    finally:
        logger.removeFilter(is_another_message)
