"""Quantization: the frozen weights of linear layers stored in 8 or 4 bits.

int8    whole numbers and a scale for each row, as LLM.int8 stores them (arXiv 2208.07339)
nf4     4-bit NormalFloat and a scale for each 64 weights, as QLoRA does (arXiv 2305.14314)

The numbers are those of diffusers' `BitsAndBytesConfig(load_in_8bit=True)` and
`BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")`: bitsandbytes makes them. For
each product a layer's weight is rebuilt in the precision of what it is multiplied with, and again
for the gradient. What flows through is not rounded. LLM.int8 rounds it too, and keeps columns with
large numbers apart; these depend on all rows of a batch, so an image would be another beside
others, and the ratio of the first update not 1.

diffusers loads such weights on a GPU only; here they are made after loading, on any device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from burnish.diffusion.frozen_linear import FrozenLinear

KINDS = ("int8", "nf4")
BLOCK = 64
"""Weights of nf4 that share a scale."""


class QuantizedLinear(FrozenLinear):
    """A frozen linear layer whose weight is stored in few bits.

    `quantize` makes it of an `nn.Linear`.

    Attributes:
        weight: int8 (out, in), or for nf4 uint8 (out * in / 2, 1), two weights a byte.
        scales: float32, for int8 (out,), for nf4 (out * in / 64,): what the largest weight is.
    """

    scales: Tensor
    stored = ("weight", "scales")

    def rebuilt(self, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
        """Return the weight (out, in) that the layer multiplies with; see `FrozenLinear`."""
        weight, scales = (self.fetched(part, device) for part in (self.weight, self.scales))
        if weight.dtype == torch.int8:
            return weight.to(dtype).mul_(scales[:, None] * (1 / 127))

        shape = torch.Size((self.out_features, self.in_features))
        if weight.is_meta:
            return weight.new_empty(shape, dtype=dtype)

        bnb = require_bitsandbytes()
        state = bnb.QuantState(scales, shape=shape, dtype=dtype, blocksize=BLOCK, quant_type="nf4")
        rebuilt: Tensor = bnb.dequantize_4bit(weight, state)
        return rebuilt


@torch.no_grad()
def quantize(network: nn.Module, kind: str, device: torch.device) -> None:
    """Store the weights of a network's linear layers in few bits, where they are.

    Layers that their library keeps in float32 stay as they are.

    Args:
        network: without an adapter.
        kind: "int8" or "nf4".
        device: that rounds the weights, one layer after the other.

    Raises:
        ValueError: the kind is unknown, or bitsandbytes is missing.
    """
    if kind not in KINDS:
        raise ValueError(f"model.quantization must be one of {', '.join(KINDS)}, not '{kind}'")

    wide = getattr(network, "_keep_in_fp32_modules", None) or ()
    for path, layer in network.named_modules():
        if isinstance(layer, nn.Linear) and not any(part in path.split(".") for part in wide):
            place = layer.weight.device
            codes, scales = _rounded(layer.weight.to(device), kind)
            layer.__class__ = QuantizedLinear
            layer.weight = nn.Parameter(codes.to(place), requires_grad=False)
            layer.register_buffer("scales", scales.to(place))


def quantization_of(network: nn.Module) -> str:
    """Return the way in which a network's weights are stored: "int8", "nf4", or "" for neither."""
    layers = (layer for layer in network.modules() if isinstance(layer, QuantizedLinear))
    first = next(layers, None)
    if first is None:
        return ""
    return "int8" if first.weight.dtype == torch.int8 else "nf4"


def _rounded(weight: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Return a weight (out, in) in few bits, and its scales.

    Of a weight without memory (torch's meta device) they are made without bitsandbytes.
    """
    if weight.is_meta and kind == "nf4":
        codes = weight.new_empty(-(-weight.numel() // 2), 1, dtype=torch.uint8)
        return codes, weight.new_empty(-(-weight.numel() // BLOCK), dtype=torch.float32)
    if weight.is_meta:
        codes = torch.empty_like(weight, dtype=torch.int8)
        return codes, weight.new_empty(len(weight), dtype=torch.float32)

    bnb = require_bitsandbytes()
    if kind == "nf4":
        codes, state = bnb.quantize_4bit(weight.contiguous(), blocksize=BLOCK, quant_type="nf4")
        return codes, state.absmax

    codes, scales, _ = bnb.int8_vectorwise_quant(weight.half())
    return codes * (scales > 0)[:, None], scales  # a row of zeros is divided by 0


def require_bitsandbytes() -> Any:
    """Return the package's functions.

    Raises:
        ValueError: it is not installed.
    """
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise ValueError(
            'model.quantization needs the package bitsandbytes: pip install "burnish[eight-bit]", '
            "or leave it out"
        ) from error
    return functional
