"""The judge: a plain classifier of scenes, for evaluation only, never a reward.

It says which nouns a picture shows, on which background colour, and how many things there are, so
that a run can tell whether its pictures still show what was asked while a reward climbs. It was
trained apart from every other embedded model.
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

from burnish.types import Prompt
from burnish.zoo.scenes import Scene, nouns, vocabulary

CHUNK = 256


def parse(text: str) -> Scene | None:
    """What a prompt asks for, in the vocabulary's words; None where it names no known noun.

    Only what is said counts: unlike a caption's, a prompt's colour is "" where it names none.
    """
    words = re.findall(r"[a-z]+", text.lower())
    ground = re.search(r"on an? ([a-z]+) background", text.lower())
    plurals = {plural: noun for noun, plural in vocabulary()["plurals"].items()}
    number = {"two": 2, "three": 3}
    pairs = [*words, *(f"{a} {b}" for a, b in pairwise(words))]
    counts = {
        plurals[w]: number[before]
        for before, w in pairwise(words)
        if before in number and w in plurals
    }

    if "chess" in words and (before := words[words.index("chess") - 1]) in number:
        counts["chess"] = number[before]

    known = set(nouns())
    found = tuple(
        dict.fromkeys(w if w in known else plurals[w] for w in pairs if w in known or w in plurals)
    )

    if not found:
        return None

    return Scene(found[:2], max(counts.values(), default=1), ground.group(1) if ground else "")


@dataclass(frozen=True)
class Verdict:
    """What the judge sees in B pictures."""

    nouns: Tensor  # (B, N) logit of each noun being there
    colour: Tensor  # (B,) index into the vocabulary's colours
    count: Tensor  # (B,) number of things, 1 to 3

    def names(self, row: int, k: int) -> set[str]:
        """The ``k`` likeliest nouns of one picture."""
        return {nouns()[i] for i in self.nouns[row].topk(k).indices.tolist()}


def split(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One output row is noun logits, colour logits, count logits, in this order."""
    n = len(nouns())
    c = len(vocabulary()["colours"])
    return logits[:, :n], logits[:, n : n + c], logits[:, n + c :]


class Judge:
    """``judge(images, prompts)`` tells row by row whether a picture shows what its prompt asks."""

    def __init__(self, model: ResNetForImageClassification) -> None:
        self.model = model.eval()

    @torch.no_grad()
    def classify(self, images: Tensor) -> Verdict:
        """Images (B, 3, H, W) in [0, 1], resized to 64 pixels if need be."""
        device = self.model.device
        parts = []

        for x in images.to(device, torch.float32).split(CHUNK):
            if x.shape[-2:] != (64, 64):
                x = torch.nn.functional.interpolate(x, (64, 64), mode="bilinear", antialias=True)
            parts.append(self.model(x * 2 - 1).logits.float().cpu())

        noun, colour, count = split(torch.cat(parts))
        return Verdict(noun, colour.argmax(1), count.argmax(1) + 1)

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """(B,) bool: every noun the prompt names is among as many likeliest ones, and a named count
        is met.

        A prompt without a known noun can never be right: evaluate such prompts without the judge.
        """
        verdict = self.classify(images)
        right = torch.zeros(len(prompts), dtype=torch.bool)

        for row, prompt in enumerate(prompts):
            wanted = parse(prompt.text)
            if wanted is not None:
                right[row] = set(wanted.nouns) == verdict.names(row, len(wanted.nouns))
                right[row] &= wanted.count == 1 or bool(verdict.count[row] == wanted.count)

        return right


@cache
def load(folder: str | Path | None = None, device: str = "cpu") -> Judge:
    """The embedded judge, or one that lies in ``folder``."""
    where = Path(folder) if folder else Path(__file__).parent / "emoji-judge"
    if not (where / "config.json").exists():
        raise FileNotFoundError(
            f"{where} holds no judge (config.json is missing): reinstall burnish or run pretrain.judge"
        )

    return Judge(ResNetForImageClassification.from_pretrained(where).float().to(device))
