"""Reward `qr_modules`: the fraction of a code's modules that have the right brightness."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from burnish.annotations import CountOrZero
from burnish.qr.layout import layout_of
from burnish.qr.scanner import canvas_side, module_errors
from burnish.types import Prompt, Reward, differentiable


def modules(
    by_area: bool = False, soft: float = 0.0, around: CountOrZero = 0, cells: CountOrZero = 0
) -> Reward:
    """Reward the fraction of right modules of the code of metadata["payload"], in [0, 1].

    No decoder is run.

    Args:
        by_area: the fraction of the code's area instead: a module counts by all of its pixels and
            not by its middle. This still ranks images whose modules are all right, and prefers
            those that can be read from further away.
        soft: luminance over which wrong turns into right, such as 0.08. It gives the reward a
            gradient, which objective `latent` can follow.
        around: light modules around the code that count too: readers need some, and nothing else
            keeps them light.
        cells: by area, the brightness that counts is the mean of each of so many parts in a row and
            column of a module, as a reader sees it from further away, so that an image keeps finer
            detail than that; 0: every pixel counts. With 2, a code is judged where readers begin to
            fail.

    Raises:
        ValueError: soft is negative, or there are cells without `by_area`; later, a prompt without
            payload.
    """
    if cells and not by_area:
        raise ValueError("qr_modules: cells are parts of a module's area; set by_area = true too")
    if not 0 <= soft <= 1:
        raise ValueError(f"soft is a difference of luminances, from 0 to 1, and not {soft}")

    def reward(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        layouts = [layout_of(prompt, canvas_side(images)) for prompt in prompts]
        return 1 - module_errors(images, layouts, by_area, soft, around, cells)

    return differentiable(reward) if soft else reward
