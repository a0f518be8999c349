"""A measure that nothing is trained on: text in an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from burnish.rewards.question import TEXT
from burnish.rewards.vlm import load
from burnish.types import Prompt
from experiments.counting.plan import OTHER_READER


class Text:
    """Says 1 where the other reader sees text in an image, else 0."""

    def __init__(self) -> None:
        self.reader = load(OTHER_READER)

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        replies = self.reader(images, [TEXT] * len(images))
        seen = [(reply or "").strip().lower().startswith("yes") for reply in replies]
        return torch.tensor(seen, dtype=torch.float32)
