"""Images as tensors, as bytes and as files: the only place that opens an image file.

A file of any kind becomes (3, H, W) float32 in [0, 1], upright and on white; of several frames or
pages the first, which is logged:

    8 bits     value / 255: grey, RGB, CMYK, palettes, with or without transparency
    16 bits    value / 65535 of grey; Pillow reads 16 bits of colour as 8
    32 bits    refused: no format says which value is white
    floats     grey, as they are, if all of them are in [0, 1]
"""

from __future__ import annotations

import io
import logging
import math
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

LOG = logging.getLogger(__name__)
DEEP = ("I;16", "I;16B", "I;16L", "I;16N")
LARGEST = {"F": 1.0, "I": 65535.0, **dict.fromkeys(DEEP, 65535.0)}
"""The value of white in Pillow's modes of more than 8 bits, all of them grey."""
SIXTEEN_BITS = ("PNG", "PPM")
"""Formats of which Pillow reads 16 bits as 32, in mode "I"."""
WHITE_IS_ZERO = 0
"""The kind of grey of a TIFF (its photometric interpretation) in which 0 is white."""
TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def open_image(path: Path) -> Tensor:
    """Return the image in a file, (3, H, W) float32 in [0, 1].

    It is turned upright as its camera says, and what is transparent is white.

    Args:
        path: of a file of any kind that Pillow reads.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image, or its values are outside their range; the message names it.
    """
    try:
        with path.open("rb") as file:
            return read_image(file, str(path))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such image; check the path") from error
    except OSError as error:
        reason = "a folder, not an image" if path.is_dir() else error.strerror
        raise ValueError(f"{path}: {reason}; give the path of a PNG or JPEG file") from error


def read_image(file: BinaryIO, name: str) -> Tensor:
    """Return the image in an open file, as `open_image` does.

    Args:
        file: open for reading bytes.
        name: of the file, for messages.

    Raises:
        ValueError: it is no image, or its values are outside their range; the message has the name.
    """
    try:
        with Image.open(file) as stored:
            frames = getattr(stored, "n_frames", 1)  # Pillow's readers of single images have none
            bits_fit = stored.mode != "I" or stored.format in SIXTEEN_BITS
            inverted = stored.mode in LARGEST and _photometric(stored) == WHITE_IS_ZERO
            image = ImageOps.exif_transpose(stored)
            if image.mode not in LARGEST:
                image = image.convert("RGBA")
    except UnidentifiedImageError as error:
        size = file.seek(0, io.SEEK_END)
        reason = "not an image that can be read" if size else "an empty file, not an image"
        raise ValueError(f"{name}: {reason}; give a PNG or JPEG file") from error
    except TOO_LARGE as error:
        raise ValueError(f"{name}: too large an image ({error}); scale it down") from error
    # all else that Pillow's readers raise, of truncated files and of broken ones
    except Exception as error:
        raise ValueError(
            f"{name}: not an image that can be read ({error}); copy or save it anew as PNG or JPEG"
        ) from error

    if not bits_fit:
        raise ValueError(
            f"{name}: whole numbers of 32 bits, or with signs, of which none is known to be white; "
            "save it with 8 or 16 bits"
        )
    if frames > 1:
        _report_frames(name, frames)
    if image.mode not in LARGEST:
        return _on_white(image)

    grey = _deep_grey(image, name)
    return 1 - grey if inverted else grey


def _photometric(image: Image.Image) -> int | None:
    """Return the kind of grey of a TIFF; None of another format."""
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    return tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION)


@cache  # said once for each file, which may be read again and again
def _report_frames(name: str, frames: int) -> None:
    LOG.warning("%s: an animation or file of %d images; the first one is taken", name, frames)


def resize_image(image: Tensor, height: int, width: int) -> Tensor:
    """Return an image (3, H, W) in another size, in 8 bits; as it is if it has that size."""
    if image.shape[1:] == (height, width):
        return image

    pixels = Image.fromarray(eight_bit(image[None])[0])
    return _to_tensor(pixels.resize((width, height), Image.Resampling.LANCZOS))


def fit_image(image: Tensor, height: int, width: int) -> Tensor:
    """Return an image (3, H, W) in another size, cut at two edges where its shape is another."""
    _, old_height, old_width = image.shape
    cut_height = min(old_height, max(1, round(old_width * height / width)))
    cut_width = min(old_width, max(1, round(old_height * width / height)))

    top = (old_height - cut_height) // 2
    left = (old_width - cut_width) // 2
    cut = image[:, top : top + cut_height, left : left + cut_width]
    return resize_image(cut, height, width)


def eight_bit(images: Tensor) -> np.ndarray:
    """Return images (B, 3, H, W) in [0, 1] as bytes (B, H, W, 3), rounded as in a file."""
    pixels = images.detach().clamp(0, 1).mul(255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def image_grid(images: Tensor, columns: int = 0) -> tuple[bytes, int]:
    """Return a grid of images (B, 3, H, W) in [0, 1] as a PNG, and its number of columns.

    The images stand row by row without gaps. With 0 `columns` the grid is about square.
    """
    count, _, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count * height / width))
    rows = math.ceil(count / columns)
    sheet = torch.ones(rows * columns, 3, height, width)
    sheet[:count] = images

    cells = sheet.view(rows, columns, 3, height, width).permute(0, 3, 1, 4, 2)
    pixels = cells.reshape(rows * height, -1, 3).mul(255).round().to(torch.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, format="PNG")

    return file.getvalue(), columns


def _to_tensor(image: Image.Image) -> Tensor:
    """Return an image in mode "RGB" as (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _on_white(image: Image.Image) -> Tensor:
    """Return an image in mode "RGBA" on white."""
    white = Image.new("RGBA", image.size, "white")
    return _to_tensor(Image.alpha_composite(white, image).convert("RGB"))


def _deep_grey(image: Image.Image, name: str) -> Tensor:
    """Return a grey image of 16 bits or of floats; its one transparent value becomes white."""
    values = np.array(image, dtype=np.float64)
    largest = LARGEST[image.mode]
    low = values.min()
    high = values.max()

    if not (low >= 0 and high <= largest):  # which also refuses NaN
        raise ValueError(
            f"{name}: its values lie between {low:g} and {high:g}, not in [0, {largest:g}]; scale "
            "them, or give an image of 8 bits"
        )

    grey = values / largest
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 1.0

    return torch.from_numpy(grey).float().expand(3, -1, -1).contiguous()
