"""Qwen-Image (arXiv 2508.02324): packed latents, and an autoencoder of videos with one frame.

The network predicts the velocity at times in [0, 1]. Guidance keeps, in each packed patch, the norm
of what the network predicts for the prompt alone, as the pipeline's `true_cfg_scale` does:

    out = guided * |prompt| / |guided|
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from burnish.diffusion.family import Family, decode_vae, embed_vae, repeated_for_texts
from burnish.diffusion.flow_parts import (
    check_parts,
    pack,
    packed_grid,
    packed_shape,
    resize_packed,
    rounded_time,
    unpack,
)
from burnish.types import Cond

TEXT_TOKENS = 512
"""Tokens of a prompt at most, as the pipeline has it."""

EMPTY_PROMPT = " "
"""The negative prompt that the model's authors recommend where there is none."""


def _text_tokens(pipe: Any) -> int:
    return TEXT_TOKENS


def _encode(pipe: Any, texts: list[str]) -> Cond:
    """Return the text states, padded to one length, and how many of them are a prompt's."""
    check_parts(pipe, "text_encoder")
    states, mask = pipe.encode_prompt(
        texts, device=pipe.text_encoder.device, max_sequence_length=TEXT_TOKENS
    )
    if mask is None:  # no padding among these texts
        mask = states.new_ones(states.shape[:2], dtype=torch.int64)

    padded = pad(states, (0, 0, 0, TEXT_TOKENS - states.shape[1]))
    return {"text": padded, "tokens": mask.sum(1)}


def _null(pipe: Any) -> Cond:
    return _encode(pipe, [EMPTY_PROMPT])


def _call(pipe: Any, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    x, t = repeated_for_texts(x, t, cond)
    height, width = x.shape[2:]

    # padding that all prompts have costs only time; without any the network needs no mask
    longest = int(cond["tokens"].max())
    mask = torch.arange(longest, device=x.device) < cond["tokens"].view(-1, 1)
    out = pipe.transformer(
        pack(x),
        cond["text"][:, :longest].to(x.dtype),
        None if mask.all() else mask,
        rounded_time(t, x.dtype),
        [[(1, height // 2, width // 2)]] * len(x),
        return_dict=False,
    )[0]
    return unpack(out, height, width)


def _keep_norm(guided: Tensor, prompt: Tensor) -> Tensor:
    """Return the guided output (B, C, h, w) with the norms of the prompt's in each patch."""
    patches = pack(guided)
    norm = pack(prompt.to(guided.dtype)).norm(dim=-1, keepdim=True)
    return unpack(patches * (norm / patches.norm(dim=-1, keepdim=True)), *guided.shape[2:])


QWEN_IMAGE = Family(
    network="transformer",
    encode=_encode,
    null=_null,
    call=_call,
    decode=partial(decode_vae, frames=True),
    embed=partial(embed_vae, frames=True),
    latent_shape=packed_shape,
    resize=resize_packed,
    grid=packed_grid,
    text_tokens=_text_tokens,
    after_guidance=_keep_norm,
)
