"""Codes on a square canvas: QR and Micro QR (ISO/IEC 18004).

A code is a square of n x n *modules*, dark or light, with light around it, the *quiet zone*. `fit`
chooses version, error correction and the size of a module for a canvas; the `Layout` it returns
draws the control image for a ControlNet, and measures how many modules of an image are on the wrong
side:

    luminance  Y = 0.299 R + 0.587 G + 0.114 B (Rec. 601, as readers take it), the mean over the
               middle of a module
    wrong      a dark module with Y > 0.45, a light one with Y < 0.65      (DiffQRCoder, WACV 2025)
    error      sum of w * wrong / sum of w
               w = 2 in the finder patterns (the squares in the corners), else 1
    soft       with b how far Y lies beyond its threshold, wrong = sigmoid((b + 0.05) / soft), which
               has a gradient: what is surely right or hopelessly wrong is left alone

Below 128 px only Micro QR leaves a module its 4 px, the image's share of one latent pixel of the
embedded models.

ASCII is written as the standard has it. Any other text is UTF-8, and says so (ECI 26) where it can,
in all codes but Micro QR: readers take bytes without that for Latin-1, Shift_JIS or UTF-8, as each
guesses. Every code is read back before it is handed out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, pad

from burnish.qr.decoders import BINARIZERS, decoder
from burnish.types import Prompt

TINY = 128  # px: a canvas below this side takes Micro QR
FINDER = 7  # modules a side
# luminance above which a dark module is wrong, and below which a light one is
DARK = 0.45
LIGHT = 0.65
MARGIN = 0.05  # how far from its threshold a module is right by half where that is a soft question
LEVELS = ("L", "M", "Q", "H")
MICRO = ("M1", "M2", "M3", "M4")
LARGEST = 2048  # px: the largest canvas that an error message recommends
LONGEST = 7089  # characters: digits in version 40 at level L
ALPHANUMERIC = frozenset("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ $%*+-./:")
"""Characters of which a code holds more than of others; of digits still more (ISO/IEC 18004)."""
BLOCK = 8  # px: the side of the squares that zxing-cpp finds one threshold for
SETTINGS = ("error", "version", "mask", "module", "quiet")


@dataclass(frozen=True)
class Layout:
    """A code on a canvas: its payload and the place of each module; lengths are in px."""

    payload: str
    version: int | str  # 1 to 40, or "M1" to "M4"
    error: str  # "L", "M", "Q", "H"; "" of M1, which only detects errors
    mask: int
    module: int  # side of a module
    left: int  # of the code's first column, and of its first row from the top
    quiet: int  # width of the white field around the code
    side: int  # of the canvas
    # (n, n) bool, True is dark; what is above determines it
    modules: Tensor = field(compare=False, repr=False)

    @property
    def designator(self) -> str:
        """Version and error level, such as "M2-M" or "3-H"."""
        return f"{self.version}-{self.error}" if self.error else str(self.version)

    @property
    def micro(self) -> bool:
        """True for a Micro QR code, which fewer readers know."""
        return isinstance(self.version, str)

    def draw(self, ground: float | None = None) -> Tensor:
        """Return the control image: black modules on white, (3, side, side) float32 in [0, 1].

        Args:
            ground: luminance outside the code and its quiet zone; by default the 0.5 of the public
                QR ControlNets, but white on a tiny canvas, where everything outside is quiet zone.
        """
        if ground is None:
            ground = 1.0 if self.side < TINY else 0.5

        image = torch.full((self.side, self.side), ground)
        code = slice(self.left, self.left + self.module * len(self.modules))
        around = slice(max(0, code.start - self.quiet), code.stop + self.quiet)
        image[around, around] = 1.0
        squares = self.modules.repeat_interleave(self.module, 0).repeat_interleave(self.module, 1)
        image[code, code] = (~squares).float()

        return image.expand(3, -1, -1).contiguous()

    def luminance(self, images: Tensor) -> Tensor:
        """Return the mean luminance of the middle of every module, (B, n, n).

        The middle is the central third, at least 2 px, and a px more where it could not lie as far
        from either side.

        Args:
            images: (B, 3, side, side) in [0, 1].

        Raises:
            ValueError: the images are not of this canvas.
        """
        return self._middle(self._grey(images))

    def _middle(self, grey: Tensor) -> Tensor:
        """Return the mean of the middle of modules (B, n, module, n, module), (B, n, n)."""
        size = self.module
        third = min(size, max(2, round(size / 3)))
        third += (size - third) % 2  # as many px on either side of it
        middle = slice((size - third) // 2, (size + third) // 2)
        return grey[:, :, middle, :, middle].mean((2, 4))

    def errors(
        self,
        images: Tensor,
        by_area: bool = False,
        soft: float = 0.0,
        around: int = 0,
        cells: int = 0,
    ) -> Tensor:
        """Return the fraction of modules on the wrong side, (B,); finder patterns count double.

        Args:
            images: (B, 3, side, side) in [0, 1].
            by_area: judge all px of a module instead of its middle, which makes it the fraction of
                the area on the wrong side.
            soft: luminance over which right turns into wrong; 0: at once, without a gradient.
            around: light modules of the quiet zone that count too, on each side of the code, as far
                as the zone reaches.
            cells: by area, judge so many means in each row and column of a module instead of its
                px, as a reader from further away would; 0: its px. More than its px are its px.

        Raises:
            ValueError: the images are not of this canvas.
        """
        ring = min(around, self.quiet // self.module)
        luminance = self._grey(images, ring)
        if not by_area:
            luminance = self._middle(luminance)[:, :, None, :, None]
        elif cells:
            luminance = _means(luminance, min(cells, self.module))

        dark = pad(self.modules, (ring,) * 4).to(images.device)[:, None, :, None]
        beyond = torch.where(dark, luminance - DARK, LIGHT - luminance)

        if soft:
            wrong = ((beyond + MARGIN) / soft).sigmoid()
        else:
            right = torch.where(dark, luminance <= DARK, luminance >= LIGHT)  # NaN is wrong
            wrong = (~right).to(luminance.dtype)

        weight = pad(self.weight(), (ring,) * 4, value=1.0).to(luminance)
        return (wrong.mean((2, 4)) * weight).sum((1, 2)) / weight.sum()

    def weight(self) -> Tensor:
        """Return the weight of each module, (n, n): 2 in a finder pattern, else 1.

        A Micro QR code has one finder pattern, a QR code three.
        """
        weight = torch.ones(self.modules.shape)
        weight[:FINDER, :FINDER] = 2

        if not self.micro:
            weight[-FINDER:, :FINDER] = 2
            weight[:FINDER, -FINDER:] = 2

        return weight

    def _grey(self, images: Tensor, ring: int = 0) -> Tensor:
        """Return the luminance of every px of every module, (B, n, module, n, module).

        With a `ring` of so many modules around the code, n is larger by twice that.
        """
        if images.shape[1:] != (3, self.side, self.side):
            raise ValueError(
                f"this code lies on a canvas of {self.side} x {self.side} px, but the images are "
                f"of shape {tuple(images.shape[1:])}; fit the code to their side, or resize them"
            )

        n = len(self.modules) + 2 * ring
        size = self.module
        first = self.left - ring * size
        code = slice(first, first + n * size)
        weights = images.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)

        return (images[:, :, code, code] * weights).sum(1).view(-1, n, size, n, size)


def _means(luminance: Tensor, cells: int) -> Tensor:
    """Return the means of cells x cells parts of each module, (B, n, cells, n, cells).

    Parts overlap by a px where the side of a module is no multiple of `cells`.

    Args:
        luminance: of every px of every module, (B, n, module, n, module).
        cells: in a row of a module.
    """
    modules = luminance.transpose(2, 3)
    means = adaptive_avg_pool2d(modules.flatten(0, 2)[:, None], cells)
    return means.view(*modules.shape[:3], cells, cells).transpose(2, 3)


def fit(
    payload: str,
    side: int,
    *,
    error: str | None = None,
    version: int | str | None = None,
    mask: int | None = None,
    module: int | None = None,
    quiet: int | None = None,
) -> Layout:
    """Return the code of a payload on a square canvas, as easy to read as the canvas allows.

    By default the smallest version that holds the payload at level M (below 128 px: the smallest
    Micro QR version from M2 on, at any level), the highest error correction that does not raise it,
    modules of 16 px where the canvas has 512 px and they fit, else 8, else 4, and a quiet zone of 4
    modules (Micro QR: 2) or as many as fit, never under 1. Modules and offset are multiples of 4
    px, to lie on the grid of the latents; from 512 px on of 8 px, where they can be.

    Args:
        payload: the text to encode.
        side: of the canvas in px.
        error: "L", "M", "Q" or "H": exactly this level.
        version: 1 to 40, or "M1" to "M4".
        mask: 0 to 7, of Micro QR 0 to 3; by default the one the standard rates best.
        module: side of a module in px; with another size than a multiple of 4 it leaves the grid.
        quiet: width of the quiet zone in modules, at least 1.

    Raises:
        ValueError: the payload, the canvas and the settings do not go together, or no reader reads
            the code; the message says what would help.

    >>> fit("AB12C", 64).designator
    'M2-M'
    """
    _check(payload, side, error, version, mask, module, quiet)
    return _fit(payload, side, error, version, mask, module, quiet)


@lru_cache(maxsize=4096)  # an iteration asks about few payloads, many times
def _fit(
    payload: str,
    side: int,
    error: str | None,
    version: int | str | None,
    mask: int | None,
    module: int | None,
    quiet: int | None,
) -> Layout:
    """Return the code, read back; the arguments are those of `fit`, checked."""
    settings: dict[str, Any] = {
        "error": error,
        "version": version,
        "mask": mask,
        "module": module,
        "quiet": quiet,
    }
    layout = _attempt(payload, side, **settings)

    if layout is None:
        raise ValueError(_what_fits(payload, side, settings))
    if not _is_read_back(layout):
        raise ValueError(
            f"no reader reads the bare code of the payload {payload[:40]!r} ({layout.designator}, "
            f"mask {layout.mask}, modules of {layout.module} px, on {side} px); take a larger "
            "module or canvas, another mask, or another text"
        )

    return layout


def _is_read_back(layout: Layout) -> bool:
    """Return True if zxing-cpp reads exactly the payload in the drawing."""
    pixels = layout.draw()[0].mul(255).round().to(torch.uint8).numpy()
    return any(layout.payload in decoder(name)(pixels) for name in BINARIZERS)


def layout_of(prompt: Prompt, side: int) -> Layout:
    """Return the code that a prompt asks for: its metadata["payload"] on a square canvas.

    metadata["qr"] may hold arguments of `fit`.

    Args:
        prompt: with the payload.
        side: of the canvas in px.

    Raises:
        ValueError: there is no payload, or it does not fit; the message names the prompt.
    """
    payload = prompt.metadata.get("payload")
    settings = prompt.metadata.get("qr", {})

    if not isinstance(payload, str) or not payload:
        raise ValueError(
            f"the prompt '{prompt.text}' has no payload to encode; give it one in its metadata, as "
            "the prompt source qr does"
        )
    if not isinstance(settings, Mapping) or not set(settings) <= set(SETTINGS):
        raise ValueError(
            f"the prompt '{prompt.text}' has qr = {settings!r}; give a table of "
            f"{', '.join(SETTINGS)}"
        )

    try:
        return fit(payload, side, **settings)
    except ValueError as reason:
        raise ValueError(f"the prompt '{prompt.text}': {reason}") from reason


def check_codes(prompts: Iterable[Prompt], side: int) -> None:
    """Refuse prompts whose codes do not fit, quickly: of payloads of one kind and length only one.

    Raises:
        ValueError: the message names the first such prompt and says how many more there are.
    """
    problems: dict[object, str] = {}
    wrong = []

    for prompt in prompts:
        payload = str(prompt.metadata.get("payload"))
        kind = payload.isdecimal() + (set(payload) <= ALPHANUMERIC)
        key = (len(payload.encode("utf-8", "replace")), kind, repr(prompt.metadata.get("qr")))
        if key not in problems:
            try:
                layout_of(prompt, side)
                problems[key] = ""
            except ValueError as error:
                problems[key] = str(error)
        if problems[key]:
            wrong.append(problems[key])

    if wrong:
        more = f" ({len(wrong) - 1} further prompts have such codes too)" if len(wrong) > 1 else ""
        raise ValueError(wrong[0] + more)


def _check(
    payload: str, side: int, error: Any, version: Any, mask: Any, module: Any, quiet: Any
) -> None:
    """Raise a ValueError about the first argument that is wrong by itself."""
    if not isinstance(payload, str) or not payload:
        raise ValueError(f"the payload is {payload!r}; give a text of at least one character")
    if any("\ud800" <= character <= "\udfff" for character in payload):
        raise ValueError(
            f"the payload {payload[:40]!r} has half of a character (a surrogate), which no code "
            "can hold; give valid Unicode, in a terminal UTF-8"
        )
    if isinstance(version, bool | float) or version not in (None, *MICRO, *range(1, 41)):
        raise ValueError(f"version = {version!r}: take 1 to 40, or {', '.join(MICRO)}")
    if error not in (None, *LEVELS):
        raise ValueError(f"error = {error!r}: take one of {', '.join(LEVELS)}")

    micro = version in MICRO or (version is None and side < TINY)
    if micro and error == "H":
        raise ValueError(
            f'error = "H": a Micro QR code, as on {side} px, corrects up to Q (version M4); take a '
            f"lower level, or a canvas of at least {TINY} px"
        )
    if mask is not None and (type(mask) is not int or mask not in range(4 if micro else 8)):
        masks = "0 to 3 (Micro QR)" if micro else "0 to 7"
        raise ValueError(f"mask = {mask!r}: take {masks}")

    for name, length, least in (("side", side, 1), ("module", module, 2), ("quiet", quiet, 1)):
        if length is None:
            continue
        if isinstance(length, bool) or not isinstance(length, int) or length < least:
            raise ValueError(f"{name} = {length!r}: take a whole number of at least {least}")


def _attempt(
    payload: str,
    side: int,
    error: str | None,
    version: int | str | None,
    mask: int | None,
    module: int | None,
    quiet: int | None,
) -> Layout | None:
    """Return the code in the first version that holds the payload; None if it does not fit."""
    smallest: Sequence[int | str | None] = MICRO[1:] if side < TINY else (None,)

    for candidate in (version,) if version else smallest:
        micro = isinstance(candidate, str)
        code = _encode(payload, error, candidate, mask)
        if code is None:
            continue

        lengths = _lengths(len(code.matrix), side, micro, module, quiet)
        if lengths is None:  # a larger version would not fit either
            return None

        dark = torch.tensor([list(row) for row in code.matrix]) == 1
        return Layout(payload, code.version, code.error or "", code.mask, *lengths, side, dark)

    return None


@lru_cache(maxsize=256)  # it does not depend on the canvas, of which an error message tries many
def _encode(
    payload: str, error: str | None, version: int | str | None, mask: int | None
) -> Any | None:
    """Return segno's code of a payload; None if this version does not hold it.

    Args:
        payload: the text.
        error: its level; None takes the highest that does not raise the version, at least M.
        version: 1 to 40, "M1" to "M4"; None takes the smallest of the ordinary ones.
        mask: its number; None takes the best.
    """
    try:
        import segno
    except ImportError:
        raise ValueError("codes need the package segno: pip install segno") from None

    if len(payload) > LONGEST:
        return None

    micro = isinstance(version, str)
    # left to itself segno takes Latin-1, which readers do not guess, or Shift_JIS
    ascii_only = payload.isascii()

    try:
        return segno.make(
            payload,
            error=error or (None if micro else "m"),
            version=version,
            mask=mask,
            micro=micro,
            boost_error=error is None,
            mode=None if ascii_only else "byte",
            encoding=None if ascii_only else "utf-8",
            eci=not (ascii_only or micro),
        )
    # it is too long, or has characters or a level that this version does not have
    except ValueError:
        return None


def _lengths(
    n: int, side: int, micro: bool, module: int | None, quiet: int | None
) -> tuple[int, int, int] | None:
    """Return module, left and quiet of a `Layout`; None if the canvas is too small."""
    if module:
        sizes = [module]
    elif side >= 512:
        sizes = [16, 8, 4]
    else:
        sizes = [8, 4]

    preferred = quiet or (2 if micro else 4)

    for size in sizes:
        middle = (side - n * size) // 2
        grid = 8 if size % 8 == 0 else 4
        lefts = [middle // grid * grid]  # the left is never the wider side
        # A flat module that fills a block has no contrast there, and zxing-cpp loses its way; from
        # 512 px on it tries a smaller image too.
        if size == BLOCK and side < 512 and not micro:
            lefts.insert(0, (middle - BLOCK // 2) // BLOCK * BLOCK + BLOCK // 2)

        for left in lefts:
            if left >= size * (quiet or 1):
                return size, left, min(left, size * preferred)

    return None


def _what_fits(payload: str, side: int, settings: Mapping[str, Any]) -> str:
    """Return a sentence about a payload that does not fit, with the changes that would help."""
    # which mask is best takes long and changes no size
    quick = {**settings, "mask": settings["mask"] or 0}

    def fits(text: str, px: int) -> bool:
        return _attempt(text, px, **quick) is not None

    lengths = range(1, min(len(payload), LONGEST + 1))
    most = bisect_left(lengths, True, key=lambda length: not fits(payload[:length], side))
    sides = range(side // 8 * 8 + 8, LARGEST + 1, 8)
    first = bisect_left(sides, True, key=lambda px: fits(payload, px))
    changes = []

    if most > 0:
        changes.append(f"shorten it to {most} of its {len(payload)} characters")
    if first < len(sides):
        changes.append(f"take a canvas of {sides[first]} px")
    if payload != payload.upper() and fits(payload.upper(), side):
        changes.append("write it in capital letters")

    given = ", ".join(
        f"{name} = {value!r}" for name, value in settings.items() if value is not None
    )
    described = f" with {given}" if given else ""
    advice = ", or ".join(changes) or "let version, error and module be chosen"
    return f"the payload {payload[:40]!r} does not fit a canvas of {side} px{described}; {advice}"
