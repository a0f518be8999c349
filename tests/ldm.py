"""The names that the first programs of each model gave to the weights of a tiny pipeline.

For Stable Diffusion 1.x and SDXL (CompVis' `ldm`, Stability's `sgm`), ControlNets (`cldm`), Stable
Diffusion 3 (`mmdit`), FLUX.1, FLUX.2 and Z-Image; text encoders of flow models as ComfyUI has them.
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Any

import torch
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
VAE_ENDS = {
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
    "mid_block.attentions.0.to_q": "mid.attn_1.q",
    "mid_block.attentions.0.to_k": "mid.attn_1.k",
    "mid_block.attentions.0.to_v": "mid.attn_1.v",
    "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
}
OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
OPEN_CLIP = {
    "encoder.layers.": "transformer.resblocks.",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn": "attn",
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
}


def single_file(pipe: Any) -> dict[str, Tensor]:
    """Return all weights of a tiny Stable Diffusion 1.x as one checkpoint."""
    text = {f"cond_stage_model.transformer.{n}": v for n, v in clip(pipe.text_encoder).items()}
    return whole({**text, **vae(pipe, "first_stage_model."), **unet(pipe.unet)})


def sdxl_file(pipe: Any) -> dict[str, Tensor]:
    """Return all weights of a tiny SDXL as one checkpoint."""
    first = {
        f"conditioner.embedders.0.transformer.{name}": value
        for name, value in clip(pipe.text_encoder).items()
    }
    second = {
        f"conditioner.embedders.1.model.{name}": value
        for name, value in open_clip(pipe.text_encoder_2).items()
    }
    return whole({**first, **second, **vae(pipe, "first_stage_model."), **unet(pipe.unet)})


def sd3_file(pipe: Any) -> dict[str, Tensor]:
    """Return all weights of a tiny Stable Diffusion 3 as one checkpoint.

    The first CLIP's projection is left out, as it is the identity there.
    """
    first = clip(pipe.text_encoder)
    del first["text_projection.weight"]
    encoders = {"clip_l": first, "clip_g": clip(pipe.text_encoder_2)}
    if pipe.text_encoder_3 is not None:
        encoders["t5xxl"] = t5(pipe.text_encoder_3)

    network = {f"model.diffusion_model.{n}": v for n, v in sd3_network(pipe.transformer).items()}
    return whole({**named(encoders), **vae(pipe, "first_stage_model."), **network})


def flux_file(pipe: Any) -> dict[str, Tensor]:
    """Return all weights of a tiny FLUX.1 as one checkpoint."""
    encoders = {"clip_l": clip(pipe.text_encoder), "t5xxl": t5(pipe.text_encoder_2)}
    network = {f"model.diffusion_model.{n}": v for n, v in flux_network(pipe.transformer).items()}
    return whole({**named(encoders), **vae(pipe, "vae."), **network})


def controlnet_file(net: Any) -> dict[str, Tensor]:
    """Return a tiny ControlNet's weights, whose image passes six layers between its ends."""
    return whole({f"control_model.{controlnet_name(n)}": v for n, v in net.state_dict().items()})


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone().contiguous() for name, value in tensors.items()}


def named(encoders: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    return {
        f"text_encoders.{name}.transformer.{key}": value
        for name, tensors in encoders.items()
        for key, value in tensors.items()
    }


def unet(network: Any) -> dict[str, Tensor]:
    names = network.state_dict()
    return {f"model.diffusion_model.{unet_name(name, names)}": v for name, v in names.items()}


def vae(pipe: Any, prefix: str = "") -> dict[str, Tensor]:
    """Return an autoencoder's weights; its attention's were convolutions of one pixel."""
    blocks = len(pipe.vae.config.block_out_channels)
    result = {}
    for name, value in pipe.vae.state_dict().items():
        conv = ".attentions." in name and value.ndim == 2
        result[prefix + vae_name(name, blocks)] = value[:, :, None, None] if conv else value
    return result


def clip(encoder: Any) -> dict[str, Tensor]:
    return {
        name if name == "text_projection.weight" else f"text_model.{_inner(name)}": value
        for name, value in encoder.state_dict().items()
    }


def open_clip(encoder: Any) -> dict[str, Tensor]:
    """Return CLIP's weights by OpenCLIP's names, query, key and value in one."""
    state = encoder.state_dict()
    result: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == "text_projection.weight":
            result["text_projection"] = value.T
        elif ".q_proj." in name:
            three = [state[name.replace("q_proj", f"{one}_proj")] for one in "qkv"]
            layer, _, end = name.rpartition(".q_proj.")
            result[f"{_replaced(_inner(layer), OPEN_CLIP)}.in_proj_{end}"] = torch.cat(three)
        elif ".k_proj." not in name and ".v_proj." not in name:
            result[_replaced(_inner(name), OPEN_CLIP)] = value
    return result


def t5(encoder: Any) -> dict[str, Tensor]:
    """Return T5's weights; its words once, as ComfyUI keeps them."""
    state = encoder.state_dict()
    return {name: v for name, v in state.items() if name != "encoder.embed_tokens.weight"}


def _inner(name: str) -> str:
    return name.removeprefix("text_model.")


def _replaced(name: str, table: dict[str, str]) -> str:
    for ours, theirs in table.items():
        name = name.replace(ours, theirs)
    return name


def unet_name(name: str, names: Container[str] = ()) -> str:
    """Return the first name of a UNet's weight; each block has one residual block.

    `names` are those of all weights.
    """
    for ours, theirs in OUTSIDE.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs, 1)

    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
    if match is None:
        _, kind, number, rest = name.split(".", 3)
        place = 1 if kind == "attentions" else 2 * int(number)
        return f"middle_block.{place}.{rest if kind == 'attentions' else _resnet(rest)}"

    side, block, kind, number, rest = match.groups()
    at = 2 * int(block) + int(number)
    if kind == "downsamplers":
        return f"input_blocks.{2 * int(block) + 2}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        attends = f"up_blocks.{block}.attentions.0.norm.weight" in names
        inner = 2 if attends else 1
        return f"output_blocks.{2 * int(block) + 1}.{inner}.{rest}"

    place = f"input_blocks.{at + 1}" if side == "down" else f"output_blocks.{at}"
    return f"{place}.1.{rest}" if kind == "attentions" else f"{place}.0.{_resnet(rest)}"


def vae_name(name: str, blocks: int = 3) -> str:
    """Return the first name of an autoencoder's weight."""
    last = blocks - 1
    for ours, theirs in VAE_ENDS.items():
        name = name.replace(ours, theirs)

    name = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample.", name)
    name = re.sub(
        r"up_blocks\.(\d)\.resnets\.", lambda match: f"up.{last - int(match[1])}.block.", name
    )
    name = re.sub(
        r"up_blocks\.(\d)\.upsamplers\.0\.",
        lambda match: f"up.{last - int(match[1])}.upsample.",
        name,
    )
    return re.sub(
        r"mid_block\.resnets\.(\d)\.", lambda match: f"mid.block_{int(match[1]) + 1}.", name
    )


def _resnet(rest: str) -> str:
    layer, _, end = rest.rpartition(".")
    return f"{RESNET[layer]}.{end}"


def controlnet_name(name: str) -> str:
    """Return the first name of a ControlNet's weight; its image passes six layers inside."""
    name = re.sub(r"^controlnet_down_blocks\.(\d+)\.", r"zero_convs.\1.0.", name)
    name = name.replace("controlnet_mid_block.", "middle_block_out.0.")
    name = name.replace("controlnet_cond_embedding.conv_in", "input_hint_block.0")
    name = name.replace("controlnet_cond_embedding.conv_out", "input_hint_block.14")
    name = re.sub(
        r"^controlnet_cond_embedding\.blocks\.(\d)",
        lambda match: f"input_hint_block.{2 * int(match[1]) + 2}",
        name,
    )
    ours = name.startswith(("zero_convs", "middle_block_out", "input_hint_block"))
    return name if ours else unet_name(name)


# Stable Diffusion 3 and FLUX.1 -------------------------------------------------------------------

SD3 = {
    "pos_embed.proj": "x_embedder.proj",
    "pos_embed.pos_embed": "pos_embed",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
SD3_BLOCK = {
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "attn.to_add_out": "context_block.attn.proj",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
}
SD3_JOINT = {
    ("attn.to_q", "attn.to_k", "attn.to_v"): "x_block.attn.qkv",
    ("attn2.to_q", "attn2.to_k", "attn2.to_v"): "x_block.attn2.qkv",
    ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"): "context_block.attn.qkv",
}
FLUX = {
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "context_embedder": "txt_in",
    "x_embedder": "img_in",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
FLUX_BLOCK = {
    "norm1_context.linear": "txt_mod.lin",
    "norm1.linear": "img_mod.lin",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "attn.to_add_out": "txt_attn.proj",
    "attn.to_out.0": "img_attn.proj",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
}
FLUX_JOINT = {
    ("attn.to_q", "attn.to_k", "attn.to_v"): "img_attn.qkv",
    ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"): "txt_attn.qkv",
}
FLUX_SINGLE = {
    "norm.linear": "modulation.lin",
    "proj_out": "linear2",
    "attn.norm_q.weight": "norm.query_norm.scale",
    "attn.norm_k.weight": "norm.key_norm.scale",
}
FLUX_SINGLE_JOINT = {("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"): "linear1"}


def sd3_network(network: Any) -> dict[str, Tensor]:
    """Return the weights of a Stable Diffusion 3 network by the names of its first program."""
    state = network.state_dict()
    last = f"transformer_blocks.{network.config.num_layers - 1}.norm1_context."
    state = {
        name: _swapped(v) if name.startswith((last, "norm_out.")) else v
        for name, v in state.items()
    }
    blocks = _blocks(state, "transformer_blocks.", "joint_blocks.", SD3_BLOCK, SD3_JOINT)
    rest = {n: v for n, v in state.items() if not n.startswith("transformer_blocks.")}
    return {**blocks, **{_replaced(name, SD3): value for name, value in rest.items()}}


def flux_network(network: Any) -> dict[str, Tensor]:
    """Return the weights of a FLUX.1 network by the names of its first program."""
    state = {
        name: _swapped(v) if name.startswith("norm_out.") else v
        for name, v in network.state_dict().items()
    }
    double = _blocks(state, "transformer_blocks.", "double_blocks.", FLUX_BLOCK, FLUX_JOINT)
    single = _blocks(
        state, "single_transformer_blocks.", "single_blocks.", FLUX_SINGLE, FLUX_SINGLE_JOINT
    )
    rest = {n: v for n, v in state.items() if "transformer_blocks." not in n}
    return {**double, **single, **{_replaced(name, FLUX): value for name, value in rest.items()}}


FLUX_2 = {
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "context_embedder": "txt_in",
    "x_embedder": "img_in",
    "modulation_img.linear": "modulation_img.lin",
    "modulation_txt.linear": "modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
FLUX_2_BLOCK = {
    **FLUX_BLOCK,
    "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
    "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2",
}
FLUX_2_SINGLE = {**FLUX_SINGLE, "attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2"}
Z_IMAGE = {
    "all_final_layer.2-1.": "final_layer.",
    "all_x_embedder.2-1.": "x_embedder.",
    "attention.to_out.0": "attention.out",
    "attention.norm_k": "attention.k_norm",
    "attention.norm_q": "attention.q_norm",
}


def klein_network(network: Any) -> dict[str, Tensor]:
    """Return the weights of a FLUX.2 network by the names of its first program."""
    state = {
        name: _swapped(v) if name.startswith("norm_out.") else v
        for name, v in network.state_dict().items()
    }
    double = _blocks(state, "transformer_blocks.", "double_blocks.", FLUX_2_BLOCK, FLUX_JOINT)
    single = _blocks(state, "single_transformer_blocks.", "single_blocks.", FLUX_2_SINGLE, {})
    rest = {n: v for n, v in state.items() if "transformer_blocks." not in n}
    return whole(
        {**double, **single, **{_replaced(name, FLUX_2): value for name, value in rest.items()}}
    )


def z_image_file(pipe: Any) -> dict[str, Tensor]:
    """Return the weights of a tiny Z-Image's network and autoencoder as one checkpoint."""
    state = pipe.transformer.state_dict()
    network: dict[str, Tensor] = {}
    for name, value in state.items():
        if ".to_q." in name:
            each = [state[name.replace("to_q", f"to_{one}")] for one in "qkv"]
            network[name.replace("to_q", "qkv")] = torch.cat(each)
        elif ".to_k." not in name and ".to_v." not in name:
            network[_replaced(name, Z_IMAGE)] = value
    prefixed = {f"model.diffusion_model.{name}": value for name, value in network.items()}
    return whole({**prefixed, **vae(pipe, "vae.")})


def _swapped(value: Tensor) -> Tensor:
    """Return scale and shift in the other order."""
    scale, shift = value.chunk(2)
    return torch.cat([shift, scale])


def _blocks(
    state: dict[str, Tensor],
    ours: str,
    theirs: str,
    names: dict[str, str],
    joint: dict[tuple[str, ...], str],
) -> dict[str, Tensor]:
    """Return the weights in numbered blocks, those of `joint` layers below each other."""
    result: dict[str, Tensor] = {}
    for name, value in state.items():
        if not name.startswith(ours):
            continue
        number, _, layer = name.removeprefix(ours).partition(".")
        place = f"{theirs}{number}."
        for layers, together in joint.items():
            stem, _, end = layer.rpartition(".")
            if stem == layers[0]:
                each = [state[f"{ours}{number}.{one}.{end}"] for one in layers]
                result[f"{place}{together}.{end}"] = torch.cat(each)
            if stem in layers:
                break
        else:
            result[place + _replaced(layer, names)] = value
    return result
