"""One sentence for what went wrong: the pieces of error messages that every wing needs.

Standard library only.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

JOINERS = "\u200c\u200d"
"""Characters without a shape that emoji and some scripts need."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def printable(text: object) -> str:
    r"""Return a text on one line, without characters that a terminal obeys instead of showing.

    Ends of lines, other control characters (such as the escape that begins a colour or a link) and
    marks that turn the writing direction become their numbers, such as \x1b.
    """
    return "".join(
        letter if letter.isprintable() or letter in JOINERS else repr(letter)[1:-1]
        for letter in str(text)
    )


def type_and_message(error: BaseException) -> str:
    """Return an error as its type and its message, such as "KeyError: 'a'"."""
    return f"{type(error).__name__}: {error}"


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
