"""Names of layers in the models' first programs, by which kohya's LoRA files are written.

A rule is of one or several layers of diffusers that are one layer there, one above the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """Layers of diffusers that are one layer elsewhere.

    Attributes:
        block: a pattern of what stands before the members' names.
        members: the layers in the order of their rows.
        name: of the one layer, with the pattern's groups.
    """

    block: str
    members: tuple[str, ...]
    name: str


def _streams(*layers: tuple[str, str]) -> tuple[Rule, ...]:
    """Return the rules of FLUX's blocks of two streams: attention, and further single layers."""
    double = r"transformer_blocks\.(\d+)\."
    fused = (
        (("attn.to_q", "attn.to_k", "attn.to_v"), "img_attn.qkv"),
        (("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "txt_attn.qkv"),
    )
    single = (("attn.to_out.0", "img_attn.proj"), ("attn.to_add_out", "txt_attn.proj"), *layers)
    return tuple(
        Rule(double, members, rf"double_blocks.\1.{name}")
        for members, name in (*fused, *(((layer,), name) for layer, name in single))
    )


FLUX = (
    *_streams(
        ("ff.net.0.proj", "img_mlp.0"),
        ("ff.net.2", "img_mlp.2"),
        ("ff_context.net.0.proj", "txt_mlp.0"),
        ("ff_context.net.2", "txt_mlp.2"),
        ("norm1.linear", "img_mod.lin"),
        ("norm1_context.linear", "txt_mod.lin"),
    ),
    Rule(
        r"single_transformer_blocks\.(\d+)\.",
        ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
        r"single_blocks.\1.linear1",
    ),
    Rule(r"single_transformer_blocks\.(\d+)\.", ("proj_out",), r"single_blocks.\1.linear2"),
    Rule(
        r"single_transformer_blocks\.(\d+)\.", ("norm.linear",), r"single_blocks.\1.modulation.lin"
    ),
)
FLUX_2 = (
    *_streams(
        ("ff.linear_in", "img_mlp.0"),
        ("ff.linear_out", "img_mlp.2"),
        ("ff_context.linear_in", "txt_mlp.0"),
        ("ff_context.linear_out", "txt_mlp.2"),
    ),
    Rule(
        r"single_transformer_blocks\.(\d+)\.",
        ("attn.to_qkv_mlp_proj",),
        r"single_blocks.\1.linear1",
    ),
    Rule(r"single_transformer_blocks\.(\d+)\.", ("attn.to_out",), r"single_blocks.\1.linear2"),
)
Z_IMAGE = (
    Rule(r"(\w+\.\d+\.attention\.)", ("to_q", "to_k", "to_v"), r"\1qkv"),
    Rule(r"(\w+\.\d+\.attention\.)", ("to_out.0",), r"\1out"),
    Rule(r"(\w+\.\d+\.feed_forward\.)", ("w1",), r"\1w1"),
    Rule(r"(\w+\.\d+\.feed_forward\.)", ("w2",), r"\1w2"),
    Rule(r"(\w+\.\d+\.feed_forward\.)", ("w3",), r"\1w3"),
    Rule(r"(\w+\.\d+\.)", ("adaLN_modulation.0",), r"\1adaLN_modulation.0"),
)
SD3 = tuple(
    Rule(r"transformer_blocks\.(\d+)\.", members, rf"joint_blocks.\1.{name}")
    for members, name in (
        (("attn.to_q", "attn.to_k", "attn.to_v"), "x_block.attn.qkv"),
        (("attn2.to_q", "attn2.to_k", "attn2.to_v"), "x_block.attn2.qkv"),
        (("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "context_block.attn.qkv"),
        (("attn.to_out.0",), "x_block.attn.proj"),
        (("attn2.to_out.0",), "x_block.attn2.proj"),
        (("attn.to_add_out",), "context_block.attn.proj"),
        (("ff.net.0.proj",), "x_block.mlp.fc1"),
        (("ff.net.2",), "x_block.mlp.fc2"),
        (("ff_context.net.0.proj",), "context_block.mlp.fc1"),
        (("ff_context.net.2",), "context_block.mlp.fc2"),
        (("norm1.linear",), "x_block.adaLN_modulation.1"),
    )
)
"""The text's modulation is left out: in the last block its halves have another order there."""

SAME: tuple[Rule, ...] = (Rule("(.+)", ("",), r"\1"),)
"""The layers have diffusers' names."""

RULES: Mapping[str, tuple[Rule, ...]] = {
    "StableDiffusionPipeline": SAME,
    "LatentConsistencyModelPipeline": SAME,
    "StableDiffusionXLPipeline": SAME,  # renamed by `lora_names`
    "QwenImagePipeline": SAME,
    "FluxPipeline": FLUX,
    "Flux2KleinPipeline": FLUX_2,
    "StableDiffusion3Pipeline": SD3,
    "ZImagePipeline": Z_IMAGE,
}
"""By the name of the diffusers pipeline."""

_ONE_CLIP = {"text_encoder": "lora_te_"}
_TWO_CLIPS = {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
TEXT_PREFIXES: Mapping[str, Mapping[str, str]] = {
    "StableDiffusionPipeline": _ONE_CLIP,
    "LatentConsistencyModelPipeline": _ONE_CLIP,
    "StableDiffusionXLPipeline": _TWO_CLIPS,
    "StableDiffusion3Pipeline": _TWO_CLIPS,
    "FluxPipeline": {"text_encoder": "lora_te1_"},
}
"""The prefix of the names of a text encoder's layers, by the pipeline and the encoder."""


def blocks_of(rule: Rule, layers: Iterable[str]) -> list[str]:
    """Return what stands before the members of a rule, wherever one of them is among `layers`."""
    found = (
        match[0]
        for layer in layers
        for member in rule.members
        if layer.endswith(member)
        and (match := re.fullmatch(rule.block, layer.removesuffix(member)))
    )
    return list(dict.fromkeys(found))


def layers_by_name(rules: Iterable[Rule], layers: Iterable[str]) -> dict[str, list[str]]:
    """Return the layers of diffusers, in the order of their rows, by their one name elsewhere."""
    known = list(layers)
    return {
        re.sub(rule.block, rule.name, block): [f"{block}{member}" for member in rule.members]
        for rule in rules
        for block in blocks_of(rule, known)
    }
