"""Parts that families of flow models share: packed latents, sizes, times shifted by the size."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from burnish.diffusion.family import check_size
from burnish.diffusion.schedule import Grid, flow_grid


def pack(latent: Tensor) -> Tensor:
    """Return latents (B, C, h, w) as tokens (B, h / 2 * w / 2, 4 C), each a patch of 2 x 2."""
    return pixel_unshuffle(latent, 2).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return the latents (B, C, height, width) that `pack` made the tokens of."""
    patches = tokens.transpose(1, 2).unflatten(2, (height // 2, width // 2))
    return pixel_shuffle(patches, 2)


def rounded_time(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Return times (B,) as the pipelines of packed latents round them: as timesteps of 1000."""
    return (1000 * t.float()).to(dtype) / 1000


def latent_side(pipe: Any) -> int | None:
    """Return the side of the latents that `set_latent_side` chose; None: it did not."""
    return getattr(pipe, "burnish_latent_side", None)


def set_latent_side(pipe: Any, side: int) -> None:
    """Note the side of the latents on the pipeline, where no configuration is written from."""
    pipe.burnish_latent_side = side


def latent_sides(pipe: Any) -> tuple[int, int]:
    """Return height and width of the latents of images as large as the pipeline's own default."""
    side: int = pipe.default_sample_size
    return side, side


def shift_by_length(pipe: Any, tokens: int) -> float:
    """Return mu, the logarithm of a dynamic shift of times, for an image of so many tokens.

    It is a line between the two sizes in the scheduler's configuration; a scheduler with a fixed
    shift takes no notice of it.
    """
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    config = pipe.scheduler.config
    mu: float = calculate_shift(
        tokens,
        config.base_image_seq_len,
        config.max_image_seq_len,
        config.base_shift,
        config.max_shift,
    )
    return mu


def check_parts(pipe: Any, *names: str) -> None:
    """Raise ValueError if the pipeline lacks a part that encodes texts."""
    for name in names:
        if getattr(pipe, name, None) is None:
            raise ValueError(
                f"this {type(pipe).__name__} has no {name}, without which its prompts cannot be "
                "encoded: load it with this part"
            )


def packed_shape(pipe: Any) -> tuple[int, ...]:
    """Return the shape (C, h, w) of latents that the network takes packed."""
    return (pipe.transformer.config.in_channels // 4, *latent_sides(pipe))


def resize_packed(pipe: Any, size: int) -> None:
    """Make the images' sides `size` pixels.

    Raises:
        ValueError: such latents cannot be packed.
    """
    check_size(size, 2 * pipe.vae_scale_factor)
    pipe.default_sample_size = size // pipe.vae_scale_factor


def packed_grid(pipe: Any) -> Grid:
    """Return the times of FLUX and Qwen-Image: even ones down to 1 / steps, shifted, and 0."""

    def mu(steps: int) -> float:
        height, width = latent_sides(pipe)
        return shift_by_length(pipe, height * width // 4)

    def sigmas(steps: int) -> NDArray[np.float64]:
        return np.linspace(1.0, 1 / steps, steps)

    return flow_grid(pipe.scheduler, mu=mu, sigmas=sigmas)
