"""One sentence for what went wrong: the pieces of error messages that every wing needs.

Standard library only.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SECRET = re.compile(r"passw|secret|credential|token$|(api|access|private|auth).?key", re.IGNORECASE)
"""Names of texts that only their owner may read."""

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


def without_secret(name: str, value: Any) -> Any:
    """Return a value of a configuration as others may read it.

    A text that is a password or a key by its name is hidden, and a URL loses what stands before
    its host and behind its path.

    >>> without_secret("url", "https://me:pw@host/score?key=1")
    'https://host/score'
    """
    if not isinstance(value, str):
        return value
    if SECRET.search(name):
        return "(hidden)"

    try:
        url = urlsplit(value) if "://" in value else None
    except ValueError:
        return "(hidden)"

    if url is None or not url.netloc:
        return value
    return url._replace(netloc=url.netloc.rpartition("@")[2], query="", fragment="").geturl()


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
