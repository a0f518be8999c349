"""Letters over scenes, written in many ways, and shapes that are none: for the captioner.

A process draws strokes, white on black, with PIL: words of any font, size and angle, with letters
that jump, bold or hollow; or ellipses, arcs and lines. `inked` then lays them over the scenes as a
generator might draw them: bent, blurred, with parts missing, in any colour that can be seen, more
or less transparent. It works on whole batches, on the device that they are on.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from burnish.zoo.questions import NUMBERS
from burnish.zoo.scenes import SIZE, nouns, vocabulary

FONTS = ("DejaVuS*[!y].ttf", "STIXGeneral*.ttf", "cm[rbst][!y]*10.ttf")  # of matplotlib
SMALLEST = {64: 9, 128: 12}  # px of a letter, by the side of the image
BENT = 0.5  # share of images whose strokes are bent, and so on
WORN = 0.3
BLURRED = 0.35
LEAST = 0.5  # of a stroke that remains; where it would be less, it stays as it was
VISIBLE = 0.22  # the least difference that ink makes to its ground, in the channel where it is most


@cache
def font_files() -> list[Path]:
    """Return the files of all fonts that words are written in."""
    import matplotlib

    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    return sorted(file for pattern in FONTS for file in folder.glob(pattern))


def random_text(rng: np.random.Generator) -> str:
    """Return words as an image may have them, in any case.

    A number and a noun, one of them, letters, or a stutter of these.
    """
    plurals = list(vocabulary()["plurals"].values())
    word = str(rng.choice(NUMBERS[1:]))
    digits = str(rng.integers(2, 100))
    number = word if rng.random() < 0.6 else digits
    noun = str(rng.choice([*plurals, *nouns()]))
    texts = [f"{number} {noun}", f"{number}\n{noun}", word, noun, digits]
    text = texts[int(rng.integers(5))]

    if rng.random() < 0.3:
        text = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), int(rng.integers(2, 8))))
    if rng.random() < 0.3:
        text = "".join(letter * int(rng.choice([1, 1, 2, 3])) for letter in text)

    return [text, text.upper(), text.title()][int(rng.integers(3))]


@lru_cache(maxsize=2048)
def _face(font: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(font), size)


def letters(text: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a text somewhere on a black square, as white strokes: uint8 (size, size).

    Its letters are 9 px to 60 % of the side high (12 in a square of 128 px), less where it would
    not fit.
    """
    fonts = font_files()
    font = fonts[int(rng.integers(len(fonts)))]
    smallest = SMALLEST[size]
    largest = smallest + rng.random() ** 2 * (size * 0.6 - smallest)
    jump = rng.random() < 0.25

    if len(text) * smallest > 1.6 * size:
        text = text.replace(" ", "\n")

    for height in range(int(largest), smallest - 3, -2):
        face = _face(font, height)
        places = _places(text, face, rng, jump)
        width = max(x + face.getlength(letter) for letter, x, _ in places)
        tall = max(y for _, _, y in places) + 1.25 * height
        if width <= size - 2 and tall <= size - 2:
            break

    left = rng.uniform(0, max(1, size - width))
    top = rng.uniform(0, max(1, size - tall))
    bold = int(rng.integers(0, 1 + height // 12)) if rng.random() < 0.4 else 0
    hollow = int(height >= 16 and rng.random() < 0.1)
    canvas = Image.new("L", (size, size))
    draw = ImageDraw.Draw(canvas)

    for letter, x, y in places:
        draw.text((left + x, top + y), letter, fill=255, font=face, stroke_width=bold or hollow)
    if hollow:
        for letter, x, y in places:
            draw.text((left + x, top + y), letter, fill=0, font=face)

    if rng.random() < 0.4:
        middle = (left + width / 2, top + tall / 2)
        angle = rng.uniform(-30, 30)
        canvas = canvas.rotate(angle, Image.Resampling.BILINEAR, center=middle)

    return np.asarray(canvas)


def _places(
    text: str, face: ImageFont.FreeTypeFont, rng: np.random.Generator, jump: bool
) -> list[tuple[str, float, float]]:
    """Return the pieces of a text with their corners in px: its lines, or with `jump` letters."""
    places: list[tuple[str, float, float]] = []

    for row, line in enumerate(text.split("\n")):
        y = 1.2 * face.size * row
        if not jump:
            places.append((line, 0.0, y))
            continue

        x = 0.0
        for letter in line:
            places.append((letter, x, y + rng.uniform(0, 0.3) * face.size))
            x += face.getlength(letter) * rng.uniform(0.9, 1.25)

    return places


def shapes(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return one to four shapes that are no letters as white strokes: uint8 (size, size)."""
    canvas = Image.new("L", (size, size))
    draw = ImageDraw.Draw(canvas)

    for _ in range(int(rng.integers(1, 5))):
        side = rng.uniform(0.12, 0.7, 2) * size
        x, y = rng.uniform(-0.1, 0.9, 2) * size
        box = (x, y, x + side[0], y + side[1])
        width = int(rng.integers(1, max(3, size // 14)))
        kind = rng.integers(6)

        if kind == 0:
            draw.ellipse(box, outline=255, width=width)
        elif kind == 1:
            draw.ellipse(box, fill=255)
        elif kind == 2:
            start = rng.uniform(0, 360)
            draw.arc(box, start, start + rng.uniform(60, 200), fill=255, width=width)
        elif kind == 3:
            draw.rectangle(box, outline=255, width=width)
        elif kind == 4:
            draw.line([tuple(point) for point in rng.uniform(0, size, (2, 2))], 255, width)
        else:
            draw.polygon([tuple(point) for point in rng.uniform(0, size, (3, 2))], fill=255)

    return np.asarray(canvas)


def inked(images: Tensor, strokes: Tensor) -> Tensor:
    """Return images (B, 3, H, W) in [0, 1] with strokes (B, 1, H, W) in [0, 1] laid over them.

    Strokes are as dark as they can be somewhere. An image without them stays as it is.
    """
    changed = _blurred(_worn(_bent(strokes)))
    remains = changed.sum((2, 3), keepdim=True) > LEAST * strokes.sum((2, 3), keepdim=True)
    mask = torch.where(remains, changed, strokes)
    mask = mask / mask.amax((2, 3), keepdim=True).clamp(min=1e-3)
    covered = mask.sum((2, 3), keepdim=True).clamp(min=1e-6)
    ground = (images * mask).sum((2, 3), keepdim=True) / covered
    ink = _ink(ground)

    difference = (ink - ground).abs().amax(1, keepdim=True)
    opacity = 0.35 + 0.65 * _uniform(mask)
    opacity = torch.maximum(opacity, VISIBLE / difference).clamp(max=1)
    return torch.lerp(images, ink, mask * opacity)


def _uniform(like: Tensor, channels: int = 1) -> Tensor:
    return torch.rand(len(like), channels, 1, 1, device=like.device)


def _waves(like: Tensor, channels: int, cells: Sequence[int]) -> Tensor:
    """Return smooth noise (B, channels, H, W), normal where it is not smoothed."""
    coarse = torch.randn(len(like), channels, *cells, device=like.device)
    return F.interpolate(coarse, like.shape[-2:], mode="bicubic", align_corners=True)


def _bent(strokes: Tensor) -> Tensor:
    """Move the pixels of some images' strokes along smooth noise, by some 2 % of the side."""
    rows = torch.linspace(-1, 1, strokes.shape[-1], device=strokes.device)
    y, x = torch.meshgrid(rows, rows, indexing="ij")
    reach = torch.where(_uniform(strokes) < BENT, 0.045 * _uniform(strokes), 0)
    shift = reach * (_waves(strokes, 2, (5, 5)) + 0.5 * _waves(strokes, 2, (11, 11)))
    places = torch.stack([x, y], -1) + shift.permute(0, 2, 3, 1)
    return F.grid_sample(strokes, places, mode="bilinear", align_corners=True)


def _worn(strokes: Tensor) -> Tensor:
    """Take some pieces, up to a third, out of some images' strokes."""
    level = torch.where(_uniform(strokes) < WORN, -1.2 + 0.8 * _uniform(strokes), -9.0)
    return strokes * ((_waves(strokes, 1, (12, 12)) - level) * 6).clamp(0, 1)


def _blurred(strokes: Tensor) -> Tensor:
    """Blur some images' strokes, large ones up to twice."""
    blurred = F.avg_pool2d(strokes, 3, 1, 1)
    chosen = _uniform(strokes)
    soft = blurred

    if strokes.shape[-1] > SIZE:
        soft = torch.where(chosen < BLURRED / 3, F.avg_pool2d(blurred, 3, 1, 1), blurred)

    return torch.where(chosen < BLURRED, soft, strokes)


def _ink(ground: Tensor) -> Tensor:
    """Return a colour (B, 3, 1, 1) that shows on each ground of that shape: grey, or any."""
    free = _uniform(ground, 3)
    grey = (_uniform(ground) < 0.5).float().expand_as(free)
    ink = torch.where(_uniform(ground) < 0.5, free, grey)
    shows = (ink - ground).abs().amax(1, keepdim=True) > 1.5 * VISIBLE
    far = (ground.mean(1, keepdim=True) < 0.5).float().expand_as(free)
    return torch.where(shows, ink, far)
