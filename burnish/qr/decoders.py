"""Readers of codes by name, each a function from a grey image to the texts of its codes.

    zxing           zxing-cpp, thresholds from each pixel's surroundings; QR and Micro QR
    zxing-global    the same with one threshold for the whole image, from its histogram
    zxing-fixed     the same with the threshold at mid grey
    opencv          OpenCV's QRCodeDetector, QR only
    pyzbar          ZBar, QR only

    pip install 'burnish[qr]'                      for zxing and its variants
    pip install opencv-python-headless             for opencv
    pip install pyzbar, and the library libzbar0   for pyzbar

zxing-cpp also finds turned, mirrored, shrunk and light-on-dark codes. A text is given as it was
encoded, control characters and all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import dist
from typing import Any

import numpy as np

Decoder = Callable[[np.ndarray], list[str]]
"""A grey image (H, W) uint8 -> the texts of the codes in it, which may be none.

It is safe to call from threads.
"""
BINARIZERS: Mapping[str, str] = {
    "zxing": "LocalAverage",
    "zxing-global": "GlobalHistogram",
    "zxing-fixed": "FixedThreshold",
}
NAMES = (*BINARIZERS, "opencv", "pyzbar")
READ_MICRO = tuple(BINARIZERS)
"""The decoders that read Micro QR."""


@dataclass(frozen=True)
class FoundCode:
    """A code that zxing-cpp found: its text, its kind, and the side of its modules in px."""

    payload: str
    designator: str
    module: float


def decoder(name: str) -> Decoder:
    """Return the reader of that name.

    Raises:
        ValueError: the name is unknown, or its package is not installed; the message says how to
            get it.
    """
    if name in BINARIZERS:
        return _zxing(name)
    if name == "opencv":
        return _opencv()
    if name == "pyzbar":
        return _pyzbar()

    raise ValueError(f"decoder {name!r} is unknown; take one of {', '.join(NAMES)}")


def variants(name: str) -> tuple[str, ...]:
    """Return the reader's name and, for `zxing`, its other binarizers.

    A phone that tries several binarizers reads what any of them reads.
    """
    return tuple(BINARIZERS) if name == "zxing" else (name,)


def find(image: np.ndarray) -> list[FoundCode]:
    """Return every QR and Micro QR code of a grey image (H, W) uint8, each text once.

    Every binarizer of zxing-cpp is tried.
    """
    codes: dict[str, FoundCode] = {}

    for name in BINARIZERS:
        for code in _read(image, name):
            codes.setdefault(code.text, _described(code))

    return list(codes.values())


def _described(code: Any) -> FoundCode:
    """Return the text, kind and module size of a code of zxing-cpp."""
    micro = code.format == _library().BarcodeFormat.MicroQRCode
    version = code.extra["Version"]  # "3", or "M2"
    n = 9 + 2 * int(version[1:]) if micro else 17 + 4 * int(version)

    at = code.position
    corners = [
        (corner.x, corner.y)
        for corner in (at.top_left, at.top_right, at.bottom_right, at.bottom_left)
    ]
    following = [*corners[1:], corners[0]]
    perimeter = sum(dist(a, b) for a, b in zip(corners, following, strict=True))
    designator = f"{version}-{code.ec_level}" if code.ec_level else version

    return FoundCode(code.text, designator, max(1.0, perimeter / 4 / n))


def _zxing(name: str) -> Decoder:
    _library()
    return lambda image: [code.text for code in _read(image, name)]


def _read(image: np.ndarray, name: str) -> Sequence[Any]:
    zxing = _library()
    codes: Sequence[Any] = zxing.read_barcodes(
        image,
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
            "decoder 'opencv' needs OpenCV: pip install opencv-python-headless, or take decoder "
            "'zxing'"
        ) from None

    def read(image: np.ndarray) -> list[str]:
        try:
            # a new one each time: it must not be shared
            text = cv2.QRCodeDetector().detectAndDecode(image)[0]
        except cv2.error:  # some images trip its own assertions: it has not read them
            return []

        return [text] if text else []

    return read


def _pyzbar() -> Decoder:
    try:
        from pyzbar import pyzbar
    except ImportError:  # of the package, or of the library that it wants
        raise ValueError(
            "decoder 'pyzbar' needs the package pyzbar (pip install pyzbar) and the system's "
            "library zbar (apt install libzbar0), or take decoder 'zxing'"
        ) from None

    def read(image: np.ndarray) -> list[str]:
        codes = pyzbar.decode(image, symbols=[pyzbar.ZBarSymbol.QRCODE])
        return [code.data.decode("utf-8", "replace") for code in codes]

    return read
