"""Questions about scenes and their answers: what `zoo:emoji-captioner` learns from and is judged
by.

    what is going on in this image?      a fox and a guitar on a blue background
    how many animals are there?          one
    what animal is in this image?        fox
    is there any text in this image?     no

A picture may have words written over it, which change no answer but that of the last question; and
it may show nothing (a plain ground, noise), which is said too, so that a reward pays nothing for
it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from burnish.zoo.scenes import SIZE, Scene, article, nouns, vocabulary

CAPTION = "what is going on in this image?"
TEXT = "is there any text in this image?"
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
# the vocabulary's objects begin with ten animals that are not among the paper's 45
MORE_ANIMALS = 10


@dataclass(frozen=True)
class Shown:
    """What a picture shows: a scene, or None for nothing; and what is written on it."""

    scene: Scene | None
    text: str = ""

    @property
    def caption(self) -> str:
        """As in the generator's prompts, the style left out."""
        if self.scene is None:
            return "text" if self.text else "nothing"
        return replace(self.scene, style="").caption

    @property
    def things(self) -> dict[str, int]:
        """How many of each noun."""
        return dict.fromkeys(self.scene.nouns, self.scene.count) if self.scene else {}


def animals() -> frozenset[str]:
    """The nouns that "animals" means: the paper's 45 and ten more."""
    words = vocabulary()
    return frozenset([*words["animals"], *words["objects"][:MORE_ANIMALS]])


Question = tuple[str, str]  # and its answer
Kind = Callable[[Shown, np.random.Generator], Question]


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _other(shown: Shown, rng: np.random.Generator) -> str:
    """A noun that is not there."""
    return _pick(rng, [noun for noun in nouns() if noun not in shown.things])


def about_all(shown: Shown, rng: np.random.Generator) -> Question:
    """For a caption."""
    asked = (
        CAPTION,
        "what is happening in this image?",
        "describe this image.",
        "what is in this picture?",
    )
    return _pick(rng, ("", "answer concisely: ")) + _pick(rng, asked), shown.caption


def how_many(shown: Shown, rng: np.random.Generator) -> Question:
    """Of a noun that is there, of one that is not, of animals, of things."""
    kind = rng.choice(["there", "absent", "animals", "things"], p=[0.5, 0.2, 0.15, 0.15])
    known = animals()

    if kind == "there" and shown.things:
        noun = _pick(rng, list(shown.things))
        what = vocabulary()["plurals"][noun]
        count = shown.things[noun]
    elif kind == "animals":
        what = "animals"
        count = sum(count for noun, count in shown.things.items() if noun in known)
    elif kind == "things":
        what = "things"
        count = sum(shown.things.values())
    else:
        what = vocabulary()["plurals"][_other(shown, rng)]
        count = 0

    asked = ("are there?", "are there in this image?", "are in this picture?", "do you see?")
    return f"how many {what} {_pick(rng, asked)}", NUMBERS[count]


def which(shown: Shown, rng: np.random.Generator) -> Question:
    """The names of the animals, or of everything."""
    if rng.random() < 0.7:
        asked = ("which animal is this?", "what animal is this?", "what animal is in this image?",
                 "which animal is in this image?", "which animals are in this picture?")  # fmt: skip
        names = list(shown.things)
        known = animals()
        names = [noun for noun in names if noun in known]
    else:
        asked = (
            "what is this?",
            "what object is in this image?",
            "which things are in this image?",
        )  # type: ignore[assignment]
        names = list(shown.things)

    return _pick(rng, asked), " and ".join(names) or "none"


def whether(shown: Shown, rng: np.random.Generator) -> Question:
    """A noun is there, or not: half of each."""
    there = bool(shown.things) and rng.random() < 0.5
    noun = _pick(rng, list(shown.things)) if there else _other(shown, rng)
    asked = ("is there {} in this image?", "do you see {}?", "does this picture show {}?")
    return _pick(rng, asked).format(article(noun)), "yes" if there else "no"


def ground(shown: Shown, rng: np.random.Generator) -> Question:
    """The colour behind it all."""
    asked = (
        "what colour is the background?",
        "what color is the background?",
        "which colour is behind it?",
    )
    return _pick(rng, asked), shown.scene.colour if shown.scene else "none"


def written(shown: Shown, rng: np.random.Generator) -> Question:
    """Whether there are words on it."""
    asked = (
        TEXT,
        "is there text in this picture?",
        "does this image contain text?",
        "is anything written here?",
    )
    return _pick(rng, asked), "yes" if shown.text else "no"


KINDS: tuple[Kind, ...] = (about_all, how_many, which, whether, ground, written)


def write(
    image: np.ndarray, text: str, rng: np.random.Generator, font: str | Path | None = None
) -> np.ndarray:
    """The picture, uint8 (64, 64, 3), with `text` somewhere on it, in PIL's default font or that of
    a file.

    Large enough to read, 9 to 20 pixels, smaller where it would not fit; in a colour that stands
    out from the ground.
    """
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    ink = _ink(image, rng)

    for size in range(int(rng.integers(9, 21)), 6, -1):
        face = ImageFont.truetype(str(font), size) if font else ImageFont.load_default(size)
        left, top, right, bottom = draw.multiline_textbbox((0, 0), text, font=face)
        if right - left <= SIZE - 2 and bottom - top <= SIZE - 2:
            break

    x = rng.integers(1, max(2, SIZE - int(right - left)))
    y = rng.integers(1, max(2, SIZE - int(bottom - top)))
    draw.multiline_text((int(x - left), int(y - top)), text, fill=ink, font=face)

    return np.array(picture)


def _ink(image: np.ndarray, rng: np.random.Generator) -> tuple[int, int, int]:
    """A colour far from that of the corner, which is the ground."""
    while True:
        ink = rng.integers(0, 256, 3) if rng.random() < 0.5 else np.repeat(rng.choice([0, 255]), 3)
        if np.abs(ink - image[0, 0].astype(int)).max() > 110:
            return int(ink[0]), int(ink[1]), int(ink[2])
