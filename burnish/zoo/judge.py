"""The judge: a plain classifier of scenes, for evaluation only, never a reward.

It predicts the nouns that an image shows, the background colour and the number of things, so that a
run can measure whether its images still show their prompts while a reward climbs. It was trained
separately from every other embedded model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from transformers import ResNetForImageClassification

from burnish import zoo
from burnish.types import Prompt
from burnish.zoo.scenes import SIZE, Scene, nouns, vocabulary

CHUNK = 256
NUMBERS = {"two": 2, "three": 3}


def parse(text: str) -> Scene | None:
    """Return the scene that a prompt describes; None where it names no known noun.

    Only words in the prompt count: unlike a caption's, its colour is "" where it names none.
    """
    words = re.findall(r"[a-z]+", text.lower())
    singular = {plural: noun for noun, plural in vocabulary()["plurals"].items()}
    singular |= {noun: noun for noun in nouns()}
    phrases = [*words, *(f"{a} {b}" for a, b in pairwise(words))]
    named = tuple(dict.fromkeys(singular[phrase] for phrase in phrases if phrase in singular))

    if not named:
        return None

    background = re.search(r"on an? ([a-z]+) background", text.lower())
    colour = background.group(1) if background else ""
    return Scene(named[:2], max(_counts(words).values(), default=1), colour)


def _counts(words: Sequence[str]) -> dict[str, int]:
    """Return the number before each plural of a prompt, as in "two cats" or "two chess pieces"."""
    plurals = set(vocabulary()["plurals"].values())
    counts = {
        word: NUMBERS[before]
        for before, word in pairwise(words)
        if before in NUMBERS and word in plurals
    }

    # its plural, "chess pieces", is two words
    if "chess" in words and (before := words[words.index("chess") - 1]) in NUMBERS:
        counts["chess"] = NUMBERS[before]

    return counts


@dataclass(frozen=True)
class Verdict:
    """The judge's predictions for B images."""

    nouns: Tensor  # (B, N) logit of each noun being in the image
    colour: Tensor  # (B,) index into the vocabulary's colours
    count: Tensor  # (B,) number of things, 1 to 3

    def names(self, row: int, k: int) -> set[str]:
        """Return the `k` likeliest nouns of one image."""
        return {nouns()[index] for index in self.nouns[row].topk(k).indices.tolist()}


def split(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the noun, colour and count logits, which stand in this order in an output row."""
    noun_count = len(nouns())
    colour_count = len(vocabulary()["colours"])
    colour_end = noun_count + colour_count
    return logits[:, :noun_count], logits[:, noun_count:colour_end], logits[:, colour_end:]


def reduced(images: Tensor) -> Tensor:
    """Return images (B, 3, H, W) at the 64 pixels that a judge sees."""
    if images.shape[-2:] == (SIZE, SIZE):
        return images
    return torch.nn.functional.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True)


class Judge:
    """`judge(images, prompts)` returns row by row whether an image shows its prompt."""

    def __init__(self, model: ResNetForImageClassification) -> None:
        self.model = model.eval()

    @torch.no_grad()
    def classify(self, images: Tensor) -> Verdict:
        """Return the predictions for images (B, 3, H, W) in [0, 1].

        They are resized to 64 pixels if they have another size.
        """
        device = self.model.device
        logits = []

        for x in images.to(device, torch.float32).split(CHUNK):
            logits.append(self.model(reduced(x) * 2 - 1).logits.float().cpu())

        noun, colour, count = split(torch.cat(logits))
        return Verdict(noun, colour.argmax(1), count.argmax(1) + 1)

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Return whether each image shows its prompt, (B,) bool.

        Every noun that the prompt names must be among as many likeliest ones, and a number that it
        names must be met. A prompt without a known noun can never be right: evaluate such prompts
        without the judge.
        """
        verdict = self.classify(images)
        right = torch.zeros(len(prompts), dtype=torch.bool)

        for row, prompt in enumerate(prompts):
            wanted = parse(prompt.text)
            if wanted is None:
                continue

            right_nouns = set(wanted.nouns) == verdict.names(row, len(wanted.nouns))
            right_count = wanted.count == 1 or bool(verdict.count[row] == wanted.count)
            right[row] = right_nouns and right_count

        return right


@cache
def load(model: str = "zoo:emoji-judge", device: str = "cpu") -> Judge:
    """Return a judge of the zoo, or one from a folder.

    Raises:
        ValueError: the zoo has no model of that name.
        FileNotFoundError: there is no judge in the folder.
    """
    path = Path(zoo.resolve(model))
    if not (path / "config.json").exists():
        raise FileNotFoundError(
            f"{path} holds no judge (config.json is missing): "
            "reinstall burnish or run pretrain.judge (--codes)"
        )

    return Judge(ResNetForImageClassification.from_pretrained(path).float().to(device))
