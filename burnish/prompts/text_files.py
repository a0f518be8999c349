"""Text files with one prompt a line: read, and refused where they are files of another kind.

A table, a list in JSON or a page that is read line by line would be trained with its header,
quotes and marks. So what a line cannot be is looked for, and named in the error.
"""

from __future__ import annotations

import codecs
import json
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

COLUMN_WORDS = TEXT_COLUMNS | set("id image input negative positive original".split())
"""Words of such a name: a "Prompt Text", an "image caption"."""

NUMBERED = (r"\d+(,(?=[^\d\s])|\s?[;|])", r".*[^\d\s](,|\s?[;|]\s?)[+-]?(\d+\.?\d*|\.\d+)$")
"""Rows of a table that begin, or end, with a cell that is a number."""

MARKS = (
    r"[-*+•>]\s",
    r"\d+[.):]\s",
    r"\|",
    r"'.*',?$",
    r"[“”„«][^“”„«»]*[“”»],?$",
    r"(?i:prompt|caption)s?\s*\d*\s*[:=]\s?\S",
)
"""Beginnings of the entries of a list."""

PAYLOAD_COLUMNS = frozenset("payload payloads url urls".split())

TABLES = (".csv", ".tsv", ".psv")
LISTS = (".json", ".jsonl", ".ndjson")

TO_TEXT = "write one prompt a line, without a header and quotes"
TO_PAYLOADS = "write one payload a line, as it is, without a header and quotes"
TO_JSONL = 'write one object a line, {"prompt": "a cat"}, and take use = "jsonl"'

Rows = list[tuple[int, str]]
"""(row number from 1, line) of every line that is not empty, without space around it."""


def text_rows(path: Path) -> Rows:
    """Return the rows of a UTF-8 text file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no text file, too large, or empty; the message names the row.
    """
    rows = [(row, line.strip()) for row, line in enumerate(text_lines(path), 1) if line.strip()]

    if not rows:
        raise ValueError(f"{path}: no prompts in it; write one prompt a line")
    if len(rows) > MOST_PROMPTS:
        raise ValueError(f"{path}: {len(rows):,} prompts; give {MOST_PROMPTS:,} at most")
    return rows


def text_lines(path: Path) -> list[str]:
    """Return all lines of a UTF-8 text file, empty ones too, without their ends.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no text file, or too large; the message names the row.
    """
    lines = []

    for row, raw in enumerate(re.split(rb"\r\n|\r|\n", _content(path)), 1):
        try:
            line = raw.decode("utf-8").removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}, row {row}: not UTF-8 text; save the file as UTF-8"
            ) from error

        if any(ord(character) < 32 and character != "\t" for character in line.strip()):
            raise ValueError(
                f"{path}, row {row}: a binary file, not text; give a text file with one prompt a "
                "line"
            )
        lines.append(line)

    return lines


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


def payload_lines(path: Path) -> list[str]:
    """Return the lines of a file with one payload of a code a line, which may be any text.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as a whole it is a table or a list; the message says which.
    """
    rows = text_rows(path)
    lines = [line for _, line in rows]
    row, first = rows[0]

    if path.suffix.lower() in (*TABLES, *LISTS):
        raise ValueError(f"{path}: a {path.suffix[1:]} file; {TO_PAYLOADS}, in a .txt file")
    if _is_json_list(lines):
        raise ValueError(f"{path}, row {row}: '{first[:60]}' begins a list in JSON; {TO_PAYLOADS}")
    if len(lines) > 1 and first.strip("\"'").lower() in PAYLOAD_COLUMNS:
        raise ValueError(f"{path}, row {row}: '{first}' is the header of a table; {TO_PAYLOADS}")
    if all(map(_is_quoted, lines)):
        raise ValueError(
            f"{path}, row {row}: '{first[:60]}' is in quotes, as all lines are; {TO_PAYLOADS}"
        )

    return lines


def _is_json_list(lines: list[str]) -> bool:
    """Return True for lines that together are a list of texts or objects, or begin as one.

    Lines that are one each are no such list.
    """
    if len(lines) > 1:
        start = "".join(lines[:2])
        return lines[0].endswith(("[", ",")) and bool(re.match(r"\[\s*[\"{]", start))

    try:
        entries = json.loads(lines[0])
    except (ValueError, RecursionError):
        return False
    texts = isinstance(entries, list) and all(isinstance(one, str | dict) for one in entries)
    return texts and entries != []


def _is_quoted(line: str) -> bool:
    """Return True for a text in double quotes, in which others are doubled, or an entry of such."""
    inner = line.removesuffix(",")[1:-1]
    return bool(re.match(r'".*",?$', line) and inner and '"' not in inner.replace('""', ""))


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
    return f"is in quotes; {TO_TEXT}" if _is_quoted(line) else ""


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
    spaced = f"{delimiter} " in first
    name = r"[a-z_][\w.-]{0,29}" + ("" if spaced else r"( [\w.-]{1,29})?")
    names = all(re.fullmatch(name, cell) for cell in cells)
    begins = cells[0] in TEXT_COLUMNS or not spaced
    below = [line for _, line in rows[1:]]
    known = any(map(_names_texts, cells)) or (len(cells) > 1 and _is_table(below))

    if below and names and begins and known:
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


def _names_texts(cell: str) -> bool:
    """Return True for the name of a column of prompts, in small letters."""
    words = set(re.split(r"[ _-]", cell))
    return words <= COLUMN_WORDS and bool(words & TEXT_COLUMNS)


def _is_table(lines: list[str]) -> bool:
    """Return True if all lines begin, or all end, with a number in a cell of its own."""
    return any(all(re.match(number, line) for line in lines) for number in NUMBERED)


def _look_for_marks(path: Path, rows: Rows) -> None:
    """Refuse lines that are all alike in what a prompt has not: marks, numbers, empty cells."""
    lines = [line for _, line in rows]
    row, first = rows[0]
    if len(lines) < 2:
        return

    if any(all(re.match(mark, line) for line in lines) for mark in MARKS) or _is_counted(lines):
        raise ValueError(
            f"{path}, row {row}: '{first[:60]}' is an entry of a list, as all lines are; "
            f"{TO_TEXT}, and without the marks of a list"
        )
    if _is_table(lines) or _all_end(lines):
        raise ValueError(
            f"{path}, row {row}: '{first[:60]}' is a row of a table, as all lines are; {TO_TEXT}, "
            "and without numbers and separators beside it"
        )


def _all_end(lines: list[str]) -> bool:
    """Return True if all lines end with the same separator, as with an empty cell behind it."""
    return any(all(line.endswith(separator) for line in lines) for separator in ",;|")


def _is_counted(lines: list[str]) -> bool:
    """Return True for "1 a cat", "2 a dog", but not for "1 cat", "2 dogs"."""
    counted = all(
        re.match(rf"0*{number}\s\S", line)
        for number, line in enumerate(lines, int(lines[0].startswith("1")))
    )
    return counted and any(re.match(r"\d+\s(an?|the)\s", line, re.I) for line in lines)
