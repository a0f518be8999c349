"""Images as tensors, as bytes and as files: the only place where a picture is opened or put into a
grid.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


def eight_bit(images: Tensor) -> np.ndarray:
    """Images (B, 3, H, W) in [0, 1] as bytes (B, H, W, 3): rounded, as they would be in a file, not
    cut off.
    """
    return (
        images.detach()
        .clamp(0, 1)
        .mul(255)
        .round()
        .to(torch.uint8)
        .permute(0, 2, 3, 1)
        .contiguous()
        .cpu()
        .numpy()
    )


def open_image(path: Path) -> Tensor:
    """The picture in a file, (3, H, W) float32 in [0, 1], upright as its camera says; what is
    transparent is white.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is no picture; the message names
            it.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such picture; check the path (it is relative to the current folder)"
        )

    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file).convert("RGBA")
    # all that Pillow's readers raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path}: not a picture that can be read ({error}); give a PNG or JPEG file"
        ) from error

    on_white = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert(
        "RGB"
    )
    return torch.from_numpy(np.array(on_white)).permute(2, 0, 1).float() / 255


def image_grid(images: Tensor, columns: int = 0) -> tuple[bytes, int]:
    """Return a grid of images (B, 3, H, W) in [0, 1] as a PNG, and its number of columns.

    The images stand row by row without gaps. With 0 ``columns`` the grid is about square.
    """
    count, _, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count * height / width))
    lines = math.ceil(count / columns)
    sheet = torch.ones(lines * columns, 3, height, width)
    sheet[:count] = images
    pixels = (
        sheet.view(lines, columns, 3, height, width)
        .permute(0, 3, 1, 4, 2)
        .reshape(lines * height, -1, 3)
    )
    file = io.BytesIO()
    Image.fromarray(pixels.mul(255).round().to(torch.uint8).numpy()).save(file, format="PNG")

    return file.getvalue(), columns
