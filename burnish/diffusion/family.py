"""A family: what differs between architectures, as a record of small functions.

The families themselves are in `families`, `flow_families`, `sd3`, `flux`, `flux2`, `qwen_image` and
`sana`. Everything else in the library sees a network only as "x0 given (x, t, cond)".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from burnish.diffusion.schedule import Grid
from burnish.types import Cond

CONTROLNET = "controlnet"
"""The pipeline's attribute with the ControlNet."""

LARGE_IMAGE = 256 * 256
"""Pixels beyond which an autoencoder is given one image at a time.

Several large images together gain no speed, and each takes a gigabyte at 512 pixels. An autoencoder
is never given a part of an image, as diffusers' tiling would: every tile is normalised by its own
statistics, so tiles differ in colour and contrast, and a reward would judge, and the model learn,
where the seams are.
"""

SMALL_IMAGES_AT_ONCE = 32
"""Smaller images decoded at a time.

From 64 on, diffusers' upsampling copies its input into another layout.
"""


Sides = tuple[int, int]
"""Height and width."""


def _no_grid(pipe: Any) -> None:
    return None


def _as_its_tokenizers(pipe: Any) -> int:
    return 0


def _vae_scale(pipe: Any) -> int:
    side: int = pipe.vae_scale_factor
    return side


def no_weight_input(pipe: Any) -> None:
    """Return None: the network has no input for a guidance weight."""


@dataclass(frozen=True)
class Family:
    """The differences between architectures; `pipe` is always the diffusers pipeline."""

    network: str
    """The pipeline's attribute that is trained."""

    encode: Callable[[Any, list[str]], Cond]
    """(pipe, texts) -> text states, one row a text."""

    null: Callable[[Any], Cond]
    """(pipe) -> the condition that guidance uses in place of a prompt, one row."""

    call: Callable[[Any, Tensor, Tensor, Cond], Tensor]
    """(pipe, x, t (B,), cond of B or k * B rows) -> the network's output, one row a row of cond.

    See `shared_trunk` for the k * B rows.
    """

    decode: Callable[[Any, Tensor], Tensor]
    """(pipe, latent) -> images (B, 3, H, W) in [0, 1], float32."""

    embed: Callable[[Any, Tensor, torch.Generator], Tensor]
    """(pipe, images (B, 3, H, W) in [0, 1], CPU generator) -> latents, float32.

    They are drawn from the autoencoder's posterior.
    """

    latent_shape: Callable[[Any], tuple[int, ...]]
    """(pipe) -> (C, h, w)."""

    resize: Callable[[Any, Sides], None]
    """(pipe, (height, width)) -> None: from now on its images have these sides in pixels."""

    weight_width: Callable[[Any], int | None] = no_weight_input
    """(pipe) -> the width of the network's input for a guidance weight; None: it has none.

    It is 1 where the input is the weight itself.
    """

    grid: Callable[[Any], Grid | None] = _no_grid
    """(pipe) -> the sampling times of a flow; None: its scheduler's."""

    text_tokens: Callable[[Any], int] = _as_its_tokenizers
    """(pipe) -> the tokens of a text that are read at most; 0: as many as its tokenizers say."""

    after_guidance: Callable[[Tensor, Tensor], Tensor] | None = None
    """(guided output, the prompt's output) -> the output that is used; None: the guided one."""

    negative: Callable[[Any, str], Cond] | None = None
    """(pipe, text) -> the states of a negative prompt, one row; None: as `encode` has them."""

    latent_pixel: Callable[[Any], int] = _vae_scale
    """(pipe) -> the side in pixels of the part of an image that one latent pixel stands for."""

    controlnet_pipeline: str = ""
    """The diffusers pipeline with the same parts and a ControlNet beside them; "": none."""

    controlnet_config: tuple[str, ...] = ()
    """The entries of the network's configuration that a ControlNet has to share."""

    upcast: bool = False
    """The decoder's `force_upcast` means: float32 where float16 was requested."""

    float16: bool = True
    """The network's sums fit into float16, to which autocast casts every product of matrices."""

    def network_of(self, pipe: Any) -> Any:
        """Return the pipeline's network that is trained."""
        return getattr(pipe, self.network)


def networks(pipe: Any) -> list[nn.Module]:
    """Return all parts of the pipeline that have weights."""
    return [part for part in pipe.components.values() if isinstance(part, nn.Module)]


def end_dropout(pipe: Any) -> None:
    """Put all parts of the pipeline in evaluation mode; T5 from a single file is not in it."""
    for network in networks(pipe):
        network.eval()


def decode_vae(pipe: Any, latent: Tensor, frames: bool = False) -> Tensor:
    """Return images (B, 3, H, W) float32 in [0, 1] of latents.

    Args:
        pipe: the diffusers pipeline.
        latent: (B, *latent).
        frames: True for an autoencoder of videos: each image is one frame.
    """
    vae = pipe.vae
    latent = latent.to(pipe.vae.device, torch.float32)
    shift, spread = latent_statistics(vae, latent)
    latent = (latent / spread + shift).to(vae.dtype)

    if frames:
        return to_images(vae.decode(latent.unsqueeze(2), return_dict=False)[0].squeeze(2))
    return to_images(vae.decode(latent, return_dict=False)[0])


def to_images(decoded: Tensor) -> Tensor:
    """Return images (B, 3, H, W) float32 in [0, 1] of an autoencoder's output, about [-1, 1]."""
    return (decoded.float() / 2 + 0.5).clamp(0, 1)


def embed_vae(
    pipe: Any, images: Tensor, generator: torch.Generator, frames: bool = False
) -> Tensor:
    """Return latents float32 of images (B, 3, H, W) in [0, 1], drawn from the posterior.

    Args:
        pipe: the diffusers pipeline.
        images: (B, 3, H, W).
        generator: of the CPU.
        frames: True for an autoencoder of videos: each image is one frame.
    """
    latent = draw_posterior(pipe.vae, images, generator, frames)
    shift, spread = latent_statistics(pipe.vae, latent)
    return (latent - shift) * spread


def draw_posterior(
    vae: Any, images: Tensor, generator: torch.Generator, frames: bool = False
) -> Tensor:
    """Return the autoencoder's latents float32 of images (B, 3, H, W) in [0, 1], as drawn."""
    scaled = (images * 2 - 1).to(vae.device, vae.dtype)
    large = scaled[0, 0].numel() > LARGE_IMAGE
    if frames:
        scaled = scaled.unsqueeze(2)
    chunks = scaled.split(1 if large else SMALL_IMAGES_AT_ONCE)
    posteriors = [vae.encode(chunk).latent_dist for chunk in chunks]
    mean = torch.cat([posterior.mean.float() for posterior in posteriors])
    std = torch.cat([posterior.std.float() for posterior in posteriors])
    if frames:
        mean, std = mean.squeeze(2), std.squeeze(2)

    # noise from the CPU: the same on every device
    return mean + std * torch.randn(mean.shape, generator=generator).to(mean)


def latent_statistics(vae: Any, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """Return shift and spread of latent = (the autoencoder's output - shift) * spread.

    Some models of the SDXL kind have them by channel; flow models have a shift for all.
    """
    config = vae.config
    if config.get("latents_mean") is None or config.get("latents_std") is None:
        return config.get("shift_factor") or 0.0, config.scaling_factor

    shift = like.new_tensor(config.latents_mean).view(1, -1, 1, 1)
    std = like.new_tensor(config.latents_std).view(1, -1, 1, 1)
    return shift, config.get("scaling_factor", 1.0) / std


def sides_of(size: int | Sequence[int]) -> Sides:
    """Return height and width of `model.size`: one number, or width and height.

    Raises:
        ValueError: it is something else.
    """
    given = [size] if isinstance(size, int) else list(size)
    if len(given) not in (1, 2) or not all(isinstance(n, int) and n > 0 for n in given):
        raise ValueError(f"model.size = {size}: give a number of pixels, or [width, height]")
    return given[-1], given[0]


def check_size(sides: Sides, unit: int, largest: int = 0) -> None:
    """Raise ValueError if a model has no images with such sides.

    Args:
        sides: height and width in pixels.
        unit: pixels of which a side has a multiple.
        largest: side of an image; 0: any.
    """
    height, width = sides
    shown = height if height == width else [width, height]
    if height % unit or width % unit:
        raise ValueError(
            f"model.size = {shown}: this model's images have sides of a multiple of {unit} pixels"
        )
    if largest and max(sides) > largest:
        raise ValueError(
            f"model.size = {shown}: this model's images have sides of at most {largest} pixels"
        )


def repeated_for_texts(x: Tensor, t: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
    """Return latents and times repeated as often as there are texts for them.

    For networks in which hardly anything can be shared between the texts of one latent.
    """
    times = len(cond["text"]) // len(x)
    return torch.cat([x] * times), t.repeat(times)
