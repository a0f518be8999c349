"""Scenes with codes in them: their modules are moved in luminance alone, hues and shapes stay.

With Y the luminance and share from 0 to 1,

    a dark module    colours times min(1, (1 - 0.78 share) / Y): none is lighter than that
    a light one      complements times min(1, (1 - 0.82 share) / (1 - Y)): none is darker
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Literal

import torch
from torch import Tensor

from burnish.prompts.codes import qr
from burnish.qr.layout import TINY, layout_of

DARK = 0.78  # what is taken from the luminance of dark modules at a share of 1
LIGHT = 0.82  # the least luminance of light modules there
LUMINANCE = (0.299, 0.587, 0.114)  # Rec. 601, as readers take it
SHORT, LONG = 9, 24  # characters that make a QR code of version 1, and of version 2
# characters of codes on 128 px by the side of their modules in px; 5 px are too many for version 2
LENGTHS: Mapping[int, tuple[int, ...]] = {4: (SHORT, LONG), 5: (SHORT,)}


def codes(
    count: int,
    seed: int,
    size: int,
    part: Literal["train", "unseen"] = "train",
    modules: Sequence[int] = (4,),
) -> Tensor:
    """Return the control images (count, size, size) uint8 of as many random payloads.

    They are as generators get them: on a small canvas Micro QR codes, on another QR codes of
    versions 1 and 2 by turns, grey outside their quiet zones.

    Args:
        count: of them.
        seed: of the payloads.
        size: side of the canvas in px.
        part: of the random payloads (`burnish.prompts.codes`); "unseen" is for measuring.
        modules: sides of the modules in px, of `LENGTHS`, by turns too; not on a small canvas.
    """
    if size < TINY:
        prompts = qr(["a code"], random=count, seed=seed, part=part)
    else:
        kinds = [(module, length) for module in modules for length in LENGTHS[module]]
        draws = [
            qr(
                ["a code"],
                random=len(range(turn, count, len(kinds))),
                seed=seed,
                length=length,
                part=part,
                code={"module": module},
            )
            for turn, (module, length) in enumerate(kinds)
        ]
        prompts = [prompt for row in zip_longest(*draws) for prompt in row if prompt]

    layouts = [layout_of(prompt, size) for prompt in prompts]
    return torch.stack([(layout.draw()[0] * 255).to(torch.uint8) for layout in layouts])


def shaded(images: Tensor, code: Tensor, share: Tensor) -> Tensor:
    """Return images (B, 3, H, W) in [0, 1] whose modules were moved in luminance.

    Args:
        images: scenes of that shape.
        code: (B, 1, H, W), 0 where a module is dark, 1 where it is light, and between these where
            nothing is moved.
        share: (B, 1, 1, 1) how far, from 0 to 1.
    """
    weights = images.new_tensor(LUMINANCE).view(3, 1, 1)
    luminance = (images * weights).sum(1, keepdim=True)
    darker = images * ((1 - DARK * share) / luminance.clamp(min=1e-6)).clamp(max=1)
    complement = ((1 - LIGHT * share) / (1 - luminance).clamp(min=1e-6)).clamp(max=1)
    lighter = 1 - (1 - images) * complement
    return torch.where(code > 0.75, lighter, torch.where(code < 0.25, darker, images))
