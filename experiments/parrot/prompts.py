"""Prompts with room for alignment: pairs of nouns, pairs on a background, counts on a background.

Before training `zoo:emoji-lcm` draws what is asked for in a half of the first, a quarter of the
second and four fifths of the third. Sets share no noun.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle, product

from burnish.zoo.scenes import Scene

COLOURS = ("red", "blue", "yellow", "green", "pink", "gray", "purple", "orange", "black")


@dataclass(frozen=True)
class Words:
    """The nouns of a set."""

    animals: tuple[str, ...]
    objects: tuple[str, ...]


SETS: Mapping[str, Words] = {
    "train": Words(
        ("cat", "bear", "fox", "dog", "lion", "frog"), ("guitar", "car", "rocket", "umbrella")
    ),
    "unseen": Words(
        ("pig", "horse", "duck", "rabbit", "spider", "whale"), ("violin", "apple", "bus", "key")
    ),
    # of the search for settings alone
    "search": Words(
        ("monkey", "tiger", "cow", "fish", "owl", "penguin"), ("bicycle", "banana", "bell", "drum")
    ),
}


def by_kind(name: str) -> dict[str, list[str]]:
    """Return the texts of a set: 24 pairs, then 12 of each kind with a background."""
    words = SETS[name]
    pairs = list(product(words.animals, words.objects))
    numbers = product(words.animals, (2, 3))
    colours = cycle(COLOURS)

    scenes = {
        "pairs": [Scene(pair) for pair in pairs],
        # every other one, so that each noun is there
        "colours": [
            Scene(pair, colour=next(colours))
            for row, pair in enumerate(pairs)
            if (row + row // len(words.objects)) % 2 == 0
        ],
        "counts": [Scene((noun,), count, next(colours)) for noun, count in numbers],
    }
    return {kind: [scene.caption for scene in each] for kind, each in scenes.items()}


def texts(name: str) -> list[str]:
    """Return all texts of a set."""
    return [text for each in by_kind(name).values() for text in each]
