"""Keys and passwords are kept out of every text that is shown or written.

What is known to be secret is hidden in every form that a server or a library may repeat it in: as
it is, escaped for a URL, JSON or HTML, in base64 or hexadecimal, broken by space, or cut off.
Known are the values that were given to `hide`, and those of environment variables such as
HF_TOKEN. Beside them, what looks like a password in a URL or like a key is hidden.

Standard library only.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, urlsplit

MASK = "***"
LONGEST_TEXT = 1 << 14  # characters of a text that an excerpt is taken from
LEAST_PART = 8  # letters of the end of a secret that are hidden by themselves
MARGIN = 1 << 12  # characters before the cut of a longer text, where a key may be cut off

NAME = re.compile(r"(?i)(?:^|[-_.])(?:key|apikey|token|secret|passw(?:or)?d|credentials?)$")
"""The end of the name of something secret: HF_TOKEN, api_key."""

QUERY_NAMES = re.compile(r"(?i)key|token|secret|passw|sig|auth|credential|code")

SURE_NAME = re.compile(
    r"(?i)(?:^|[-_.])(?:(?:api|access|private|auth)[-_]?key|token|secret|passw(?:or)?d|credentials?)$"
)
"""The end of a name that can only mean something secret; a "key" may be a column's name."""

REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
"""The value of an environment variable, in a URL: ${NAME}."""

PATTERNS = (
    (re.compile(r"(?<=://)[^/\s@'\"<>]+@"), MASK + "@"),  # a user and a password
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}"), rf"\1 {MASK}"),
    (
        re.compile(r"(?i)([?&](?:[\w.-]*(?:key|token|secret|passw|sig|auth)[\w.-]*)=)[^&\s'\"]+"),
        rf"\1{MASK}",
    ),
    (
        re.compile(
            r"\b(?:sk-(?=[\w-]*\d)[\w-]{20,}|hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}"
            r"|github_pat_\w{30,}|glpat-[\w-]{20}|xox[abp]-[\w-]{20,}|AKIA[A-Z0-9]{16})"
        ),
        MASK,
    ),
)
"""What looks like a secret, and what takes its place."""

_hidden: set[str] = set()


def hide(*secrets: str) -> None:
    """Keep these values out of every text from now on."""
    _hidden.update(secret for secret in secrets if secret)


def redact(text: str) -> str:
    """Return a text without secrets."""
    secrets = set(_hidden)
    secrets |= {
        value for name, value in os.environ.items() if NAME.search(name) and len(value) >= 8
    }

    for secret in sorted(secrets, key=len, reverse=True):
        text = _pattern(secret).sub(MASK, text)
    for pattern, replacement in PATTERNS:
        text = pattern.sub(replacement, text)

    return text


def without_secret(name: str, value: Any) -> Any:
    """Return a value without secrets, under the name that says what it is: HF_TOKEN, api_key."""
    if not isinstance(value, str):
        return value
    return MASK if value and NAME.search(name) else redact(value)


def excerpt(text: str, length: int = 200) -> str:
    """Return the first words of a foreign text on one line, without secrets."""
    if len(text) > LONGEST_TEXT:
        text = text[: LONGEST_TEXT - MARGIN]

    text = one_line(redact(text))
    return text if len(text) <= length else text[: length - 3] + "..."


def one_line(text: str) -> str:
    """Return a text on one line, with single spaces and printable characters only."""
    letters = (letter if letter.isprintable() else " " for letter in text)
    return " ".join("".join(letters).split())


def secret_in_url(url: str) -> bool:
    """Return whether a URL has a user's password or a key in it, other than as ${NAME}."""
    try:
        parts = urlsplit(url)
        query = parse_qsl(parts.query)
    except ValueError:
        return False

    user, at, _ = parts.netloc.rpartition("@")
    password = user.partition(":")[2] or user
    if at and REFERENCE.sub("", password):
        return True

    return any(
        REFERENCE.sub("", value) and (QUERY_NAMES.search(name) or _looks_secret(value))
        for name, value in query
    )


def secret_in(value: Any, name: str = "") -> str:
    """Return where in nested tables a key or a password stands; "" if there is none.

    Args:
        value: a table, a list or a value in it.
        name: its own name, with those of the tables around it.
    """
    if isinstance(value, Mapping):
        items = [(f"{name}.{key}" if name else str(key), item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        items = [(f"{name}.{index}", item) for index, item in enumerate(value)]
    elif isinstance(value, str):
        named = NAME.search(name) and _looks_secret(value)
        sure = SURE_NAME.search(name) and REFERENCE.sub("", value)
        known = PATTERNS[-1][0].search(value)
        url = "://" in value and secret_in_url(value)
        return name if named or sure or known or url else ""
    else:
        return ""

    return next((found for key, item in items if (found := secret_in(item, key))), "")


def _looks_secret(value: str) -> bool:
    """Return whether a value is a long word with letters and digits, as keys are."""
    return bool(re.fullmatch(r"(?=.*[A-Za-z])(?=.*\d)[\w.~+/=-]{20,}", value))


@lru_cache(maxsize=256)
def _pattern(secret: str) -> re.Pattern[str]:
    """Return what finds a secret in all its forms, also where its end is cut off."""
    data = secret.encode("utf-8", "surrogateescape")
    forms = [_letters(secret), _letters(data.hex())]

    for offset in range(3):  # what stands before the secret moves it within base64's triples
        encoded = base64.b64encode(b"\0" * offset + data).decode()
        inner = encoded[-(-offset * 8 // 6) : (offset + len(data)) * 8 // 6]
        forms.append(_letters(inner))

    # a short one only as a whole word: "a" is in every other word
    edge = r"(?<!\w)", r"(?!\w)"
    before, after = edge if len(secret) < 6 else ("", "")
    patterns = [before + _cut_off(form) + after for form in forms if form]
    if len(secret) >= 2 * LEAST_PART:
        patterns.append(_tail(forms[0]))
    return re.compile("|".join(patterns), re.I)


def _tail(letters: list[str]) -> str:
    """Return a pattern of a word's end, from its last `LEAST_PART` letters on."""
    optional = ""
    for letter in letters[:-LEAST_PART]:
        optional = f"(?:{optional}{letter})?"
    return optional + "".join(letters[-LEAST_PART:])


def _letters(text: str) -> list[str]:
    """Return a pattern for each letter, plain or escaped."""
    return [_escaped(letter) for letter in text]


def _escaped(letter: str) -> str:
    """Return a pattern for a letter as it is, and escaped for URLs, JSON, Python and HTML."""
    code = ord(letter)
    percent = "".join(f"%(?:25)*{byte:02x}" for byte in letter.encode("utf-8", "surrogateescape"))
    named = {"&": "&amp;", '"': "&quot;", "<": "&lt;", ">": "&gt;", " ": r"\+"}
    alike = {"+": r"[+-]", "/": r"\\*[/_]"}  # base64 has two alphabets
    forms = [
        alike.get(letter, rf"\\*{re.escape(letter)}"),
        percent,
        rf"\\+u{code:04x}",
        rf"\\+x{code:02x}",
        rf"&\#(?:0*{code}|x0*{code:x});",
    ]
    if letter in named:
        forms.append(named[letter])
    return f"(?:{'|'.join(forms)})"


def _cut_off(letters: list[str]) -> str:
    """Return a pattern of a whole word, and of its beginning from a third of it on.

    Space and escaped line breaks may stand between its letters.
    """
    gap = r"(?:\s|\\[nrt])*"
    least = len(letters) if len(letters) < 12 else max(6, len(letters) // 3)
    rest = letters[least:]
    block = -(-len(rest) // 32) or 1  # few groups: they are nested
    optional = ""

    for start in reversed(range(0, len(rest), block)):
        optional = f"(?:{gap}{gap.join(rest[start : start + block])}{optional})?"

    return gap.join(letters[:least]) + optional
