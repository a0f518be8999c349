"""The adapter switch: a network's adapter layers taken out, merged, or put back, in place.

Sampling needs no gradient, so it merges the adapter into copies of the weights; a comparison with
the model before training takes the adapter out. The base weights are never written into, so they
come back bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from burnish.diffusion.cpu import linear
from burnish.diffusion.frozen_linear import is_offloaded
from burnish.diffusion.sharding import held, is_sharded

AdapterState = Literal["adapter", "merged", "reference"]
"""The weights that a network computes with.

adapter      base layer + adapter, with gradient
merged       the base layer with the adapter added into a copy of its weight: half the matrix
             products, no Python
reference    the base layer alone
"""


@dataclass(frozen=True)
class AdapterSlot:
    """The place of one adapter layer in a network, to be filled according to `AdapterState`.

    Attributes:
        parent: the module that has the layer.
        name: the layer's name in it.
        layer: peft's layer: base layer and adapter.
        weight: the base layer's own; never written into, so it comes back bit for bit.
    """

    parent: nn.Module
    name: str
    layer: Any
    weight: Tensor

    @torch.no_grad()
    def fill(self, state: AdapterState) -> None:
        """Put the layer for `state` into the network.

        Half-precision weights stay unmerged: rounded into them, most of a small adapter would be
        lost. So do weights in main memory, for which the device has no room, and sharded ones, of
        which no process has all.
        """
        base = self.layer.base_layer
        sharded = is_sharded(self.weight)
        merge = state == "merged" and _can_merge(base) and not sharded
        if not sharded:
            base.weight.data = self.weight + self._delta() if merge else self.weight
        setattr(self.parent, self.name, base if merge or state == "reference" else self.layer)

    def _delta(self) -> Tensor:
        """Return what the active adapters add to the weight."""
        delta = torch.zeros_like(self.weight)
        for name in self.layer.active_adapters:
            delta += self.layer.get_delta_weight(name)
        return delta


class AdapterSwitch:
    """The choice of the weights that a network computes with; "adapter" until it is changed."""

    def __init__(
        self, network: nn.Module, trainable: list[nn.Parameter], initial: list[Tensor] | None
    ) -> None:
        """Find the adapter layers of `network`.

        Args:
            network: with an adapter, or trained in full.
            trainable: the parameters that learn.
            initial: after full fine-tuning, the weights of `trainable` before it, if these were
                kept.
        """
        self._slots = adapter_slots(network)
        self._trainable = trainable
        self._initial = initial
        self._state: AdapterState = "adapter"

    @contextmanager
    def use(self, state: AdapterState) -> Iterator[None]:
        """Let the network compute with `state` inside of the context; contexts may be nested.

        "merged" within "reference" stays the reference: sampling must not bring an adapter back.
        """
        before = self._state
        self._set("reference" if (before, state) == ("reference", "merged") else state)

        try:
            yield
        finally:
            self._set(before)

    def _set(self, state: AdapterState) -> None:
        if self._initial is not None and (state == "reference") != (self._state == "reference"):
            self._exchange(self._initial)
        for slot in self._slots:
            slot.fill(state)

        self._state = state

    @torch.no_grad()
    def _exchange(self, others: list[Tensor]) -> None:
        """Exchange the trained weights and others; those of sharded weights in their memory."""
        for i, (p, part) in enumerate(zip(self._trainable, held(self._trainable), strict=True)):
            if is_sharded(p):
                current = part.detach().clone()
                part.copy_(others[i])
                others[i] = current
            else:
                p.data, others[i] = others[i], p.data


def adapter_slots(network: nn.Module) -> list[AdapterSlot]:
    """Return the places of all adapter layers in the network; none where it has no adapter.

    The layers found also get a faster forward pass.
    """
    from peft.tuners.lora import Linear, LoraLayer

    slots = []

    for path, layer in network.named_modules():
        if not isinstance(layer, LoraLayer):
            continue

        parent, _, name = path.rpartition(".")
        weight = layer.base_layer.weight.data
        slots.append(AdapterSlot(network.get_submodule(parent), name, layer, weight))

        if type(layer) is Linear and _can_merge(layer.base_layer):
            layer.forward = MethodType(_one_product_forward, layer)

    return slots


def _can_merge(base: nn.Module) -> bool:
    """Return whether an adapter is added to a layer's weight, and not computed beside it."""
    return base.weight.dtype == torch.float32 and not is_offloaded(base)


def _one_product_forward(layer: Any, x: Tensor) -> Tensor:
    """Return what peft's layer computes, x W + (x A) B scale, as x (W + A B scale).

    It is computed with the very weight that `merged` samples with. One large product forwards and
    two backwards instead of eight thin ones, which are slow everywhere.
    """
    weight = layer.base_layer.weight
    for name in () if layer.disable_adapters else layer.active_adapters:
        weight = weight + layer.get_delta_weight(name)
    return linear(x, weight, layer.base_layer.bias)
