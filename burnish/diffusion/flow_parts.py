"""Parts that families of flow models share: packed latents, sizes, times shifted by the size."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from burnish.diffusion.family import Sides, check_size
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


def latent_sides(pipe: Any, default: int) -> Sides:
    """Return height and width of the latents that `set_latent_sides` chose, or twice `default`."""
    sides: Sides = getattr(pipe, "burnish_latent_sides", (default, default))
    return sides


def set_latent_sides(pipe: Any, sides: Sides, pixel: int) -> None:
    """Note the sides of the latents on the pipeline, where no configuration is written from.

    Args:
        pipe: the diffusers pipeline.
        sides: of the images, in pixels.
        pixel: the side in pixels of what a latent pixel stands for.
    """
    height, width = sides
    pipe.burnish_latent_sides = (height // pixel, width // pixel)


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
    return (pipe.transformer.config.in_channels // 4, *_packed_sides(pipe))


def _packed_sides(pipe: Any) -> Sides:
    return latent_sides(pipe, pipe.default_sample_size)


def resize_packed(pipe: Any, sides: Sides) -> None:
    """Make the images as large as `sides`.

    Raises:
        ValueError: such latents cannot be packed.
    """
    check_size(sides, 2 * pipe.vae_scale_factor)
    set_latent_sides(pipe, sides, pipe.vae_scale_factor)


def packed_grid(pipe: Any) -> Grid:
    """Return the times of FLUX and Qwen-Image: even ones down to 1 / steps, shifted, and 0."""

    def mu(steps: int) -> float:
        height, width = _packed_sides(pipe)
        return shift_by_length(pipe, height * width // 4)

    def sigmas(steps: int) -> NDArray[np.float64]:
        return np.linspace(1.0, 1 / steps, steps)

    return flow_grid(pipe.scheduler, mu=mu, sigmas=sigmas)
