"""Lines on a terminal: nothing in them steers it, and what it cannot show is shown plainly."""

from __future__ import annotations

import codecs
import io
import sys
from typing import IO

from burnish.errors import printable
from burnish.redaction import redact

PLAIN = {"−": "-", "–": "-", "±": "+-", "×": "x", "…": "...", "→": "->", "ρ": "rho", "²": "2"}
"""What stands for a character of ours where there is none."""


def say(text: object, stream: IO[str] | None = None) -> None:
    """Print a text on one line, without secrets.

    Control characters and what the stream lacks become escapes.
    """
    stream = stream or sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"  # a notebook's has none
    shown = printable(redact(str(text))).encode(encoding, "burnish-plain").decode(encoding)
    print(shown, file=stream, flush=True)


def adapt_streams() -> None:
    """Let stdout and stderr show what their encoding lacks plainly, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="burnish-plain")


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """Return what stands for characters that cannot be encoded, and where to go on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error

    characters = error.object[error.start : error.end]
    plain = "".join(PLAIN.get(one, one) for one in characters)
    return plain.encode("ascii", "backslashreplace").decode(), error.end


codecs.register_error("burnish-plain", _plainly)
