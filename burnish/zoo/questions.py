"""Questions about scenes and their answers: `zoo:emoji-captioner` learns and is measured by them.

    what is going on in this image?      a fox and a guitar on a blue background
    how many animals are there?          one
    what animal is in this image?        fox
    is there any text in this image?     no

An image may have words written over it, which change no answer but that of the last question; and
it may show nothing (a plain ground, noise), which has answers too, so that a reward pays nothing
for it.
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
class Content:
    """The content of an image: a scene, or None for nothing; and the text written on it."""

    scene: Scene | None
    text: str = ""

    @property
    def caption(self) -> str:
        """The caption as in the generator's prompts, the style left out."""
        if self.scene is None:
            return "text" if self.text else "nothing"
        return replace(self.scene, style="").caption

    @property
    def counts(self) -> dict[str, int]:
        """The number of things of each noun."""
        return dict.fromkeys(self.scene.nouns, self.scene.count) if self.scene else {}


def animals() -> frozenset[str]:
    """Return the nouns that "animals" means: the paper's 45 and ten more."""
    words = vocabulary()
    return frozenset([*words["animals"], *words["objects"][:MORE_ANIMALS]])


Question = tuple[str, str]  # and its answer
Kind = Callable[[Content, np.random.Generator], Question]


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _absent_noun(content: Content, rng: np.random.Generator) -> str:
    return _pick(rng, [noun for noun in nouns() if noun not in content.counts])


def ask_caption(content: Content, rng: np.random.Generator) -> Question:
    """Ask for a caption."""
    questions = (
        CAPTION,
        "what is happening in this image?",
        "describe this image.",
        "what is in this picture?",
    )
    return _pick(rng, ("", "answer concisely: ")) + _pick(rng, questions), content.caption


def ask_count(content: Content, rng: np.random.Generator) -> Question:
    """Ask for the number of a noun, present or absent, of animals or of things."""
    kind = rng.choice(["present", "absent", "animals", "things"], p=[0.5, 0.2, 0.15, 0.15])
    known = animals()

    if kind == "present" and content.counts:
        noun = _pick(rng, list(content.counts))
        plural = vocabulary()["plurals"][noun]
        count = content.counts[noun]
    elif kind == "animals":
        plural = "animals"
        count = sum(count for noun, count in content.counts.items() if noun in known)
    elif kind == "things":
        plural = "things"
        count = sum(content.counts.values())
    else:
        plural = vocabulary()["plurals"][_absent_noun(content, rng)]
        count = 0

    endings = ("are there?", "are there in this image?", "are in this picture?", "do you see?")
    return f"how many {plural} {_pick(rng, endings)}", NUMBERS[count]


def ask_names(content: Content, rng: np.random.Generator) -> Question:
    """Ask for the names of the animals, or of everything."""
    names = list(content.counts)

    if rng.random() < 0.7:
        known = animals()
        names = [noun for noun in names if noun in known]
        questions = [
            "which animal is this?",
            "what animal is this?",
            "what animal is in this image?",
            "which animal is in this image?",
            "which animals are in this picture?",
        ]
    else:
        questions = [
            "what is this?",
            "what object is in this image?",
            "which things are in this image?",
        ]

    return _pick(rng, questions), " and ".join(names) or "none"


def ask_presence(content: Content, rng: np.random.Generator) -> Question:
    """Ask whether a noun is in the image; half of the nouns are, half are not."""
    present = bool(content.counts) and rng.random() < 0.5
    noun = _pick(rng, list(content.counts)) if present else _absent_noun(content, rng)
    questions = ("is there {} in this image?", "do you see {}?", "does this picture show {}?")
    return _pick(rng, questions).format(article(noun)), "yes" if present else "no"


def ask_background(content: Content, rng: np.random.Generator) -> Question:
    """Ask for the colour of the background."""
    questions = (
        "what colour is the background?",
        "what color is the background?",
        "which colour is behind it?",
    )
    return _pick(rng, questions), content.scene.colour if content.scene else "none"


def ask_text(content: Content, rng: np.random.Generator) -> Question:
    """Ask whether there are words on the image."""
    questions = (
        TEXT,
        "is there text in this picture?",
        "does this image contain text?",
        "is anything written here?",
    )
    return _pick(rng, questions), "yes" if content.text else "no"


KINDS: tuple[Kind, ...] = (
    ask_caption,
    ask_count,
    ask_names,
    ask_presence,
    ask_background,
    ask_text,
)


def write(
    image: np.ndarray, text: str, rng: np.random.Generator, font: str | Path | None = None
) -> np.ndarray:
    """Return the image with `text` somewhere on it.

    The text is large enough to read, 9 to 20 pixels (twice that in an image of 128), smaller where
    it would not fit; in a colour that stands out from the ground.

    Args:
        image: uint8 (size, size, 3).
        text: one or more lines.
        rng: for the place, the size and the colour.
        font: a font file; None for PIL's default font.
    """
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    ink = _ink(image, rng)
    side = len(image)

    for size in range(int(rng.integers(9, 21)) * side // SIZE, 6, -1):
        face = ImageFont.truetype(str(font), size) if font else ImageFont.load_default(size)
        left, top, right, bottom = draw.multiline_textbbox((0, 0), text, font=face)
        if right - left <= side - 2 and bottom - top <= side - 2:
            break

    x = rng.integers(1, max(2, side - int(right - left)))
    y = rng.integers(1, max(2, side - int(bottom - top)))
    draw.multiline_text((int(x - left), int(y - top)), text, fill=ink, font=face)

    return np.array(canvas)


def _ink(image: np.ndarray, rng: np.random.Generator) -> tuple[int, int, int]:
    """Return a colour far from that of the corner, which is the ground."""
    while True:
        ink = rng.integers(0, 256, 3) if rng.random() < 0.5 else np.repeat(rng.choice([0, 255]), 3)
        if np.abs(ink - image[0, 0].astype(int)).max() > 110:
            return int(ink[0]), int(ink[1]), int(ink[2])
