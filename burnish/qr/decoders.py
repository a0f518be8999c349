"""Readers of codes by name, each a function from a grey picture to the texts it found there.

    zxing           zxing-cpp, thresholds from each pixel's surroundings; QR and Micro QR     pip install 'burnish[qr]'
    zxing-global    the same with one threshold for the whole picture, from its histogram
    zxing-fixed     the same with the threshold at mid grey
    opencv          OpenCV's QRCodeDetector, QR only                                  pip install opencv-python-headless
    pyzbar          ZBar, QR only                                                     pip install pyzbar, and libzbar0

zxing-cpp also looks for turned, mirrored, shrunk and light-on-dark codes. A text is given as it was
encoded, control characters and all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import dist
from typing import Any

import numpy as np

Decoder = Callable[[np.ndarray], list[str]]
"""A grey picture (H, W) uint8 -> the texts of the codes in it, none where it finds none; safe to
call from threads.
"""
BINARIZERS: Mapping[str, str] = {
    "zxing": "LocalAverage",
    "zxing-global": "GlobalHistogram",
    "zxing-fixed": "FixedThreshold",
}
NAMES = (*BINARIZERS, "opencv", "pyzbar")
READ_MICRO = tuple(BINARIZERS)
"""Those that know Micro QR."""


@dataclass(frozen=True)
class FoundCode:
    """A code that zxing-cpp found: what it says, its kind, and the side of its modules in px."""

    payload: str
    designator: str
    module: float


def decoder(name: str) -> Decoder:
    """The reader of that name.

    Raises:
        ValueError: there is none, or its package is not installed; the message says how to get it.
    """
    if name in BINARIZERS:
        return _zxing(name)
    if name == "opencv":
        return _opencv()
    if name == "pyzbar":
        return _pyzbar()

    raise ValueError(f"decoder {name!r} is unknown; take one of {', '.join(NAMES)}")


def variants(name: str) -> tuple[str, ...]:
    """The reader itself and, for `zxing`, its other binarizers: what a phone that tries several
    would come to.
    """
    return tuple(BINARIZERS) if name == "zxing" else (name,)


def find(picture: np.ndarray) -> list[FoundCode]:
    """Every QR and Micro QR code of a grey picture (H, W) uint8, under any binarizer of zxing-cpp,
    each text once.
    """
    found: dict[str, FoundCode] = {}

    for name in BINARIZERS:
        for code in _read(picture, name):
            micro = code.format == _library().BarcodeFormat.MicroQRCode
            version = code.extra["Version"]  # "3", or "M2"
            n = 9 + 2 * int(version[1:]) if micro else 17 + 4 * int(version)
            at = code.position
            corners = [
                (c.x, c.y) for c in (at.top_left, at.top_right, at.bottom_right, at.bottom_left)
            ]
            around = sum(
                dist(a, b) for a, b in zip(corners, [*corners[1:], corners[0]], strict=True)
            )
            kind = f"{version}-{code.ec_level}" if code.ec_level else version
            found.setdefault(code.text, FoundCode(code.text, kind, max(1.0, around / 4 / n)))

    return list(found.values())


def _zxing(name: str) -> Decoder:
    _library()
    return lambda picture: [code.text for code in _read(picture, name)]


def _read(picture: np.ndarray, name: str) -> Sequence[Any]:
    zxing = _library()
    codes: Sequence[Any] = zxing.read_barcodes(
        picture,
        formats=(zxing.BarcodeFormat.QRCode, zxing.BarcodeFormat.MicroQRCode),
        binarizer=getattr(zxing.Binarizer, BINARIZERS[name]),
        text_mode=zxing.TextMode.Plain,  # the default writes <LF> for a line's end
    )
    return codes


def _library() -> Any:
    try:
        import zxingcpp
    except ImportError:
        raise ValueError(
            "reading codes needs the package zxing-cpp: pip install 'burnish[qr]'"
        ) from None

    return zxingcpp


def _opencv() -> Decoder:
    try:
        import cv2
    except ImportError:
        raise ValueError(
            "decoder 'opencv' needs OpenCV: pip install opencv-python-headless, or take decoder 'zxing'"
        ) from None

    def read(picture: np.ndarray) -> list[str]:
        try:
            # a new one each time: it must not be shared
            text = cv2.QRCodeDetector().detectAndDecode(picture)[0]
        except cv2.error:  # some pictures trip its own assertions: it has not read them
            return []

        return [text] if text else []

    return read


def _pyzbar() -> Decoder:
    try:
        from pyzbar import pyzbar
    except ImportError:  # of the package, or of the library that it wants
        raise ValueError(
            "decoder 'pyzbar' needs the package pyzbar (pip install pyzbar) and the system's library zbar (apt install "
            "libzbar0), or take decoder 'zxing'"
        ) from None

    def read(picture: np.ndarray) -> list[str]:
        codes = pyzbar.decode(picture, symbols=[pyzbar.ZBarSymbol.QRCODE])
        return [code.data.decode("utf-8", "replace") for code in codes]

    return read
