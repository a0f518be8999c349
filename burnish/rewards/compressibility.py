"""Rewards read off the pixels alone: the size of the image as a JPEG file.

    incompressibility = kB of JPEG(round(255 * image))     (1 kB = 1000 bytes)
    compressibility   = -incompressibility

Both are rewards of DDPO (arXiv 2305.13301, section 5.1).

Sizes depend on the resolution and on the JPEG library: compare them within one machine only.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from burnish.annotations import Bounds
from burnish.images import eight_bit
from burnish.types import Prompt, Reward

Quality = Annotated[int, Bounds(1, 95)]
"""Of a JPEG file: 1 (small) to 95 (the paper's)."""


def jpeg_kilobytes(images: Tensor, quality: int = 95) -> Tensor:
    """Return the size of each image as a JPEG file.

    Args:
        images: (B, 3, H, W) float in [0, 1].
        quality: 1 (small) to 95 (the paper's).

    Returns:
        (B,) float64, in kilobytes of 1000 bytes.
    """
    pixels = eight_bit(images)

    def size(image: np.ndarray) -> int:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="JPEG", quality=quality)
        return buffer.tell()

    # PIL releases the GIL while it encodes; below a few thousand pixels starting a thread costs
    # more than it saves.
    if len(pixels) * pixels[0].size < 2_000_000:
        sizes = [size(image) for image in pixels]
    else:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            sizes = list(pool.map(size, pixels))

    return torch.tensor(sizes, dtype=torch.float64) / 1000


def incompressibility(quality: Quality = 95) -> Reward:
    """Reward the JPEG size in kB: detail, and in the end noise.

    Args:
        quality: of the JPEG file, 1 (small) to 95 (the paper's).

    Raises:
        ValueError: the quality is out of range.
    """
    _check_quality(quality)

    def reward(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return jpeg_kilobytes(images, quality)

    return reward


def compressibility(quality: Quality = 95) -> Reward:
    """Reward minus the JPEG size in kB: smooth, plain images.

    Args:
        quality: of the JPEG file, 1 (small) to 95 (the paper's).

    Raises:
        ValueError: the quality is out of range.
    """
    _check_quality(quality)

    def reward(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return -jpeg_kilobytes(images, quality)

    return reward


def _check_quality(quality: int) -> None:
    if not 1 <= quality <= 95:
        raise ValueError(
            f"quality = {quality}: a JPEG quality lies between 1 and 95 (the paper's value)"
        )
