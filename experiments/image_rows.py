"""Rows of images with their names on the left, as one image."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image, ImageDraw
from torch import Tensor

from burnish.images import eight_bit

# px of an image, unless it is larger, and of the names
SIDE = 96
MARGIN = 150


def image_rows(rows: Mapping[str, Tensor]) -> Image.Image:
    """Return one image with a row for each name's (n, 3, H, W) images in [0, 1]."""
    longest = max(len(images) for images in rows.values())
    side = max(SIDE, *(images.shape[-1] for images in rows.values()))
    sheet = Image.new("RGB", (MARGIN + longest * side, len(rows) * side), "white")
    canvas = ImageDraw.Draw(sheet)

    for row, (name, images) in enumerate(rows.items()):
        canvas.text((4, row * side + side // 2), name, fill="black")

        for column, pixels in enumerate(eight_bit(images)):
            tile = Image.fromarray(pixels).resize((side, side))
            sheet.paste(tile, (MARGIN + column * side, row * side))

    return sheet
