"""Families: how each architecture is asked, as a table of small functions; and how a pipeline is
found and loaded.

A new architecture is one entry in FAMILIES. Everything else in the library sees a network only as
"x0 given (x, t, cond)".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from burnish.diffusion.control import control_strength
from burnish.types import Cond

if TYPE_CHECKING:
    pass

LARGE = 32 * 32
"""Latent pixels beyond which an autoencoder is given one picture at a time: together they gain no
speed, and each takes a gigabyte at 512 pixels.

Never a part of one, as diffusers' tiling would: every tile is normalised by its own statistics, so
tiles differ in colour and contrast, and a reward would judge, and the model learn, where the seams
are.
"""

SMALL_ONES = 32
"""Smaller pictures decoded at a time: from 64 on, diffusers' upsampling copies its input into
another layout.
"""


@dataclass(frozen=True)
class Family:
    """What differs between architectures. ``pipe`` is the diffusers pipeline."""

    network: str  # the pipeline's attribute that is trained
    encode: Callable[[Any, list[str]], Cond]  # (pipe, texts) -> states, one row a text
    null: Callable[[Any], Cond]  # (pipe) -> what guidance asks in place of a prompt, one row
    call: Callable[[Any, Tensor, Tensor, Cond], Tensor]
    # (pipe, x, t (B,), cond of B or k * B rows) -> the network's output, one row a row of cond; see
    # `trunk`
    # (pipe, latent) -> images (B, 3, H, W) in [0, 1], float32
    decode: Callable[[Any, Tensor], Tensor]
    latent_shape: Callable[[Any], tuple[int, ...]]  # (pipe) -> (C, h, w)
    embed: Callable[[Any, Tensor, torch.Generator], Tensor]
    # (pipe, images (B, 3, H, W) in [0, 1], CPU generator) -> latents drawn from the autoencoder's
    # posterior, float32
    # whether `force_upcast` in the decoder's configuration means: float32 where float16 was asked
    upcast: bool = False


def _encode_sd(pipe: Any, texts: list[str]) -> Cond:
    text, _ = pipe.encode_prompt(
        texts, pipe.text_encoder.device, 1, do_classifier_free_guidance=False
    )
    return {"text": text}


def _null_sd(pipe: Any) -> Cond:
    return _encode_sd(pipe, [""])


def _call_sd(pipe: Any, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    weight = _weight(pipe, x, cond)
    return pipe.unet(
        x, t, timestep_cond=weight, encoder_hidden_states=cond["text"], return_dict=False
    )[0]


def _call_sd_control(pipe: Any, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    x, t = _repeated(x, t, cond)
    weight = _weight(pipe, x, cond)
    steered = _steered(pipe, x, t, cond)
    return pipe.unet(
        x, t, timestep_cond=weight, encoder_hidden_states=cond["text"], return_dict=False, **steered
    )[0]


def _steered(pipe: Any, x: Tensor, t: Tensor, cond: Cond, **more: Any) -> dict[str, Any]:
    """What the ControlNet adds to the network's inner states, each row with its own scale."""
    if "control" not in cond:
        raise ValueError(
            "this model has a ControlNet, but the prompts were encoded without a control picture."
        )

    down, middle = pipe.controlnet(
        x, t, cond["text"], controlnet_cond=cond["control"].to(x.dtype), return_dict=False, **more
    )
    share = control_strength(cond, t).to(x.dtype).view(-1, 1, 1, 1)
    return {
        "down_block_additional_residuals": [state * share for state in down],
        "mid_block_additional_residual": middle * share,
    }


def _repeated(x: Tensor, t: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
    """Pictures and times as often as there are texts for them, where nothing to speak of can be
    shared.
    """
    times = len(cond["text"]) // len(x)
    return torch.cat([x] * times), t.repeat(times)


def _weight(pipe: Any, x: Tensor, cond: Cond) -> Tensor | None:
    """The guidance weight as the UNet of a consistency model takes it, one row a row of ``x``; None
    for others.
    """
    width = pipe.unet.config.time_cond_proj_dim
    weight = cond.get("guidance")

    if (width is None) != (weight is None):
        raise ValueError(
            "this network has no input for a guidance weight, so guidance 'embedded' cannot be used: take 'cfg' or "
            "'none'."
            if width is None
            else "this network takes its guidance weight as an input: use guidance 'embedded'."
        )
    if weight is None:
        return None

    # once for all rows, on the CPU: the same numbers on every device
    embedding = pipe.get_guidance_scale_embedding(weight[:1].cpu() - 1, embedding_dim=width)
    result: Tensor = embedding.to(x.device, x.dtype).expand(len(x), -1)
    return result


def _decode_vae(pipe: Any, latent: Tensor) -> Tensor:
    vae = pipe.vae
    latent = latent.to(pipe.vae.device, torch.float32)
    shift, spread = _statistics(vae, latent)
    image = vae.decode((latent / spread + shift).to(vae.dtype), return_dict=False)[0].float()
    return (image / 2 + 0.5).clamp(0, 1)


def _embed_vae(pipe: Any, images: Tensor, generator: torch.Generator) -> Tensor:
    vae = pipe.vae
    scaled = (images * 2 - 1).to(vae.device, vae.dtype)
    chunks = scaled.split(1 if scaled[0, 0].numel() > 64 * LARGE else SMALL_ONES)
    posteriors = [vae.encode(chunk).latent_dist for chunk in chunks]
    mean, std = (
        torch.cat([getattr(one, name).float() for one in posteriors]) for name in ("mean", "std")
    )
    # noise from the CPU: the same on every device
    drawn = mean + std * torch.randn(mean.shape, generator=generator).to(mean)
    shift, spread = _statistics(vae, drawn)

    return (drawn - shift) * spread


def _statistics(vae: Any, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """latent = (what the autoencoder gives - shift) * spread; some models of the SDXL kind have
    them by channel.
    """
    config = vae.config
    if config.latents_mean is None or config.latents_std is None:
        return 0.0, config.scaling_factor

    shift, std = (
        like.new_tensor(value).view(1, -1, 1, 1)
        for value in (config.latents_mean, config.latents_std)
    )
    return shift, config.scaling_factor / std


def _latent_unet(pipe: Any) -> tuple[int, ...]:
    size = pipe.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return (pipe.unet.config.in_channels, height, width)


def _encode_sdxl(pipe: Any, texts: list[str]) -> Cond:
    """The states of two text encoders side by side, the second one's summary, and the picture's
    size.

    SDXL (arXiv 2307.01952, section 2.2) is told the size a picture had, where it was cropped and
    the size it is to
    have: here always that of the pictures it was made for, whole.
    """
    text, _, pooled, _ = pipe.encode_prompt(
        texts,
        device=pipe.text_encoder_2.device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=False,
    )
    height, width = (side * pipe.vae_scale_factor for side in _latent_unet(pipe)[1:])
    summary = pipe.text_encoder_2.config.projection_dim
    size = pipe._get_add_time_ids((height, width), (0, 0), (height, width), text.dtype, summary)

    return {"text": text, "pooled": pooled, "size": size.to(text.device).expand(len(texts), -1)}


def _null_sdxl(pipe: Any) -> Cond:
    """No prompt: zeros, if the model was trained so, and not the states of an empty text."""
    cond = _encode_sdxl(pipe, [""])
    if not pipe.config.force_zeros_for_empty_prompt:
        return cond

    return {
        **cond,
        "text": torch.zeros_like(cond["text"]),
        "pooled": torch.zeros_like(cond["pooled"]),
    }


def _call_sdxl(pipe: Any, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    # the summary enters with the time, in the first block: nothing to speak of is the same for two
    # rows of a picture
    x, t = _repeated(x, t, cond)
    added = {"text_embeds": cond["pooled"], "time_ids": cond["size"]}
    steered = (
        _steered(pipe, x, t, cond, added_cond_kwargs=added) if hasattr(pipe, "controlnet") else {}
    )

    return pipe.unet(
        x,
        t,
        timestep_cond=_weight(pipe, x, cond),
        encoder_hidden_states=cond["text"],
        added_cond_kwargs=added,
        return_dict=False,
        **steered,
    )[0]


SD = Family("unet", _encode_sd, _null_sd, _call_sd, _decode_vae, _latent_unet, _embed_vae)
SDXL = Family(
    "unet", _encode_sdxl, _null_sdxl, _call_sdxl, _decode_vae, _latent_unet, _embed_vae, upcast=True
)

FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": SD,  # Stable Diffusion 1.x and 2.x
    # the same networks, distilled; the guidance weight is an input
    "LatentConsistencyModelPipeline": SD,
    "StableDiffusionXLPipeline": SDXL,  # and what keeps its pipeline: Turbo, SSD-1B
    "StableDiffusionControlNetPipeline": replace(SD, call=_call_sd_control),
    "StableDiffusionXLControlNetPipeline": SDXL,
}
"""By the name of the diffusers pipeline."""


def family_of(name: str) -> Family:
    """The family of the diffusers pipeline called ``name``."""
    if name not in FAMILIES:
        raise ValueError(
            f"models of the kind {name} are not supported yet; supported: {', '.join(sorted(FAMILIES))}."
        )
    return FAMILIES[name]
