"""Warnings of prompts that a text encoder does not read as they were meant, each kind once."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

REMEMBERED_TEXTS = 100_000
"""Texts among which those are looked for that a text encoder reads as the same."""

WEIGHT = r"(?::[+-]?\d*\.?\d+|\s*:\s*[+-]?\d*\.\d+\s*)"
"""A number behind a colon; after a space only with a point, since "verse: 3" is a text."""

SYNTAX = re.compile(
    rf"[()][^()]*[^\d\s()]{WEIGHT}\)"  # (word:1.3), ((one) word:1.3)
    r"|\({2,}[^()]+\){2,}|\[{2,}[^\[\]]+\]{2,}"  # ((word)), [[word]]
    rf"|\[[^\[\]]*[^\d\s\[\]]{WEIGHT}\]"  # [one:other:0.5]
    r"|\[[^\[\]]*\|[^\[\]]*\]|\{[^{}]*\|[^{}]*\}"  # [one|other], {one|other}
    r"|<(?:lora|lyco|hypernet):[^<>]*>|\)[+-]+|\b[a-z]{2,}\+\+"  # <lora:name:1>, (words)++, word++
    r"|[^A-Z\s][\s,]+BREAK[\s,]+(?![A-Z]{2})\w"  # one BREAK other, but not A BREAK IN RED
)
"""What other programs read as a weight, an alternative, a border or the name of a file."""


def check_signs(texts: Iterable[str]) -> None:
    """Refuse texts with signs for weights, which a text encoder would read as letters.

    Raises:
        ValueError: there are some; the message says how many, and what to do.
    """
    if found := _find_signs(list(dict.fromkeys(texts))):
        raise ValueError(
            f"{found}, which other programs read as weights, and Burnish does not: leave them out, "
            'or, if they are meant as letters, set model.prompt_signs = "letters"'
        )


def _find_signs(texts: Sequence[str]) -> str:
    """Return how many texts have signs for weights, with an example; "" if none has."""
    signs = [match[0] for text in texts if (match := SYNTAX.search(text))]
    if not signs:
        return ""
    return f'{_how_many(len(signs), len(texts), "written")} with signs such as "{_short(signs[0])}"'


class PromptWarnings:
    """Warnings of texts that a text encoder does not read as they were meant; each kind once.

    Attributes:
        signs: warn of signs for weights too.
    """

    def __init__(
        self,
        tokenizers: Sequence[Any],
        reader: str = "the text encoder",
        *,
        length: int = 0,
        signs: bool = True,
    ) -> None:
        """Keep the tokenizers.

        Args:
            tokenizers: one a text encoder.
            reader: the name of the text encoders, for messages.
            length: the tokens that they read at most; 0: as each tokenizer says.
            signs: warn of signs for weights too.
        """
        lengths = [int(one.model_max_length) for one in tokenizers]
        self._lengths = [min(length or one, one) for one in lengths]
        self._tokenizers = tokenizers
        self._reader = reader
        self.signs = signs
        self._by_tokens: dict[tuple[int, ...], tuple[str, str]] = {}
        self._warned: set[str] = set()

    def check(self, texts: Iterable[str]) -> None:
        """Warn of texts that are cut, of pairs that are the same then, and of signs for weights."""
        new = list(dict.fromkeys(texts))
        cut: list[tuple[str, str]] = []
        same: list[tuple[str, str]] = []

        for text in new:
            tokens, words = self._read(text)
            if len(self._by_tokens) >= REMEMBERED_TEXTS:
                self._by_tokens.clear()
            other, other_words = self._by_tokens.setdefault(tokens, (text, words))
            if words:
                cut.append((text, words))
            if other != text and (words or other_words):
                same.append((other, text))

        if cut:
            text, words = cut[0]
            self._warn(
                "cut",
                f"{_how_many(len(cut), len(new))} longer than {self._reader} reads "
                f'({max(self._lengths)} tokens): of "{_short(text)}" it does not '
                f'read "{_short(words)}"',
            )
        if same:
            first, second = same[0]
            self._warn(
                "same",
                f"prompts ({len(same) + 1} at least) differ only in what is cut, so that they are "
                f'one to {self._reader}: "{_ends(first)}" and "{_ends(second)}"',
            )
        if self.signs and (found := _find_signs(new)):
            self._warn("signs", f"{found}, which mean nothing here: they are read as letters")

    def _read(self, text: str) -> tuple[tuple[int, ...], str]:
        """Return the tokens that are read of a text, and the words that every tokenizer cuts off.

        Where one has room for more than another, the text is read by the former.
        """
        read: list[int] = []
        cut: list[str] = []

        for tokenizer, length in zip(self._tokenizers, self._lengths, strict=True):
            ids = tokenizer(text, verbose=False).input_ids
            room = length - 1
            words = ""
            if len(ids) > room + 1:
                words = tokenizer.decode(ids[room:-1]).strip() or text
                ids = [*ids[:room], ids[-1]]
            cut.append(words)
            read += ids

        return tuple(read), min(cut, key=len)

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, stacklevel=4)


def _how_many(count: int, total: int, verb: str = "") -> str:
    subject = f"{count} of {total} prompts are" if count > 1 else f"one of {total} prompts is"
    return f"{'a prompt is' if total == 1 else subject} {verb}".strip()


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _ends(text: str) -> str:
    """Return a long text with its end, where it differs from another."""
    return text if len(text) <= 80 else f"{text[:37]} ... {text[-37:]}"
