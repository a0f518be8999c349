"""Readers of codes by name, each a function from a grey image to the texts of its codes.

    zxing           zxing-cpp, thresholds from each pixel's surroundings; QR and Micro QR
    zxing-global    the same with one threshold for the whole image, from its histogram
    zxing-fixed     the same with the threshold at mid grey
    opencv          OpenCV's QRCodeDetector, QR only
    pyzbar          ZBar, QR only

    pip install zxing-cpp                          for zxing and its variants
    pip install opencv-python-headless             for opencv
    pip install pyzbar, and the library libzbar0   for pyzbar

zxing-cpp also finds turned, mirrored, shrunk and light-on-dark codes. A text is given as it was
encoded, control characters and all. An image on which a library raises an exception is not read by
it; the first exception of each library is logged.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import dist
from typing import Any

import numpy as np

from burnish.errors import type_and_message

LOG = logging.getLogger(__name__)
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
INSTALL: Mapping[str, str] = {
    "zxing": "pip install zxing-cpp",
    "pyzbar": "pip install pyzbar; apt install libzbar0",
    "opencv": "pip install opencv-python-headless",
}
"""One decoder of each library, none of which shares code with another, and how to install it."""
ENDS = (KeyboardInterrupt, SystemExit, GeneratorExit)
"""Exceptions that end the program; all others, a panic of Rust too, are about an image."""
_reported: set[str] = set()  # decoders whose first exception was logged


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
    if name not in NAMES:
        raise ValueError(f"decoder {name!r} is unknown; take one of {', '.join(NAMES)}")

    makers = {"opencv": _opencv, "pyzbar": _pyzbar}
    return _tolerant(name, _zxing(name) if name in BINARIZERS else makers[name]())


def independent(decoders: Sequence[str]) -> tuple[str, ...]:
    """Return a decoder of each library that none of these decoders uses, installed or not.

    >>> independent(["zxing-fixed"])
    ('pyzbar', 'opencv')
    """
    used = {"zxing" if name in BINARIZERS else name for name in decoders}
    return tuple(name for name in INSTALL if name not in used)


def _tolerant(name: str, read: Decoder) -> Decoder:
    """Return a decoder that has not read an image where its library raises an exception."""

    def tolerant(image: np.ndarray) -> list[str]:
        try:
            return read(image)
        except ENDS:
            raise
        except BaseException as error:  # of any kind: the library is not ours
            _report(name, error)
            return []

    return tolerant


def _report(name: str, error: BaseException) -> None:
    """Log the first exception of a decoder: it may be a broken installation, or one odd image."""
    if name not in _reported:
        _reported.add(name)
        LOG.warning(
            "decoder '%s' raised %s: the image counts as not read (this is said once); if nothing "
            "is read by it, install it anew",
            name,
            type_and_message(error),
        )


def variants(name: str) -> tuple[str, ...]:
    """Return the reader's name and, for `zxing`, its other binarizers.

    A phone that tries several binarizers reads what any of them reads.
    """
    return tuple(BINARIZERS) if name == "zxing" else (name,)


def find(image: np.ndarray) -> list[FoundCode]:
    """Return every QR and Micro QR code of a grey image (H, W) uint8, each text once.

    Every binarizer of zxing-cpp is tried.
    """
    _library()
    codes: dict[str, FoundCode] = {}

    for name in BINARIZERS:
        try:
            found = [_described(code) for code in _read(image, name)]
        except ENDS:
            raise
        except BaseException as error:
            _report(name, error)
            found = []

        for code in found:
            codes.setdefault(code.payload, code)

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
    except Exception as error:
        raise ValueError(
            f"reading codes needs the package zxing-cpp: {INSTALL['zxing']} ({error})"
        ) from None

    return zxingcpp


def _opencv() -> Decoder:
    # it tells of every code that names its character set, and reads it
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")

    try:
        import cv2
    except Exception as error:
        raise ValueError(
            f"decoder 'opencv' needs OpenCV: {INSTALL['opencv']}, or take decoder 'zxing' ({error})"
        ) from None

    def read(image: np.ndarray) -> list[str]:
        try:
            # a new one each time: it must not be shared
            text = cv2.QRCodeDetector().detectAndDecode(image)[0]
        except (cv2.error, UnicodeError):  # its own assertions; bytes of another character set
            return []

        return [text] if text else []

    return read


def _pyzbar() -> Decoder:
    try:
        from pyzbar import pyzbar
    except Exception as error:  # of the package, or of the library that it wants
        raise ValueError(
            "decoder 'pyzbar' needs the package pyzbar and the system's library zbar: "
            f"{INSTALL['pyzbar']}, or take decoder 'zxing' ({error})"
        ) from None

    def read(image: np.ndarray) -> list[str]:
        codes = pyzbar.decode(image, symbols=[pyzbar.ZBarSymbol.QRCODE])
        return [code.data.decode("utf-8", "replace") for code in codes]

    return read
