"""Five models at their true shapes (`burnish.diffusion.shapes`) with random weights.

`benchmarks.gpu` trains them, and tests their tiny models.
"""

from __future__ import annotations

from pathlib import Path

import torch

from burnish.config import Table
from burnish.diffusion.shapes import SHAPES, Shape

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
    networks = {}
    torch.manual_seed(0)

    for name, part in shape.parts.items():
        with torch.device(device):
            network = part.make()
        for weight in network.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.02)
        networks[name] = network.to(dtype)

    shape.pipe(networks).save_pretrained(folder)
