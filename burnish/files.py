"""Files: written completely or not at all, and read as UTF-8. Standard library only.

A file is written beside its place, flushed to the disk and moved there, and then the folder is
flushed too: a crash leaves the old file or the new one, and at worst a leftover.

    .NAME.PID.N.part    a file that was being written
    .NAME.part          a folder that was being written or deleted
    .adapter-XXXX       files on their way into the folder around it

Rows of a text end at a line feed only (before which a carriage return is dropped), never at the
other characters at which Python's `splitlines` breaks: a prompt may contain those.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from burnish.errors import os_error_context

BREAKS_LINES = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Characters that end a line for some readers, or that no UTF-8 file can hold."""

COUNTER = itertools.count()
"""Numbers the files that this process writes: two threads may write the same one."""

# Writing ----------------------------------------------------------------------------------------


def write(path: Path, content: str | bytes) -> None:
    """Write `content` to `path`, completely or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{next(COUNTER)}.part")
    # half of a pair of surrogates is no character; it is written as an escape
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content

    with os_error_context(path):
        make_folder(path.parent)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                flush(file)
            replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def flush(file: IO[Any]) -> None:
    """Wait until everything that was written to `file` is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk; Windows has nothing to wait for."""
    if os.name == "nt":
        return

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network drives do not know how
            raise
    finally:
        os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """Wait until all that is in a folder is on the disk."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
            continue
        with open(path, "rb+") as file:
            flush(file)
    sync_folder(folder)


def replace(source: Path, target: Path) -> None:
    """Move a file or folder to its final place; it is there on the disk when this returns."""
    os.replace(source, target)
    sync_folder(target.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and those around it, where they are missing.

    Raises:
        OSError: a file is in the way, or there is no permission; the message names the folder.
    """
    if folder.is_dir():
        return

    with os_error_context(folder):
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def remove_folder(folder: Path) -> None:
    """Delete a folder: first out of sight, so that a crash leaves nothing that looks whole."""
    hidden = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(hidden, ignore_errors=True)

    if folder.exists():
        replace(folder, hidden)
        shutil.rmtree(hidden, ignore_errors=True)


@contextmanager
def publishing(folder: Path, prepare: Callable[[Path], None] = lambda path: None) -> Iterator[Path]:
    """Yield a new folder to write into, whose files are then put into `folder` one by one.

    Each is flushed to the disk first.

    Args:
        folder: where the files go; it is made if it is missing.
        prepare: called with the path of each file before it goes there.
    """
    make_folder(folder)
    temporary = Path(tempfile.mkdtemp(prefix=".adapter-", dir=folder))

    try:
        yield temporary

        for file in sorted(path for path in temporary.rglob("*") if path.is_file()):
            prepare(file)
            with open(file, "rb+") as written:
                os.fsync(written.fileno())
            target = folder / file.relative_to(temporary)
            make_folder(target.parent)
            replace(file, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# Reading ----------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """Return a UTF-8 file's text, without the mark with which some editors begin it.

    Raises:
        ValueError: it is not UTF-8 text; the message names it.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text; save the file as UTF-8") from error


def raw_rows(path: Path) -> list[tuple[int, bytes]]:
    """Return the (row number, bytes) of every row of a file, without what ends it."""
    rows = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return [(number, raw.removesuffix(b"\r")) for number, raw in enumerate(rows, 1)]


def decode_row(path: Path, row: int, raw: bytes) -> str:
    """Return the text of a row.

    Raises:
        ValueError: it is not UTF-8; the message names file and row.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, row {row}: not UTF-8 text; save the file as UTF-8") from error


def json_object(text: str, place: str, remedy: str) -> dict[str, Any]:
    """Return the object that a JSON text describes.

    Args:
        text: of a file, or of a row of one.
        place: begins the error message: the file and perhaps the row.
        remedy: ends it: what to do.

    Raises:
        ValueError: it is no JSON, or something other than an object.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None

    if not isinstance(value, dict):
        raise ValueError(f"{place}: not a JSON object; {remedy}")
    return value


def dumps(value: Any, indent: int | None = None) -> str:
    """Return JSON that every reader accepts, in one line unless it is indented.

    Numbers that are not finite become null. Only what breaks lines is escaped.
    """
    text = json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return BREAKS_LINES.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]

    return value


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
