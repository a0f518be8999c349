"""Distance from the bare code, by the cosine between CLIP's embeddings (arXiv 2103.00020).

    code_distance = 1 - <E(image), E(code)> / (|E(image)| |E(code)|)

where `code` is the bare code of the prompt's payload.

A measure to watch in a held-out panel: it falls when the images drift towards bare codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from burnish.annotations import DeviceName, ModelPath
from burnish.qr.layout import Layout, layout_of
from burnish.qr.scanner import canvas_side
from burnish.rewards.clip import Clip
from burnish.types import Prompt, Reward, differentiable


def code_distance(
    model: ModelPath = "openai/clip-vit-large-patch14", device: DeviceName = "auto"
) -> Reward:
    """Reward one minus the cosine of each image with the bare code of metadata["payload"].

    Args:
        model: a hub id, a folder with a CLIPModel, its tokenizer and its processor, or
            `zoo:emoji-clip`.
        device: `auto` takes the device of the images, so that nothing is moved.

    Raises:
        ValueError: the model is no CLIP model; later, a prompt without payload.
    """
    clip = Clip.load(model)

    @differentiable
    def reward(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        clip.move_to(device, images)
        layouts = [layout_of(prompt, canvas_side(images)) for prompt in prompts]
        return 1 - code_similarity(clip, images, layouts)

    return reward


def code_similarity(clip: Clip, images: Tensor, layouts: Sequence[Layout]) -> Tensor:
    """Return the cosine of each image with its own bare code, drawn as for a control image.

    Args:
        clip: the model, on the device where it shall run.
        images: (B, 3, side, side) in [0, 1].
        layouts: B codes.

    Returns:
        (B,) float32 on the CPU.
    """
    rows = {layout: row for row, layout in enumerate(dict.fromkeys(layouts))}
    codes = clip.images(torch.stack([layout.draw() for layout in rows]))
    own_codes = codes[[rows[layout] for layout in layouts]]
    return (clip.images(images) * own_codes).sum(-1)
