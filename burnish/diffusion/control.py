"""Control: a picture that a ControlNet (arXiv 2302.05543) makes the generator follow, how closely,
and when.

The network becomes UNet(x, t, text, scale * ControlNet(x, t, text, picture)). Picture, scale and
window are part of the encoded condition, one of each an image, so a trajectory keeps them and a
replay uses the very same ones, whatever the scale has become since.

    control         (B, 3, H, W) in [0, 1], as large as the image
    control_scale   (B,) what the ControlNet's output is multiplied with
    control_window  (B, 2) the times it acts at: those not above the first and above the second
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from burnish.images import open_image, resize_image
from burnish.qr.layout import layout_of
from burnish.types import Cond, Prompt

KEYS = ("control", "control_scale", "control_window")
"""What the condition has beside the text."""


@dataclass(frozen=True)
class Control:
    """How closely, and from which to which share of the steps, a ControlNet is followed."""

    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise ValueError(
                f"sampler.control.scale must be a finite number, at least 0, not {self.scale}."
            )
        if not 0 <= self.start < self.end <= 1:
            raise ValueError(
                f"sampler.control.start and end must be shares of the steps, 0 <= start < end <= 1, not {self.start} "
                f"and {self.end}."
            )

    def window(self, times: Tensor) -> tuple[int, int]:
        """(highest, below) for a grid of times (steps + 1,): step i of n acts if start <= i/n and
        (i+1)/n <= end, as in diffusers' pipelines.

        Between two times of the grid, where finished images are noised again, the earlier one
        decides.

        Raises:
            ValueError: no step acts.
        """
        count = len(times) - 1
        active = [
            i for i in range(count) if i / count >= self.start and (i + 1) / count <= self.end
        ]

        if not active:
            raise ValueError(
                f"no step of {count} lies between sampler.control.start = {self.start} and end = {self.end}: widen "
                "them, or take more sampler.steps."
            )

        highest = int(times[active[0]]) if active[0] else torch.iinfo(torch.int32).max
        return highest, int(times[active[-1] + 1]) if active[-1] + 1 < count else -2

    def over(self, cond: Cond, times: Tensor) -> Cond:
        """``cond`` with scale and window, if it has a control picture."""
        if "control" not in cond:
            return cond

        picture = cond["control"]
        return {
            **cond,
            "control_scale": picture.new_full((len(picture),), self.scale, dtype=torch.float32),
            "control_window": torch.tensor([self.window(times)], device=picture.device).repeat(
                len(picture), 1
            ),
        }


def control_strength(cond: Cond, t: Tensor) -> Tensor:
    """(B,) float32: what the ControlNet's output counts for at times ``t`` (B,)."""
    highest, below = cond["control_window"].unbind(1)
    return cond["control_scale"] * ((t <= highest) & (t > below))


def control_images(prompts: Sequence[Prompt], height: int, width: int) -> Tensor:
    """The control pictures (B, 3, height, width) of prompts.

    A prompt's metadata says what to follow: ``control``, the path of a picture, or ``payload``, the
    text of a QR code that is drawn here (``qr``: a table of settings for
    ``burnish.qr.layout.fit``).

    Raises:
        ValueError: a prompt says neither, its picture cannot be read, or its code does not fit; the
            message names it.
    """
    # images of one prompt share its object: its picture is read or drawn once
    drawn = {
        number: _picture(prompt, height, width)
        for number, prompt in {id(one): one for one in prompts}.items()
    }
    return torch.stack([drawn[id(prompt)] for prompt in prompts])


def _picture(prompt: Prompt, height: int, width: int) -> Tensor:
    if path := prompt.metadata.get("control"):
        return _read(Path(path), prompt, height, width)

    if prompt.metadata.get("payload"):
        if height != width:
            raise ValueError(
                f"a QR code wants a square picture, not one of {width} x {height} pixels."
            )
        return layout_of(prompt, width).draw()

    raise ValueError(
        f'the prompt "{prompt.text}" has nothing for the ControlNet to follow: give it a "payload" (prompts.use = '
        '"qr") or a "control", the path of a picture (prompts.use = "jsonl")'
    )


def _read(path: Path, prompt: Prompt, height: int, width: int) -> Tensor:
    try:
        image = open_image(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f'the control picture {path} of the prompt "{prompt.text}" cannot be read: {error}'
        ) from error

    return resize_image(image, height, width)
