"""Sana (arXiv 2410.10629), as diffusers' `SanaPipeline` calls it.

A prompt is read behind an instruction to the language model, a negative prompt without; the
autoencoder has no posterior, and its latents are of images 32 times as large.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from burnish.diffusion.family import (
    LARGE_IMAGE,
    SMALL_IMAGES_AT_ONCE,
    Family,
    Sides,
    check_size,
    decode_vae,
    repeated_for_texts,
)
from burnish.diffusion.flow_parts import latent_sides, set_latent_sides
from burnish.types import Cond

TEXT_TOKENS = 300
"""Tokens of a prompt at most, as the pipeline has it; the instruction is counted apart."""


def _prompt_tokens(pipe: Any) -> int:
    return TEXT_TOKENS - 1  # the instruction around a prompt takes one


def _encode(pipe: Any, texts: list[str]) -> Cond:
    """Return the text states behind the pipeline's instruction, and which of them are padding."""
    defaults = inspect.signature(type(pipe).__call__).parameters
    return _states(pipe, texts, defaults["complex_human_instruction"].default)


def _null(pipe: Any) -> Cond:
    return _negative(pipe, "")


def _negative(pipe: Any, text: str) -> Cond:
    return _states(pipe, [text], None)


def _states(pipe: Any, texts: list[str], instruction: list[str] | None) -> Cond:
    text, mask, _, _ = pipe.encode_prompt(
        texts,
        do_classifier_free_guidance=False,
        device=pipe.text_encoder.device,
        complex_human_instruction=instruction,
    )
    return {"text": text, "mask": mask}


def _call(pipe: Any, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """Return the velocity, noise - x0; a variance that a network also predicts is left out."""
    x, t = repeated_for_texts(x, t, cond)
    out: Tensor = pipe.transformer(
        x,
        encoder_hidden_states=cond["text"].to(x.dtype),
        encoder_attention_mask=cond["mask"],
        timestep=1000 * t.float() * pipe.transformer.config.timestep_scale,
        return_dict=False,
    )[0]
    return out[:, : x.shape[1]]


def _embed(pipe: Any, images: Tensor, generator: torch.Generator) -> Tensor:
    vae = pipe.vae
    scaled = (images * 2 - 1).to(vae.device, vae.dtype)
    large = scaled[0, 0].numel() > LARGE_IMAGE
    chunks = scaled.split(1 if large else SMALL_IMAGES_AT_ONCE)
    latents = [vae.encode(chunk, return_dict=False)[0].float() for chunk in chunks]
    embedded: Tensor = torch.cat(latents) * vae.config.scaling_factor
    return embedded


def _latent_shape(pipe: Any) -> tuple[int, ...]:
    config = pipe.transformer.config
    return (config.in_channels, *latent_sides(pipe, config.sample_size))


def _resize(pipe: Any, sides: Sides) -> None:
    check_size(sides, pipe.vae_scale_factor * pipe.transformer.config.patch_size)
    set_latent_sides(pipe, sides, pipe.vae_scale_factor)


SANA = Family(
    network="transformer",
    encode=_encode,
    null=_null,
    negative=_negative,
    call=_call,
    decode=decode_vae,
    embed=_embed,
    latent_shape=_latent_shape,
    resize=_resize,
    text_tokens=_prompt_tokens,
    float16=False,  # linear attention sums over all tokens
)
