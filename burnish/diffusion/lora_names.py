"""LoRA files for other programs: kohya's names, which kohya's trainers, ComfyUI and others read.

    lora_unet_LAYER.lora_down.weight    A (rank, in)
    lora_unet_LAYER.lora_up.weight      B (out, rank)
    lora_unet_LAYER.alpha               the rank, so that alpha / rank = 1

LAYER is the layer's name in the model's first program, with _ for each dot (`lora_rules`): for
Stable Diffusion 1.x and 2.x it is diffusers' own, the others have others. In flow models q, k and v
are one layer there, whose LoRA is exact with the three matrices A one above the other and B on the
diagonal:

    A = [A_q; A_k; A_v],    B = diag(B_q, B_k, B_v),    B A = [B_q A_q; B_k A_k; B_v A_v]
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from burnish.diffusion.families import family_of
from burnish.diffusion.lora_file import layer_of, of_part, text_name
from burnish.diffusion.lora_rules import RULES, TEXT_PREFIXES, Rule, blocks_of

Pair = tuple[Tensor, Tensor]
"""A (rank, in) and B (out, rank) of a layer, with its strength in B."""


COMFYUI = ("StableDiffusion3Pipeline",)
"""Pipelines whose LoRA ComfyUI also reads by diffusers' names, and diffusers not by kohya's."""

RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
"""Layers of a residual block, and their names in SDXL's first program."""


def to_kohya(pipe: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a LoRA's tensors under kohya's names, each layer with its alpha.

    Args:
        pipe: the pipeline that the LoRA is for, or its skeleton.
        tensors: as `lora_file.read_lora` returns them.

    Raises:
        ValueError: no reader of such names is known for this kind of model, or for one of the
            layers.
    """
    kind = type(pipe).__name__
    if kind not in RULES:
        raise ValueError(
            f"no program is known that reads kohya's names for a {kind} as diffusers does: take "
            "--to diffusers or merged"
        )

    part = family_of(kind).network
    pairs = pairs_of(of_part(tensors, part))
    result: dict[str, Tensor] = {}
    for name, pair in _renamed(pipe, pairs, getattr(pipe, part), RULES[kind]).items():
        result |= _entries(f"lora_unet_{name}", pair)

    prefixes = TEXT_PREFIXES.get(kind, {})
    for encoder, prefix in prefixes.items():
        own = {text_name(f"{encoder}.{n}"): v for n, v in of_part(tensors, encoder).items()}
        for name, pair in pairs_of(of_part(own, encoder)).items():
            result |= _entries(f"{prefix}{name}", pair)

    _check_whole(tensors, (part, *prefixes), kind)
    return result


def to_comfyui(pipe: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a LoRA's tensors as ComfyUI reads them: kohya's names, or those of diffusers.

    Raises:
        ValueError: ComfyUI is not known to read a LoRA of this kind of model, or of a layer.
    """
    kind = type(pipe).__name__
    if kind in COMFYUI:
        return {text_name(name): value.contiguous() for name, value in tensors.items()}
    if kind not in RULES:
        raise ValueError(
            f"ComfyUI is not known to read a LoRA for a {kind}: take --to diffusers or merged"
        )
    return to_kohya(pipe, tensors)


def pairs_of(tensors: Mapping[str, Tensor]) -> dict[str, Pair]:
    """Return the matrices of each layer.

    Raises:
        ValueError: a layer has more than two matrices: a bias, or DoRA's lengths.
    """
    layers = list(dict.fromkeys(layer_of(name) for name in tensors))
    if len(tensors) != 2 * len(layers):
        extra = next(name for name in tensors if ".lora_A." not in name and ".weight" not in name)
        raise ValueError(f"it has {extra}, which kohya's format does not hold: take --to merged")

    return {
        layer: (tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"])
        for layer in layers
    }


def _check_whole(tensors: Mapping[str, Tensor], parts: Iterable[str], kind: str) -> None:
    for name in tensors:
        part = name.partition(".")[0]
        if part not in parts:
            raise ValueError(
                f"its tensor {name} belongs to the {part}, for which kohya's format has no name in "
                f"a {kind}: take --to diffusers or merged"
            )


def _entries(name: str, pair: Pair) -> dict[str, Tensor]:
    """Return the three tensors of a layer."""
    flat = name.replace(".", "_")
    down, up = pair
    return {
        f"{flat}.lora_down.weight": down.contiguous(),
        f"{flat}.lora_up.weight": up.contiguous(),
        f"{flat}.alpha": torch.tensor(float(len(down))),
    }


def _renamed(
    pipe: Any, pairs: Mapping[str, Pair], network: Any, rules: Iterable[Rule]
) -> dict[str, Pair]:
    """Return the layers of a network by their names elsewhere; those that are one there, fused."""
    rest = dict(pairs)
    result: dict[str, Pair] = {}

    for rule in rules:
        for block in blocks_of(rule, pairs):
            layers = [f"{block}{member}" for member in rule.members]
            found = [rest.pop(layer, None) for layer in layers]
            if any(pair is not None for pair in found):
                rows = [network.get_submodule(layer).weight.shape[0] for layer in layers]
                name = re.sub(rule.block, rule.name, block)
                result[name] = _fused(found, rows)

    if rest:
        raise ValueError(
            f"no program is known that reads a LoRA of the layer {min(rest)} of a "
            f"{type(pipe).__name__} by kohya's names: take --to diffusers or merged"
        )
    if type(pipe).__name__ == "StableDiffusionXLPipeline":
        stride = pipe.unet.config.layers_per_block + 1
        return {_sdxl_name(layer, stride): pair for layer, pair in result.items()}
    return result


def _fused(pairs: Sequence[Pair | None], rows: Sequence[int]) -> Pair:
    """Return one LoRA of layers that lie one above the other; None is a layer without one."""
    if len(pairs) == 1 and pairs[0] is not None:
        return pairs[0]  # of a convolution too

    ups = [
        torch.zeros(count, 0) if pair is None else pair[1]
        for pair, count in zip(pairs, rows, strict=True)
    ]
    return torch.cat([pair[0] for pair in pairs if pair is not None]), torch.block_diag(*ups)


def _sdxl_name(layer: str, stride: int) -> str:
    """Return the name of a UNet's layer in SDXL's first program, whose blocks are one list.

    Args:
        layer: by diffusers' name.
        stride: residual blocks of a block, and one for its change of size.

    Raises:
        ValueError: it lies outside of the blocks.
    """
    block = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)|mid_block\.(.+)", layer)
    if block is None:
        raise ValueError(
            f"kohya's name of SDXL's layer {layer} is not known: take --to diffusers or merged"
        )
    if block[6]:
        kind, number, inner = block[6].split(".", 2)
        place = f"middle_block.{1 if kind == 'attentions' else 2 * int(number)}"
        return f"{place}.{inner if kind == 'attentions' else RESNET.get(inner, inner)}"

    side, outer, kind, number, inner = block.groups()[:5]
    at = stride * int(outer) + int(number)
    if kind == "downsamplers":
        return f"input_blocks.{stride * (int(outer) + 1)}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{stride * (int(outer) + 1) - 1}.2.{inner}"

    place = f"input_blocks.{at + 1}" if side == "down" else f"output_blocks.{at}"
    return f"{place}.1.{inner}" if kind == "attentions" else f"{place}.0.{RESNET.get(inner, inner)}"
