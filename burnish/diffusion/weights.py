"""The weights that learn: an adapter or whole networks of a pipeline, their states and their files.

A LoRA adapter or all weights of a network learn, and are float32 always. The network can compute
with them, with the adapter merged, or as it was before training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from burnish.diffusion import lora, lora_file
from burnish.diffusion.adapter_switch import AdapterSwitch
from burnish.diffusion.cpu import optimize_for_cpu
from burnish.diffusion.family import CONTROLNET, Family, networks
from burnish.diffusion.sharding import gathered, is_main, is_sharded
from burnish.diffusion.shared_trunk import share_guidance_trunk
from burnish.files import publishing


class TrainableWeights:
    """The weights of a pipeline that learn, and the ways to set them aside.

    Attributes:
        pipe: the diffusers pipeline.
        train: "lora", "full" or "none".
        named_trainable: the parameters that learn, by name.
        trainable: the same without names, float32; empty with `train="none"`.
        sharded: this process has a part of each network's frozen, or of all, weights: all
            processes must make the same calls together.
    """

    def __init__(
        self,
        pipe: Any,
        family: Family,
        train: str,
        trainable_parts: str = "",
        initial: list[Tensor] | None = None,
        text_layers: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Find the weights that learn, in a pipeline that `prepare_networks` has made ready.

        Args:
            pipe: the diffusers pipeline.
            family: its family.
            train: "lora", "full" or "none".
            trainable_parts: "controlnet", "both", or "" for the family's network.
            initial: with "full", a copy of the weights before training, in the order of
                `trainable`.
            text_layers: a LoRA's layers in the text encoders, which do not learn; `read_adapters`
                returned them.
        """
        self.pipe = pipe
        self.train = train
        self._family = family
        self._text_layers = text_layers
        self._networks = trainable_networks(pipe, family, trainable_parts)
        self._root: nn.Module = next(iter(self._networks.values()))

        if len(self._networks) > 1:
            self._root = nn.ModuleDict(self._networks)

        self.named_trainable = lora.trainable_parameters(self._root)
        self.trainable = list(self.named_trainable.values())
        self.sharded = any(map(is_sharded, self._root.parameters()))
        self._initial = initial
        self._switch = AdapterSwitch(self._root, self.trainable, initial)

    def attention_without_adapter(self) -> list[str]:
        """Return an attention of each block that has no adapter; none where there is no LoRA."""
        if self.train != "lora":
            return []
        parts = self._networks.values()
        return [name for network in parts for name in lora.attention_without_adapter(network)]

    def reference(self) -> AbstractContextManager[None]:
        """Return a context in which the network is the one before training.

        Raises:
            RuntimeError: the whole network learns, and its first weights were not kept.
        """
        if self.train == "full" and self._initial is None:
            raise RuntimeError(
                "a fully trained policy has a reference only if it was loaded with reference=True"
            )
        return self._switch.use("reference")

    def merged(self) -> AbstractContextManager[None]:
        """Return a context in which the adapter costs nothing and cannot be trained.

        The base weights come back bit for bit.
        """
        return self._switch.use("merged")

    def set_lora_scale(self, strength: float) -> None:
        """Multiply the adapter's effect, for sampling: `save_adapter` writes it as trained.

        Args:
            strength: from 0, the untrained model, to 1, the trained one.

        Raises:
            ValueError: there is no adapter, because the whole network was trained.
        """
        if self.train == "full":
            raise ValueError(
                "a strength other than 1 needs a LoRA adapter, but this model's whole network was "
                "trained: leave the strength at 1"
            )
        if not any(lora.lora_layers(network) for network in networks(self.pipe)):
            raise ValueError(
                "a strength other than 1 needs a LoRA adapter, but this model learned none: leave "
                "the strength at 1"
            )
        for network in networks(self.pipe):
            lora.set_lora_scale(network, strength)

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the learned weights by parameter name, float32 on the CPU.

        Sharded ones are empty in all processes but the main one.
        """
        return lora.copied_state(self.named_trainable)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned.

        Args:
            state: the weights by parameter name.

        Raises:
            ValueError: it does not fit; then nothing has changed.
        """
        lora.copy_state(self.named_trainable, state, "the checkpoint")

    def save_adapter(self, folder: str | Path) -> None:
        """Write what was learned, for diffusers.

        It is a LoRA for `pipe.load_lora_weights(folder)`, or the whole network. What a ControlNet
        learned goes to `folder/controlnet`, for `ControlNetModel`'s `load_lora_adapter` or
        `from_pretrained`. With a sharded network all processes must call this together, and the
        main one writes.

        Args:
            folder: to write into; it is made if it is missing.

        Raises:
            RuntimeError: another program would read something else than the network computes with.
        """
        full = self.train == "full"
        states = {part: _whole_state(one) for part, one in self._networks.items() if full}
        if self.sharded and not is_main():
            return

        with publishing(Path(folder), lora.sort_metadata) as temporary:
            for part, network in self._networks.items():
                subfolder = adapter_folder(temporary, part, self._family)
                subfolder.mkdir(exist_ok=True)
                text = self._text_layers if part == self._family.network else None
                lora.write_adapter(self.pipe, part, network, subfolder, states.get(part), text)


def trainable_networks(pipe: Any, family: Family, trainable_parts: str) -> dict[str, nn.Module]:
    """Return the networks of the pipeline that learn, by the name of their attribute.

    Raises:
        ValueError: `trainable_parts` is unknown, or names a ControlNet that the pipeline lacks.
    """
    names = {
        "": (family.network,),
        "controlnet": (CONTROLNET,),
        "both": (family.network, CONTROLNET),
    }

    if trainable_parts not in names:
        raise ValueError(
            "model.trainable_parts must be 'controlnet', 'both' or '' (the model's own), not "
            f"'{trainable_parts}'"
        )
    if trainable_parts and not hasattr(pipe, CONTROLNET):
        raise ValueError(
            f"model.trainable_parts = '{trainable_parts}' needs a ControlNet: set model.controlnet"
        )

    return {name: uncompiled(getattr(pipe, name)) for name in names[trainable_parts]}


def uncompiled(network: nn.Module) -> nn.Module:
    """Return the network that torch.compile wrapped; any other as it is."""
    from accelerate.utils import extract_model_from_parallel

    bare: nn.Module = extract_model_from_parallel(network, keep_torch_compile=False)
    return bare


def adapter_folder(folder: Path, part: str, family: Family) -> Path:
    """Return the place in an adapter's folder of what `part` learned."""
    return folder if part == family.network or folder.is_file() else folder / part


def prepare_networks(
    pipe: Any,
    family: Family,
    trainable: Mapping[str, nn.Module],
    train: str,
    rank: int,
    alpha: float,
    targets: Sequence[str],
    device: torch.device,
) -> None:
    """Freeze the pipeline but for the weights that learn, and give it fast and precise layers.

    Args:
        pipe: the diffusers pipeline.
        family: its family.
        trainable: the networks that learn, by name.
        train: "lora" adds an adapter to these, "full" opens all their weights.
        rank: of the adapter.
        alpha: of the adapter.
        targets: ends of the names of the layers that get one.
        device: on which the networks will compute.
    """
    if family.upcast and pipe.vae.dtype == torch.float16 and pipe.vae.config.force_upcast:
        # it overflows in float16; the stock pipeline does the same, image by image
        pipe.vae.to(torch.float32)
    for network in networks(pipe):
        network.requires_grad_(False)

    for network in trainable.values():
        if train == "lora":
            lora.add_lora(network, rank, alpha, targets)
        elif train == "full":
            network.requires_grad_(True)
            # a ControlNet that came with its pipeline may be in half precision
            for parameter in network.parameters():
                parameter.data = parameter.data.float()

    if device.type == "cpu":
        shape = family.latent_shape(pipe)
        for network in (*called_networks(pipe, family), pipe.vae):
            optimize_for_cpu(network, shape)

    share_guidance_trunk(family.network_of(pipe))


def called_networks(pipe: Any, family: Family) -> list[nn.Module]:
    """Return the networks that a prediction calls: the family's, and a ControlNet."""
    names = [name for name in (family.network, CONTROLNET) if hasattr(pipe, name)]
    return [uncompiled(getattr(pipe, name)) for name in names]


def check_adapter(source: str | Path, train: str, quantized: bool) -> None:
    """Refuse an adapter of another kind than what learns, before the model is loaded.

    Args:
        source: a folder, a file or a hub id, for the model's own network.
        train: "lora", "full" or "none".
        quantized: the model's weights are to be stored in few bits.

    Raises:
        FileNotFoundError, ValueError: see `read_adapters`.
    """
    place = lora.locate(source, "model.adapter")
    if not (place / CONTROLNET).is_dir():  # of which `read_adapters` knows more
        lora.checked_lora(place, train, quantized)


def read_adapters(
    pipe: Any, family: Family, trainable: Mapping[str, nn.Module], source: str | Path, train: str
) -> dict[str, Tensor]:
    """Load a LoRA, or what `TrainableWeights.save_adapter` wrote, into the networks `trainable`.

    Returns:
        The LoRA's layers in the text encoders, for `TrainableWeights`.

    Raises:
        FileNotFoundError: there is no adapter of one of the networks.
        ValueError: an adapter is damaged or does not fit, or belongs to another network.
    """
    place = lora.locate(source, "model.adapter")

    for part in {family.network, CONTROLNET} - trainable.keys():
        left = adapter_folder(place, part, family)
        if left.is_dir() and any((left / name).is_file() for name in (lora.FILE, "config.json")):
            raise ValueError(
                f"model.adapter: {left} has weights for the {part}, which model.trainable_parts "
                "leaves out: set it to 'both', or name a folder without them"
            )

    text_layers: dict[str, Tensor] = {}
    for part, network in trainable.items():
        text_layers |= lora.read_adapter(
            pipe, part, network, adapter_folder(place, part, family), train
        )

    return text_layers


def enable_gradient_checkpointing(
    pipe: Any, family: Family, checkpoint: Callable[..., Any] | None = None
) -> None:
    """Recompute inner states in the backward pass of the network and of a ControlNet.

    Args:
        pipe: the diffusers pipeline.
        family: its family.
        checkpoint: (module, *inputs) -> the module's output; None: torch's.
    """
    family.network_of(pipe).enable_gradient_checkpointing(checkpoint)
    if hasattr(pipe, CONTROLNET):
        getattr(pipe, CONTROLNET).enable_gradient_checkpointing(checkpoint)


def _whole_state(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's state by the names of a stock network; a sharded one's see `gathered`."""
    return {
        lora_file.plain_name(name): gathered(value) if is_sharded(value) else value
        for name, value in network.state_dict().items()
    }


def copy_weights(trainable: Mapping[str, nn.Module]) -> list[Tensor]:
    """Return a copy of all weights of the networks, in the order of their parameters."""
    return [p.detach().clone() for p in all_weights(trainable)]


def all_weights(trainable: Mapping[str, nn.Module]) -> list[nn.Parameter]:
    """Return all weights of the networks."""
    return [p for network in trainable.values() for p in network.parameters()]
