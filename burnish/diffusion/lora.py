"""LoRA adapters (arXiv 2106.09685) in a network: added by peft, taken out and put back, saved for
diffusers.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from burnish.diffusion.cpu import linear
from burnish.errors import first_line

State = Literal["adapter", "merged", "reference"]

FILE = "pytorch_lora_weights.safetensors"
CONTROLNET = "controlnet"
"""The pipeline's attribute with the ControlNet."""


@dataclass(frozen=True)
class AdapterSlot:
    """The place of one adapter layer in a network, to be filled with one of three things.

    adapter      base layer + adapter, with gradient
    merged       the base layer with the adapter added into a copy of its weight: half the matrix products, no Python
    reference    the base layer alone
    """

    parent: nn.Module
    name: str
    layer: Any  # peft's: base layer and adapter
    weight: Tensor  # the base layer's own; never written into, so it comes back bit for bit

    @torch.no_grad()
    def fill(self, state: State) -> None:
        """Half-precision weights stay unmerged: rounded into them, most of a small adapter would be
        lost.
        """
        base = self.layer.base_layer
        merge = state == "merged" and self.weight.dtype == torch.float32
        base.weight.data = self.weight + self._delta() if merge else self.weight
        setattr(self.parent, self.name, base if merge or state == "reference" else self.layer)

    def _delta(self) -> Tensor:
        delta = torch.zeros_like(self.weight)
        for name in self.layer.active_adapters:
            delta += self.layer.get_delta_weight(name)
        return delta


class AdapterSwitch:
    """Which weights a network computes with: ``State``; "adapter" unless told otherwise.

    ``first``: after full fine-tuning, the weights of ``trainable`` before it, if these were kept.
    """

    def __init__(
        self, network: nn.Module, trainable: list[nn.Parameter], first: list[Tensor] | None
    ) -> None:
        self._slots = adapter_slots(network)
        self._trainable = trainable
        self._first = first
        self._state: State = "adapter"

    @contextmanager
    def at(self, state: State) -> Iterator[None]:
        """Within it the network is in ``state``; afterwards it is as it was before. May be nested.

        "merged" within "reference" stays the reference: sampling must not bring an adapter back.
        """
        before = self._state
        self._set(before if (before, state) == ("reference", "merged") else state)

        try:
            yield
        finally:
            self._set(before)

    def _set(self, state: State) -> None:
        if self._first is not None and (state == "reference") != (self._state == "reference"):
            for i, p in enumerate(self._trainable):
                p.data, self._first[i] = self._first[i], p.data
        for slot in self._slots:
            slot.fill(state)

        self._state = state


def adapter_slots(network: nn.Module) -> list[AdapterSlot]:
    """The places of all adapter layers in the network; none where it has no adapter."""
    from peft.tuners.lora import Linear, LoraLayer

    places = []

    for path, layer in network.named_modules():
        if isinstance(layer, LoraLayer):
            parent, _, name = path.rpartition(".")
            places.append(
                AdapterSlot(
                    network.get_submodule(parent), name, layer, layer.base_layer.weight.data
                )
            )

            if type(layer) is Linear and layer.weight.dtype == torch.float32:
                layer.forward = MethodType(_fold, layer)

    return places


def _fold(layer: Any, x: Tensor) -> Tensor:
    """What peft's layer computes, x W + (x A) B scale, as x (W + A B scale), with the very weight
    ``merged`` samples with.

    One large product forwards and two backwards instead of eight thin ones, which are slow
    everywhere.
    """
    weight = layer.base_layer.weight
    for name in () if layer.disable_adapters else layer.active_adapters:
        weight = weight + layer.get_delta_weight(name)
    return linear(x, weight, layer.base_layer.bias)


def add_lora(network: nn.Module, rank: int, alpha: float, targets: Sequence[str]) -> None:
    """Adds a fresh adapter, float32, to the layers whose names end in one of ``targets``; B = 0, so
    it is silent yet.

    A is drawn from a generator of its own, so that a policy is the same whenever it is loaded.
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
                f"model.targets: the network has no layer whose name ends in '{target}'."
            )

    with torch.random.fork_rng(devices=[]):  # peft draws on the CPU
        torch.default_generator.manual_seed(0)
        config = LoraConfig(
            r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(targets)
        )
        network.add_adapter(config)  # type: ignore[operator]

    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def set_lora_scale(network: nn.Module, strength: float) -> None:
    """Multiplies what every adapter layer adds: 0 the base model, 1 as trained, between them a
    mixture.
    """
    from peft.tuners.lora import LoraLayer

    for layer in network.modules():
        if isinstance(layer, LoraLayer):
            layer.scale_layer(strength)


@torch.no_grad()
def copy_state(named: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    """Copies ``state`` into the parameters ``named``; nothing changes if it does not fit."""
    for name in sorted(named.keys() ^ state.keys()):
        how = "lacks" if name in named else "has the unknown"
        raise ValueError(
            f"{source} belongs to another model or to other model.targets: it {how} {name}."
        )

    for name, parameter in named.items():
        theirs = tuple(state[name].shape)
        ours = tuple(parameter.shape)

        if theirs != ours and ".lora_" in name:
            rank, own = (shape[0 if ".lora_A." in name else 1] for shape in (theirs, ours))
            raise ValueError(
                f"{source} has rank {rank}, but this adapter has rank {own}: set model.rank = {rank}."
            )

        if theirs != ours:
            raise ValueError(
                f"{source} belongs to another model: its {name} is {theirs}, not {ours}."
            )

    for name, parameter in named.items():
        parameter.copy_(state[name])


def write_adapter(pipe: Any, part: str, folder: Path, whole: bool = False) -> None:
    """Writes the adapter of the pipeline's ``part`` for ``pipe.load_lora_weights(folder)``, a
    ControlNet's for ``load_lora_adapter``; or the ``whole`` network.
    """
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    network = getattr(pipe, part)

    if whole:
        network.save_pretrained(folder)
        return

    config = network.peft_config["default"].to_dict()

    # the pipelines' own files have no place for it; as its save_lora_adapter, without a cast
    if part == CONTROLNET:
        layers = {
            name: value.detach().contiguous().cpu()
            for name, value in get_peft_model_state_dict(network).items()
        }
        about = json.dumps(config, sort_keys=True, default=list)  # a set in it becomes a list
        save_file(
            layers, folder / FILE, metadata={"format": "pt", LORA_ADAPTER_METADATA_KEY: about}
        )

        return

    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(network))
    layers = {name: value.detach().contiguous().cpu() for name, value in layers.items()}
    # without its configuration diffusers would take alpha = rank
    pipe.save_lora_weights(
        folder, **{f"{part}_lora_layers": layers, f"{part}_lora_adapter_metadata": config}
    )


def read_adapter(pipe: Any, part: str, folder: Path, train: str, alpha: float) -> None:
    """Loads what ``Policy.save_adapter`` wrote: a LoRA (``train`` "lora" or "none"), or a whole
    network ("full" or "none").

    With "none" any LoRA that diffusers reads will do, of whatever rank.
    """
    network = getattr(pipe, part)
    lora = (folder / FILE).is_file()
    whole = (folder / "config.json").is_file()

    if not (lora or whole):
        raise FileNotFoundError(
            f"the adapter folder {folder} has neither {FILE} nor a network's config.json."
        )
    if train == ("full" if lora else "lora"):
        raise ValueError(
            f"{folder} holds {'a LoRA adapter' if lora else 'a whole network'}: set model.train = "
            f"'{'lora' if lora else 'full'}'."
        )

    try:
        if whole:
            state = type(network).from_pretrained(folder, use_safetensors=True).state_dict()
        elif train == "none":
            with _without_warnings():
                if part == CONTROLNET:
                    network.load_lora_adapter(folder, prefix=None, weight_name=FILE)
                else:
                    pipe.load_lora_weights(folder, weight_name=FILE)

            return
        elif part == CONTROLNET:
            state, theirs = _controlnet_lora(folder / FILE)
        else:
            found, _, metadata = pipe.lora_state_dict(
                folder, weight_name=FILE, return_lora_metadata=True
            )
            state = _peft_names(found, part)
            theirs = (metadata or {}).get(f"{part}.lora_alpha", alpha)
    except Exception as error:  # a damaged file makes the libraries below raise anything
        first = first_line(error)
        raise ValueError(f"the adapter in {folder} cannot be read: {first}") from error

    if whole:
        copy_state(dict(network.state_dict(keep_vars=True)), state, str(folder))
        return

    copy_state({n: p for n, p in network.named_parameters() if p.requires_grad}, state, str(folder))
    if theirs != alpha:
        raise ValueError(f"{folder} was trained with alpha {theirs}: set model.alpha = {theirs}.")


def merge_lora(pipe: Any, source: str | Path) -> None:
    """Merges a LoRA (folder, file or hub id) into the pipeline's weights for good."""
    try:
        with _without_warnings():
            pipe.load_lora_weights(source)
            pipe.fuse_lora()
            pipe.unload_lora_weights()
    # network, damaged file, other architecture: the libraries below raise anything
    except Exception as error:
        first = first_line(error)
        raise ValueError(
            f"model.fused_lora: the LoRA {source} cannot be merged: {first}"
        ) from error


@contextmanager
def publishing(folder: Path) -> Iterator[Path]:
    """A new folder to write into; afterwards its files are flushed to the disk and put into
    ``folder`` one by one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".adapter-", dir=folder))

    try:
        yield made

        for file in sorted(path for path in made.rglob("*") if path.is_file()):
            with file.open("rb") as written:
                os.fsync(written.fileno())
            target = folder / file.relative_to(made)
            target.parent.mkdir(exist_ok=True)
            os.replace(file, target)
    finally:
        shutil.rmtree(made)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """diffusers warns that a LoRA of the network alone has nothing for the text encoder."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()

    try:
        yield
    finally:
        logging.set_verbosity(before)


def _controlnet_lora(file: Path) -> tuple[dict[str, Tensor], float]:
    """The tensors under the names of the ControlNet's parameters, and alpha."""
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()[LORA_ADAPTER_METADATA_KEY])

    tensors = load_file(file)
    return {
        name.replace(".weight", ".default.weight"): value for name, value in tensors.items()
    }, about["lora_alpha"]


def _peft_names(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """A LoRA file's tensors under the names of this network's parameters."""
    from diffusers.utils import convert_unet_state_dict_to_peft

    own = {
        name.removeprefix(f"{part}."): value
        for name, value in state.items()
        if name.startswith(f"{part}.")
    }
    renamed = convert_unet_state_dict_to_peft(own)

    return {name.replace(".weight", ".default.weight"): value for name, value in renamed.items()}
