"""Likeness to a given image: the cosine between CLIP's embeddings of both (arXiv 2103.00020).

    picture_similarity = <E(image), E(base)> / (|E(image)| |E(base)|)

where `base` is the image that the prompt names.

A generator that is rewarded for readable codes alone ends at the bare code. This reward keeps it at
an image of something.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from burnish.annotations import DeviceName, ModelPath
from burnish.images import open_image
from burnish.rewards.clip import Clip
from burnish.types import Prompt, Reward, differentiable


def picture_similarity(
    model: ModelPath = "openai/clip-vit-large-patch14",
    key: str = "base",
    device: DeviceName = "auto",
) -> Reward:
    """Reward the cosine of each image with the image at the path in the prompt's metadata[key].

    Args:
        model: a hub id, a folder with a CLIPModel, its tokenizer and its processor, or
            `zoo:emoji-clip`.
        key: of the metadata. The source jsonl takes relative paths from its file's folder; others
            are relative to the current folder.
        device: `auto` takes the device of the images, so that nothing is moved.

    Raises:
        ValueError: the model is no CLIP model; later, a prompt names no image, or one that cannot
            be read.
    """
    clip = Clip.load(model)
    embeddings: dict[str, Tensor] = {}  # by path: each file passes through the tower once

    @differentiable
    def reward(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        clip.move_to(device, images)
        embedded = clip.images(images)
        bases = [_embedding(clip, embeddings, prompt, key) for prompt in prompts]
        return (embedded * torch.stack(bases)).sum(-1)

    return reward


def _embedding(clip: Clip, embeddings: dict[str, Tensor], prompt: Prompt, key: str) -> Tensor:
    """Return the embedding of the image that a prompt names, (D,); new ones are remembered."""
    path = prompt.metadata.get(key)
    if not isinstance(path, str) or not path:
        raise ValueError(
            f"the prompt '{prompt.text}' names no image to be compared with; give its metadata a "
            f"path as {key!r}, as the prompt source qr does with base = ..."
        )

    if path not in embeddings:
        try:
            embeddings[path] = clip.images(open_image(Path(path))[None])[0]
        except (OSError, ValueError) as error:
            raise ValueError(f"the image of the prompt '{prompt.text}' ({key}): {error}") from error

    return embeddings[path]
