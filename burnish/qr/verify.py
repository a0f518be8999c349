"""What reads the code in a picture of any origin: `burnish qr --verify`.

Nothing is known of such a picture: the size of the modules, by which conditions are measured, comes
from the code that zxing-cpp finds, softened and under every condition if need be; without one, a
code is taken to fill the picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from burnish.images import eight_bit, open_image
from burnish.qr.conditions import CONDITIONS, soften
from burnish.qr.decoders import FoundCode, find
from burnish.qr.scanner import Readings, Scanner

NEAR = 0.04  # a module so near to a whole number of px is one
LONGEST = 2000  # px: a larger picture is scaled down, as far as its modules keep 8 px


@dataclass(frozen=True)
class Verdict:
    """What was read of a picture, under which conditions, and what that amounts to."""

    payload: str  # what was asked for, else what was read; "" if nothing was
    others: tuple[str, ...]  # further texts in the picture
    code: str  # such as "M2-M" or "3-H"; "" if zxing-cpp found none
    module: float  # px
    read: dict[str, dict[str, str]]  # decoder -> condition -> "yes", "softened" or "no"
    fraction: float  # of decoders and conditions that read it as it is
    strict: bool
    phone: bool
    lenient: bool

    def text(self) -> str:
        """As a table for a terminal."""
        decoders = list(self.read)
        conditions = list(next(iter(self.read.values())))
        wide = max(map(len, conditions))
        about = f" ({self.code}, modules of {self.module:.1f} px)" if self.code else ""
        rows = [f"payload  {self.payload!r}{about}" if self.lenient else "payload  not read"]
        rows += [f"also     {other!r}" for other in self.others]
        rows += ["", " ".join([" " * wide, *decoders])]

        for condition in conditions:
            marks = (f"{self.read[name][condition]:<{len(name)}}" for name in decoders)
            rows.append(f"{condition:<{wide}} {' '.join(marks)}".rstrip())

        verdicts = {"strict": self.strict, "phone": self.phone, "lenient": self.lenient}
        said = "   ".join(f"{name} {'yes' if true else 'no'}" for name, true in verdicts.items())
        return "\n".join([*rows, "", f"{said}   read {self.fraction:.0%}"])

    def json(self) -> dict[str, object]:
        """As one JSON object."""
        return asdict(self)


def verify(path: Path, payload: str = "", decoders: tuple[str, ...] = ("zxing",)) -> Verdict:
    """Read the picture in a file, of any size and shape, under all conditions.

    Args:
        path: of the picture.
        payload: what it must say; by default what is read first.
        decoders: names of `burnish.qr.decoders`.

    Raises:
        FileNotFoundError, ValueError: the file is no picture, or a decoder cannot be asked.
    """
    scanner = Scanner(decoders, "all", softened=True)
    picture, codes = _codes(Image.fromarray(eight_bit(open_image(path)[None])[0]).convert("L"))
    match = next((code for code in codes if payload in ("", code.payload)), None)
    module = _whole((match or codes[0]).module) if codes else _guess(picture)
    picture, scale = _smaller(picture, 8 / module)
    module *= scale
    text = payload or (match.payload if match else "")
    plain, softened = (
        scanner.look(picture, text, module, bool(match and match.designator.startswith("M")))
        if text
        else (np.zeros((len(scanner.decoders), len(scanner.conditions)), dtype=bool),) * 2
    )
    readings = Readings(
        torch.from_numpy(plain)[None],
        scanner.decoders,
        scanner.conditions,
        torch.from_numpy(softened)[None],
    )
    words = np.where(plain, "yes", np.where(softened, "softened", "no")).tolist()

    return Verdict(
        payload=text,
        others=tuple(code.payload for code in codes if code.payload != text),
        code=match.designator if match else "",
        module=module,
        read={
            name: dict(zip(scanner.conditions, row, strict=True))
            for name, row in zip(scanner.decoders, words, strict=True)
        },
        fraction=float(readings.fraction),
        strict=bool(readings.strict),
        phone=bool(readings.phone),
        lenient=bool(readings.lenient),
    )


def _codes(picture: Image.Image) -> tuple[Image.Image, list[FoundCode]]:
    """What is found by the first way that finds something, and the picture in whose px it is."""
    if found := find(np.asarray(picture)):
        return picture, found

    picture, _ = _smaller(picture)
    return picture, next(
        (found for shade in _ways(picture) if (found := find(np.asarray(shade)))), []
    )


def _ways(picture: Image.Image) -> Iterator[Image.Image]:
    guess = _guess(picture)
    yield from (soften(picture, guess, k) for k in (1, 2))
    yield from (condition(picture, guess) for condition in CONDITIONS.values())


def _whole(module: float) -> float:
    """The size of a module as it was probably drawn: what corners that were found tell is off by a
    few hundredths, and conditions that depend on it would be others than those under which the
    picture was drawn and kept.
    """
    return float(round(module)) if abs(module / max(1, round(module)) - 1) < NEAR else module


def _guess(picture: Image.Image) -> float:
    return max(1.0, min(picture.size) / 33)  # modules of version 2 with its quiet zone


def _smaller(picture: Image.Image, least: float = 0.0) -> tuple[Image.Image, float]:
    """A picture within the longest side, but not below `least` times its size; and by how much it
    was scaled.
    """
    scale = min(1.0, max(LONGEST / max(picture.size), least))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return (picture if scale == 1 else picture.resize(size, Image.Resampling.BILINEAR)), scale
