"""Configurations of well-known models: what their networks look like, without their weights.

The memory that a recipe needs is predicted from them (`weightless`), and `benchmarks.gpu` draws
random weights for them; nothing is downloaded. Tokenizers are small: a prompt has other tokens than
with the true one, and what the network reads of it has the same shape, but for Z-Image, which reads
a prompt's own tokens, padded to a multiple of 32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from burnish import zoo
from burnish.config import Table


@dataclass(frozen=True)
class Part:
    """A network of a pipeline: its class, as `library.Name`, and its configuration."""

    kind: str
    config: Table = field(default_factory=dict)

    def make(self) -> nn.Module:
        """Return it as the library makes it, on torch's default device."""
        made = self.config
        kind = class_of(self.kind)
        network = kind(kind.config_class(**made)) if self.is_text else kind(**made)
        assert isinstance(network, nn.Module)
        return network.eval()

    @property
    def is_text(self) -> bool:
        """True for a text encoder, which its library makes from a configuration."""
        return self.kind.startswith("transformers.")


@dataclass(frozen=True)
class Shape:
    """A pipeline: its classes and their configurations.

    Attributes:
        pipeline: the class in diffusers.
        parts: its networks by name.
        scheduler: its class and configuration.
        tokenizers: "clip" or "qwen" by name.
        settings: for the pipeline's class.
    """

    pipeline: str
    parts: Mapping[str, Part]
    scheduler: Part
    tokenizers: Mapping[str, str]
    settings: Table = field(default_factory=dict)

    def others(self) -> dict[str, Any]:
        """Return the pipeline's parts that have no weights: small tokenizers and the scheduler."""
        made = {name: TOKENIZERS[kind]() for name, kind in self.tokenizers.items()}
        return {**made, "scheduler": class_of(self.scheduler.kind)(**self.scheduler.config)}

    def pipe(self, networks: Mapping[str, nn.Module]) -> Any:
        """Return the diffusers pipeline of the shape's networks, which have been made."""
        kind = class_of(f"diffusers.{self.pipeline}")
        return kind(**networks, **self.others(), **self.settings)

    def changed(self, changes: Mapping[str, Table]) -> Shape:
        """Return it with changes in its parts' configurations."""
        parts = {
            name: replace(part, config={**part.config, **changes.get(name, {})})
            for name, part in self.parts.items()
        }
        return replace(self, parts=parts)


DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
FLOW = "diffusers.FlowMatchEulerDiscreteScheduler"

# stable-diffusion-v1-5, text_encoder/config.json: CLIP ViT-L/14, transformers' defaults but for
# these
CLIP_L = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "projection_dim": 768,
}
# stable-diffusion-xl-base-1.0, text_encoder_2/config.json: OpenCLIP ViT-bigG/14
CLIP_G = {
    **CLIP_L,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
# Qwen3-4B, config.json; it is text_encoder/config.json of FLUX.2 [klein] 4B and of Z-Image
QWEN3_4B = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
# stable-diffusion-3.5-medium, text_encoder_3/config.json: the encoder of T5 v1.1 XXL
T5_XXL = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
# stable-diffusion-v1-5, vae/config.json; the same network in SDXL
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
# stable-diffusion-3.5-medium, vae/config.json
VAE_16 = {
    **VAE,
    "latent_channels": 16,
    "sample_size": 1024,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}

SHAPES = {
    "sd15": Shape(
        "StableDiffusionPipeline",
        {
            # stable-diffusion-v1-5, unet/config.json: diffusers' defaults but for these
            "unet": Part(
                "diffusers.UNet2DConditionModel",
                {
                    "sample_size": 64,
                    "block_out_channels": (320, 640, 1280, 1280),
                    "attention_head_dim": 8,
                    "cross_attention_dim": 768,
                },
            ),
            "vae": Part("diffusers.AutoencoderKL", VAE),
            "text_encoder": Part("transformers.CLIPTextModel", CLIP_L),
        },
        Part("diffusers.PNDMScheduler", {**DIFFUSION, "skip_prk_steps": True}),
        {"tokenizer": "clip"},
        {
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
        },
    ),
    "sdxl": Shape(
        "StableDiffusionXLPipeline",
        {
            # stable-diffusion-xl-base-1.0, unet/config.json
            "unet": Part(
                "diffusers.UNet2DConditionModel",
                {
                    "sample_size": 128,
                    "block_out_channels": (320, 640, 1280),
                    "down_block_types": (
                        "DownBlock2D",
                        "CrossAttnDownBlock2D",
                        "CrossAttnDownBlock2D",
                    ),
                    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                    "attention_head_dim": (5, 10, 20),
                    "cross_attention_dim": 2048,
                    "transformer_layers_per_block": (1, 2, 10),
                    "use_linear_projection": True,
                    "addition_embed_type": "text_time",
                    "addition_time_embed_dim": 256,
                    "projection_class_embeddings_input_dim": 2816,
                },
            ),
            "vae": Part(
                "diffusers.AutoencoderKL",
                {**VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
            ),
            "text_encoder": Part("transformers.CLIPTextModel", CLIP_L),
            "text_encoder_2": Part("transformers.CLIPTextModelWithProjection", CLIP_G),
        },
        Part("diffusers.EulerDiscreteScheduler", {**DIFFUSION, "timestep_spacing": "leading"}),
        {"tokenizer": "clip", "tokenizer_2": "clip"},
    ),
    "sd35": Shape(
        "StableDiffusion3Pipeline",
        {
            # stable-diffusion-3.5-medium, transformer/config.json
            "transformer": Part(
                "diffusers.SD3Transformer2DModel",
                {
                    "sample_size": 128,
                    "in_channels": 16,
                    "num_layers": 24,
                    "attention_head_dim": 64,
                    "num_attention_heads": 24,
                    "joint_attention_dim": 4096,
                    "caption_projection_dim": 1536,
                    "pooled_projection_dim": 2048,
                    "pos_embed_max_size": 384,
                    "dual_attention_layers": tuple(range(13)),
                    "qk_norm": "rms_norm",
                },
            ),
            "vae": Part("diffusers.AutoencoderKL", VAE_16),
            "text_encoder": Part("transformers.CLIPTextModelWithProjection", CLIP_L),
            "text_encoder_2": Part("transformers.CLIPTextModelWithProjection", CLIP_G),
        },
        Part(FLOW, {"shift": 3.0}),
        {"tokenizer": "clip", "tokenizer_2": "clip"},
        # T5's 256 states are zeros then, and the transformer reads as many tokens as with it
        {"text_encoder_3": None, "tokenizer_3": None},
    ),
    "klein": Shape(
        "Flux2KleinPipeline",
        {
            # FLUX.2-klein-base-4B, transformer/config.json
            "transformer": Part(
                "diffusers.Flux2Transformer2DModel",
                {
                    "in_channels": 128,
                    "num_layers": 5,
                    "num_single_layers": 20,
                    "attention_head_dim": 128,
                    "num_attention_heads": 24,
                    "joint_attention_dim": 3 * 2560,
                    "guidance_embeds": False,
                },
            ),
            # FLUX.2-dev, vae/config.json: diffusers' defaults
            "vae": Part("diffusers.AutoencoderKLFlux2"),
            "text_encoder": Part("transformers.Qwen3ForCausalLM", QWEN3_4B),
        },
        Part(FLOW, {"shift": 3.0, "use_dynamic_shifting": True}),
        {"tokenizer": "qwen"},
    ),
    "zimage": Shape(
        "ZImagePipeline",
        {
            # Z-Image, transformer/config.json: diffusers' defaults
            "transformer": Part(
                "diffusers.ZImageTransformer2DModel", {"axes_lens": [1536, 512, 512]}
            ),
            # FLUX.1-dev, vae/config.json
            "vae": Part(
                "diffusers.AutoencoderKL",
                {**VAE_16, "scaling_factor": 0.3611, "shift_factor": 0.1159},
            ),
            "text_encoder": Part("transformers.Qwen3Model", QWEN3_4B),
        },
        Part(FLOW, {"shift": 3.0}),
        {"tokenizer": "qwen"},
    ),
}


def class_of(kind: str) -> Any:
    """Return the class `library.Name`."""
    import diffusers
    import transformers

    library, _, name = kind.partition(".")
    return getattr({"diffusers": diffusers, "transformers": transformers}[library], name)


def parameters(shape: Shape) -> dict[str, int]:
    """Return the number of each network's weights; no memory is taken for them."""
    with torch.device("meta"):
        return {
            name: sum(weight.numel() for weight in part.make().parameters())
            for name, part in shape.parts.items()
        }


def clip_tokenizer() -> Any:
    """Return the zoo's tokenizer, which reads as many tokens as CLIP's."""
    from transformers import CLIPTokenizer

    folder = zoo.path("zoo:emoji-sd") / "tokenizer"
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def qwen_tokenizer() -> Any:
    """Return a tokenizer of bytes with the chat of Qwen3."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*special, *sorted(ByteLevel.alphabet())]
    tokenizer = Qwen2Tokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[],
        model_max_length=4096,
        padding_side="right",
        additional_special_tokens=special[1:],
    )
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
    )
    return tokenizer


TOKENIZERS = {"clip": clip_tokenizer, "qwen": qwen_tokenizer}
"""By the names that a shape gives them."""


def _with_t5(shape: Shape) -> Shape:
    """Return the shape of Stable Diffusion 3 with T5, which takes more memory than the rest."""
    parts = {**shape.parts, "text_encoder_3": Part("transformers.T5EncoderModel", T5_XXL)}
    tokenizers = {**shape.tokenizers, "tokenizer_3": "qwen"}
    return replace(shape, parts=parts, tokenizers=tokenizers, settings={})


# too large for `benchmarks.gpu`, which draws random weights
FLUX_1 = Shape(
    "FluxPipeline",
    {
        # FLUX.1-dev, transformer/config.json: diffusers' defaults but for this
        "transformer": Part("diffusers.FluxTransformer2DModel", {"guidance_embeds": True}),
        "vae": SHAPES["zimage"].parts["vae"],
        "text_encoder": Part("transformers.CLIPTextModel", CLIP_L),
        "text_encoder_2": Part("transformers.T5EncoderModel", T5_XXL),
    },
    Part(FLOW, {"shift": 3.0, "use_dynamic_shifting": True}),
    {"tokenizer": "clip", "tokenizer_2": "qwen"},
)

KNOWN = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": SHAPES["sd15"],
    "stabilityai/stable-diffusion-xl-base-1.0": SHAPES["sdxl"],
    "stabilityai/stable-diffusion-3.5-medium": _with_t5(SHAPES["sd35"]),
    "black-forest-labs/FLUX.1-dev": FLUX_1,
    "black-forest-labs/FLUX.2-klein-base-4B": SHAPES["klein"],
    "black-forest-labs/FLUX.2-klein-4B": replace(SHAPES["klein"], settings={"is_distilled": True}),
    "Tongyi-MAI/Z-Image": SHAPES["zimage"],
    "Tongyi-MAI/Z-Image-Turbo": SHAPES["zimage"],
}
"""Shapes by hub id."""

VIT_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
}
# openai/clip-vit-large-patch14, config.json
CLIP_VIT_L = {"text_config": CLIP_L, "vision_config": VIT_L, "projection_dim": 768}
# laion/CLIP-ViT-H-14-laion2B-s32B-b79K, config.json; PickScore is fine-tuned from it
CLIP_VIT_H = {
    "text_config": {
        **CLIP_L,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
    "vision_config": {
        **VIT_L,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
    },
    "projection_dim": 1024,
}
KNOWN_CLIP: dict[str, Table] = {
    "openai/clip-vit-large-patch14": CLIP_VIT_L,
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": CLIP_VIT_H,
    "yuvalkirstain/PickScore_v1": CLIP_VIT_H,
}
"""Configurations of CLIP models that judge images, by hub id."""
