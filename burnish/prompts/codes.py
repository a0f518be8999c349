"""The prompt source for pictures with codes: texts, what each one's code says, and the picture it
should resemble.

    [prompts]
    use = "qr"
    texts = {use = "zoo_nouns", split = "animals"}      # or a list
    random = 200                                        # or payloads = [...], or payloads = "payloads.txt"
    base = "bases/{noun}.png"

Random payloads are sorted into two parts by a hash of each, a quarter of them into "unseen": what
is drawn for one part, with any seed, is never drawn for the other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256
from itertools import product
from random import Random
from typing import Any

from burnish import catalog
from burnish.prompts.sources import lines, listed
from burnish.types import Prompt

CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
"""Capital letters and digits: five of them in a Micro QR code of 13 modules leave it the most error
correction.
"""
EVERY = 256  # pairs up to which every text meets every payload by default


def qr(
    texts: list | dict,
    payloads: list | str | None = None,
    random: int = 0,
    seed: int = 0,
    length: int = 5,
    alphabet: str = CAPITALS,
    part: str = "train",
    combine: str = "",
    base: str = "",
    code: dict | None = None,
) -> list[Prompt]:
    """Texts with payloads for their codes, as metadata["payload"].

    Args:
        texts: a list, or the table of another source, as `{use = "zoo_nouns"}`; its metadata is
            kept.
        payloads: a list, or a text file with one a line.
        random: so many random ones instead, all different.
        seed: of the random ones.
        length: of each, in characters.
        alphabet: what they are made of.
        part: "train" or "unseen": which part of all random payloads to draw from.
        combine: "all" for every text with every payload; "turns" for as many prompts as the longer
            of the two has, both
            taken by turns; by default "all" up to 256 pairs, else "turns".
        base: the path of the picture a prompt's image should resemble, as metadata["base"]; {text},
            {payload} and
            {field}, a field of the text's metadata, are replaced.
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

    asked = (
        catalog.build("prompts", texts, "prompts.texts")
        if isinstance(texts, dict)
        else listed(texts)
    )
    said = _drawn(random, seed, length, alphabet, part) if payloads is None else _given(payloads)

    if combine == "all" or (not combine and len(asked) * len(said) <= EVERY):
        pairs = list(product(asked, said))
    else:
        longer = max(len(asked), len(said))
        pairs = [(asked[i % len(asked)], said[i % len(said)]) for i in range(longer)]

    return [_with(prompt, payload, base, code or {}) for prompt, payload in pairs]


def _with(prompt: Prompt, payload: str, base: str, code: dict[str, Any]) -> Prompt:
    fields = {**prompt.metadata, "text": prompt.text, "payload": payload}
    for name in re.findall(r"{(\w+)}", base):
        if name not in fields:
            raise ValueError(
                f"prompts: base = {base!r}: there is no {{{name}}}; take one of {', '.join(fields)}"
            )

    more: dict[str, Any] = (
        {"base": re.sub(r"{(\w+)}", lambda found: str(fields[found[1]]), base)} if base else {}
    )
    return Prompt(
        prompt.text,
        {**prompt.metadata, "payload": payload, **more, **({"qr": code} if code else {})},
    )


def _given(payloads: list | str) -> Sequence[str]:
    found = [line.text for line in lines(payloads)] if isinstance(payloads, str) else payloads
    for row, payload in enumerate(found, 1):
        if not isinstance(payload, str) or not payload:
            raise ValueError(
                f"prompts: payload {row} is {payload!r}; give a text that is not empty"
            )

    if not found:
        raise ValueError("prompts: payloads is empty; give at least one")

    return found


def _drawn(count: int, seed: int, length: int, alphabet: str, part: str) -> list[str]:
    if part not in ("train", "unseen"):
        raise ValueError(f'prompts: part = {part!r}: take "train" or "unseen"')
    if count < 1 or length < 1 or len(set(alphabet)) != len(alphabet) or not alphabet:
        raise ValueError(
            f"prompts: random = {count}, length = {length}, alphabet = {alphabet!r}: take at least one payload of at "
            "least one character, from an alphabet of different characters"
        )

    source = Random(seed)
    drawn = dict[str, None]()

    for _ in range(20 * count + 1000):
        # random() alone is promised to give the same numbers under every version of Python
        payload = "".join(alphabet[int(source.random() * len(alphabet))] for _ in range(length))
        if unseen(payload) == (part == "unseen"):
            drawn[payload] = None
        if len(drawn) == count:
            return list(drawn)

    raise ValueError(
        f"prompts: random = {count} different payloads of length {length} from {len(alphabet)} characters are too "
        f"many: only {len(drawn)} were found; make length larger"
    )


def unseen(payload: str) -> bool:
    """Whether a random payload belongs to the quarter that no training draws."""
    return sha256(payload.encode()).digest()[0] < 64
