"""Faster kernels for the same arithmetic on a CPU. What a network's layers are computed with there:

linear layers    as 1x1 convolutions: torch multiplies float32 matrices with MKL, which on AMD's processors reaches
                 half the speed of oneDNN, the library behind convolutions; the results are equal up to rounding
convolutions     in channels-last layout: no copies between them and attention, and no slow upsampling
attention        plain matrix products: the fused kernel is slow for few tokens, above all backwards
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WITH_ONEDNN = torch.backends.mkldnn.is_available()
MANY_TOKENS = 1024
"""Beyond this many latent pixels the B x heads x tokens^2 matrix of plain attention gets too large."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear``. On a CPU, tokens (B, tokens, C) in float32 take the way through a convolution."""
    if x.dim() != 3 or x.device.type != "cpu" or weight.dtype != torch.float32 or not WITH_ONEDNN:
        return F.linear(x, weight, bias)
    pixels = x.unsqueeze(2).permute(0, 3, 1, 2)  # (B, C, tokens, 1), channels last: a view
    return F.conv2d(pixels, weight[:, :, None, None], bias).permute(0, 2, 3, 1).squeeze(2)


class Dense(nn.Linear):
    """``nn.Linear`` with ``linear``."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def suit(network: Any, latent_shape: tuple[int, ...]) -> None:
    """Gives a network on a CPU these kernels; one on another device stays as it is."""
    if network.device.type != "cpu":
        return
    network.to(memory_format=torch.channels_last)
    for layer in network.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Dense  # the same parameters under the same names
    if latent_shape[-1] * latent_shape[-2] <= MANY_TOKENS and hasattr(network, "set_attn_processor"):
        from diffusers.models.attention_processor import AttnProcessor

        network.set_attn_processor(AttnProcessor())
