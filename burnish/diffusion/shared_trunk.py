"""The shared trunk: a network's layers before its first use of the text, computed once an image.

Guidance needs a network's outputs for the same latent with and without its prompt. Up to the first
cross-attention these are the same, so a network of diffusers may here be given k times as many rows
of text as of latents and times: the latents' rows are repeated as late as its layers allow. The
arithmetic is that of repeated rows, bit for bit or up to the rounding of another batch size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

CONDITIONED_LAYERS = ("ResnetBlock2D", "Transformer2DModel")
"""Layers in which a latent meets its time or its text."""


def share_guidance_trunk(network: nn.Module) -> None:
    """Let `network` take latents (B, ...) and times (B,) with texts (k * B, ...).

    Its output is as if latents and times were repeated k times. Networks without such layers (and
    calls with as many latents as texts) stay as they are.
    """
    layers = [module for module in network.modules() if type(module).__name__ in CONDITIONED_LAYERS]
    # the blocks on the way up also meet the states that were kept on the way down
    for module in [*layers, *getattr(network, "up_blocks", ())]:
        module.register_forward_pre_hook(_repeat_inputs, with_kwargs=True)


def _repeat_inputs(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Repeat all tensors of a layer's input to the most rows that one of them has."""
    rows = max(len(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor))

    def repeated(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(repeated, value))
        if isinstance(value, Tensor) and 0 < len(value) < rows:
            # keeps channels last, which Tensor.repeat does not
            return torch.cat([value] * (rows // len(value)))

        return value

    return tuple(map(repeated, args)), {name: repeated(value) for name, value in kwargs.items()}
