"""The reading of a code in an image of any origin: `burnish qr --verify`.

Nothing is known of such an image. Conditions are measured in modules, and the size of a module
comes from the code that zxing-cpp finds, softened and under every condition if need be. If it finds
none, a code is taken to fill the image, and its text is what any other reader finds.
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
from burnish.qr.decoders import FoundCode, decoder, find
from burnish.qr.phone import Phone
from burnish.qr.scanner import Readings, Scanner

NEAR = 0.04  # a module size so near to a whole number of px is taken for that number
LONGEST = 2000  # px: a larger image is scaled down, as far as its modules keep 8 px


@dataclass(frozen=True)
class Verdict:
    """The readings of one image under all conditions, and the verdicts on it."""

    payload: str  # the text that was wanted, else the text that was read; "" if none was
    others: tuple[str, ...]  # further texts in the image
    code: str  # such as "M2-M" or "3-H"; "" if zxing-cpp found none
    module: float  # px
    read: dict[str, dict[str, str]]  # decoder -> condition -> "yes", "softened" or "no"
    fraction: float  # of decoders and conditions that read it as it is
    strict: bool
    phone: bool | None  # None: not known, for no independent reader is installed
    phone_note: str  # who gave this verdict, or what is missing for it
    lenient: bool  # some decoder reads it under some condition, or the verdict `phone` is yes

    def text(self) -> str:
        """Return a table for a terminal."""
        decoders = list(self.read)
        conditions = list(next(iter(self.read.values())))
        width = max(map(len, conditions))
        rows = ["payload  not read"]

        if self.lenient:
            kind = f" ({self.code}, modules of {self.module:.1f} px)" if self.code else ""
            rows = [f"payload  {self.payload!r}{kind}"]

        rows += [f"also     {other!r}" for other in self.others]
        rows += ["", " ".join([" " * width, *decoders])]

        for condition in conditions:
            marks = (f"{self.read[name][condition]:<{len(name)}}" for name in decoders)
            rows.append(f"{condition:<{width}} {' '.join(marks)}".rstrip())

        words = {True: "yes", False: "no", None: "not known"}
        verdicts = {"strict": self.strict, "phone": self.phone, "lenient": self.lenient}
        answers = "   ".join(f"{name} {words[answer]}" for name, answer in verdicts.items())
        rows += ["", f"{answers}   read {self.fraction:.0%}", f"phone: {self.phone_note}"]
        return "\n".join(rows)

    def json(self) -> dict[str, object]:
        """Return one JSON object."""
        return asdict(self)


def verify(path: Path, payload: str = "", decoders: tuple[str, ...] = ("zxing",)) -> Verdict:
    """Read the image in a file, of any size and shape, under all conditions.

    Args:
        path: of the image.
        payload: the text that it must have; by default the first that is read.
        decoders: names of `burnish.qr.decoders`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no image, or a decoder cannot be used.
    """
    scanner = Scanner(decoders, "all", softened=True)
    image = Image.fromarray(eight_bit(open_image(path)[None])[0]).convert("L")
    image, codes = _find_codes(image)
    match = next((code for code in codes if payload in ("", code.payload)), None)
    module = _rounded((match or codes[0]).module) if codes else _default_module(image)

    image, scale = _scaled_down(image, 8 / module)
    module *= scale

    phone = Phone(scanner.decoders)
    text = payload or (match.payload if match else _read_by_others(image, scanner, phone))
    micro = match is not None and match.designator.startswith("M")

    if text:
        plain, softened = scanner.scan_image(image, text, module, micro)
    else:
        plain = np.zeros((len(scanner.decoders), len(scanner.conditions)), dtype=bool)
        softened = plain

    readings = Readings(
        torch.from_numpy(plain)[None],
        scanner.decoders,
        scanner.conditions,
        torch.from_numpy(softened)[None],
    )
    marks = np.where(plain, "yes", np.where(softened, "softened", "no")).tolist()
    on_phones = phone.reads(image, text, module, micro) if text else False

    return Verdict(
        payload=text,
        others=tuple(code.payload for code in codes if code.payload != text),
        code=match.designator if match else "",
        module=module,
        read={
            name: dict(zip(scanner.conditions, row, strict=True))
            for name, row in zip(scanner.decoders, marks, strict=True)
        },
        fraction=float(readings.fraction),
        strict=bool(readings.strict),
        phone=on_phones,
        phone_note=phone.note(micro),
        lenient=bool(readings.lenient) or on_phones is True,
    )


def _find_codes(image: Image.Image) -> tuple[Image.Image, list[FoundCode]]:
    """Return the codes of the first variant that has any, and the image in whose px they lie."""
    if codes := find(np.asarray(image)):
        return image, codes

    image, _ = _scaled_down(image)
    for variant in _variants(image):
        if codes := find(np.asarray(variant)):
            return image, codes

    return image, []


def _read_by_others(image: Image.Image, scanner: Scanner, phone: Phone) -> str:
    """Return the first text that any other reader finds; "" if none does."""
    readers = [decoder(name) for name in (*scanner.decoders, *phone.readers)]

    for variant in (image, *_variants(image)):
        pixels = np.asarray(variant)
        for read in readers:
            if texts := read(pixels):
                return texts[0]

    return ""


def _variants(image: Image.Image) -> Iterator[Image.Image]:
    """Yield the image softened and under each condition."""
    module = _default_module(image)
    yield from (soften(image, module, k) for k in (1, 2))
    yield from (condition(image, module) for condition in CONDITIONS.values())


def _rounded(module: float) -> float:
    """Return the size of a module as it was probably drawn.

    The corners that are found are off by a few hundredths, and with another size of a module the
    conditions would be others than those under which the image was drawn and kept.
    """
    return float(round(module)) if abs(module / max(1, round(module)) - 1) < NEAR else module


def _default_module(image: Image.Image) -> float:
    return max(1.0, min(image.size) / 33)  # modules of version 2 with its quiet zone


def _scaled_down(image: Image.Image, least: float = 0.0) -> tuple[Image.Image, float]:
    """Return an image within the longest side, and its scale, which is never below `least`."""
    scale = min(1.0, max(LONGEST / max(image.size), least))
    if scale == 1:
        return image, scale

    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BILINEAR), scale
