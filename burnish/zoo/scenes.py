"""Emoji scenes with their captions: what the embedded models were trained on, composed on the fly.

A scene is one sprite, two or three of the same ("two cats"), or a pair ("a fox and a guitar"), on
white or on a named colour ("on a blue background"), sometimes in a named style ("in noto style").
Sprites and words are package data.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIZE = 64  # pixels of a scene's side
# pixels of a sprite's side: alone, in company
LARGE = 56
SMALL = 30
COLUMNS = 10  # sprites in a row of an atlas
NUMBERS = {1: "one", 2: "two", 3: "three"}
# centres (x, y) by count
PLACES = {1: ((32, 32),), 2: ((17, 32), (47, 32)), 3: ((17, 18), (47, 18), (32, 46))}


@cache
def vocabulary() -> dict[str, Any]:
    """The words the embedded models know: ``animals``, ``objects``, ``colours``, ``styles``,
    ``sets``, ``plurals``.
    """
    return json.loads((Path(__file__).parent / "vocabulary.json").read_text(encoding="utf-8"))


def nouns() -> list[str]:
    """All nouns, the 45 animals first; a noun's place is its class number for the judge."""
    words = vocabulary()
    return words["animals"] + words["objects"]


def article(word: str) -> str:
    """``word`` with its indefinite article (the vocabulary has no silent h and no "unicorn"-like
    exception but one).
    """
    vowel = word[0] in "aeiou" and not word.startswith(("uni", "eu"))
    return f"{'an' if vowel else 'a'} {word}"


@dataclass(frozen=True)
class Scene:
    """What a picture shows, in the words of the vocabulary."""

    nouns: tuple[str, ...]
    count: int = 1
    colour: str = "white"
    style: str = ""

    @property
    def caption(self) -> str:
        """The caption; white goes without saying."""
        if len(self.nouns) == 2:
            subject = " and ".join(article(noun) for noun in self.nouns)
        elif self.count > 1:
            subject = f"{NUMBERS[self.count]} {vocabulary()['plurals'][self.nouns[0]]}"
        else:
            subject = article(self.nouns[0])

        style = f" in {self.style} style" if self.style else ""
        ground = (
            f" on a{'n' if self.colour[0] == 'o' else ''} {self.colour} background"
            if self.colour != "white"
            else ""
        )
        return subject + style + ground


@cache
def _sprites(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sprites of one set, premultiplied RGBA float32 in [0, 1], (N, 56, 56, 4) and (N, 30, 30, 4);
    which exist.
    """
    sheet = Image.open(Path(__file__).parent / "sprites" / f"{name}.png").convert("RGBA")
    large = []
    small = []

    for place in range(len(nouns())):
        x = place % COLUMNS * LARGE
        y = place // COLUMNS * LARGE
        # premultiplied, so that edges shrink cleanly
        sprite = sheet.crop((x, y, x + LARGE, y + LARGE)).convert("RGBa")
        large.append(np.asarray(sprite))
        small.append(np.asarray(sprite.resize((SMALL, SMALL), Image.Resampling.BOX)))

    big = np.stack(large).astype(np.float32) / 255
    exist = np.asarray(big[..., 3].any((1, 2)))
    return big, np.stack(small).astype(np.float32) / 255, exist


class Scenes:
    """An endless, seeded source of scenes.

    ``sets`` are the icon sets to draw from: by default those with a style word. A scene names its
    style only where its set has a word, and then half the time.
    """

    def __init__(self, seed: int = 0, sets: tuple[str, ...] | None = None) -> None:
        self.rng = np.random.default_rng(seed)
        words = vocabulary()
        self.style_of = {name: style for style, name in words["styles"].items()}
        self.sets = sets or tuple(self.style_of)
        self.colours = list(words["colours"])

    def draw(
        self, n: int, kind: str = "any", *, background: str | None = None, noun: str | None = None
    ) -> tuple[Tensor, list[Scene]]:
        """Draw ``n`` scenes of ``kind`` ("single", "count", "pair" or "any"): uint8 images (n, 64,
        64, 3), and what they show.

        ``background`` and ``noun`` fix the colour and the (first) noun.
        """
        scenes = []
        images = np.empty((n, SIZE, SIZE, 3), np.uint8)

        for row in range(n):
            scene, places = self._scene(kind, background, noun)
            images[row] = self._compose(scene, places)
            scenes.append(scene)

        return torch.from_numpy(images), scenes

    def _scene(
        self, kind: str, background: str | None, noun: str | None
    ) -> tuple[Scene, tuple[int, list[int]]]:
        """What to show, and from which set which sprites."""
        if kind == "any":
            kind = ("single", "single", "single", "count", "pair")[self.rng.integers(5)]

        choice = int(self.rng.integers(len(self.sets)))
        name = self.sets[choice]
        exists = np.flatnonzero(_sprites(name)[2])
        first = nouns().index(noun) if noun is not None else int(self.rng.choice(exists))
        picked = [first]

        if kind == "pair":
            second = int(self.rng.choice(exists[exists != first]))
            picked.append(second)

        count = int(self.rng.integers(2, 4)) if kind == "count" else 1

        if background is None:
            background = (
                "white"
                if self.rng.random() < 0.4
                else self.colours[int(self.rng.integers(len(self.colours)))]
            )

        style = self.style_of.get(name, "") if self.rng.random() < 0.5 else ""
        scene = Scene(tuple(nouns()[i] for i in picked), count, background, style)
        return scene, (choice, picked * count)

    def _compose(self, scene: Scene, places: tuple[int, list[int]]) -> np.ndarray:
        """The picture of a scene: uint8 (64, 64, 3)."""
        choice, picked = places
        large, small, _ = _sprites(self.sets[choice])
        canvas = np.full((SIZE, SIZE, 3), vocabulary()["colours"][scene.colour], np.float32) / 255

        for index, (x, y) in zip(picked, PLACES[len(picked)], strict=True):
            sprite = large[index] if len(picked) == 1 else small[index]
            if self.rng.random() < 0.5:
                sprite = sprite[:, ::-1]

            side = len(sprite)
            dx, dy = self.rng.integers(-2, 3, 2)
            left = min(max(x + dx - side // 2, 0), SIZE - side)
            top = min(max(y + dy - side // 2, 0), SIZE - side)
            patch = canvas[top : top + side, left : left + side]
            patch[...] = sprite[..., :3] + (1 - sprite[..., 3:]) * patch

        return np.rint(canvas * 255).astype(np.uint8)
