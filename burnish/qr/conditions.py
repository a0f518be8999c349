"""The conditions under which a code must be read: distance, blur, tilt, bad light, compression.

Each condition is a fixed change of a grey image, the same every time it is made: nothing in it is
random but noise from a fixed seed. Geometry is measured in modules, the little squares of a code,
because they are what a reader reads: a bare code of modules of 4 px or of 16 px is read under every
condition (`tests/test_scanner.py`), so an image that is not read under one has lost something.

    full     as it is
    half     scaled by 0.5, but to no less than 3 px a module
    blur     Gaussian, sigma = 0.15 modules
    tilt     the two upper corners moved inwards by 5 % of a side
    turned   by 10 degrees
    dark     0.8 times as bright
    jpeg     compressed at quality 70
    noise    Gaussian, standard deviation 0.05 of white

    third    scaled by 0.31, to no less than 2 px a module
    screen   longest side 480 px, but no less than 2 px a module, and not enlarged beyond 12
    lean     the two left corners moved inwards by 5 % of a side
    back     turned by -10 degrees
    bright   1.2 times as bright
    pale     gamma 0.8
    deep     gamma 1.2: mid greys get darker

A tilt or a turn moves module borders between pixels, which spoils a module under 8 px: such an
image is first enlarged to 12 px a module, as a camera would come closer. The first block is to
train with, the second to judge by.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

Condition = Callable[[Image.Image, float], Image.Image]
"""(an image in mode "L", the side of a module in px) -> the image under that condition."""
WHITE = 255
# its support grows as the image shrinks: an average over the area that a pixel covers
_BILINEAR = Image.Resampling.BILINEAR


def condition_names(conditions: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of the conditions in a set or a list.

    Args:
        conditions: "train", "held_out", "all", one name, or several.

    Raises:
        ValueError: a name is unknown; the message lists those there are.
    """
    sets = {"train": TRAIN, "held_out": HELD_OUT, "all": TRAIN + HELD_OUT}
    if isinstance(conditions, str) and conditions in sets:
        return sets[conditions]

    names = (conditions,) if isinstance(conditions, str) else tuple(conditions)
    unknown = [name for name in names if name not in CONDITIONS]

    if unknown or not names:
        known = ", ".join(map(repr, sets))
        raise ValueError(
            f"conditions = {conditions!r}: take {known}, or a list of {', '.join(CONDITIONS)}"
        )

    return names


def soften(image: Image.Image, module: float, k: int) -> Image.Image:
    """Return an image as a phone's camera sees it; unchanged at k = 0.

    It is blurred with sigma = k/16 modules, its contrast is 0.85 times as high, and its brightness
    is raised by 20 of 255. Scanners of phones read codes that a reader on exact pixels does not;
    trying k = 0, 1, 2 comes nearer to them.
    """
    if k == 0:
        return image
    table = [min(255, round((value - 128) * 0.85 + 128 + 20)) for value in range(256)]
    return image.filter(ImageFilter.GaussianBlur(k * module / 16)).point(table)


def _scaled(by: float, least: float) -> Condition:
    def condition(image: Image.Image, module: float) -> Image.Image:
        return _resized(image, min(1.0, max(by, least / module)))

    return condition


def _resized(image: Image.Image, scale: float) -> Image.Image:
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image if size == image.size else image.resize(size, _BILINEAR)


def _closer(image: Image.Image, module: float) -> Image.Image:
    return _resized(image, math.ceil(12 / module) if module < 8 else 1)


def _screen(image: Image.Image, module: float) -> Image.Image:
    return _resized(image, max(2 / module, min(480 / max(image.size), max(1.0, 12 / module))))


def _blur(image: Image.Image, module: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(0.15 * module))


def _turned(degrees: float) -> Condition:
    def condition(image: Image.Image, module: float) -> Image.Image:
        return _closer(image, module).rotate(degrees, _BILINEAR, expand=True, fillcolor=WHITE)

    return condition


def _tilted(*fractions: float) -> Condition:
    """Return a condition with corners moved inwards by these fractions of both sides.

    Their order is upper left, upper right, lower right, lower left.
    """

    def condition(image: Image.Image, module: float) -> Image.Image:
        large = _closer(image, module)
        perspective = _perspective(*large.size, fractions)
        return large.transform(
            large.size, Image.Transform.PERSPECTIVE, perspective, _BILINEAR, fillcolor=WHITE
        )

    return condition


@lru_cache(maxsize=64)
def _perspective(width: int, height: int, fractions: tuple[float, ...]) -> tuple[float, ...]:
    """Return PIL's eight coefficients of a perspective with corners moved inwards."""
    rows = []
    values = []
    inwards = ((0, 0, 1, 1), (1, 0, -1, 1), (1, 1, -1, -1), (0, 1, 1, -1))

    for (right, low, dx, dy), fraction in zip(inwards, fractions, strict=True):
        u = right * width
        v = low * height
        x = u + dx * fraction * width
        y = v + dy * fraction * height
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]

    return tuple(np.linalg.solve(np.array(rows, float), np.array(values, float)).tolist())


def _toned(tone: Callable[[float], float]) -> Condition:
    table = [min(255, round(255 * tone(value / 255))) for value in range(256)]
    return lambda image, module: image.point(table)


def _jpeg(image: Image.Image, module: float) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=70)
    with Image.open(buffer) as compressed:
        compressed.load()
        return compressed


def _noise(image: Image.Image, module: float) -> Image.Image:
    noisy = np.asarray(image) + _pattern(*image.size)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@lru_cache(maxsize=8)
def _pattern(width: int, height: int) -> np.ndarray:
    drawn = np.random.default_rng(0).standard_normal((height, width), dtype=np.float32)
    return (0.05 * 255 * drawn).round().astype(np.int16)


CONDITIONS: Mapping[str, Condition] = {
    "full": lambda image, module: image,
    "half": _scaled(0.5, 3.0),
    "blur": _blur,
    "tilt": _tilted(0.05, 0.05, 0.0, 0.0),
    "turned": _turned(10),
    "dark": _toned(lambda value: 0.8 * value),
    "jpeg": _jpeg,
    "noise": _noise,
    "third": _scaled(0.31, 2.0),
    "screen": _screen,
    "lean": _tilted(0.05, 0.0, 0.0, 0.05),
    "back": _turned(-10),
    "bright": _toned(lambda value: 1.2 * value),
    "pale": _toned(lambda value: value**0.8),
    "deep": _toned(lambda value: value**1.2),
}
TRAIN = tuple(CONDITIONS)[:8]
"""Conditions to train with: a reward may ask for these."""
HELD_OUT = tuple(CONDITIONS)[8:]
"""Conditions that no training sees, to judge by."""
