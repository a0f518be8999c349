"""One sentence for what went wrong: the pieces of error messages that every wing needs.

Standard library only.
"""

from __future__ import annotations

import errno
import os
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIBRARIES = tuple(
    sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
"""The folders of Python and of what is installed."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def type_and_message(error: BaseException) -> str:
    """Return an error as its type and its message, such as "KeyError: 'a'"."""
    return f"{type(error).__name__}: {error}"


def place_of(error: BaseException) -> str:
    """Return FILE:LINE where an error left a user's code, or "" where none was on its way.

    Packages that are installed, Python's and this one are not the user's.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_library(frame.filename)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else ""


def _is_library(file: str) -> bool:
    folders = (str(Path(__file__).parent), *LIBRARIES)
    return file.startswith(("<frozen", *(f"{folder}{os.sep}" for folder in folders)))


@contextmanager
def os_error_context(path: Path) -> Iterator[None]:
    """Turn the two errors of a disk that a user can fix into one sentence about `path`.

    Raises:
        OSError: the disk is full, or there is no permission to write at `path`.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = (
                "the disk is full; what was there before is kept: free some space, "
                "then go on with --resume"
            )
        elif error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            reason = "no permission to write there; choose another --out"
        else:
            raise

        raise OSError(f"{path} could not be written: {reason}") from error
