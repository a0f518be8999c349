"""The prompt encoder: text states of prompts, each text encoded once and remembered."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from burnish.diffusion.family import Family
from burnish.diffusion.lora import lora_layers
from burnish.diffusion.lora_file import text_encoders
from burnish.diffusion.memory import free_memory
from burnish.prompt_warnings import PromptWarnings
from burnish.stages import advance
from burnish.types import Cond

CACHED_TEXTS = 1024
"""Encoded texts that are remembered, at most.

In float32 one takes 0.24 MB of Stable Diffusion 1.x, 0.64 MB of SDXL.
"""

CACHED_BYTES = 1 << 30
"""Bytes of encoded texts that are remembered, at most; in bfloat16 one takes 7.9 MB of FLUX.2."""


class PromptEncoder:
    """The text encoders of a pipeline, with a cache of what they returned.

    Attributes:
        freed: the text encoders are gone, and what they returned is all there is.
        learned: parameters of the text encoders that learn: whenever they change, nothing is
            remembered.
        warnings: of texts that are not read as they were meant.
    """

    def __init__(self, pipe: Any, family: Family, device: torch.device) -> None:
        """Begin without any states.

        Args:
            pipe: the diffusers pipeline.
            family: its family.
            device: to which states are brought, wherever the text encoders are.
        """
        self.freed = False
        self._device = device
        self._pipe = pipe
        self._family = family
        self._states: dict[str, Cond] = {}
        self._negatives: dict[str, Cond] = {}
        self.learned: Sequence[Tensor] = ()
        self._seen: list[Tensor] = []  # what learns, when the states were made
        self.warnings = PromptWarnings(_tokenizers(pipe), length=family.text_tokens(pipe))

    def encode(self, texts: Sequence[str]) -> Cond:
        """Return the states of the texts, one row a text.

        They are encoded one by one, so that a text's states do not depend, in the last bit, on its
        neighbours.
        """
        # compared by value, for moving averages come and go
        unchanged = [torch.equal(*pair) for pair in zip(self.learned, self._seen, strict=False)]
        if unchanged.count(True) < len(self.learned):
            self.clear()

        rows = [self._row(text) for text in texts]

        most = min(CACHED_TEXTS, CACHED_BYTES // _size(rows[0]))
        while not self.freed and len(self._states) > max(most, 1):
            oldest = next(iter(self._states))
            del self._states[oldest]

        return {name: torch.cat([row[name] for row in rows]).to(self._device) for name in rows[0]}

    def null(self, rows: int, text: str = "") -> Cond:
        """Return `rows` rows of the states that guidance uses in place of a prompt.

        Args:
            rows: their number.
            text: a negative prompt; "": the empty text, or what the model was trained with.
        """
        if text not in self._negatives:
            self._negatives[text] = self._negative(text)

        row = {name: value.to(self._device) for name, value in self._negatives[text].items()}
        return {name: value.expand(rows, *value.shape[1:]) for name, value in row.items()}

    @torch.no_grad()
    def free(self, texts: Iterable[str], negatives: Iterable[str] = ("",)) -> None:
        """Encode all texts that will be asked for, and free the memory of the text encoders.

        From then on the pipeline has None in their place.

        Args:
            texts: that prompts give the generator to read (`Prompt.generator_text`), at least one;
                their states stay in the CPU's memory.
            negatives: negative prompts; "": the empty text.

        Raises:
            ValueError: a text encoder has layers of an adapter, or the states take more memory
                than there is.
        """
        if any(lora_layers(encoder) for encoder in text_encoders(self._pipe)):
            raise ValueError(
                'model.text_encoder = "free": the adapter has layers in a text encoder, which are '
                'written again with what is learned; set it to "keep" or "cpu"'
            )

        for text in negatives:
            self.null(1, text)

        wanted = list(dict.fromkeys(texts))
        _check_memory(self._row(wanted[0]), len(wanted))
        for text in wanted:
            self._states[text] = {name: value.cpu() for name, value in self._row(text).items()}
            advance(1)

        for name in self._pipe.components:
            if name.startswith("text_encoder"):
                setattr(self._pipe, name, None)

        self.freed = True
        gc.collect()  # networks of transformers refer to themselves
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        elif torch.backends.mps.is_available():
            torch.mps.empty_cache()

    def check(self, texts: Iterable[str]) -> None:
        """Warn, once, of texts that are cut, and of signs that mean nothing here."""
        self.warnings.check(texts)

    def clear(self) -> None:
        """Forget all states: the text encoder has changed."""
        self._states.clear()
        self._negatives.clear()
        self._seen = [learned.detach().clone() for learned in self.learned]

    def __len__(self) -> int:
        return len(self._states)

    def _negative(self, text: str) -> Cond:
        self._check_not_freed(text)
        if not text:
            return self._family.null(self._pipe)

        self.check([text])
        if self._family.negative is None:
            return self._family.encode(self._pipe, [text])
        return self._family.negative(self._pipe, text)

    def _row(self, text: str) -> Cond:
        if text not in self._states:
            self._check_not_freed(text)
            self.check([text])
            self._states[text] = self._family.encode(self._pipe, [text])
        return self._states[text]

    def _check_not_freed(self, text: str) -> None:
        if self.freed:
            raise ValueError(
                f'the prompt "{text}" was not encoded before the text encoders were freed: set '
                'model.text_encoder = "keep" or "cpu"'
            )


def _size(row: Cond) -> int:
    return sum(value.nbytes for value in row.values())


def _check_memory(row: Cond, texts: int) -> None:
    """Refuse more states like `row` than this machine's processes have memory for."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    needed = _size(row) * texts * processes
    available = free_memory()

    if available is not None and needed > available:
        raise ValueError(
            f'model.text_encoder = "free": the states of {texts:,} prompts take '
            f"{needed / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB are free; take fewer "
            'prompts, or set it to "keep" or "cpu"'
        )


def _tokenizers(pipe: Any) -> list[Any]:
    """Return the tokenizers of the text encoders that a pipeline has."""
    parts = {name: part for name, part in pipe.components.items() if part is not None}
    return [
        part
        for name, part in parts.items()
        if name.startswith("tokenizer") and name.replace("tokenizer", "text_encoder") in parts
    ]
