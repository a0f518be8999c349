"""Your own taste: a head that was fitted to pairs of images of which you preferred one.

    burnish taste fit pairs.jsonl --model zoo:emoji-clip --out taste.safetensors

    [[rewards]]
    use = "taste"
    head = "taste.safetensors"

See `bradley_terry` for what a score means and how it is fitted. The file holds tensors and texts
only, never code: weight (D,), centre (D,), covariance (D, D) and prior (1,), float64, the CLIP
model that they belong to, and what of its image tower they read (`Clip.features`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from burnish.annotations import Bounds, DeviceName, FilePath, ModelPath
from burnish.errors import NoSuchFile, first_line
from burnish.rewards.bradley_terry import Head
from burnish.rewards.clip import Clip, Features
from burnish.types import Prompt, Reward

FORMAT = "burnish-taste-1"
TENSORS = ("weight", "centre", "covariance", "prior")


def taste(
    head: FilePath,
    model: ModelPath = "",
    most_unknown: Annotated[float, Bounds(0, 1, open_least=True)] = 1.0,
    device: DeviceName = "auto",
) -> Reward:
    """Reward what you prefer, as a head fitted to pairs of images foretells it.

    0 is the mean image of the pairs, and what the head knows nothing about; 1 more makes an image
    e times as likely to be preferred. Costs one pass of CLIP's image tower.

    Args:
        head: the file that `burnish taste fit` wrote.
        model: the CLIP model that the head was fitted on; "" for the one it names.
        most_unknown: an image of which a larger part of the score is unknown, from 0 (known) to 1
            (as before the first pair), gets none: set scoring.missing = "mask" with it.
        device: `auto` takes the device of the images, so that nothing is moved.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no head, or belongs to another model.
    """
    stored = read_head(Path(head))
    clip = Clip.load(model or stored.model)
    check_width(stored, clip, model or stored.model)

    def reward(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        clip.move_to(device, images)
        score, unknown = stored.head.score(clip.features(images, stored.features))
        return torch.where(unknown > most_unknown, torch.nan, score)

    return reward


@dataclass(frozen=True)
class StoredHead:
    """A head with what its file says about it."""

    head: Head
    model: str  # the CLIP model whose features it reads
    about: Mapping[str, str]  # "pairs", "accuracy", ... as texts
    features: Features = "embedding"  # what of that model


def check_width(stored: StoredHead, clip: Clip, model: str) -> None:
    """Refuse a head that reads another number of features than a model gives.

    Raises:
        ValueError: the message names both.
    """
    read, given = len(stored.head.weight), clip.feature_width(stored.features)
    if read != given:
        raise ValueError(
            f"the head reads {read} features, but {model} gives {given}: use the CLIP model that "
            "it was fitted on"
        )


def head_bytes(
    head: Head, model: str, about: Mapping[str, str], features: Features = "embedding"
) -> bytes:
    """Return the bytes of a head's file.

    Args:
        head: fitted.
        model: the CLIP model whose features it reads.
        about: further texts.
        features: what of that model.
    """
    tensors = {
        "weight": head.weight,
        "centre": head.centre,
        "covariance": head.covariance,
        "prior": torch.tensor([head.prior], dtype=torch.float64),
    }
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    named = {"format": FORMAT, "model": model, "features": features}
    return save(contiguous, metadata={**named, **about})


def read_head(path: Path) -> StoredHead:
    """Return the head in a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else.
    """
    if not path.is_file():
        raise NoSuchFile(path, "head", setting=f"head=FOLDER/{path.name}")

    try:
        with safe_open(path, framework="pt") as file:
            about = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # a damaged file makes the library raise anything
        raise ValueError(f"{path} is no head of a taste: {first_line(error)}") from error

    if about.pop("format", "") != FORMAT or set(tensors) != set(TENSORS) or "model" not in about:
        raise ValueError(f"{path} is no head of a taste; make one by burnish taste fit")

    width = tensors["weight"].numel()
    shapes = {"weight": (width,), "centre": (width,), "covariance": (width, width), "prior": (1,)}
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shapes[name] or not tensor.is_floating_point():
            raise ValueError(f"{path}: {name} has shape {tuple(tensor.shape)}, not {shapes[name]}")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{path}: {name} is not finite; fit the head anew")

    prior = float(tensors["prior"])
    if not (math.isfinite(prior) and prior > 0):
        raise ValueError(f"{path}: prior is {prior}; fit the head anew")

    features = about.pop("features", "embedding")  # older files have no other
    if features not in get_args(Features):
        raise ValueError(f'{path}: features is "{features}"; make a head by burnish taste fit')

    weight, centre, covariance = (tensors[name].double() for name in TENSORS[:3])
    head = Head(weight, centre, covariance, prior)
    return StoredHead(head, about.pop("model"), about, features)
