"""Reward `qr_modules`: the share of a code's modules that lie on their right side."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from burnish.qr.layout import layout_of
from burnish.qr.scanner import canvas_side, module_errors
from burnish.types import Prompt, Reward


def modules(whole: bool = False) -> Reward:
    """The share of modules of metadata["payload"]'s code that are on their right side, in [0, 1]:
    no reader is asked.

    Args:
        whole: the share of the code's area instead, so that a module counts by all of its px and
            not by its middle:
            still tells pictures apart whose modules are all right, and with them those that are
            read from further away.

    Raises:
        ValueError: later, a prompt without payload.
    """

    def reward(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        layouts = [layout_of(prompt, canvas_side(images)) for prompt in prompts]
        return 1 - module_errors(images, layouts, by_area=whole)

    return reward
