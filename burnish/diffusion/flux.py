"""FLUX.1, dev and schnell: latents in packed patches, T5's states and CLIP's summary of a text.

The network predicts the velocity at times in [0, 1]. dev has the guidance weight as an input
(guidance `embedded`, arXiv 2210.03142); schnell, distilled to four steps, has none.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

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

DEV_TOKENS = 512
"""Tokens of T5, padding included, that dev and what is made from it reads."""

SCHNELL_TOKENS = 256


def _is_schnell(pipe: Any) -> bool:
    """Return True for schnell, the only one whose times are not shifted by the size."""
    has_weight = pipe.transformer.config.guidance_embeds
    return not (has_weight or pipe.scheduler.config.get("use_dynamic_shifting"))


def _text_tokens(pipe: Any) -> int:
    most = SCHNELL_TOKENS if _is_schnell(pipe) else DEV_TOKENS
    return min(most, pipe.tokenizer_2.model_max_length)


def _encode(pipe: Any, texts: list[str]) -> Cond:
    """Return T5's states and CLIP's summary."""
    check_parts(pipe, "text_encoder", "text_encoder_2")
    text, pooled, _ = pipe.encode_prompt(
        texts, device=pipe.text_encoder_2.device, max_sequence_length=_text_tokens(pipe)
    )
    return {"text": text, "pooled": pooled}


def _null(pipe: Any) -> Cond:
    return _encode(pipe, [""])


def _call(pipe: Any, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    x, t = repeated_for_texts(x, t, cond)
    height, width = x.shape[2:]
    text = cond["text"].to(x.dtype)
    places = pipe._prepare_latent_image_ids(len(x), height // 2, width // 2, x.device, x.dtype)

    out = pipe.transformer(
        pack(x),
        text,
        cond["pooled"].to(x.dtype),
        rounded_time(t, x.dtype),
        places,
        x.new_zeros(text.shape[1], 3),  # the words have no places
        cond.get("guidance"),
        return_dict=False,
    )[0]
    return unpack(out, height, width)


def _weight_width(pipe: Any) -> int | None:
    return 1 if pipe.transformer.config.guidance_embeds else None


FLUX = Family(
    network="transformer",
    encode=_encode,
    null=_null,
    call=_call,
    decode=decode_vae,
    embed=embed_vae,
    latent_shape=packed_shape,
    resize=resize_packed,
    weight_width=_weight_width,
    grid=packed_grid,
    text_tokens=_text_tokens,
)
