"""Five models at their true shapes with random weights, for `benchmarks.gpu`.

Every configuration stands here, so nothing is downloaded. Tokenizers are small: a prompt has other
tokens than with the true one, and what the network reads of it has the same shape, but for Z-Image,
which reads a prompt's own tokens, padded to a multiple of 32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
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

TINY_TEXT = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 8,
}
TINY_TEXT_2 = {**TINY_TEXT, "hidden_size": 12, "projection_dim": 6}
TINY_QWEN = {
    "vocab_size": 300,
    "hidden_size": 4,
    "intermediate_size": 4,
    "num_hidden_layers": 27,  # the last of the three that klein reads
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 4,
}
TINY_VAE = {
    "block_out_channels": (4, 4, 8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 64,
}
TINY: dict[str, dict[str, Table]] = {
    "sd15": {
        "unet": {
            "sample_size": 8,
            "block_out_channels": (8, 8, 16, 16),
            "layers_per_block": 1,
            "attention_head_dim": 4,
            "cross_attention_dim": 8,
            "norm_num_groups": 4,
        },
        "vae": TINY_VAE,
        "text_encoder": TINY_TEXT,
    },
    "sdxl": {
        "unet": {
            "sample_size": 8,
            "block_out_channels": (8, 8, 16),
            "layers_per_block": 1,
            "attention_head_dim": (2, 2, 4),
            "cross_attention_dim": 8 + 12,
            "transformer_layers_per_block": (1, 1, 2),
            "norm_num_groups": 4,
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 6 + 6 * 4,
        },
        "vae": TINY_VAE,
        "text_encoder": TINY_TEXT,
        "text_encoder_2": TINY_TEXT_2,
    },
    "sd35": {
        "transformer": {
            "sample_size": 8,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 24,
            "caption_projection_dim": 16,
            "pooled_projection_dim": 8 + 6,
            "pos_embed_max_size": 12,
            "dual_attention_layers": (0,),
        },
        "vae": TINY_VAE,
        "text_encoder": TINY_TEXT,
        "text_encoder_2": TINY_TEXT_2,
    },
    "klein": {
        "transformer": {
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 3 * 4,
            "axes_dims_rope": (2, 2, 2, 2),
        },
        "vae": TINY_VAE,
        "text_encoder": TINY_QWEN,
    },
    "zimage": {
        "transformer": {
            "dim": 16,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 4,
            "axes_dims": [4, 2, 2],
        },
        "vae": TINY_VAE,
        "text_encoder": TINY_QWEN,
    },
}
"""Changes of the configurations for models of a few thousand weights, which make 64 pixels."""


def shape_of(name: str, tiny: bool = False) -> Shape:
    """Return a model's shape, or that of the tiny model of its architecture."""
    return SHAPES[name].changed(TINY[name]) if tiny else SHAPES[name]


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


@torch.no_grad()
def build(shape: Shape, folder: Path, device: str, dtype: torch.dtype) -> None:
    """Write the pipeline into a folder.

    Matrices are drawn from a normal distribution, as a new network leaves some as the memory was.

    Args:
        shape: of the pipeline.
        folder: a new one.
        device: where the weights are drawn.
        dtype: of the weights.
    """
    parts: dict[str, Any] = {}
    torch.manual_seed(0)

    for name, part in shape.parts.items():
        with torch.device(device):
            network = part.make()
        for weight in network.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.02)
        parts[name] = network.to(dtype)

    for name, kind in shape.tokenizers.items():
        parts[name] = {"clip": clip_tokenizer, "qwen": qwen_tokenizer}[kind]()

    parts["scheduler"] = class_of(shape.scheduler.kind)(**shape.scheduler.config)
    pipe = class_of(f"diffusers.{shape.pipeline}")(**parts, **shape.settings)
    pipe.save_pretrained(folder)


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
