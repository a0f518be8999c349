"""The names that the first program of Stable Diffusion gave to the weights of a tiny pipeline."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
VAE_ENDS = {"conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut"}
OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def single_file(pipe: Any) -> dict[str, Tensor]:
    """Return all weights of a tiny Stable Diffusion 1.x as one checkpoint."""
    text = {
        f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}": value
        for name, value in pipe.text_encoder.state_dict().items()
    }
    vae = {f"first_stage_model.{vae_name(n)}": v for n, v in pipe.vae.state_dict().items()}
    unet = {f"model.diffusion_model.{unet_name(n)}": v for n, v in pipe.unet.state_dict().items()}
    return {name: value.contiguous() for name, value in {**text, **vae, **unet}.items()}


def unet_name(name: str) -> str:
    """Return the first name of a UNet's weight; each block has one residual block."""
    for ours, theirs in OUTSIDE.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs, 1)

    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
    if match is None:
        _, kind, number, rest = name.split(".", 3)
        place = 1 if kind == "attentions" else 2 * int(number)
        return f"middle_block.{place}.{rest if kind == 'attentions' else _resnet(rest)}"

    side, block, kind, number, rest = match.groups()
    at = 2 * int(block) + int(number)
    if kind == "downsamplers":
        return f"input_blocks.{2 * int(block) + 2}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        inner = 1 if block == "0" else 2  # the first block of the way up has no attention
        return f"output_blocks.{2 * int(block) + 1}.{inner}.{rest}"

    place = f"input_blocks.{at + 1}" if side == "down" else f"output_blocks.{at}"
    return f"{place}.1.{rest}" if kind == "attentions" else f"{place}.0.{_resnet(rest)}"


def vae_name(name: str) -> str:
    """Return the first name of an autoencoder's weight; it has three blocks."""
    for ours, theirs in VAE_ENDS.items():
        name = name.replace(ours, theirs)

    name = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample.", name)
    name = re.sub(
        r"up_blocks\.(\d)\.resnets\.", lambda match: f"up.{2 - int(match[1])}.block.", name
    )
    name = re.sub(
        r"up_blocks\.(\d)\.upsamplers\.0\.", lambda match: f"up.{2 - int(match[1])}.upsample.", name
    )
    return re.sub(
        r"mid_block\.resnets\.(\d)\.", lambda match: f"mid.block_{int(match[1]) + 1}.", name
    )


def _resnet(rest: str) -> str:
    layer, _, end = rest.rpartition(".")
    return f"{RESNET[layer]}.{end}"
