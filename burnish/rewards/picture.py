"""How alike two pictures are: the cosine between CLIP's embeddings of both (arXiv 2103.00020).

    picture_similarity = <E(image), E(base)> / (|E(image)| |E(base)|)          base: the picture a prompt names
    code_distance      = 1 - <E(image), E(code)> / (|E(image)| |E(code)|)      code: the bare code of its payload

A generator that is rewarded for codes alone ends at the bare code. The first keeps it at a picture;
the second, a measure to watch in a held-out panel, falls when the pictures drift towards bare
codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from burnish.images import open_image
from burnish.qr.layout import Layout, layout_of
from burnish.qr.scanner import canvas_side
from burnish.rewards.clip import Clip
from burnish.types import Prompt, Reward


def picture_similarity(
    model: str = "openai/clip-vit-large-patch14", key: str = "base", device: str = "auto"
) -> Reward:
    """Cosine similarity of each image with the picture whose path the prompt has in metadata[key].

    Args:
        model: a hub id, a folder with a CLIPModel, its tokenizer and its processor, or
            `zoo:emoji-clip`.
        key: of the metadata; a path is relative to the current folder.
        device: `auto` takes the device of the images, so that nothing is moved.

    Raises:
        ValueError: the model is no CLIP model; later, a prompt names no picture, or one that cannot
            be read.
    """
    return _alike(Clip.load(model), key, device)


def _alike(clip: Clip, key: str, device: str) -> Reward:
    known: dict[str, Tensor] = {}  # the picture of a path passes through the tower once

    def embedded(prompt: Prompt) -> Tensor:
        path = prompt.metadata.get(key)
        if not isinstance(path, str) or not path:
            raise ValueError(
                f"the prompt '{prompt.text}' names no picture to be like; give its metadata a path as {key!r}, as the "
                "prompt source qr does with base = ..."
            )

        if path not in known:
            try:
                known[path] = clip.images(open_image(Path(path))[None])[0]
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"the picture of the prompt '{prompt.text}' ({key}): {error}"
                ) from error

        return known[path]

    def reward(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        clip.model.to(images.device if device == "auto" else device)
        return (clip.images(images) * torch.stack([embedded(prompt) for prompt in prompts])).sum(-1)

    return reward


def code_distance(model: str = "openai/clip-vit-large-patch14", device: str = "auto") -> Reward:
    """One minus the cosine similarity of each image with the bare code of metadata["payload"]: must
    not fall.

    Args:
        model: as for `picture_similarity`.
        device: as there.

    Raises:
        ValueError: the model is no CLIP model; later, a prompt without payload.
    """
    clip = Clip.load(model)

    def reward(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        clip.model.to(images.device if device == "auto" else device)
        layouts = [layout_of(prompt, canvas_side(images)) for prompt in prompts]
        return 1 - code_similarity(clip, images, layouts)

    return reward


def code_similarity(clip: Clip, images: Tensor, layouts: Sequence[Layout]) -> Tensor:
    """The cosine of each image (B, 3, side, side) with its own bare code as it is drawn for a
    control: (B,).
    """
    bare = {code: row for row, code in enumerate(dict.fromkeys(layouts))}
    drawn = clip.images(torch.stack([code.draw() for code in bare]))
    return (clip.images(images) * drawn[[bare[code] for code in layouts]]).sum(-1)
