"""Scannability: is the code in a picture read, by which decoders and under which conditions?

    fraction = share of (decoder, condition) pairs that read exactly the payload
    scan     = fraction + module_weight * (1 - share of modules on the wrong side)      in [0, 1 + module_weight]

The second term is there for the pictures that nothing reads, most of them at first: it tells them
apart (see `burnish.qr.layout.Layout.errors`). Three verdicts on a picture, each weaker than the one
before:

    strict    every decoder reads it under every condition
    phone     under every condition some decoder reads it, or would if the picture were softened or another binarizer
              taken: scanners of phones try several ways, and read what one decoder on exact pixels
                  does not
    lenient   some decoder reads it under some condition
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from burnish.images import eight_bit
from burnish.qr import layout as qr
from burnish.qr.conditions import CONDITIONS, chosen, soften
from burnish.qr.decoders import READ_MICRO, decoder, variants


@dataclass(frozen=True)
class Readings:
    """What was read of B pictures: by which decoder (D), under which condition (C)."""

    table: Tensor  # (B, D, C) bool: the payload was read, exactly
    decoders: tuple[str, ...]
    conditions: tuple[str, ...]
    # (B, D, C) bool: also if softened or with another binarizer, where it was asked for
    softened: Tensor | None = None

    @property
    def fraction(self) -> Tensor:
        """The share of pairs that read the payload, (B,) float64."""
        return self.table.double().mean((1, 2))

    @property
    def strict(self) -> Tensor:
        """Read by every decoder under every condition, (B,) bool."""
        return self.table.all(2).all(1)

    @property
    def phone(self) -> Tensor:
        """Read under every condition by some decoder in some way, (B,) bool; a ValueError if that
        was not asked.
        """
        if self.softened is None:
            raise ValueError(
                "the verdict 'phone' needs softened pictures: make the Scanner with softened = True"
            )
        return self.softened.any(1).all(1)

    @property
    def lenient(self) -> Tensor:
        """Read by some decoder under some condition, (B,) bool."""
        return (self.table if self.softened is None else self.softened).any(2).any(1)


class Scanner:
    """Reads pictures with several decoders under several conditions.

    >>> from burnish.qr.layout import fit
    >>> scanner = Scanner(["zxing"], "held_out")
    >>> scanner.measure(fit("AB12C", 64).draw()[None], ["AB12C"]).strict
    tensor([True])
    """

    def __init__(
        self,
        decoders: Sequence[str] = ("zxing",),
        conditions: str | Sequence[str] = "train",
        softened: bool = False,
        workers: int = 0,
    ) -> None:
        """
        Args:
            decoders: names of `burnish.qr.decoders`.
            conditions: "train", "held_out", "all", or names of `burnish.qr.conditions`.
            softened: also try, where a picture is not read, what the verdict `phone` needs: up to
                nine times the work.
            workers: pictures read at once; 0: one for each processor, at most 8.

        Raises:
            ValueError: a name is unknown or a package is not installed.
        """
        self.decoders = (decoders,) if isinstance(decoders, str) else tuple(decoders)
        if not self.decoders:
            raise ValueError("decoders is empty; name at least one, such as 'zxing'")

        self.conditions = chosen(conditions)
        self.softened = softened
        self.workers = workers or min(8, os.cpu_count() or 1)
        self._read = {
            way: decoder(way) for name in self.decoders for way in (name, *variants(name))
        }

    def measure(self, images: Tensor, payloads: Sequence[str | qr.Layout]) -> Readings:
        """Read every picture.

        Args:
            images: (B, 3, H, W) in [0, 1].
            payloads: what each must say; a text is laid out as `burnish.qr.layout.fit` does by
                default on square pictures.

        Raises:
            ValueError: a number or a size does not fit, or a decoder is asked about a Micro QR code
                and knows none.
        """
        if len(images) != len(payloads):
            raise ValueError(
                f"{len(images)} images but {len(payloads)} payloads; give one payload an image"
            )

        fitted = {text: qr.fit(text, side(images)) for text in payloads if isinstance(text, str)}
        layouts = [fitted[code] if isinstance(code, str) else code for code in payloads]
        pictures = [Image.fromarray(pixels).convert("L") for pixels in eight_bit(images)]

        def look(row: int) -> tuple[np.ndarray, np.ndarray]:
            return self.look(
                pictures[row], layouts[row].payload, layouts[row].module, layouts[row].micro
            )

        # zxing-cpp, OpenCV and PIL leave Python's lock while they work, but on small pictures they
        # work so briefly that handing out a few costs more than it saves.
        if images.shape[-2:].numel() * len(images) < 500_000:
            tables = list(map(look, range(len(layouts))))
        else:
            with ThreadPoolExecutor(self.workers) as pool:
                tables = list(pool.map(look, range(len(layouts))))

        shape = (len(layouts), len(self.decoders), len(self.conditions))
        plain, softened = (
            torch.tensor(np.array([pair[kind] for pair in tables], dtype=bool).reshape(shape))
            for kind in (0, 1)
        )
        return Readings(plain, self.decoders, self.conditions, softened if self.softened else None)

    def look(
        self, picture: Image.Image, payload: str, module: float, micro: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """One picture in mode "L" with modules of about `module` px: two (D, C) tables, as it is
        and also softened.
        """
        blind = [name for name in self.decoders if micro and name not in READ_MICRO]
        if blind:
            raise ValueError(
                f"decoder '{blind[0]}' cannot read Micro QR, as which {payload!r} is drawn; take one of "
                f"{', '.join(READ_MICRO)}, or a canvas of at least {qr.TINY} px"
            )

        plain = np.zeros((len(self.decoders), len(self.conditions)), dtype=bool)
        softened = plain.copy()

        for column, name in enumerate(self.conditions):
            seen = CONDITIONS[name](picture, module)
            # of the modules in it, within the growth of a turn
            scale = module * max(seen.size) / max(picture.size)
            shade = cache(lambda k, seen=seen, scale=scale: np.asarray(soften(seen, scale, k)))

            for row, asked in enumerate(self.decoders):
                plain[row, column] = payload in self._read[asked](shade(0))
                softened[row, column] = plain[row, column] or (
                    self.softened
                    and any(
                        payload in self._read[way](shade(k))
                        for k in (0, 1, 2)
                        for way in variants(asked)
                    )
                )

        return plain, softened


def module_errors(images: Tensor, layouts: Sequence[qr.Layout], whole: bool = False) -> Tensor:
    """The module error rate of each picture under its own layout, (B,) float64 on the CPU; `whole`
    as in `modules`.
    """
    errors = [code.errors(images[row : row + 1], whole) for row, code in enumerate(layouts)]
    return torch.cat(errors).double().cpu() if errors else torch.zeros(0, dtype=torch.float64)


def side(images: Tensor) -> int:
    """The side of square pictures (B, 3, H, H) in px; a ValueError if they are not square."""
    height, width = images.shape[-2:]
    if height != width:
        raise ValueError(
            f"codes lie on square canvases, but the images are {width} x {height} px; make them square"
        )

    return int(height)
