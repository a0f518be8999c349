"""Faster kernels for the same arithmetic on a CPU. What a network's layers are computed with there:

linear layers    on AMD's processors as 1x1 convolutions: torch multiplies float32 matrices with MKL, which reaches half
                 the speed of oneDNN, the library behind convolutions, there; the results are equal
                 up to rounding
convolutions     in channels-last layout: no copies between them and attention, and no slow upsampling
attention        plain matrix products: the fused kernel is slow for few tokens, above all backwards
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MANY_TOKENS = 1024
"""Beyond this many latent pixels the B x heads x tokens^2 matrix of plain attention gets too large.
"""


def is_amd() -> bool:
    """Whether AMD made the processor. Asked rather than timed, so that a resumed run repeats its
    bits.
    """
    listed = Path("/proc/cpuinfo")
    return "AuthenticAMD" in (
        listed.read_text(errors="replace") if listed.exists() else platform.processor()
    )


ONEDNN_MULTIPLIES = torch.backends.mkldnn.is_available() and is_amd()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear``. On an AMD processor, tokens (B, tokens, C) in float32 take the way through a
    convolution.
    """
    if (
        x.dim() != 3
        or x.device.type != "cpu"
        or weight.dtype != torch.float32
        or not ONEDNN_MULTIPLIES
    ):
        return F.linear(x, weight, bias)

    pixels = x.unsqueeze(2).permute(0, 3, 1, 2)  # (B, C, tokens, 1), channels last: a view
    return F.conv2d(pixels, weight[:, :, None, None], bias).permute(0, 2, 3, 1).squeeze(2)


class Dense(nn.Linear):
    """``nn.Linear`` with ``linear``."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class Attention:
    """An attention processor for diffusers: plain products, with as few copies as they allow.

    What is not tokens attending to tokens without a mask is left to ``stock``, diffusers' own.
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
        """(B, tokens, C) -> (B, tokens, C)."""
        norms = attn.spatial_norm, attn.group_norm, attn.norm_cross, attn.norm_q, attn.norm_k
        special = (
            any(part is not None for part in (*norms, attention_mask)) or hidden_states.dim() != 3
        )
        scaled = attn.upcast_attention or attn.upcast_softmax or attn.rescale_output_factor != 1

        if special or scaled or attn.residual_connection:
            out: Tensor = self.stock(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb
            )
            return out

        rows = len(hidden_states)
        heads = attn.heads
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            # (B * heads, tokens, channels)
            layer(tokens).unflatten(2, (heads, -1)).transpose(1, 2).flatten(0, 1)
            for layer, tokens in (
                (attn.to_q, hidden_states),
                (attn.to_k, source),
                (attn.to_v, source),
            )
        )
        nothing = query.new_empty(1, 1, 1)
        share = torch.baddbmm(
            nothing, query, key.transpose(1, 2), beta=0, alpha=attn.scale
        ).softmax(-1)
        joined = torch.bmm(share, value).unflatten(0, (rows, heads)).transpose(1, 2).flatten(2)

        return attn.to_out[1](attn.to_out[0](joined))


def optimize_for_cpu(network: Any, latent_shape: tuple[int, ...]) -> None:
    """Gives a network on a CPU these kernels; one on another device stays as it is."""
    if network.device.type != "cpu":
        return

    network.to(memory_format=torch.channels_last)
    for layer in network.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Dense  # the same parameters under the same names

    if latent_shape[-1] * latent_shape[-2] <= MANY_TOKENS and hasattr(
        network, "set_attn_processor"
    ):
        from diffusers.models.attention_processor import AttnProcessor

        network.set_attn_processor(Attention(AttnProcessor()))
