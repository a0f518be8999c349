"""The verdict `phone`: readers that took no part in making an image read it.

An image that one library chose or rewarded may please that library alone, and a phone has another.
So the verdict is left to the libraries that did neither: under every condition one of them reads
exactly the payload, in the image as it is or softened as a camera sees it. Micro QR never has the
verdict: OpenCV, ZBar and the cameras of most phones do not know it.

`Phone.plain` asks less: does each of these readers, by itself, read the image as it is?
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from burnish.images import eight_bit
from burnish.qr.conditions import CONDITIONS, soften
from burnish.qr.decoders import INSTALL, Decoder, decoder, independent
from burnish.qr.layout import TINY, Layout

MICRO_NOTE = (
    f"Micro QR: most phone cameras do not read it; an ordinary code takes {TINY} px or more"
)


class Phone:
    """The independent readers that are installed.

    Attributes:
        readers: their names.
        missing: the names of those that are not installed.
    """

    def __init__(self, decoders: Sequence[str]) -> None:
        """Prepare the readers of other libraries.

        Args:
            decoders: names of the decoders that chose the images, or that a reward used.
        """
        self._read: dict[str, Decoder] = {}
        self.missing: list[str] = []

        for name in independent(decoders):
            try:
                self._read[name] = decoder(name)
            except ValueError:  # its package is not installed
                self.missing.append(name)

        self.readers = tuple(self._read)

    def reads(self, image: Image.Image, payload: str, module: float, micro: bool) -> bool | None:
        """Return the verdict on an image; None if no independent reader is installed.

        Args:
            image: in mode "L".
            payload: the text that it must have.
            module: about the side of a module in px.
            micro: the code is a Micro QR code.
        """
        if micro:
            return False
        if not self._read:
            return None

        return all(self._reads_under(name, image, payload, module) for name in CONDITIONS)

    def plain(self, images: Tensor, layouts: Sequence[Layout]) -> dict[str, Tensor | None]:
        """Return which images each reader reads as they are, neither changed nor softened.

        Args:
            images: (B, 3, side, side) in [0, 1].
            layouts: B codes.

        Returns:
            (B,) bool by the reader's name, False for Micro QR; None of a reader that is not
            installed, see `note`.
        """
        grey = [np.asarray(Image.fromarray(pixels).convert("L")) for pixels in eight_bit(images)]
        pairs = list(zip(grey, layouts, strict=True))
        found = {
            name: torch.tensor(
                [not code.micro and code.payload in read(pixels) for pixels, code in pairs],
                dtype=torch.bool,
            )
            for name, read in self._read.items()
        }
        return {**found, **dict.fromkeys(self.missing)}

    def _reads_under(self, condition: str, image: Image.Image, payload: str, module: float) -> bool:
        changed = CONDITIONS[condition](image, module)
        size = module * max(changed.size) / max(image.size)
        versions = (np.asarray(soften(changed, size, k)) for k in (0, 1, 2))
        return any(payload in read(pixels) for pixels in versions for read in self._read.values())

    def note(self, micro: bool = False) -> str:
        """Return who gives the verdict, or what is missing for it.

        Args:
            micro: the code is a Micro QR code.
        """
        if micro:
            return MICRO_NOTE

        install = ", ".join(f"{name} ({INSTALL[name]})" for name in self.missing)
        readers = " and ".join(self.readers)

        if readers:
            return f"by {readers}" + (f"; not installed: {install}" if install else "")
        if install:
            return f"not known, for no independent reader is installed: {install}"
        return "not known, for every reader took part; name fewer decoders"
