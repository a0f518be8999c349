"""A reward for letters, the strongest that a reader of text can give: can the generator write?

    score = log p("yes") - log p("no")    for "Is there any text in this image?"

`zoo:emoji-captioner-128` answers. The difference says for every image how near a "yes" is, also
where the answer is "no" for all: training has something to climb from its first image on.

Learned from scenes with letters of many fonts over them, it is a judge of letters that can be
deceived. So `letters_read` asks another kind of reader, one that must say which letters it sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from burnish.images import eight_bit
from burnish.rewards.question import TEXT
from burnish.rewards.vlm import Local
from burnish.types import Prompt
from burnish.zoo.questions import NUMBERS
from burnish.zoo.scenes import nouns, vocabulary
from experiments.counting.plan import OTHER_READER

BATCH = 32  # images that are read at once
ENLARGED = 4  # times, for the reader of letters, which was made for photographs
SHORTEST = 3  # letters of a word; two may be chance


class Letters:
    """Scores how sure the reader is that there is text in an image, in nats."""

    def __init__(self) -> None:
        self.reader = Local.load(OTHER_READER)
        tokenizer = self.reader.processor.tokenizer
        self.yes, self.no = (tokenizer(word).input_ids[0] for word in ("yes", "no"))

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Return (B,) log-odds of (B, 3, H, W) images in [0, 1]."""
        pixels = [Image.fromarray(image) for image in eight_bit(images)]
        batches = [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
        return torch.cat([self._log_odds(batch) for batch in batches])

    def _log_odds(self, pixels: list[Image.Image]) -> Tensor:
        question = self.reader.processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": TEXT}]}],
            add_generation_prompt=True,
        )
        inputs = self.reader.processor(
            images=pixels, text=[question] * len(pixels), padding=True, return_tensors="pt"
        )
        logits = self.reader.model(**inputs).logits[:, -1]  # of the answer's first token
        return logits[:, self.yes] - logits[:, self.no]


def letters_read(images: Tensor) -> list[str]:
    """Return the letters that RapidOCR reads in each of (B, 3, H, W) images, in lower case.

    It is Baidu's PP-OCR (Apache-2.0) by onnxruntime, trained on photographs and documents, and has
    seen none of our scenes. Texts that it is less than half sure of are left out, as by default.
    """
    from rapidocr_onnxruntime import RapidOCR

    reader: Any = RapidOCR()
    found = []

    for pixels in eight_bit(images):
        side = len(pixels) * ENLARGED
        large = Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS)
        lines, _ = reader(np.asarray(large)[:, :, ::-1])  # it expects blue first
        found.append(" ".join(text for _, text, _ in lines or ()).lower())

    return found


def has_word(text: str) -> bool:
    """Return whether a text has a number or a noun of the vocabulary, as a whole word."""
    words = {*NUMBERS, *nouns(), *vocabulary()["plurals"].values()}
    return any(len(word) >= SHORTEST and word in words for word in text.split())
