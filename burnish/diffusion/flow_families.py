"""Families of flow models, as diffusers' pipelines call them.

Times here are those of `schedule.Flow`: 0 is the image, 1 is noise. Networks take and predict what
their pipelines say: Z-Image takes 1 - t and predicts x0 - noise, minus the velocity.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from burnish.diffusion.family import (
    Family,
    Sides,
    check_size,
    decode_vae,
    embed_vae,
    repeated_for_texts,
)
from burnish.diffusion.flow_parts import latent_sides, set_latent_sides, shift_by_length
from burnish.diffusion.schedule import Grid, flow_grid
from burnish.types import Cond

MOST_TOKENS = 512
"""Text tokens of a prompt, at most, as the pipelines have it."""


def _text_tokens(pipe: Any) -> int:
    return min(MOST_TOKENS, pipe.tokenizer.model_max_length)


def _prompt_tokens(pipe: Any) -> int:
    return _text_tokens(pipe) - 8  # the chat around a prompt takes eight


def _encode_z_image(pipe: Any, texts: list[str]) -> Cond:
    """Return the text states, padded to one length, and how many of them are a prompt's."""
    tokens = _text_tokens(pipe)
    states, _ = pipe.encode_prompt(
        list(texts),  # it writes the chat template into its argument
        device=pipe.text_encoder.device,
        do_classifier_free_guidance=False,
        max_sequence_length=tokens,
    )
    padded = [pad(state, (0, 0, 0, tokens - len(state))) for state in states]
    lengths = torch.tensor([len(state) for state in states], device=padded[0].device)
    return {"text": torch.stack(padded), "tokens": lengths}


def _null_z_image(pipe: Any) -> Cond:
    return _encode_z_image(pipe, [""])


def _call_z_image(pipe: Any, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    x, t = repeated_for_texts(x, t, cond)
    lengths = cond["tokens"].tolist()
    states = [
        state[:length].to(x.dtype) for state, length in zip(cond["text"], lengths, strict=True)
    ]
    latents = list(x.unsqueeze(2).unbind(0))  # one frame each
    time = (1000 - 1000 * t.float()) / 1000  # as the pipeline rounds it
    out = pipe.transformer(latents, time, states, return_dict=False)[0]
    return -torch.stack(out).squeeze(2)


def _grid_z_image(pipe: Any) -> Grid:
    from diffusers.pipelines.z_image.pipeline_z_image import get_default_z_image_sigmas

    def mu(steps: int) -> float:
        _, height, width = _latent_shape_z_image(pipe)
        return shift_by_length(pipe, height * width // 4)

    return flow_grid(pipe.scheduler, mu=mu, sigmas=get_default_z_image_sigmas)


def _latent_shape_z_image(pipe: Any) -> tuple[int, ...]:
    """Return the shape for images as large as the autoencoder's, unless they were resized."""
    default = pipe.vae.config.sample_size // pipe.vae_scale_factor
    return (pipe.transformer.config.in_channels, *latent_sides(pipe, default))


def _resize_z_image(pipe: Any, sides: Sides) -> None:
    check_size(sides, 2 * pipe.vae_scale_factor)
    set_latent_sides(pipe, sides, pipe.vae_scale_factor)


Z_IMAGE = Family(
    network="transformer",
    encode=_encode_z_image,
    null=_null_z_image,
    call=_call_z_image,
    decode=decode_vae,
    embed=embed_vae,
    latent_shape=_latent_shape_z_image,
    resize=_resize_z_image,
    grid=_grid_z_image,
    text_tokens=_prompt_tokens,
)
