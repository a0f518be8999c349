"""Faster kernels for the same arithmetic on a CPU.

linear layers    on AMD's processors as 1x1 convolutions: torch multiplies float32 matrices with
                 MKL, which there reaches half the speed of oneDNN, the library behind convolutions;
                 the results are equal up to rounding
convolutions     in channels-last layout: no copies between them and attention, and no slow
                 upsampling
attention        of UNets: plain matrix products, because the fused kernel is slow for few tokens,
                 above all in the backward pass
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from burnish.diffusion.frozen_linear import computing_device

MAX_ATTENTION_TOKENS = 1024
"""Latent pixels beyond which plain attention's B x heads x tokens^2 matrix gets too large."""


def is_amd() -> bool:
    """Return True if AMD made the processor.

    Read from the system and not timed, so that a resumed run repeats its bits.
    """
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        return "AuthenticAMD" in cpuinfo.read_text("utf-8", errors="replace")

    return "AuthenticAMD" in platform.processor()


LINEAR_BY_ONEDNN = torch.backends.mkldnn.is_available() and is_amd()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `F.linear(x, weight, bias)`.

    On an AMD processor, tokens (B, tokens, C) in float32 are computed by a convolution.
    """
    if (
        x.dim() != 3
        or x.device.type != "cpu"
        or weight.dtype != torch.float32
        or not LINEAR_BY_ONEDNN
    ):
        return F.linear(x, weight, bias)

    pixels = x.unsqueeze(2).permute(0, 3, 1, 2)  # (B, C, tokens, 1), channels last: a view
    return F.conv2d(pixels, weight[:, :, None, None], bias).permute(0, 2, 3, 1).squeeze(2)


class FastLinear(nn.Linear):
    """`nn.Linear` that is computed by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output."""
        return linear(input, self.weight, self.bias)


class PlainAttnProcessor:
    """An attention processor for diffusers: plain products, with as few copies as they allow.

    Everything but tokens that attend to tokens without a mask is left to `stock`, diffusers' own
    processor.
    """

    def __init__(self, stock: Any) -> None:
        self.stock = stock

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Return the layer's output (B, tokens, C) for `hidden_states` (B, tokens, C)."""
        if attention_mask is not None or hidden_states.dim() != 3 or _is_special(attn):
            out: Tensor = self.stock(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb
            )
            return out

        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = _split_heads(attn.to_q(hidden_states), attn.heads)
        key = _split_heads(attn.to_k(source), attn.heads)
        value = _split_heads(attn.to_v(source), attn.heads)

        unused = query.new_empty(1, 1, 1)  # beta = 0: never read
        scores = torch.baddbmm(unused, query, key.transpose(1, 2), beta=0, alpha=attn.scale)
        mixed = torch.bmm(scores.softmax(-1), value)
        joined = mixed.unflatten(0, (len(hidden_states), attn.heads)).transpose(1, 2).flatten(2)

        return attn.to_out[1](attn.to_out[0](joined))


def _is_special(attn: Any) -> bool:
    """Return True for a layer of diffusers that does more than attend."""
    norms = (attn.spatial_norm, attn.group_norm, attn.norm_cross, attn.norm_q, attn.norm_k)
    if any(norm is not None for norm in norms):
        return True

    scaled = attn.upcast_attention or attn.upcast_softmax or attn.rescale_output_factor != 1
    return bool(scaled or attn.residual_connection)


def _split_heads(tokens: Tensor, heads: int) -> Tensor:
    """Return (B * heads, tokens, channels of a head) of (B, tokens, channels)."""
    return tokens.unflatten(2, (heads, -1)).transpose(1, 2).flatten(0, 1)


def optimize_for_cpu(network: Any, latent_shape: tuple[int, ...]) -> None:
    """Give a network on a CPU these kernels; a network on another device stays as it is."""
    if computing_device(network).type != "cpu":
        return

    if all(weight.dim() < 5 for weight in network.parameters()):  # no convolutions of videos
        network.to(memory_format=torch.channels_last)
    for layer in network.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = FastLinear  # the same parameters under the same names

    few_tokens = latent_shape[-1] * latent_shape[-2] <= MAX_ATTENTION_TOKENS
    if few_tokens and _has_plain_attention(network):
        from diffusers.models.attention_processor import AttnProcessor

        network.set_attn_processor(PlainAttnProcessor(AttnProcessor()))


def _has_plain_attention(network: Any) -> bool:
    """Return True for attention as UNets have it; transformers have processors of their own."""
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    processors = getattr(network, "attn_processors", {}).values()
    plain = (AttnProcessor, AttnProcessor2_0, PlainAttnProcessor)
    return bool(processors) and all(isinstance(processor, plain) for processor in processors)
