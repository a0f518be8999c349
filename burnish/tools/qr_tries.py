"""Every try of a search for codes, with who reads it: files that can be looked at meanwhile.

    OUT/search.json        what is looked for
    OUT/tries.jsonl        one line a try: its control scale, its margin, who reads it
    OUT/tries/0012.png     its image

The margin of a try has two numbers: under how many conditions a decoder reads it, and the fraction
of modules on the wrong side (`burnish.qr.layout.Layout.errors`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from burnish.files import dumps, make_folder, remove_folder, write
from burnish.images import image_grid
from burnish.qr.layout import Layout
from burnish.qr.phone import Phone
from burnish.qr.scanner import Readings, module_errors

IMAGE = re.compile(r"\.?\d{4,}\.png.*")
"""The name of the image of a try, also of one that was being written."""


@dataclass(frozen=True)
class Try:
    """A sampled image and how well it is read."""

    image: Tensor  # (3, H, W) in [0, 1], on the CPU
    attempt: int  # the number of the try, from 1
    scale: float  # of the control
    strict: bool  # every decoder reads it under every condition
    accepted: bool  # one of those that the command saves
    conditions: int
    read: Mapping[str, int]  # under how many of them each decoder reads it
    plain: Mapping[str, bool | None]  # independent readers of the image as it is; None: not there
    module_errors: float


def tries_of(
    images: Tensor,
    readings: Readings,
    layout: Layout,
    phone: Phone,
    first: int,
    scale: float,
    accepted: Sequence[int],
) -> list[Try]:
    """Return what is known of the images of a batch.

    Args:
        images: (B, 3, side, side) in [0, 1].
        readings: of these.
        layout: the code that they must show.
        phone: the readers that took no part.
        first: the number of the first try.
        scale: of the control.
        accepted: the numbers of the tries that are saved.
    """
    layouts = [layout] * len(images)
    errors = module_errors(images, layouts).tolist()
    plain = phone.plain(images, layouts)
    counts = readings.table.sum(2).tolist()

    return [
        Try(
            image=images[row],
            attempt=first + row,
            scale=scale,
            strict=bool(readings.strict[row]),
            accepted=first + row in accepted,
            conditions=len(readings.conditions),
            read=dict(zip(readings.decoders, counts[row], strict=True)),
            plain={name: None if read is None else bool(read[row]) for name, read in plain.items()},
            module_errors=errors[row],
        )
        for row in range(len(images))
    ]


def _not_ours(folder: Path) -> Iterator[Path]:
    """Yield files that a new search would delete or replace although no search wrote them."""
    for path in folder.glob("tries/*"):
        if not IMAGE.fullmatch(path.name):
            yield path

    for name, key in (("search.json", "payload"), ("tries.jsonl", "attempt")):
        path = folder / name
        first = path.read_text("utf-8", "replace").partition("\n")[0] if path.is_file() else ""
        if first and not _has_key(first, key):
            yield path


def _has_key(text: str, key: str) -> bool:
    try:
        content = json.loads(text)
    except ValueError:
        return False
    return isinstance(content, dict) and key in content


class TryLog:
    """Writes the tries of a search into its folder as they are read."""

    def __init__(self, folder: Path, **wanted: str | int) -> None:
        """Begin a search; the tries of an earlier one in the same folder are deleted.

        Args:
            folder: of the codes; it is made where it is missing.
            wanted: the fields of search.json.

        Raises:
            FileExistsError: the folder is a file, or has files of these names that no search wrote.
        """
        if folder.is_file():
            raise FileExistsError(f"{folder} is a file; choose another --out")
        if foreign := next(_not_ours(folder), None):
            raise FileExistsError(f"{foreign} is of no search for codes; choose another --out")

        self.folder = folder
        self.rows = ""
        make_folder(folder)
        remove_folder(folder / "tries")
        write(folder / "tries.jsonl", "")
        write(folder / "search.json", dumps(wanted))

    def add(self, tries: Sequence[Try]) -> None:
        """Write the images of a batch, then their lines."""
        for one in tries:
            write(self.folder / "tries" / f"{one.attempt:04d}.png", image_grid(one.image[None])[0])
            row = {name: value for name, value in vars(one).items() if name != "image"}
            self.rows += f"{dumps(row)}\n"
        write(self.folder / "tries.jsonl", self.rows)
