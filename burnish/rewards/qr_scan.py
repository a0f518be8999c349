"""Reward `qr_scan`: the fraction of decoders and conditions that read the code in an image."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from burnish.annotations import CountOrZero, PositiveOrZero
from burnish.qr.layout import layout_of
from burnish.qr.scanner import Scanner, canvas_side, module_errors
from burnish.types import Prompt, Reward


def scan(
    decoders: list[str] | None = None,
    conditions: str | list[str] = "train",
    module_weight: PositiveOrZero = 0.5,
    workers: CountOrZero = 0,
    strict: bool = False,
) -> Reward:
    """Reward how well the code of metadata["payload"] is read.

    It is the fraction of decoders and conditions that read it, plus the weighted fraction of right
    modules.

    Args:
        decoders: names of `burnish.qr.decoders`, by default zxing alone.
        conditions: "train", "held_out", "all" or a list of names of `burnish.qr.conditions`.
        module_weight: weight of the fraction of right modules; that of what is read is 1.
        workers: images read at once; 0: one for each processor, at most 8.
        strict: 1 where every decoder reads it under every condition, else 0, in place of the
            fraction: then nearly nothing is learned where hardly an image is read.

    Raises:
        ValueError: a name is unknown, a package is missing or the weight is negative; later, a
            prompt without payload.
    """
    if module_weight < 0:
        raise ValueError(
            f"module_weight = {module_weight}: wrong modules would be rewarded; take 0 or more"
        )

    scanner = Scanner(decoders or ("zxing",), conditions, workers=workers)

    def reward(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        layouts = [layout_of(prompt, canvas_side(images)) for prompt in prompts]
        readings = scanner.measure(images, layouts)
        read = readings.strict.double() if strict else readings.fraction
        right = 1 - module_errors(images, layouts)
        return read + module_weight * right

    return reward
