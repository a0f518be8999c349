"""Stable Diffusion 3 and 3.5 (arXiv 2403.03206): two CLIP text encoders and T5, which may lack.

The network predicts the velocity at times that it takes as timesteps of 1000.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from burnish.diffusion.family import (
    Family,
    Sides,
    check_size,
    decode_vae,
    embed_vae,
    repeated_for_texts,
)
from burnish.diffusion.flow_parts import (
    check_parts,
    latent_sides,
    set_latent_sides,
    shift_by_length,
)
from burnish.diffusion.schedule import Grid, flow_grid
from burnish.types import Cond

T5_TOKENS = 256
"""Tokens of T5, as the pipeline has it; without T5 there are so many of zeros."""


def _text_tokens(pipe: Any) -> int:
    if pipe.text_encoder_3 is None:
        return T5_TOKENS
    return min(T5_TOKENS, pipe.tokenizer_3.model_max_length)


def _encode(pipe: Any, texts: list[str]) -> Cond:
    """Return the states of CLIP's tokens and then T5's, and both CLIP models' summaries."""
    check_parts(pipe, "text_encoder", "text_encoder_2")
    text, _, pooled, _ = pipe.encode_prompt(
        texts,
        None,  # the other encoders read the same text
        None,
        device=pipe.text_encoder.device,
        do_classifier_free_guidance=False,
        max_sequence_length=_text_tokens(pipe),
    )
    return {"text": text, "pooled": pooled}


def _null(pipe: Any) -> Cond:
    return _encode(pipe, [""])


def _call(pipe: Any, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    x, t = repeated_for_texts(x, t, cond)
    out: Tensor = pipe.transformer(
        x,
        cond["text"].to(x.dtype),
        cond["pooled"].to(x.dtype),
        1000 * t.float(),
        return_dict=False,
    )[0]
    return out


def _grid(pipe: Any) -> Grid:
    def mu(steps: int) -> float:
        _, height, width = _latent_shape(pipe)
        return shift_by_length(pipe, height * width // pipe.patch_size**2)

    return flow_grid(pipe.scheduler, mu=mu)


def _latent_shape(pipe: Any) -> tuple[int, ...]:
    return (pipe.transformer.config.in_channels, *latent_sides(pipe, pipe.default_sample_size))


def _resize(pipe: Any, sides: Sides) -> None:
    unit = pipe.patch_size * pipe.vae_scale_factor
    check_size(sides, unit, largest=unit * pipe.transformer.config.pos_embed_max_size)
    set_latent_sides(pipe, sides, pipe.vae_scale_factor)


SD3 = Family(
    network="transformer",
    encode=_encode,
    null=_null,
    call=_call,
    decode=decode_vae,
    embed=embed_vae,
    latent_shape=_latent_shape,
    resize=_resize,
    grid=_grid,
    text_tokens=_text_tokens,
)
