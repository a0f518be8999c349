"""The prompt source for images with codes: texts, the payload of each, and a base image.

    [prompts]
    use = "qr"
    texts = {use = "zoo_nouns", split = "animals"}      # or a list
    random = 200                     # or payloads = [...], or payloads = "payloads.txt"
    pattern = "https://example.org/{}"                  # a link with random characters
    base = "bases/{noun}.png"        # the image that each should resemble

Random payloads are sorted into two parts by a hash of each, a quarter of them into "unseen": what
is drawn for one part, with any seed, is never drawn for the other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256
from itertools import product
from math import gcd
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal

from burnish import catalog
from burnish.annotations import ArgumentsOf, Count, CountOrZero, FilePath, IsPath
from burnish.prompts.sources import check_count
from burnish.prompts.text_files import payload_lines
from burnish.types import MOST_PROMPTS, Prompt

CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
"""Capital letters and digits.

Five of them in a Micro QR code of 13 modules leave it the most error correction.
"""
LONGEST_PAYLOAD = 7089
"""Characters of the largest QR code, of digits alone."""

ALL_PAIRS = 256
"""Pairs up to which by default every text is combined with every payload."""


CodeTable = Annotated[dict[str, Any], ArgumentsOf("burnish.qr.layout:fit", bound=2)]


def qr(
    texts: list[str] | dict | str,
    payloads: Annotated[list[str] | str, IsPath()] | None = None,
    random: CountOrZero = 0,
    seed: int = 0,
    length: Count = 5,
    alphabet: str = CAPITALS,
    pattern: list[str] | str = "{}",
    part: Literal["train", "unseen"] = "train",
    combine: Literal["", "all", "turns"] = "",
    base: FilePath = "",
    code: CodeTable | None = None,
) -> list[Prompt]:
    """Return texts with payloads for their codes, as metadata["payload"].

    Args:
        texts: a list, the table of another source, as `{use = "zoo_nouns"}`, whose metadata is
            kept, or in short a file or a source's name.
        payloads: a list, or a text file with one a line.
        random: the number of random payloads, all different, to take instead.
        seed: of the random ones.
        length: of each, in characters; those of the pattern are not counted.
        alphabet: the characters they are made of.
        pattern: what a random payload says, with {} for its random characters; of several, each
            payload has one, by turns.
        part: "train" or "unseen": the part of all random payloads to draw from.
        combine: "all" for every text with every payload; "turns" for as many prompts as the longer
            of the two has, both taken by turns; by default "all" up to 256 pairs, else "turns".
        base: the path of the image that a prompt's image should resemble, as metadata["base"];
            {text}, {payload} and {field}, a field of the text's metadata, are replaced.
        code: arguments of `burnish.qr.layout.fit` for all codes, as metadata["qr"]: error, version,
            mask, module, quiet.

    Raises:
        ValueError: something is missing, unknown, or there are too few such payloads.

    >>> qr(["a cat"], ["HELLO"], base="bases/{text}.png")[0].metadata
    {'payload': 'HELLO', 'base': 'bases/a cat.png'}
    """
    if combine not in ("", "all", "turns"):
        raise ValueError(f'prompts: combine = {combine!r}: take "all" or "turns"')
    if (payloads is None) == (random == 0):
        raise ValueError(
            "prompts: give either payloads = [...] (or a file's path) or random = 100, not both"
        )

    prompts = catalog.build("prompts", catalog.prompts_table(texts), "prompts.texts")

    if payloads is None:
        contents: Sequence[str] = _random_payloads(random, seed, length, alphabet, pattern, part)
    else:
        contents = _given_payloads(payloads)

    if combine == "all" or (not combine and len(prompts) * len(contents) <= ALL_PAIRS):
        check_count({"texts": prompts, "payloads": contents})
        pairs = list(product(prompts, contents))
    else:
        count = max(len(prompts), len(contents))
        # a common divisor would give each text payloads of some of the patterns alone
        patterns = len(pattern) if payloads is None and not isinstance(pattern, str) else 1
        shifted = gcd(len(prompts), patterns) > 1
        rows = [i + i // len(prompts) if shifted else i for i in range(count)]
        pairs = [
            (prompts[row % len(prompts)], contents[i % len(contents)]) for i, row in enumerate(rows)
        ]

    return [_with_code(prompt, payload, base, code or {}) for prompt, payload in pairs]


def is_unseen(payload: str) -> bool:
    """Return True if a random payload belongs to the quarter that no training draws."""
    return sha256(payload.encode()).digest()[0] < 64


def _with_code(prompt: Prompt, payload: str, base: str, code: dict[str, Any]) -> Prompt:
    fields = {**prompt.metadata, "text": prompt.text, "payload": payload}
    for name in re.findall(r"{(\w+)}", base):
        if name not in fields:
            raise ValueError(
                f"prompts: base = {base!r}: there is no {{{name}}}; take one of {', '.join(fields)}"
            )

    metadata: dict[str, Any] = {**prompt.metadata, "payload": payload}
    if base:
        metadata["base"] = re.sub(r"{(\w+)}", lambda match: str(fields[match[1]]), base)
    if code:
        metadata["qr"] = code

    return Prompt(prompt.text, metadata)


def _given_payloads(payloads: list | str) -> Sequence[str]:
    if isinstance(payloads, str):
        payloads = payload_lines(Path(payloads))

    for row, payload in enumerate(payloads, 1):
        if not isinstance(payload, str) or not payload:
            raise ValueError(
                f"prompts: payload {row} is {payload!r}; give a text that is not empty"
            )

    if not payloads:
        raise ValueError("prompts: payloads is empty; give at least one")

    return payloads


def _random_payloads(
    count: int, seed: int, length: int, alphabet: str, pattern: list[str] | str, part: str
) -> list[str]:
    patterns = [pattern] if isinstance(pattern, str) else pattern
    if not patterns or any(one.count("{}") != 1 for one in patterns):
        raise ValueError(
            f"prompts: pattern = {pattern!r}: write {{}} once in each, where the random characters "
            'go, as in "https://example.org/{}"'
        )
    if part not in ("train", "unseen"):
        raise ValueError(f'prompts: part = {part!r}: take "train" or "unseen"')
    if count < 1 or length < 1 or len(set(alphabet)) != len(alphabet) or not alphabet:
        raise ValueError(
            f"prompts: random = {count}, length = {length}, alphabet = {alphabet!r}: take at least "
            "one payload of at least one character, from an alphabet of different characters"
        )

    if count > MOST_PROMPTS or length > LONGEST_PAYLOAD:
        raise ValueError(
            f"prompts: random = {count:,} payloads of length = {length:,}: take "
            f"{MOST_PROMPTS:,} of {LONGEST_PAYLOAD:,} characters at most"
        )

    source = Random(seed)
    drawn = dict[str, None]()

    for _ in range(20 * count + 1000):
        # random() alone is promised to give the same numbers under every version of Python
        characters = (alphabet[int(source.random() * len(alphabet))] for _ in range(length))
        payload = patterns[len(drawn) % len(patterns)].replace("{}", "".join(characters))
        if is_unseen(payload) == (part == "unseen"):
            drawn[payload] = None
        if len(drawn) == count:
            return list(drawn)

    raise ValueError(
        f"prompts: random = {count} different payloads of length {length} from {len(alphabet)} "
        f"characters are too many: only {len(drawn)} were found; make length larger"
    )
