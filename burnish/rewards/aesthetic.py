"""Aesthetic quality, predicted by a head on CLIP's image embedding: LAION's, or one of our own.

    score = head(E_image(image) / |E_image(image)|)

LAION's head (768-1024-128-64-16-1, fitted to people's ratings from 1 to 10 on CLIP ViT-L/14) has
dropout but no activations between its layers, so it is one affine map; in use there is no dropout.
It is DDPO's aesthetic reward (arXiv 2305.13301, section 5.1). `zoo:emoji-aesthetic` is a head on
`zoo:emoji-clip`, fitted to a stated taste whose true value can be computed (`zoo.taste`): a learned
reward that can be fooled, with the truth at hand.

Being one linear direction of an embedding, such a reward is easily hacked: look at the images and
at another measure as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from burnish import pretrained
from burnish.annotations import DeviceName, ModelPath
from burnish.errors import first_line
from burnish.rewards.clip import Clip
from burnish.types import Prompt, Reward, differentiable

LAYER = re.compile(r"(?:.*\.)?(\d+)\.(weight|bias)$")
Layers = list[tuple[Tensor, Tensor]]


def aesthetic(
    model: ModelPath = "openai/clip-vit-large-patch14",
    head: ModelPath = "trl-lib/ddpo-aesthetic-predictor",
    file: str = "aesthetic-model.pth",
    device: DeviceName = "auto",
) -> Reward:
    """Reward the predicted rating of each image, about 1 to 10; prompts do not matter.

    Photographs get 4 to 7. Costs one pass of CLIP's image tower (ViT-L/14: 81 GFLOP).

    Args:
        model: the CLIP model that the head was fitted on: a hub id, a folder or `zoo:emoji-clip`.
        head: a file, a folder or a hub id that has it, or `zoo:emoji-aesthetic`.
        file: its name in that folder or on the hub. Only tensors are read from it, never code.
        device: `auto` takes the device of the images, so that nothing is moved.

    Raises:
        ValueError: the model or the head cannot be found, or they do not fit each other.
    """
    clip = Clip.load(model)
    layers = read_head(head, file)
    inputs = layers[0][0].shape[1]
    width = int(clip.model.config.projection_dim)

    if inputs != width:
        raise ValueError(
            f"rewards: the head {head} takes {inputs} numbers, but {model} gives {width}: "
            "use the CLIP model that it was fitted on"
        )

    @differentiable
    def reward(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        clip.move_to(device, images)
        x = clip.images(images)
        for weight, bias in layers:
            x = torch.nn.functional.linear(x, weight, bias)
        return x[:, 0]

    return reward


def read_head(head: str, file: str) -> Layers:
    """Return the weight (out, in) and bias (out,) of a head's linear layers, first to last.

    Args:
        head: a file, a folder, a hub id or a `zoo:` id.
        file: its name in that folder or on the hub.

    Returns:
        Pairs of float32 tensors.

    Raises:
        ValueError: there is no such file, or it does not hold a stack of linear layers that ends in
            one number.
    """
    path = _find(head, file)

    try:
        layers = _linear_layers(_read_tensors(path))
        widths = [layers[0][0].shape[1], *(len(bias) for _, bias in layers)]
        shapes = [tuple(weight.shape) for weight, _ in layers]
        expected = list(zip(widths[1:], widths, strict=False))
    except Exception as error:  # a damaged file makes the libraries raise anything
        raise ValueError(
            f"rewards: {path} is no head of linear layers: {first_line(error)}"
        ) from error

    if shapes != expected or widths[-1] != 1:
        raise ValueError(
            f"rewards: {path} is no head of linear layers that end in one number: {widths}"
        )

    return layers


def _read_tensors(path: Path) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)

    # weights_only refuses everything but tensors
    return torch.load(path, map_location="cpu", weights_only=True)


def _linear_layers(tensors: Mapping[str, Tensor]) -> Layers:
    """Return the tensors that are named NUMBER.weight and NUMBER.bias, in order.

    Raises:
        ValueError: another tensor is among them, or one is not finite.
    """
    parts: dict[tuple[int, str], Tensor] = {}

    for name, value in tensors.items():
        match = LAYER.match(name)
        if match is None or (int(match[1]), match[2]) in parts:
            raise ValueError(f"its tensor {name} belongs to no layer of its own")
        if not value.isfinite().all():
            raise ValueError(f"its tensor {name} is not finite")
        parts[int(match[1]), match[2]] = value.float()

    numbers = sorted({number for number, _ in parts})
    return [(parts[number, "weight"], parts[number, "bias"]) for number in numbers]


def _find(head: str, file: str) -> Path:
    """Return the path of the head's file; it is downloaded if it is on the hub."""
    path = pretrained.find(head, "head", file=file)
    if head.startswith("zoo:"):
        return Path(path) / "head.safetensors"

    if isinstance(path, str):
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(path, file))
        except Exception as error:  # network, authorisation, no such file
            raise pretrained.hub_error(error, head, "head") from error

    if path.is_dir() and not (path / file).is_file():
        raise ValueError(
            f"rewards: the folder {path} has no {file}; name the head's file in `file`"
        )
    return path / file if path.is_dir() else path
