"""Text files with one prompt a line: read, and refused where they are files of another kind.

A table, a list in JSON or a page that is read line by line would be trained with its header,
quotes and marks. So what a line cannot be is looked for, and named in the error.
"""

from __future__ import annotations

import codecs
import re
import tomllib
from pathlib import Path

from burnish.errors import NoSuchFile
from burnish.types import MOST_PROMPTS

LONGEST_LINE = 2000
"""Characters of a line: a text encoder reads 77 tokens, so a longer one is a mistake."""

LARGEST_FILE = 1 << 29  # bytes

FORMATS = {
    b"\x1f\x8b": "a gzip file; unpack it first",
    b"PK\x03\x04": "a zip file (or of Excel or Word); unpack it, or save it as text",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"%PDF": "a PDF file; save its text",
    b"PAR1": "a Parquet file; save it as JSONL",
    b"SQLite format 3": "a database",
    b"{\\rtf": "a file of a text processor; save it as plain text",
}
"""Files by their first bytes."""

UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
TEXT_COLUMNS = frozenset(
    "prompt prompts text texts caption captions description noun nouns".split()
)
"""Names that the column of prompts has in the header of a table."""

TABLES = (".csv", ".tsv", ".psv")

TO_TEXT = "write one prompt a line, without a header and quotes"
TO_JSONL = 'write one object a line, {"prompt": "a cat"}, and take use = "jsonl"'

Rows = list[tuple[int, str]]
"""(row number from 1, line) of every line that is not empty, without space around it."""


def text_rows(path: Path) -> Rows:
    """Return the rows of a UTF-8 text file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no text file, too large, or empty; the message names the row.
    """
    content = _content(path)
    rows: Rows = []

    for row, raw in enumerate(re.split(rb"\r\n|\r|\n", content), 1):
        try:
            line = raw.decode("utf-8").removeprefix("\ufeff").strip()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}, row {row}: not UTF-8 text; save the file as UTF-8"
            ) from error

        if any(ord(character) < 32 and character != "\t" for character in line):
            raise ValueError(
                f"{path}, row {row}: a binary file, not text; give a text file with one prompt a "
                "line"
            )
        if line:
            rows.append((row, line))

    if not rows:
        raise ValueError(f"{path}: no prompts in it; write one prompt a line")
    if len(rows) > MOST_PROMPTS:
        raise ValueError(f"{path}: {len(rows):,} prompts; give {MOST_PROMPTS:,} at most")
    return rows


def prompt_lines(path: Path) -> list[str]:
    """Return the lines of a file with one prompt a line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file; the message says which kind of file it is.
    """
    rows = text_rows(path)
    _look_for_other_files(path, rows)
    for row, line in rows:
        if len(line) > LONGEST_LINE:
            raise ValueError(
                f"{path}, row {row}: {len(line)} characters in one line; keep a prompt under "
                f"{LONGEST_LINE} (a text encoder reads about 77 tokens)"
            )
        if kind := _unlike_a_prompt(line):
            raise ValueError(f"{path}, row {row}: '{line[:60]}' {kind}")

    _look_for_marks(path, rows)
    return [line for _, line in rows]


def _unlike_a_prompt(line: str) -> str:
    """Return what else a line is than a prompt, and what to do; "" for a prompt."""
    if re.match(r"(#+|//)(\s|$)", line):
        return "is a comment, and every line is a prompt; remove it"
    if re.match(r"\[?\s*{\s*['\"]|\[\s*['\"]|[\[{]$", line):
        return f"is no prompt, but JSON; {TO_JSONL}"
    if re.match(r"<(!doctype|html|head|body|\?xml|!--|svg)", line, re.IGNORECASE):
        return f"is no prompt, but of a web page; {TO_TEXT}"
    if "\t" in line or (re.match(r'"[^"]*"[,;|]', line) and not line.endswith('",')):
        return f"is no prompt, but a row of a table; {TO_TEXT}"

    inner = line.removesuffix(",")[1:-1]
    if re.match(r'".*",?$', line) and inner and '"' not in inner.replace('""', ""):
        return f"is in quotes; {TO_TEXT}"
    return ""


def _content(path: Path) -> bytes:
    if not path.exists():
        raise NoSuchFile(path, "prompt file")
    if path.is_dir():
        raise ValueError(
            f"{path}: a folder, not a prompt file; give a text file with one prompt a line"
        )
    if not path.is_file():
        raise ValueError(f"{path}: no ordinary file; give a text file with one prompt a line")
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(
            f"{path}: {path.stat().st_size >> 20:,} MiB are too many for prompts; give "
            f"{LARGEST_FILE >> 20} MiB at most"
        )

    content = path.read_bytes()
    for start, kind in FORMATS.items():
        if content.startswith(start):
            raise ValueError(f"{path}: {kind}; give a text file with one prompt a line")

    half_empty = len(content) > 3 and content[:64].count(0) >= len(content[:64]) // 3
    if content.startswith(UTF_16) or half_empty:
        raise ValueError(f"{path}: text in UTF-16, or none; save the file as UTF-8")
    return content


def _look_for_other_files(path: Path, rows: Rows) -> None:
    """Refuse a table by its header, TOML and YAML."""
    row, first = rows[0]
    delimiter = next((one for one in ";|," if one in first), ",")
    cells = [cell.strip().lower() for cell in first.split(delimiter)]
    names = all(re.fullmatch(r"[a-z_][\w.-]{0,29}", cell) for cell in cells)
    begins = cells[0] in TEXT_COLUMNS or f"{delimiter} " not in first

    if len(rows) > 1 and names and begins and TEXT_COLUMNS.intersection(cells):
        raise ValueError(f"{path}, row {row}: '{first[:60]}' is the header of a table; {TO_TEXT}")
    if path.suffix.lower() in TABLES and any("," in line or ";" in line for _, line in rows):
        raise ValueError(f"{path}: a table; {TO_TEXT}, in a .txt file")
    if first == "---" or re.match(r"[\w-]+:$", first):
        raise ValueError(f"{path}, row {row}: '{first}' is no prompt, but YAML; {TO_TEXT}")

    try:
        table = tomllib.loads("\n".join(line for _, line in rows))
    except (tomllib.TOMLDecodeError, RecursionError):
        return
    if table:
        raise ValueError(f"{path}, row {row}: TOML, not prompts; {TO_TEXT}")


def _look_for_marks(path: Path, rows: Rows) -> None:
    """Refuse lines that all have the same mark, or a number, before them."""
    for mark in (r"[-*+•>]\s", r"\d+[.):]\s", r"\|", r"'.*',?$"):
        if len(rows) > 1 and all(re.match(mark, line) for _, line in rows):
            row, first = rows[0]
            raise ValueError(
                f"{path}, row {row}: '{first[:60]}' is an entry of a list, as all lines are; "
                f"{TO_TEXT}, and without the marks of a list"
            )
