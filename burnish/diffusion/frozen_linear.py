"""Frozen linear layers whose weight is fetched for each product, and again for its gradient.

Nothing of the weight is kept in between. So it may be stored in another form (`quantization`) or
in another place: with `offload_weights` it stays in main memory, and the device has the copy of one
layer at a time, forwards and backwards, with gradient checkpointing or without.

diffusers' `enable_group_offload` is made for sampling. It moves a block's weights away when its
forward pass ends; autograd then finds other values in the weights that convolutions and norms
saved, or holds the device's copies of linear layers until the backward pass has used them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from burnish.errors import first_line

SLAB = 1 << 28
"""Bytes of main memory that are locked at once: torch locks powers of two."""

ALIGNMENT = 512
"""Bytes of which the place of a weight in locked memory is a multiple."""


class FrozenLinear(nn.Linear):
    """A linear layer without gradients of its own; `offload_weights` makes it of an `nn.Linear`.

    Attributes:
        computes_on: the device that fetches its weight from main memory, where it stays when the
            layer is moved; None: the weight is with the layer.
        stored: names of the tensors that its weight is stored in.
    """

    computes_on: torch.device | None = None
    stored: tuple[str, ...] = ("weight",)

    def rebuilt(self, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
        """Return the weight (out, in) that the layer multiplies with.

        Args:
            dtype: of the product.
            device: that computes it; None: where the weight is stored.
        """
        return self.fetched(self.weight, device).to(dtype)

    def fetched(self, tensor: Tensor, device: torch.device | None) -> Tensor:
        """Return one of the stored tensors on the device that computes."""
        if self.computes_on is None:
            return tensor
        if tensor.is_meta:  # counted as the copy that it stands for
            return torch.empty_like(tensor)
        return tensor.to(device=device, non_blocking=True)

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output, in the precision that autocast would choose."""
        # of a device without memory the CPU's autocast stands for its own (`allocations`)
        kind = "cpu" if input.device.type == "meta" else input.device.type
        if torch.is_autocast_enabled(kind):
            input = input.to(torch.get_autocast_dtype(kind))
        product: Tensor = _Product.apply(input, self)
        return product

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move or cast the layer, but for a weight that is to stay in main memory."""
        if self.computes_on is None:
            return super()._apply(fn, recurse)

        tables: tuple[dict[str, Any], ...] = (self._parameters, self._buffers)
        places = [(table, name) for table in tables for name in self.stored if name in table]
        staying = [table[name] for table, name in places]
        try:
            for table, name in places:
                table[name] = None
            return super()._apply(fn, recurse)
        finally:
            for (table, name), tensor in zip(places, staying, strict=True):
                table[name] = tensor


class _Product(torch.autograd.Function):
    """A linear layer's output; the weight is not kept for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear) -> Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return F.linear(x, layer.rebuilt(x.dtype, x.device), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        return grad @ ctx.layer.rebuilt(grad.dtype, grad.device), None


@torch.no_grad()
def offload_weights(network: nn.Module, device: torch.device) -> None:
    """Keep the weights of a network's linear layers in main memory, wherever it is moved to.

    For a CUDA device their memory is locked: it copies from there at the full speed of its bus.
    Where that fails, a warning is given, and weights stay as they are.

    Args:
        network: frozen, in main memory, without an adapter.
        device: that will compute.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            if not isinstance(layer, FrozenLinear):
                layer.__class__ = FrozenLinear
            layer.computes_on = device  # type: ignore[assignment]

    if device.type != "cuda":
        return

    tensors = list(offloaded_tensors(network))
    try:
        for tensor, copy in zip(tensors, packed(tensors, lock=True), strict=True):
            tensor.data = copy
    except RuntimeError as error:
        warnings.warn(
            "model.offload: not all of the network's weights can be locked in main memory "
            f"({first_line(error)}); they are brought to the device more slowly",
            stacklevel=2,
        )


def is_offloaded(layer: object) -> bool:
    """Return whether a layer's weight stays in main memory."""
    return isinstance(layer, FrozenLinear) and layer.computes_on is not None


def offloaded_tensors(network: nn.Module) -> Iterator[Tensor]:
    """Yield what `offload_weights` keeps in main memory of a network."""
    for layer in network.modules():
        if isinstance(layer, FrozenLinear) and layer.computes_on is not None:
            yield from (getattr(layer, name) for name in layer.stored)


def computing_device(network: nn.Module) -> torch.device:
    """Return the device that a network computes on, wherever weights of it are stored."""
    layers = (layer for layer in network.modules() if isinstance(layer, FrozenLinear))
    offloaded = (layer.computes_on for layer in layers if layer.computes_on is not None)
    return next(chain(offloaded, (tensor.device for tensor in network.parameters())))


def packed(tensors: Iterable[Tensor], lock: bool) -> Iterator[Tensor]:
    """Yield copies of tensors, side by side in buffers of `SLAB` bytes.

    Args:
        tensors: in main memory.
        lock: the buffers are never paged out.

    Raises:
        RuntimeError: there is no more memory that can be locked.
    """
    slab = torch.empty(0, dtype=torch.uint8)
    used = 0

    for tensor in tensors:
        size = -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        if used + size > len(slab):
            slab = torch.empty(max(SLAB, size), dtype=torch.uint8, pin_memory=lock)
            used = 0

        copy = slab[used : used + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        used += size
        yield copy.copy_(tensor)
