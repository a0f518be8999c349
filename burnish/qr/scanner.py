"""Scannability: the decoders and conditions under which the code in an image is read.

    fraction = (pairs of decoder and condition that read exactly the payload) / (all pairs)

Three verdicts on an image, each weaker than the one before:

    strict    every decoder reads it under every condition
    phone     under every condition some decoder reads it, or would if the image were softened or
              another binarizer taken: scanners of phones try several ways, and read what one
              decoder on exact pixels does not. Where it is said of an image, the decoders are
              those of `burnish.qr.phone`, which took no part in making it
    lenient   some decoder reads it under some condition

`module_errors` needs no reader: it is the fraction of modules on the wrong side (see
`burnish.qr.layout.Layout.errors`), and ranks images that nothing reads.
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
from burnish.qr.conditions import CONDITIONS, condition_names, soften
from burnish.qr.decoders import READ_MICRO, decoder, variants
from burnish.qr.layout import TINY, Layout, fit


@dataclass(frozen=True)
class Readings:
    """The readings of B images: by which decoder (D), under which condition (C)."""

    table: Tensor  # (B, D, C) bool: the payload was read, exactly
    decoders: tuple[str, ...]
    conditions: tuple[str, ...]
    # (B, D, C) bool: also if softened or with another binarizer; None: it was not tried
    softened: Tensor | None = None

    @property
    def fraction(self) -> Tensor:
        """The fraction of pairs that read the payload, (B,) float64."""
        return self.table.double().mean((1, 2))

    @property
    def strict(self) -> Tensor:
        """Read by every decoder under every condition, (B,) bool."""
        return self.table.all(2).all(1)

    @property
    def phone(self) -> Tensor:
        """Read under every condition by some decoder in some way, (B,) bool.

        Raises:
            ValueError: softened images were not tried.
        """
        if self.softened is None:
            raise ValueError(
                "the verdict 'phone' needs softened images: make the Scanner with softened = True"
            )
        return self.softened.any(1).all(1)

    @property
    def lenient(self) -> Tensor:
        """Read by some decoder under some condition, (B,) bool."""
        table = self.table if self.softened is None else self.softened
        return table.any(2).any(1)


class Scanner:
    """Reads images with several decoders under several conditions.

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
        """Prepare the readers.

        Args:
            decoders: names of `burnish.qr.decoders`.
            conditions: "train", "held_out", "all", or names of `burnish.qr.conditions`.
            softened: where an image is not read, also try what the verdict `phone` needs: up to
                nine times the work.
            workers: images read at once; 0: one for each processor, at most 8.

        Raises:
            ValueError: a name is unknown or a package is not installed.
        """
        self.decoders = (decoders,) if isinstance(decoders, str) else tuple(decoders)
        if not self.decoders:
            raise ValueError("decoders is empty; name at least one, such as 'zxing'")

        self.conditions = condition_names(conditions)
        self.softened = softened
        self.workers = workers or min(8, os.cpu_count() or 1)
        self._read = {
            variant: decoder(variant)
            for name in self.decoders
            for variant in (name, *variants(name))
        }

    def measure(self, images: Tensor, payloads: Sequence[str | Layout]) -> Readings:
        """Return the readings of every image.

        Args:
            images: (B, 3, H, W) in [0, 1].
            payloads: the text that each must have; it is laid out as `burnish.qr.layout.fit` does
                by default on square images, if it is not given as a `Layout`.

        Raises:
            ValueError: a number or a size does not fit, or a decoder would have to read a Micro QR
                code and cannot.
        """
        if len(images) != len(payloads):
            raise ValueError(
                f"{len(images)} images but {len(payloads)} payloads; give one payload an image"
            )

        texts = [payload for payload in payloads if isinstance(payload, str)]
        fitted = {text: fit(text, canvas_side(images)) for text in texts}
        layouts = [fitted[code] if isinstance(code, str) else code for code in payloads]
        grey = [Image.fromarray(pixels).convert("L") for pixels in eight_bit(images)]

        def scan(row: int) -> tuple[np.ndarray, np.ndarray]:
            layout = layouts[row]
            return self.scan_image(grey[row], layout.payload, layout.module, layout.micro)

        # zxing-cpp, OpenCV and PIL leave Python's lock while they work, but on small images they
        # work so briefly that handing out a few costs more than it saves.
        if images.shape[-2:].numel() * len(images) < 500_000:
            tables = list(map(scan, range(len(layouts))))
        else:
            with ThreadPoolExecutor(self.workers) as pool:
                tables = list(pool.map(scan, range(len(layouts))))

        shape = (len(layouts), len(self.decoders), len(self.conditions))
        plain, softened = (
            torch.tensor(np.array([pair[kind] for pair in tables], dtype=bool).reshape(shape))
            for kind in (0, 1)
        )
        return Readings(plain, self.decoders, self.conditions, softened if self.softened else None)

    def scan_image(
        self, image: Image.Image, payload: str, module: float, micro: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return two tables (D, C) bool of one image: read as it is, and also softened.

        Args:
            image: in mode "L".
            payload: the text that it must have.
            module: about the side of a module in px.
            micro: the code is a Micro QR code.

        Raises:
            ValueError: a decoder cannot read Micro QR.
        """
        unable = [name for name in self.decoders if micro and name not in READ_MICRO]
        if unable:
            raise ValueError(
                f"decoder '{unable[0]}' cannot read Micro QR, as which {payload!r} is drawn; take "
                f"one of {', '.join(READ_MICRO)}, or a canvas of at least {TINY} px"
            )

        plain = np.zeros((len(self.decoders), len(self.conditions)), dtype=bool)
        softened = plain.copy()

        for column, condition in enumerate(self.conditions):
            changed = CONDITIONS[condition](image, module)
            # the size of a module in it, within the growth of a turn
            size = module * max(changed.size) / max(image.size)
            pixels = cache(
                lambda k, changed=changed, size=size: np.asarray(soften(changed, size, k))
            )

            for row, name in enumerate(self.decoders):
                plain[row, column] = payload in self._read[name](pixels(0))
                softened[row, column] = plain[row, column] or (
                    self.softened
                    and any(
                        payload in self._read[variant](pixels(k))
                        for k in (0, 1, 2)
                        for variant in variants(name)
                    )
                )

        return plain, softened


def module_errors(
    images: Tensor,
    layouts: Sequence[Layout],
    by_area: bool = False,
    soft: float = 0.0,
    around: int = 0,
    cells: int = 0,
) -> Tensor:
    """Return the module error rate of each image under its own layout, (B,) float64 on the CPU.

    Args:
        images: (B, 3, side, side) in [0, 1].
        layouts: one an image.
        by_area: as in `Layout.errors`.
        soft: likewise.
        around: likewise.
        cells: likewise.
    """
    errors = [
        code.errors(images[row : row + 1], by_area, soft, around, cells)
        for row, code in enumerate(layouts)
    ]
    return torch.cat(errors).cpu().double() if errors else torch.zeros(0, dtype=torch.float64)


def canvas_side(images: Tensor) -> int:
    """Return the side of square images (B, 3, H, H) in px.

    Raises:
        ValueError: they are not square.
    """
    height, width = images.shape[-2:]
    if height != width:
        raise ValueError(
            f"codes lie on square canvases, but the images are {width} x {height} px; make them "
            "square"
        )

    return int(height)
