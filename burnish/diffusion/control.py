"""Control: an image that a ControlNet makes the generator follow, how closely, and when.

With a ControlNet (arXiv 2302.05543) the network becomes

    UNet(x, t, text, scale * ControlNet(x, t, text, image))

Image, scale and window are part of the encoded condition, one of each an image, so a trajectory
keeps them and a replay uses the very same ones, whatever the scale has become since.

    control         (B, 3, H, W) in [0, 1], as large as the generated image
    control_scale   (B,) the factor of the ControlNet's output
    control_window  (B, 2) the times it acts at: those not above the first and above the second
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from burnish.config import ControlConfig
from burnish.images import open_image, resize_image
from burnish.qr.layout import check_codes, layout_of
from burnish.types import Cond, Prompt

CONTROL_KEYS = ("control", "control_scale", "control_window")
"""The entries of a condition that do not come from its text."""

NOT_SQUARE = "a QR code needs a square image, not one of {width} x {height} pixels"


def control_window(control: ControlConfig, times: Tensor) -> tuple[int, int]:
    """Return the (highest, below) of the times t it acts at: below < t <= highest.

    Step i of n acts if start <= i/n and (i+1)/n <= end, as in diffusers' pipelines. Between two
    times of the grid, where finished images are noised again, the earlier one decides.

    Args:
        control: with the fractions `start` and `end` of the steps.
        times: the sampler's grid (steps + 1,), noisiest first.

    Raises:
        ValueError: no step acts.
    """
    count = len(times) - 1
    active = [
        step
        for step in range(count)
        if step / count >= control.start and (step + 1) / count <= control.end
    ]

    if not active:
        raise ValueError(
            f"no step of {count} lies between sampler.control.start = {control.start} and "
            f"end = {control.end}: widen them, or take more sampler.steps"
        )

    first = active[0]
    after = active[-1] + 1

    # acting from the first step on, it acts at all earlier times too; likewise at the end
    highest = int(times[first]) if first > 0 else torch.iinfo(torch.int32).max
    below = int(times[after]) if after < count else -2
    return highest, below


def add_control(cond: Cond, control: ControlConfig, times: Tensor) -> Cond:
    """Return `cond` with scale and window, if it has a control image and not these already."""
    if "control" not in cond or "control_scale" in cond:
        return cond

    image = cond["control"]
    rows = len(image)
    window = torch.tensor([control_window(control, times)], device=image.device)
    return {
        **cond,
        "control_scale": image.new_full((rows,), control.scale, dtype=torch.float32),
        "control_window": window.repeat(rows, 1),
    }


def control_strength(cond: Cond, t: Tensor) -> Tensor:
    """Return the factor (B,) float32 of the ControlNet's output at times `t` (B,)."""
    highest, below = cond["control_window"].unbind(1)
    return cond["control_scale"] * ((t <= highest) & (t > below))


def control_images(prompts: Sequence[Prompt], height: int, width: int) -> Tensor:
    """Return the control images (B, 3, height, width) of prompts.

    A prompt's metadata names the image to follow: `control`, the path of a file (see
    `burnish.images.open_image`), or `payload`, the text of a QR code that is drawn here (`qr`: a
    table of settings for `burnish.qr.layout.fit`).

    Raises:
        ValueError: a prompt has neither, its image cannot be read, or its code does not fit; the
            message names it.
    """
    # images of one prompt share its object: its control image is read or drawn once
    distinct = {id(prompt): prompt for prompt in prompts}
    images = {key: _control_image(prompt, height, width) for key, prompt in distinct.items()}
    return torch.stack([images[id(prompt)] for prompt in prompts])


def check_controls(prompts: Sequence[Prompt], height: int, width: int) -> None:
    """Refuse prompts without a control image, or with one that is not there, before any is drawn.

    Raises:
        ValueError: the message names the first of them.
    """
    for prompt in prompts:
        path = prompt.metadata.get("control")
        if not path and not prompt.metadata.get("payload"):
            raise ValueError(nothing_to_follow(prompt))
        check_image_path(prompt, "control")

    coded = [prompt for prompt in prompts if not prompt.metadata.get("control")]
    if coded and height != width:
        raise ValueError(NOT_SQUARE.format(width=width, height=height))
    check_codes(coded, width)


def check_image_path(prompt: Prompt, key: str) -> None:
    """Refuse a prompt that names an image, as metadata[key], which is not there.

    Raises:
        ValueError: the message names the prompt and the image.
    """
    path = prompt.metadata.get(key)
    if path and isinstance(path, str | Path) and not Path(path).is_file():
        raise ValueError(f'the prompt "{prompt.text}" has {key} = "{path}": no such image')


def _control_image(prompt: Prompt, height: int, width: int) -> Tensor:
    if path := prompt.metadata.get("control"):
        return _read_image(path, prompt, height, width)

    if prompt.metadata.get("payload"):
        if height != width:
            raise ValueError(NOT_SQUARE.format(width=width, height=height))
        return layout_of(prompt, width).draw()

    raise ValueError(nothing_to_follow(prompt))


def nothing_to_follow(prompt: Prompt) -> str:
    """Return a sentence about a prompt without a control image."""
    return (
        f'the prompt "{prompt.text}" has nothing for the ControlNet to follow: give it a "payload" '
        '(prompts.use = "qr") or a "control", the path of an image (prompts.use = "jsonl")'
    )


def _read_image(path: object, prompt: Prompt, height: int, width: int) -> Tensor:
    if not isinstance(path, str | Path):
        raise ValueError(
            f'the prompt "{prompt.text}" has control = {path!r}; give the path of an image'
        )

    try:
        image = open_image(Path(path))
    except (OSError, ValueError) as error:
        raise ValueError(
            f'the control image {path} of the prompt "{prompt.text}" cannot be read: {error}'
        ) from error

    return resize_image(image, height, width)
