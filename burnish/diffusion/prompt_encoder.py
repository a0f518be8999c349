"""The prompt encoder: text states of prompts, each text encoded once and remembered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from burnish.diffusion.family import Family
from burnish.prompt_warnings import PromptWarnings
from burnish.types import Cond

CACHED_TEXTS = 1024
"""Encoded texts that are remembered, at most.

In float32 one takes 0.24 MB of Stable Diffusion 1.x, 0.64 MB of SDXL.
"""

CACHED_BYTES = 1 << 30
"""Bytes of encoded texts that are remembered, at most; in bfloat16 one takes 7.9 MB of FLUX.2."""


class PromptEncoder:
    """The text encoders of a pipeline, with a cache of what they returned."""

    def __init__(self, pipe: Any, family: Family) -> None:
        self._pipe = pipe
        self._family = family
        self._states: dict[str, Cond] = {}
        self._negatives: dict[str, Cond] = {}
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

        most = min(CACHED_TEXTS, CACHED_BYTES // sum(value.nbytes for value in rows[0].values()))
        while len(self._states) > max(most, 1):
            oldest = next(iter(self._states))
            del self._states[oldest]

        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def null(self, rows: int, text: str = "") -> Cond:
        """Return `rows` rows of the states that guidance uses in place of a prompt.

        Args:
            rows: their number.
            text: a negative prompt; "": the empty text, or what the model was trained with.
        """
        if text not in self._negatives:
            self._negatives[text] = self._negative(text)

        row = self._negatives[text]
        return {name: value.expand(rows, *value.shape[1:]) for name, value in row.items()}

    def check(self, texts: Iterable[str]) -> None:
        """Warn, once, of texts that are cut, and of signs that mean nothing here."""
        self._warnings.check(texts)

    def clear(self) -> None:
        """Forget all states: the text encoder has changed."""
        self._states.clear()
        self._negatives.clear()

    def __len__(self) -> int:
        return len(self._states)

    def _negative(self, text: str) -> Cond:
        if not text:
            return self._family.null(self._pipe)
        if self._family.negative is None:
            return self._row(text)

        self.check([text])
        return self._family.negative(self._pipe, text)

    def _row(self, text: str) -> Cond:
        if text not in self._states:
            self.check([text])
            self._states[text] = self._family.encode(self._pipe, [text])
        return self._states[text]
