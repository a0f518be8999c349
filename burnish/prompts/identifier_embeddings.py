"""Learned reward identifiers: the rows of the embedding tables that stand for them, as parameters.

    embedding = padding + std * deviation        (both of the text encoder's own words)

Only the deviations learn, in the words' standard deviations, so that a learning rate means the same
in CLIP, whose embeddings are 0.01, and in T5, whose are 10; weight decay pulls to the padding. A
hook puts the learned rows in the place of the tables'.

The text encoder is frozen, so the gradient of a loss that is known at the text states

    dL/dembedding = sum over texts of (dstates/dembedding)^T dL/dstates

needs one more pass of each text (`add_gradient`), however many images have read it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from burnish.diffusion import lora
from burnish.diffusion.families import family_of
from burnish.diffusion.text_gradients import TextGradients
from burnish.prompts.identifiers import identifier, save_tokens, text_encoders, words_spread
from burnish.types import Cond

LEAST_STD = 1e-12
"""Of a dimension in which all words are the same."""


@dataclass(frozen=True)
class LearnedRows:
    """The rows of K tokens in one embedding table of vectors (width,)."""

    table: nn.Parameter  # (words, width)
    tokens: Tensor  # (K,) int64
    padding: Tensor  # (width,)
    std: Tensor  # (width,) of the words
    deviations: nn.Parameter  # (K, width) at least float32

    @property
    def rows(self) -> Tensor:
        """The embeddings (K, width), with gradient."""
        return self.padding + self.std * self.deviations

    def __call__(self, layer: nn.Module, args: tuple[Tensor], embedded: Tensor) -> Tensor:
        """Return what an embedding layer is to return for `args`: a hook of it."""
        (ids, *_) = args
        is_token = ids[..., None] == self.tokens.to(ids.device)
        rows = self.rows.to(embedded)
        if hasattr(layer, "embed_scale"):  # Gemma multiplies what it looks up
            rows = rows * torch.as_tensor(layer.embed_scale).to(embedded)

        learned = rows[is_token.int().argmax(-1)]
        return torch.where(is_token.any(-1)[..., None], learned, embedded)


class IdentifierEmbeddings:
    """The embeddings of a pipeline's reward identifiers in all its text encoders.

    They begin with what the text encoders have for these tokens, which `identifiers.add_tokens` has
    added.

    Args:
        pipe: the diffusers pipeline.
        rewards: the number of identifiers.

    Attributes:
        gradients: of the iteration's loss with respect to the text states.
        named_trainable: the deviations (K, width) by text encoder.
        trainable: the same without names.

    Raises:
        ValueError: the pipeline has no text encoder.
    """

    def __init__(self, pipe: Any, rewards: int) -> None:
        self._pipe = pipe
        self._rows: list[LearnedRows] = []
        self.gradients = TextGradients()
        self.named_trainable: dict[str, nn.Parameter] = {}
        for ending, (tokenizer, encoder) in text_encoders(pipe).items():
            rows = learned_rows(tokenizer, encoder, rewards)
            # T5 has two layers with one table
            for layer in encoder.modules():
                if isinstance(layer, nn.Embedding) and layer.weight is rows.table:
                    layer.register_forward_hook(rows)

            self._rows.append(rows)
            self.named_trainable[f"text_encoder{ending.replace('-', '_')}"] = rows.deviations

        if not self.named_trainable:
            raise ValueError(
                "sampler.identifiers_learn trains words of the text encoder, and this pipeline has "
                "none any more; set it to false"
            )
        self.trainable = list(self.named_trainable.values())

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the deviations by text encoder, on the CPU."""
        return lora.copied_state(self.named_trainable)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned.

        Raises:
            ValueError: it does not fit; then nothing has changed.
        """
        lora.copy_state(self.named_trainable, state, "the checkpoint")

    @torch.no_grad()
    def save(self, folder: Path) -> None:
        """Write the embeddings into the text encoders' tables, and as textual inversions."""
        for rows in self._rows:
            rows.table[rows.tokens] = rows.rows.to(rows.table)
        save_tokens(self._pipe, len(self._rows[0].tokens), folder)

    def distance(self) -> float:
        """Return the root mean square difference of two identifiers, in the words' deviations."""
        pairs = [torch.pdist(p.detach().float()) / math.sqrt(p.shape[1]) for p in self.trainable]
        squares = torch.cat(pairs).square()
        return float(squares.mean().sqrt()) if len(squares) else 0.0

    @torch.enable_grad()
    def add_gradient(self, gradients: Mapping[str, Cond]) -> None:
        """Add the gradient of a loss to that of the deviations.

        Args:
            gradients: by text, those of the loss with respect to its states, one row of each.
        """
        family = family_of(type(self._pipe).__name__)
        totals = [torch.zeros_like(parameter) for parameter in self.trainable]

        for text, gradient in gradients.items():
            states = family.encode(self._pipe, [text])
            known = {name: gradient[name] for name in gradient if states[name].requires_grad}
            if not known:
                continue  # a text without identifiers

            # half precision would lose small gradients; a power of two changes no digit
            largest = max(float(value.abs().max()) for value in known.values())
            scale = 2.0 ** -math.frexp(largest)[1]
            added = torch.autograd.grad(
                [states[name] for name in known],
                self.trainable,
                [(value * scale).to(states[name]) for name, value in known.items()],
                allow_unused=True,
            )
            for total, grad in zip(totals, added, strict=True):
                if grad is not None:
                    total += grad / scale

        for parameter, total in zip(self.trainable, totals, strict=True):
            parameter.grad = total if parameter.grad is None else parameter.grad + total


@torch.no_grad()
def learned_rows(tokenizer: Any, encoder: Any, rewards: int) -> LearnedRows:
    """Return the rows of the identifiers, as the text encoder's table has them."""
    table = encoder.get_input_embeddings().weight
    padding, std = (value.to(table.device) for value in words_spread(tokenizer, encoder))
    names = [identifier(index) for index in range(rewards)]
    tokens = torch.tensor(tokenizer.convert_tokens_to_ids(names), device=table.device)

    deviations = (table[tokens].to(padding) - padding) / std.clamp(min=LEAST_STD)
    return LearnedRows(table, tokens, padding, std, nn.Parameter(deviations))
