"""LoRA adapters (arXiv 2106.09685): added by peft, merged, read, and saved for diffusers."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from burnish import pretrained
from burnish.diffusion import lora_file
from burnish.diffusion.families import family_of
from burnish.diffusion.family import CONTROLNET
from burnish.diffusion.frozen_linear import computing_device
from burnish.diffusion.lora_file import FILE, find_lora, locate, plain_name
from burnish.diffusion.quantization import quantization_of
from burnish.diffusion.sharding import gathered, part_of, stock_class
from burnish.errors import first_line


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

    network.to(computing_device(network))  # peft makes it where the layers' weights are stored
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
    """Multiply the output of every adapter layer as trained: 0 is the base model, 1 as trained."""
    for layer in lora_layers(network).values():
        for name in layer.active_adapters:
            layer.set_scale(name, 1)
        layer.scale_layer(strength)


@contextmanager
def as_trained(layers: Mapping[str, Any]) -> Iterator[None]:
    """Undo `set_lora_scale` for a while: a file never depends on the strength of sampling."""
    scales = {name: layer.scaling["default"] for name, layer in layers.items()}

    try:
        for layer in layers.values():
            layer.set_scale("default", 1)
        yield
    finally:
        for name, layer in layers.items():
            layer.scaling["default"] = scales[name]


def lora_layers(network: nn.Module) -> dict[str, Any]:
    """Return peft's layers of a network, by the names of the layers that they stand for."""
    from peft.tuners.lora import LoraLayer

    return {
        plain_name(name): layer
        for name, layer in network.named_modules()
        if isinstance(layer, LoraLayer)
    }


def attention_without_adapter(network: nn.Module) -> list[str]:
    """Return the first attention of each of a network's blocks that has one, but no adapter."""
    names = []
    lists = {n: part for n, part in network.named_children() if isinstance(part, nn.ModuleList)}

    for name, blocks in lists.items():
        for number, block in blocks.named_children():
            attentions = [
                part
                for part, module in block.named_modules()
                if type(module).__name__.endswith("Attention")
            ]
            if attentions and not lora_layers(block):
                names.append(f"{name}.{number}.{attentions[0]}")

    return names


def trainable_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that learn, by the names that they have in a network not compiled."""
    return {plain_name(name): p for name, p in network.named_parameters() if p.requires_grad}


def copied_state(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a copy of the parameters `named`, on the CPU; of sharded ones see `gathered`."""
    return {
        name: gathered(p).clone(memory_format=torch.contiguous_format) for name, p in named.items()
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
        parameter.copy_(part_of(state[name], parameter))


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


def write_adapter(
    pipe: Any,
    part: str,
    network: nn.Module,
    folder: Path,
    full: Mapping[str, Tensor] | None = None,
    text_layers: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the adapter of the pipeline's `part`, or with `full` the whole network.

    A network's adapter is for `pipe.load_lora_weights(folder)`, a ControlNet's for
    `load_lora_adapter`. Its scale is written into B, so that no reader needs to know alpha; what
    `set_lora_scale` did is left out.

    Args:
        pipe: the diffusers pipeline.
        part: the attribute with the network.
        network: the same, not compiled.
        folder: to write into.
        full: the whole network's state.
        text_layers: what `read_adapter` returned, written too.

    Raises:
        RuntimeError: another program would read something else than the network computes with.
    """
    blank = _blank(network)

    if full is not None:
        blank.load_state_dict(full, assign=True)
        blank.save_pretrained(folder)  # type: ignore[operator]
        return

    layers = lora_layers(network)
    down, up = ("lora_A", "lora_B") if part == CONTROLNET else ("lora.down", "lora.up")
    prefix = "" if part == CONTROLNET else f"{part}."
    tensors = dict(text_layers or {})

    with as_trained(layers):
        for name, layer in layers.items():
            scaled = layer.lora_B["default"].weight * layer.scaling["default"]
            tensors[f"{prefix}{name}.{down}.weight"] = _on_cpu(layer.lora_A["default"].weight)
            tensors[f"{prefix}{name}.{up}.weight"] = _on_cpu(scaled)

        save_file(tensors, folder / FILE, metadata={"format": "pt"})
        _check_written(pipe, part, blank, layers, folder / FILE)


def _on_cpu(value: Tensor) -> Tensor:
    return value.detach().contiguous().cpu()


def _blank(network: nn.Module) -> nn.Module:
    """Return a network without weights, as its class makes it from the configuration."""
    with torch.device("meta"):
        kind: Any = stock_class(network)
        made: nn.Module = kind.from_config(network.config)
    return made


def _check_written(
    pipe: Any, part: str, blank: nn.Module, layers: Mapping[str, Any], file: Path
) -> None:
    """Raise RuntimeError if the file does not say what the layers compute."""
    tensors = lora_file.of_part(lora_file.read_lora(pipe, file, part), part)

    try:
        lora_file.check_layers({f"{part}.{name}": v for name, v in tensors.items()}, {part: blank})
    except ValueError as error:
        raise RuntimeError(f"{file} would not fit a stock network: {error}") from error

    for name, layer in layers.items():
        down = tensors[f"{name}.lora_A.weight"].flatten(1)
        up = tensors[f"{name}.lora_B.weight"].flatten(1)
        expected = layer.get_delta_weight("default").detach().float().cpu().flatten(1)

        largest = float(expected.abs().max())
        if not torch.allclose(up @ down, expected, rtol=1e-3, atol=1e-3 * largest):
            raise RuntimeError(f"{file} would change the layer {name} by something else")


def read_adapter(
    pipe: Any, part: str, network: nn.Module, place: Path, train: str
) -> dict[str, Tensor]:
    """Load a LoRA, or what `Policy.save_adapter` wrote, for the pipeline's `part`.

    Args:
        pipe: the diffusers pipeline.
        part: the attribute with the network.
        network: the same, not compiled.
        place: a file, or a folder with a LoRA or with a whole network.
        train: "lora" reads a LoRA of the rank and the layers that `network` has, "full" a network,
            "none" either, of whatever rank.

    Returns:
        The file's layers of text encoders, which stay as they are: they are in `pipe` now.

    Raises:
        FileNotFoundError: the folder has neither.
        ValueError: the content is damaged or does not fit.
    """
    file = checked_lora(place, train, bool(quantization_of(network)))
    if file is None:
        _load_network(network, place)
        return {}

    tensors = lora_file.read_lora(pipe, file, part)
    if train == "none":
        _attach(pipe, part, tensors)
        return {}

    own = lora_file.of_part(tensors, part)
    text = {name: tensors[name] for name in tensors if not name.startswith(f"{part}.")}
    _check_trainable(own, file)
    layers = lora_layers(network)
    state = {}

    for name, value in own.items():
        layer = layers.get(lora_file.layer_of(name))
        scale = layer.scaling["default"] if layer is not None and ".lora_B." in name else 1.0
        state[name.replace(".weight", ".default.weight")] = value if scale == 1 else value / scale

    copy_state(trainable_parameters(network), state, str(file))
    _attach(pipe, part, text)
    return {lora_file.text_name(name): value for name, value in text.items()}


def _load_network(network: nn.Module, folder: Path) -> None:
    """Copy the weights of a whole network that was saved in a folder."""
    try:
        saved = pretrained.load(type(network), folder, use_safetensors=True).state_dict()
    except Exception as error:  # a damaged file makes the libraries below raise anything
        raise ValueError(f"the network in {folder} cannot be read: {first_line(error)}") from error

    own = network.state_dict(keep_vars=True)
    copy_state({plain_name(name): value for name, value in own.items()}, saved, str(folder))


def checked_lora(place: Path, train: str, quantized: bool) -> Path | None:
    """Return the LoRA file at a place; None for a folder with a whole network.

    Args:
        place: a file or a folder.
        train: "lora", "full" or "none".
        quantized: the model's weights are stored in few bits.

    Raises:
        FileNotFoundError: the folder has neither.
        ValueError: the training, or the model, needs the other.
    """
    file = find_lora(place)
    has_lora = file is not None
    if not (has_lora or (place / "config.json").is_file()):
        has_expander = (place / "expander").is_dir()
        remedy = "; its part expander is for expander.adapter" if has_expander else ""
        raise FileNotFoundError(
            f"the adapter folder {place} has neither {FILE} nor a network's config.json{remedy}"
        )
    if not has_lora and quantized:
        raise ValueError(
            f"{place} holds a whole network, and model.quantization has stored the model's own: "
            "leave it out, or export the run --to merged and set model.id to what that wrote"
        )
    if has_lora and train == "full":
        raise ValueError(f"{place} holds a LoRA adapter: set model.train = 'lora'")
    if not has_lora and train == "lora":
        raise ValueError(f"{place} holds a whole network: set model.train = 'full'")
    return file


def _check_trainable(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Raise ValueError for a LoRA that no adapter of one rank can start from."""
    remedy = "merge it into the model by model.fused_lora, and train a new adapter on top"
    if not tensors:
        raise ValueError(f"{file} has no layers of the network that is trained: {remedy}")

    for name in tensors:
        if lora_file.EXTRA.match(name):
            raise ValueError(f"{file} has {name}, which an adapter here does not have: {remedy}")

    ranks = {len(value) for name, value in tensors.items() if name.endswith(".lora_A.weight")}
    if len(ranks) > 1:
        listed = ", ".join(map(str, sorted(ranks)))
        raise ValueError(f"{file} has layers of the ranks {listed}, not of one: {remedy}")


def _attach(pipe: Any, part: str, tensors: Mapping[str, Tensor]) -> None:
    """Let diffusers put a LoRA's layers into the pipeline, frozen."""
    if not tensors:
        return

    if part == CONTROLNET:
        getattr(pipe, part).load_lora_adapter(lora_file.of_part(tensors, part), prefix=None)
    else:
        with _without_missing_part_warning():
            pipe.load_lora_weights(dict(tensors))

    network = getattr(pipe, part)
    network.to(computing_device(network))  # as in `add_lora`
    for encoder in lora_file.text_encoders(pipe):
        encoder.requires_grad_(False)


@contextmanager
def without_text_layers(pipe: Any) -> Iterator[None]:
    """Take the LoRA layers out of the text encoders, to save these as they were made."""
    encoders: list[Any] = [part for part in lora_file.text_encoders(pipe) if lora_layers(part)]
    taken = [
        (encoder.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], layer)
        for encoder in encoders
        for name, layer in lora_layers(encoder).items()
    ]

    try:
        for parent, name, layer in taken:
            setattr(parent, name, layer.base_layer)
        for encoder in encoders:
            encoder._hf_peft_config_loaded = False  # otherwise transformers saves the LoRA alone
        yield
    finally:
        for parent, name, layer in taken:
            setattr(parent, name, layer)
        for encoder in encoders:
            encoder._hf_peft_config_loaded = True


@torch.no_grad()
def merge_layers(network: nn.Module) -> None:
    """Add a network's adapter to its weights for good: it is a stock network then.

    The sum is computed in float32 and rounded once.

    Raises:
        ValueError: the weights are quantized.
    """
    layers = [
        (name, layer)
        for name, layer in network.named_modules()
        if name.rpartition(".")[2] != "base_layer" and hasattr(layer, "base_layer")
    ]

    for name, layer in layers:
        parent, _, last = name.rpartition(".")
        base = layer.base_layer
        if not base.weight.is_floating_point():
            raise ValueError(
                f"the layer {name} is quantized, and nothing can be merged into it: take another "
                "--to, or load the model without quantization"
            )
        total = base.weight.float()
        for adapter in layer.active_adapters:
            total = total + layer.get_delta_weight(adapter).float()
        base.weight.data = total.to(base.weight.dtype)
        setattr(network.get_submodule(parent), last, base)

    if layers:
        network._hf_peft_config_loaded = False  # type: ignore[assignment]


def merge_lora(pipe: Any, source: str | Path) -> list[str]:
    """Merge a LoRA (folder, file or hub id) into the pipeline's weights for good.

    Returns:
        The text encoders that it changes.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: the LoRA cannot be read or belongs to another architecture.
    """
    place = locate(source, "model.fused_lora")

    try:
        file = find_lora(place)
        if file is None:
            raise ValueError("the folder has no LoRA in a .safetensors file")

        tensors = lora_file.read_lora(pipe, file, family_of(type(pipe).__name__).network)
        with _without_missing_part_warning():
            pipe.load_lora_weights(tensors)
        pipe.fuse_lora(components=pipe._lora_loadable_modules)  # text encoders too
        pipe.unload_lora_weights()
    # damaged file, other architecture: the libraries below raise anything
    except Exception as error:
        raise ValueError(
            f"model.fused_lora: the LoRA {source} cannot be merged: {first_line(error)}"
        ) from error

    return lora_file.text_parts(tensors)


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
def _without_missing_part_warning() -> Iterator[None]:
    """Silence the warning that a LoRA has nothing for a part: all that it has is accounted for."""
    loggers = [logging.getLogger(f"diffusers.loaders.{name}") for name in ("lora_base", "peft")]

    def is_another_message(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("No LoRA keys associated to ")

    for logger in loggers:
        logger.addFilter(is_another_message)

    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_another_message)
