"""FLUX.2 [klein], base and distilled, as diffusers' `Flux2KleinPipeline` calls it.

Its latents are those of its autoencoder in patches of 2x2, normalised by the batch-norm statistics
that come with the autoencoder: (128, H / 16, W / 16) of an image (3, H, W).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from burnish.diffusion.family import (
    Family,
    Sides,
    check_size,
    draw_posterior,
    repeated_for_texts,
    to_images,
)
from burnish.diffusion.flow_families import MOST_TOKENS
from burnish.diffusion.flow_parts import latent_sides, rounded_time, set_latent_sides
from burnish.diffusion.schedule import Grid, flow_grid
from burnish.types import Cond

PATCH = 2
"""Sides of a patch, in pixels of the autoencoder's latents."""


def _prompt_tokens(pipe: Any) -> int:
    return MOST_TOKENS - 12  # the chat around a prompt takes a dozen


def _encode(pipe: Any, texts: list[str]) -> Cond:
    """Return the states of three layers side by side; the padding is read too, as in training."""
    text, _ = pipe.encode_prompt(texts, device=pipe.text_encoder.device)
    return {"text": text}


def _null(pipe: Any) -> Cond:
    return _encode(pipe, [""])


def _call(pipe: Any, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """Return the velocity, noise - x0.

    Raises:
        ValueError: a distilled model is called with guidance.
    """
    if pipe.config.is_distilled and len(cond["text"]) > len(x):
        raise ValueError(
            "this model is distilled and was not trained to be guided: set "
            'sampler.guidance = { use = "none" }'
        )

    x, t = repeated_for_texts(x, t, cond)
    text = cond["text"].to(x.dtype)
    out = pipe.transformer(
        hidden_states=pipe._pack_latents(x),
        encoder_hidden_states=text,
        timestep=rounded_time(t, x.dtype),
        img_ids=pipe._prepare_latent_ids(x[:1]).to(x.device),
        txt_ids=pipe._prepare_text_ids(text[:1]).to(x.device),
        return_dict=False,
    )[0]
    velocity: Tensor = out.transpose(1, 2).unflatten(2, x.shape[2:])
    return velocity


def _decode(pipe: Any, latent: Tensor) -> Tensor:
    vae = pipe.vae
    mean, std = _statistics(vae)
    patches = latent.to(vae.device, torch.float32) * std + mean
    unpatched = pipe._unpatchify_latents(patches)
    return to_images(vae.decode(unpatched.to(vae.dtype), return_dict=False)[0])


def _embed(pipe: Any, images: Tensor, generator: torch.Generator) -> Tensor:
    patches: Tensor = pipe._patchify_latents(draw_posterior(pipe.vae, images, generator))
    mean, std = _statistics(pipe.vae)
    return (patches - mean) / std


def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (1, 128, 1, 1) of the patches, float32."""
    mean = vae.bn.running_mean.float().view(1, -1, 1, 1)
    variance = vae.bn.running_var.float().view(1, -1, 1, 1)
    return mean, (variance + vae.config.batch_norm_eps).sqrt()


def _latent_pixel(pipe: Any) -> int:
    side: int = PATCH * pipe.vae_scale_factor
    return side


def _latent_shape(pipe: Any) -> tuple[int, ...]:
    """Return the shape for images as large as the autoencoder's, unless they were resized."""
    default = pipe.vae.config.sample_size // _latent_pixel(pipe)
    return (pipe.transformer.config.in_channels, *latent_sides(pipe, default))


def _resize(pipe: Any, sides: Sides) -> None:
    check_size(sides, _latent_pixel(pipe))
    set_latent_sides(pipe, sides, _latent_pixel(pipe))


def _grid(pipe: Any) -> Grid:
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    def mu(steps: int) -> float:
        _, height, width = _latent_shape(pipe)
        shift: float = compute_empirical_mu(height * width, steps)
        return shift

    def sigmas(steps: int) -> list[float]:
        return torch.linspace(1, 1 / steps, steps, dtype=torch.float64).tolist()

    return flow_grid(pipe.scheduler, mu=mu, sigmas=sigmas)


KLEIN = Family(
    network="transformer",
    encode=_encode,
    null=_null,
    call=_call,
    decode=_decode,
    embed=_embed,
    latent_shape=_latent_shape,
    latent_pixel=_latent_pixel,
    resize=_resize,
    text_tokens=_prompt_tokens,
    grid=_grid,
)
