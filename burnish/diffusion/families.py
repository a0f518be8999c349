"""Families of diffusion models, and the table of all families.

A new architecture is one entry in FAMILIES.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from burnish.diffusion.control import control_strength
from burnish.diffusion.family import (
    CONTROLNET,
    Family,
    Sides,
    check_size,
    decode_vae,
    embed_vae,
    repeated_for_texts,
)
from burnish.diffusion.flow_families import Z_IMAGE
from burnish.diffusion.flux import FLUX
from burnish.diffusion.flux2 import KLEIN
from burnish.diffusion.qwen_image import QWEN_IMAGE
from burnish.diffusion.sana import SANA
from burnish.diffusion.sd3 import SD3
from burnish.types import Cond


def _encode_sd(pipe: Any, texts: list[str]) -> Cond:
    text, _ = pipe.encode_prompt(
        texts, pipe.text_encoder.device, 1, do_classifier_free_guidance=False
    )
    return {"text": text}


def _null_sd(pipe: Any) -> Cond:
    return _encode_sd(pipe, [""])


def _call_sd(pipe: Any, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    weight = _embedded_weight(pipe, x, cond)
    return pipe.unet(
        x, t, timestep_cond=weight, encoder_hidden_states=cond["text"], return_dict=False
    )[0]


def _call_sd_control(pipe: Any, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    x, t = repeated_for_texts(x, t, cond)
    weight = _embedded_weight(pipe, x, cond)
    residuals = _control_residuals(pipe, x, t, cond)

    return pipe.unet(
        x,
        t,
        timestep_cond=weight,
        encoder_hidden_states=cond["text"],
        return_dict=False,
        **residuals,
    )[0]


def _control_residuals(
    pipe: Any, x: Tensor, t: Tensor, cond: Cond, **inputs: Any
) -> dict[str, Any]:
    """Return what the ControlNet adds to the network's inner states, each row at its own scale."""
    if "control" not in cond:
        raise ValueError(
            "this model has a ControlNet, but the prompts were encoded without a control image"
        )

    down, middle = pipe.controlnet(
        x, t, cond["text"], controlnet_cond=cond["control"].to(x.dtype), return_dict=False, **inputs
    )
    strength = control_strength(cond, t).to(x.dtype).view(-1, 1, 1, 1)
    return {
        "down_block_additional_residuals": [state * strength for state in down],
        "mid_block_additional_residual": middle * strength,
    }


def _embedded_weight(pipe: Any, x: Tensor, cond: Cond) -> Tensor | None:
    """Return the guidance weight as a consistency model's UNet takes it; None for other models.

    One row a row of `x`.
    """
    width = _weight_width_unet(pipe)
    weight = cond.get("guidance")
    if weight is None:
        return None

    # once for all rows, on the CPU: the same numbers on every device
    embedding = pipe.get_guidance_scale_embedding(weight[:1].cpu() - 1, embedding_dim=width)
    result: Tensor = embedding.to(x.device, x.dtype).expand(len(x), -1)
    return result


def _weight_width_unet(pipe: Any) -> int | None:
    width: int | None = pipe.unet.config.time_cond_proj_dim
    return width


def _latent_shape_unet(pipe: Any) -> tuple[int, ...]:
    size = pipe.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return (pipe.unet.config.in_channels, height, width)


def _resize_unet(pipe: Any, sides: Sides) -> None:
    """Make the images as large as `sides`.

    Raises:
        ValueError: the UNet cannot halve such latents once for each of its blocks but the last.
    """
    halvings = len(pipe.unet.config.block_out_channels) - 1
    check_size(sides, pipe.vae_scale_factor * 2**halvings)
    height, width = (side // pipe.vae_scale_factor for side in sides)
    # one number, where one will do, as models are published
    pipe.unet.register_to_config(sample_size=height if height == width else [height, width])


def _encode_sdxl(pipe: Any, texts: list[str]) -> Cond:
    """Return the states of two text encoders side by side, the second's summary, and the sizes.

    SDXL (arXiv 2307.01952, section 2.2) takes the size an image had, where it was cropped and the
    size it is to have as inputs: here always the size of the images it was made for, not cropped.
    """
    text, _, pooled, _ = pipe.encode_prompt(
        texts,
        device=pipe.text_encoder_2.device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=False,
    )
    height, width = (side * pipe.vae_scale_factor for side in _latent_shape_unet(pipe)[1:])
    pooled_width = pipe.text_encoder_2.config.projection_dim
    size = pipe._get_add_time_ids(
        (height, width), (0, 0), (height, width), text.dtype, pooled_width
    )

    return {"text": text, "pooled": pooled, "size": size.to(text.device).expand(len(texts), -1)}


def _null_sdxl(pipe: Any) -> Cond:
    """Return zeros, if the model was trained so, and otherwise the states of an empty text."""
    cond = _encode_sdxl(pipe, [""])
    if not pipe.config.force_zeros_for_empty_prompt:
        return cond

    return {
        **cond,
        "text": torch.zeros_like(cond["text"]),
        "pooled": torch.zeros_like(cond["pooled"]),
    }


def _call_sdxl(pipe: Any, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    # the summary enters with the time, in the first block, so hardly anything is the same for two
    # texts of one latent
    x, t = repeated_for_texts(x, t, cond)
    added = {"text_embeds": cond["pooled"], "time_ids": cond["size"]}
    residuals = {}

    if hasattr(pipe, CONTROLNET):
        residuals = _control_residuals(pipe, x, t, cond, added_cond_kwargs=added)

    return pipe.unet(
        x,
        t,
        timestep_cond=_embedded_weight(pipe, x, cond),
        encoder_hidden_states=cond["text"],
        added_cond_kwargs=added,
        return_dict=False,
        **residuals,
    )[0]


SD = Family(
    network="unet",
    encode=_encode_sd,
    null=_null_sd,
    call=_call_sd,
    decode=decode_vae,
    embed=embed_vae,
    latent_shape=_latent_shape_unet,
    resize=_resize_unet,
    weight_width=_weight_width_unet,
    controlnet_pipeline="StableDiffusionControlNetPipeline",
    controlnet_config=(
        "cross_attention_dim",
        "block_out_channels",
        "in_channels",
        "layers_per_block",
    ),
)
SDXL = replace(
    SD,
    encode=_encode_sdxl,
    null=_null_sdxl,
    call=_call_sdxl,
    controlnet_pipeline="StableDiffusionXLControlNetPipeline",
    upcast=True,
)

FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": SD,  # Stable Diffusion 1.x and 2.x
    # the same networks, distilled, with the guidance weight as an input; a ControlNet of the
    # undistilled model fits
    "LatentConsistencyModelPipeline": SD,
    "StableDiffusionXLPipeline": SDXL,  # and the models with the same pipeline: Turbo, SSD-1B
    "StableDiffusionControlNetPipeline": replace(SD, call=_call_sd_control, controlnet_pipeline=""),
    "StableDiffusionXLControlNetPipeline": replace(SDXL, controlnet_pipeline=""),
    "FluxPipeline": FLUX,  # FLUX.1 dev, schnell, and what is made from them
    "QwenImagePipeline": QWEN_IMAGE,
    "StableDiffusion3Pipeline": SD3,  # Stable Diffusion 3 and 3.5, medium and large
    "ZImagePipeline": Z_IMAGE,  # Z-Image and Z-Image-Turbo
    "Flux2KleinPipeline": KLEIN,  # FLUX.2 [klein], base and distilled
    "SanaPipeline": SANA,  # Sana 1.0 and 1.5
}
"""By the name of the diffusers pipeline."""


def skip_layers(pipe: Any, count: int) -> None:
    """Leave out the last layers of CLIP ("clip skip"), before its last normalisation.

    Raises:
        ValueError: this kind of model has no such setting, or CLIP has not so many layers.
    """
    if family_of(type(pipe).__name__).encode is not _encode_sd:
        raise ValueError(
            f"model.clip_skip is for Stable Diffusion 1.x and 2.x, not for a {type(pipe).__name__}"
            " (SDXL reads the layer before the last anyhow)"
        )

    encoder = pipe.text_encoder
    tower = encoder if hasattr(encoder, "encoder") else encoder.text_model
    layers = tower.encoder.layers
    if count >= len(layers):
        raise ValueError(
            f"model.clip_skip = {count}, but the text encoder has {len(layers)} layers; leave one"
        )
    tower.encoder.layers = layers[: len(layers) - count]
    encoder.config.num_hidden_layers = len(tower.encoder.layers)


def family_of(name: str) -> Family:
    """Return the family of the diffusers pipeline called `name`.

    Raises:
        ValueError: no family is known under this name.
    """
    if name not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise ValueError(f"models of the kind {name} are not supported yet; supported: {known}")

    return FAMILIES[name]
