"""The prompt encoder: text states of prompts, each text encoded once and remembered."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from burnish.diffusion.families import Family
from burnish.types import Cond

CACHED_TEXTS = 1024
"""Encoded texts that are remembered.

In float32 one takes 0.24 MB of Stable Diffusion 1.x, 0.64 MB of SDXL.
"""

REMEMBERED_TEXTS = 100_000
"""Texts among which those are looked for that a text encoder reads as the same."""

SYNTAX = re.compile(
    r"\([^()]*[^\d\s()]\s*:\s*[+-]?\d*\.?\d+\s*\)"  # (word:1.3)
    r"|\({2,}[^()]+\){2,}|\[{2,}[^\[\]]+\]{2,}"  # ((word)), [[word]]
    r"|\[[^\[\]]*[:|][^\[\]]*\]|\{[^{}]*\|[^{}]*\}"  # [one:other:0.5], {one|other}
    r"|<(?:lora|lyco|hypernet):[^<>]*>|\)[+-]+|\w{2,}\+\+"  # <lora:name:1>, (words)++, word++
)
"""What other programs read as a weight, an alternative or the name of a file."""


class PromptEncoder:
    """The text encoders of a pipeline, with a cache of what they returned."""

    def __init__(self, pipe: Any, family: Family) -> None:
        self._pipe = pipe
        self._family = family
        self._states: dict[str, Cond] = {}
        self._null: Cond = {}
        self._warnings = PromptWarnings(
            [
                part
                for name, part in pipe.components.items()
                if name.startswith("tokenizer") and part is not None
            ]
        )

    def encode(self, texts: Sequence[str]) -> Cond:
        """Return the states of the texts, one row a text.

        They are encoded one by one, so that a text's states do not depend, in the last bit, on its
        neighbours.
        """
        rows = [self._row(text) for text in texts]

        while len(self._states) > CACHED_TEXTS:
            oldest = next(iter(self._states))
            del self._states[oldest]

        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def null(self, rows: int, text: str = "") -> Cond:
        """Return `rows` rows of the states that guidance uses in place of a prompt.

        Args:
            rows: their number.
            text: a negative prompt; "": the empty text, or what the model was trained with.
        """
        self._null = self._null or self._family.null(self._pipe)
        row = self._row(text) if text else self._null
        return {name: value.expand(rows, *value.shape[1:]) for name, value in row.items()}

    def check(self, texts: Iterable[str]) -> None:
        """Warn, once, of texts that are cut, and of signs that mean nothing here."""
        self._warnings.check(texts)

    def clear(self) -> None:
        """Forget all states: the text encoder has changed."""
        self._states.clear()
        self._null = {}

    def __len__(self) -> int:
        return len(self._states)

    def _row(self, text: str) -> Cond:
        if text not in self._states:
            self.check([text])
            self._states[text] = self._family.encode(self._pipe, [text])
        return self._states[text]


class PromptWarnings:
    """Warnings of texts that a text encoder does not read as they were meant; each kind once."""

    def __init__(self, tokenizers: Sequence[Any]) -> None:
        self._tokenizers = tokenizers
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
                f"{_how_many(len(cut), len(new))} longer than the text encoder reads "
                f'({self._tokenizers[0].model_max_length} tokens): of "{_short(text)}" it does not '
                f'read "{_short(words)}"',
            )
        if same:
            first, second = same[0]
            self._warn(
                "same",
                f"prompts ({len(same) + 1} at least) differ only in what is cut, so that they are "
                f'one to the model: "{_ends(first)}" and "{_ends(second)}"',
            )
        if signs := [match[0] for text in new if (match := SYNTAX.search(text))]:
            self._warn(
                "signs",
                f"{_how_many(len(signs), len(new), 'written')} with signs such as "
                f'"{_short(signs[0])}", which mean nothing here: they are read as letters',
            )

    def _read(self, text: str) -> tuple[tuple[int, ...], str]:
        """Return the tokens that are read of a text, and the words that are cut off."""
        read: list[int] = []
        words = ""

        for tokenizer in self._tokenizers:
            ids = tokenizer(text, verbose=False).input_ids
            room = tokenizer.model_max_length - 1
            if len(ids) > room + 1:
                words = words or tokenizer.decode(ids[room:-1]).strip() or text
                ids = [*ids[:room], ids[-1]]
            read += ids

        return tuple(read), words

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
