"""The prompt encoder: text states of prompts, each text encoded once and remembered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from burnish.diffusion.family import Family
from burnish.prompt_warnings import PromptWarnings
from burnish.types import Cond

CACHED_TEXTS = 1024
"""Encoded texts that are remembered.

In float32 one takes 0.24 MB of Stable Diffusion 1.x, 0.64 MB of SDXL.
"""


class PromptEncoder:
    """The text encoders of a pipeline, with a cache of what they returned."""

    def __init__(self, pipe: Any, family: Family) -> None:
        self._pipe = pipe
        self._family = family
        self._states: dict[str, Cond] = {}
        self._null: Cond = {}
        self._warnings = PromptWarnings(_tokenizers(pipe), length=family.text_tokens(pipe))

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


def _tokenizers(pipe: Any) -> list[Any]:
    """Return the tokenizers of the text encoders that a pipeline has."""
    parts = {name: part for name, part in pipe.components.items() if part is not None}
    return [
        part
        for name, part in parts.items()
        if name.startswith("tokenizer") and name.replace("tokenizer", "text_encoder") in parts
    ]
