"""One sentence for what went wrong: the pieces of error messages that every wing needs.

Standard library only.
"""

from __future__ import annotations

import errno
import os
import re
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unicodedata import category

from burnish.redaction import redact

REASONS: dict[int, str] = {
    errno.ENOSPC: (
        "the disk is full; what was there before is kept: free some space, then try again "
        "(a training goes on with --resume)"
    ),
    errno.EACCES: "no permission to write there; choose another --out",
    errno.EISDIR: "it is a folder; choose another name",
    errno.ENOTDIR: "a part of its path is a file, not a folder; choose another name",
    errno.EEXIST: "a file is in the way of the folder; choose another name",
    errno.ENAMETOOLONG: "its name is too long; choose a shorter one",
    errno.EFBIG: "it is too large for this disk; choose another --out",
    errno.EIO: "the disk reports an error; choose another one",
}
"""Why a file cannot be written, and what to do about it, by the number of the system's error."""
REASONS[errno.EDQUOT] = REASONS[errno.ENOSPC]
REASONS[errno.EROFS] = REASONS[errno.EPERM] = REASONS[errno.EACCES]

JOINERS = "\u200c\u200d"
"""Characters without a shape that emoji and some scripts need."""

HALF_CHARACTER = re.compile("[\ud800-\udfff]")
"""A surrogate, which is a character only together with another one."""

LIBRARIES = tuple(
    sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
"""The folders of Python and of what is installed."""


class NoSuchFile(FileNotFoundError):
    """A file that a configuration names is not there; the message says where it was looked for."""

    def __init__(self, path: Path, kind: str = "file", where: str = "", setting: str = "") -> None:
        """Say what is missing.

        Args:
            path: of the file.
            kind: of the file.
            where: the table stands that names it, such as "rewards.0".
            setting: what gives it another place, such as "prompts.path=FOLDER/mine.txt".
        """
        self.path = path
        self.kind = kind
        self.setting = setting
        remedy = f", or give its place by --set {setting}" if setting else ""
        super().__init__(
            f"{where}{': ' if where else ''}{path}: no such {kind}; it was looked for as "
            f"{os.path.abspath(path)} (a relative path counts from the folder of the file it "
            f"stands in, behind --set from the current folder): put it there{remedy}"
        )

    def named(self, where: str, key: str, suffix: str = "") -> NoSuchFile:
        """Return the error with the key under which a configuration names the file.

        Args:
            where: the table stands, such as "prompts".
            key: in it.
            suffix: behind the path.
        """
        setting = f"{where}.{key}=FOLDER/{self.path.name}{suffix}"
        return NoSuchFile(self.path, self.kind, where, setting)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type where it has none.

    Keys and passwords in it are hidden.
    """
    lines = redact(str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def printable(text: object) -> str:
    r"""Return a text on one line, without characters that a terminal obeys instead of showing.

    Ends of lines, other control characters (such as the escape that begins a colour or a link) and
    marks that turn the writing direction become their numbers, such as \x1b.
    """
    return "".join(
        letter
        if letter.isprintable() or letter in JOINERS or category(letter) == "Zs"
        else repr(letter)[1:-1]
        for letter in str(text)
    )


def type_and_message(error: BaseException) -> str:
    """Return an error as its type and its message, such as "KeyError: 'a'", without keys."""
    return f"{type(error).__name__}: {redact(str(error))}"


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
    """Turn the errors of a disk that a user can fix into one sentence about `path`.

    Raises:
        OSError: `path` could not be written; the message says why and what to do.
    """
    try:
        yield
    except OSError as error:
        reason = REASONS.get(error.errno or 0)
        if reason is None:
            raise
        raise OSError(f"{path} could not be written: {reason}") from error
