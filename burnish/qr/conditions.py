"""Under what conditions a code must be read: further away, out of focus, tilted, in bad light,
badly compressed.

Each condition is a fixed change of a grey picture, the same every time it is made: no chance in it
but noise from a fixed seed. Geometry is measured in modules, the little squares of a code, because
what a reader sees of a code is its
modules: a bare code of modules of 4 px or of 16 px is read under every condition
(`tests/test_scan.py`), so a picture that is not read under one has lost something.

    half     scaled by 0.5, but to no less than 3 px a module      third    by 0.31, to no less than 2 px a module
    blur     Gaussian, sigma = 0.15 modules                        screen   longest side 480 px, but 2 to 12 px a module
    tilt     the two upper corners moved inwards by 5 % of a side  lean     the two left corners
    turned   by 10 degrees                                         back     by -10 degrees
    dark     0.8 times as bright                                   bright   1.2 times
    jpeg     compressed at quality 70                              deep     gamma 1.2: mid greys get darker
    noise    Gaussian, standard deviation 0.05 of white            pale     gamma 0.8, and the left column has `full`

A tilt or a turn moves module borders between pixels, which a module under 8 px does not bear: such
a picture is first enlarged to 12 px a module, as a camera would come closer. The left column is to
train with, the right one to judge by.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

Condition = Callable[[Image.Image, float], Image.Image]
"""(a picture in mode "L", the side of a module in px) -> the picture under that condition."""
WHITE = 255
# with support scaled by the shrinkage: an average over what a pixel covers
_BILINEAR = Image.Resampling.BILINEAR


def chosen(conditions: str | Sequence[str]) -> tuple[str, ...]:
    """The names of a set ("train", "held_out", "all") or of a list; a ValueError names what there
    is.
    """
    sets = {"train": TRAIN, "held_out": HELD_OUT, "all": TRAIN + HELD_OUT}
    if isinstance(conditions, str) and conditions in sets:
        return sets[conditions]

    names = (conditions,) if isinstance(conditions, str) else tuple(conditions)
    unknown = [name for name in names if name not in CONDITIONS]

    if unknown or not names:
        raise ValueError(
            f"conditions = {conditions!r}: take {', '.join(map(repr, sets))}, or a list of {', '.join(CONDITIONS)}"
        )

    return names


def soften(picture: Image.Image, module: float, k: int) -> Image.Image:
    """What a phone's camera makes of a picture: sigma = k/16 modules, contrast x 0.85, brightness +
    20 of 255 (k > 0).

    Scanners of phones read codes that a reader on exact pixels does not; asking at k = 0, 1, 2
    comes nearer to them.
    """
    if k == 0:
        return picture
    table = [min(255, round((value - 128) * 0.85 + 128 + 20)) for value in range(256)]
    return picture.filter(ImageFilter.GaussianBlur(k * module / 16)).point(table)


def _scaled(by: float, least: float) -> Condition:
    def condition(picture: Image.Image, module: float) -> Image.Image:
        return _resized(picture, min(1.0, max(by, least / module)))

    return condition


def _resized(picture: Image.Image, scale: float) -> Image.Image:
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture if size == picture.size else picture.resize(size, _BILINEAR)


def _closer(picture: Image.Image, module: float) -> Image.Image:
    return _resized(picture, math.ceil(12 / module) if module < 8 else 1)


def _screen(picture: Image.Image, module: float) -> Image.Image:
    return _resized(picture, max(2 / module, min(480 / max(picture.size), max(1.0, 12 / module))))


def _blur(picture: Image.Image, module: float) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(0.15 * module))


def _turned(degrees: float) -> Condition:
    def condition(picture: Image.Image, module: float) -> Image.Image:
        return _closer(picture, module).rotate(degrees, _BILINEAR, expand=True, fillcolor=WHITE)

    return condition


def _tilted(*moves: float) -> Condition:
    """Corners moved inwards by these shares of both sides: upper left, upper right, lower right,
    lower left.
    """

    def condition(picture: Image.Image, module: float) -> Image.Image:
        large = _closer(picture, module)
        return large.transform(
            large.size,
            Image.Transform.PERSPECTIVE,
            _perspective(*large.size, moves),
            _BILINEAR,
            fillcolor=WHITE,
        )

    return condition


@lru_cache(maxsize=64)
def _perspective(width: int, height: int, moves: tuple[float, ...]) -> tuple[float, ...]:
    """The eight coefficients by which PIL finds where a pixel comes from, for corners moved
    inwards.
    """
    rows = []
    values = []
    inwards = ((0, 0, 1, 1), (1, 0, -1, 1), (1, 1, -1, -1), (0, 1, 1, -1))

    for (right, low, dx, dy), move in zip(inwards, moves, strict=True):
        u = right * width
        v = low * height
        x = u + dx * move * width
        y = v + dy * move * height
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]

    return tuple(np.linalg.solve(np.array(rows, float), np.array(values, float)).tolist())


def _toned(tone: Callable[[float], float]) -> Condition:
    table = [min(255, round(255 * tone(value / 255))) for value in range(256)]
    return lambda picture, module: picture.point(table)


def _jpeg(picture: Image.Image, module: float) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=70)
    with Image.open(buffer) as read:
        read.load()
        return read


def _noise(picture: Image.Image, module: float) -> Image.Image:
    noisy = np.asarray(picture) + _pattern(*picture.size)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@lru_cache(maxsize=8)
def _pattern(width: int, height: int) -> np.ndarray:
    drawn = np.random.default_rng(0).standard_normal((height, width), dtype=np.float32)
    return (0.05 * 255 * drawn).round().astype(np.int16)


CONDITIONS: Mapping[str, Condition] = {
    "full": lambda picture, module: picture,
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
