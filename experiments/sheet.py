"""Rows of pictures with their names on the left, as one image."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from PIL import Image, ImageDraw
from torch import Tensor

# px of a picture, and of the names
SIDE = 96
MARGIN = 150


def sheet(rows: Mapping[str, Tensor]) -> Image.Image:
    """One row (n, 3, H, W) in [0, 1] a name."""
    longest = max(len(images) for images in rows.values())
    page = Image.new("RGB", (MARGIN + longest * SIDE, len(rows) * SIDE), "white")

    for line, (name, images) in enumerate(rows.items()):
        ImageDraw.Draw(page).text((4, line * SIDE + SIDE // 2), name, fill="black")

        for column, image in enumerate(images):
            pixels = (
                (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
            )
            page.paste(
                Image.fromarray(pixels).resize((SIDE, SIDE)), (MARGIN + column * SIDE, line * SIDE)
            )

    return page
