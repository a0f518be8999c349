"""Guidance: how a network is asked, so that its answer follows the prompt.

Called with (raw, x, t, cond, null), where ``raw(x, t, cond)`` is the bare network and ``null`` the empty prompt, or a
negative one, for as many rows; returns the network's output. ``raw`` takes k times as many rows of ``cond`` as of ``x``
and ``t``, answers as if these were repeated k times, and computes what the answers share once (``trunk``). Sampling and
training go through the same call: DDPO (arXiv 2305.13301, section 4) found that training only the conditional half lets
the two drift apart until the guidance weight no longer fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from burnish.types import Cond

Network = Callable[[Tensor, Tensor, Cond], Tensor]


@dataclass(frozen=True)
class none:
    """The prompt alone: one network row an image."""

    def __call__(self, raw: Network, x: Tensor, t: Tensor, cond: Cond, null: Cond) -> Tensor:
        """``raw``'s output (B, *latent) for the prompts."""
        return raw(x, t, cond)


@dataclass(frozen=True)
class embedded:
    """The weight as an input of the network, as consistency models learn it: one network row an image.

    ``weight`` is what diffusers calls ``guidance_scale``; the paper of the models (arXiv 2310.04378) counts from 0, one
    less.
    """

    weight: float = 8.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"guidance.weight must be a finite number, at least 0, not {self.weight}.")

    def __call__(self, raw: Network, x: Tensor, t: Tensor, cond: Cond, null: Cond) -> Tensor:
        """``raw``'s output (B, *latent) for the prompts at this weight."""
        return raw(x, t, {**cond, "guidance": x.new_full((len(x),), self.weight, dtype=torch.float32)})


@dataclass(frozen=True)
class cfg:
    """Classifier-free guidance (arXiv 2207.12598): out = null + weight * (prompt - null), two network rows an image.

    ``negative`` is what ``null`` says in place of nothing: what the pictures shall move away from.
    """

    weight: float = 5.0
    negative: str = ""

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ValueError(f"guidance.weight must be a finite number, not {self.weight}.")

    def __call__(self, raw: Network, x: Tensor, t: Tensor, cond: Cond, null: Cond) -> Tensor:
        """The guided output (B, *latent), at least float32; at weight 1 the empty prompt is not asked."""
        if self.weight == 1:
            return raw(x, t, cond)
        both = {name: torch.cat([null[name], value]) for name, value in cond.items()}
        out = raw(x, t, both)
        # the difference of two near answers is magnified, so it is taken in float32
        without, with_prompt = out.to(torch.promote_types(out.dtype, torch.float32)).chunk(2)
        return without + self.weight * (with_prompt - without)
