"""Emoji scenes with their captions, composed on the fly: the embedded models were trained on them.

A scene is one sprite, two or three of the same ("two cats"), or a pair ("a fox and a guitar"), on
white or on a named colour ("on a blue background"), sometimes in a named style ("in noto style").
Sprites and words are package data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIZE = 64  # side of a scene in pixels
SIZES = (SIZE, 2 * SIZE)  # there are larger scenes too
LARGE = 56  # side of a sprite in pixels where it is the only one, in a scene of 64
SMALL = 30  # side of a sprite in pixels where there are several, in a scene of 64
COLUMNS = 10  # sprites in a row of an atlas
NUMBERS = {1: "one", 2: "two", 3: "three"}
# centres (x, y) by count, in a scene of 64
CENTRES = {1: ((32, 32),), 2: ((17, 32), (47, 32)), 3: ((17, 18), (47, 18), (32, 46))}


@cache
def vocabulary() -> dict[str, Any]:
    """Return the words that the embedded models know.

    The keys are `animals`, `objects`, `colours`, `styles`, `sets`, `plurals`.
    """
    return json.loads((Path(__file__).parent / "vocabulary.json").read_text(encoding="utf-8"))


def nouns() -> list[str]:
    """Return all nouns, the 45 animals first; the judge's class of a noun is its index."""
    words = vocabulary()
    return words["animals"] + words["objects"]


def article(word: str) -> str:
    """Return `word` with its indefinite article.

    The vocabulary has no silent h, and only one exception, which begins like "unicorn".
    """
    vowel = word[0] in "aeiou" and not word.startswith(("uni", "eu"))
    return f"{'an' if vowel else 'a'} {word}"


@dataclass(frozen=True)
class Scene:
    """The content of a scene, in the words of the vocabulary."""

    nouns: tuple[str, ...]
    count: int = 1
    colour: str = "white"
    style: str = ""

    @property
    def caption(self) -> str:
        """The caption; a white background is not mentioned."""
        if len(self.nouns) == 2:
            text = " and ".join(article(noun) for noun in self.nouns)
        elif self.count > 1:
            text = f"{NUMBERS[self.count]} {vocabulary()['plurals'][self.nouns[0]]}"
        else:
            text = article(self.nouns[0])

        if self.style:
            text += f" in {self.style} style"
        if self.colour != "white":
            text += f" on {'an' if self.colour[0] == 'o' else 'a'} {self.colour} background"

        return text


@dataclass(frozen=True)
class _Atlas:
    """The sprites of one icon set, premultiplied RGBA float32 in [0, 1]."""

    large: np.ndarray  # (N, 56, 56, 4), or twice that
    small: np.ndarray  # (N, 30, 30, 4), or twice that, or another side
    present: np.ndarray  # (N,) bool: the set has this noun


@cache
def _atlas(name: str, factor: int, side: int = SMALL) -> _Atlas:
    """Return the sprites of the set `name`, for scenes of `factor` times 64 pixels.

    `side` is that of the small ones in a scene of 64.
    """
    folder = Path(__file__).parent / "sprites"
    if factor > 1:
        folder = folder / "large"

    # RGBA and not `images.open_image`, which puts images on white: sprites go on any background
    with Image.open(folder / f"{name}.png") as file:
        sheet = file.convert("RGBA")

    large = []
    small = []
    cell = factor * LARGE
    reduced = (factor * side, factor * side)

    for index in range(len(nouns())):
        x = index % COLUMNS * cell
        y = index // COLUMNS * cell
        # premultiplied, so that edges shrink cleanly
        sprite = sheet.crop((x, y, x + cell, y + cell)).convert("RGBa")
        large.append(np.asarray(sprite))
        small.append(np.asarray(sprite.resize(reduced, Image.Resampling.BOX)))

    sprites = np.stack(large).astype(np.float32) / 255
    return _Atlas(
        large=sprites,
        small=np.stack(small).astype(np.float32) / 255,
        present=np.asarray(sprites[..., 3].any((1, 2))),
    )


class Scenes:
    """An endless, seeded source of scenes."""

    def __init__(
        self,
        seed: int = 0,
        sets: tuple[str, ...] | None = None,
        *,
        size: int = 64,
        centres: Mapping[int, Sequence[tuple[int, int]]] = CENTRES,
        small: int = SMALL,
    ) -> None:
        """Start a source.

        Args:
            seed: of all draws.
            sets: icon sets to draw from; by default those with a style word. A scene names its
                style only where its set has a word, and then half the time.
            size: side of a scene in pixels, 64 or 128. At 128 there are only the sets with a
                style word.
            centres: where things stand, by their count, (x, y) in a scene of 64; the embedded
                models have seen the default alone.
            small: side of a thing where there are several, in a scene of 64; the same holds.

        Raises:
            ValueError: there are no scenes of this size.
        """
        if size not in SIZES:
            raise ValueError(f"scenes have a side of 64 or 128 pixels, not {size}")

        self.size = size
        self.centres = centres
        self.small = small
        self.rng = np.random.default_rng(seed)
        words = vocabulary()
        self.style_of = {name: style for style, name in words["styles"].items()}
        self.sets = sets or tuple(self.style_of)
        self.colours = list(words["colours"])

    def draw(
        self, n: int, kind: str = "any", *, background: str | None = None, noun: str | None = None
    ) -> tuple[Tensor, list[Scene]]:
        """Draw `n` scenes.

        Args:
            n: number of scenes.
            kind: "single", "count", "pair" or "any".
            background: a fixed colour; None draws one.
            noun: a fixed (first) noun; None draws one.

        Returns:
            uint8 images (n, size, size, 3), and the scenes that they show.
        """
        scenes = []
        images = np.empty((n, self.size, self.size, 3), np.uint8)

        for row in range(n):
            scene, icon_set = self._scene(kind, background, noun)
            images[row] = self.compose(scene, icon_set)
            scenes.append(scene)

        return torch.from_numpy(images), scenes

    @property
    def factor(self) -> int:
        """The size in units of 64 pixels."""
        return self.size // 64

    def _scene(self, kind: str, background: str | None, noun: str | None) -> tuple[Scene, str]:
        """Draw a scene and the icon set of its sprites."""
        if kind == "any":
            kind = ("single", "single", "single", "count", "pair")[self.rng.integers(5)]

        name = self.sets[int(self.rng.integers(len(self.sets)))]
        present = np.flatnonzero(_atlas(name, self.factor).present)
        first = nouns().index(noun) if noun is not None else int(self.rng.choice(present))
        picked = [first]

        if kind == "pair":
            second = int(self.rng.choice(present[present != first]))
            picked.append(second)

        count = int(self.rng.integers(2, 4)) if kind == "count" else 1
        if background is None:
            background = self._background()

        style = self.style_of.get(name, "") if self.rng.random() < 0.5 else ""
        return Scene(tuple(nouns()[index] for index in picked), count, background, style), name

    def _background(self) -> str:
        if self.rng.random() < 0.4:
            return "white"
        return self.colours[int(self.rng.integers(len(self.colours)))]

    def compose(self, scene: Scene, icon_set: str) -> np.ndarray:
        """Return the image of a scene: uint8 (size, size, 3)."""
        atlas = _atlas(icon_set, self.factor, self.small)
        picked = [nouns().index(noun) for noun in scene.nouns] * scene.count
        sprites = atlas.large if len(picked) == 1 else atlas.small
        ground = np.asarray(vocabulary()["colours"][scene.colour], np.float32) / 255
        canvas = np.tile(ground, (self.size, self.size, 1))

        for index, (x, y) in zip(picked, self.centres[len(picked)], strict=True):
            sprite = sprites[index]
            if self.rng.random() < 0.5:
                sprite = sprite[:, ::-1]

            side = len(sprite)
            dx, dy = self.rng.integers(-2 * self.factor, 2 * self.factor + 1, 2)
            left = min(max(self.factor * x + dx - side // 2, 0), self.size - side)
            top = min(max(self.factor * y + dy - side // 2, 0), self.size - side)
            patch = canvas[top : top + side, left : left + side]
            patch[...] = sprite[..., :3] + (1 - sprite[..., 3:]) * patch

        return np.rint(canvas * 255).astype(np.uint8)
