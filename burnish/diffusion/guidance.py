"""Guidance: how a network is asked, so that its answer follows the prompt.

Called with (raw, x, t, cond, null), where ``raw(x, t, cond)`` is the bare network and ``null`` the
empty prompt, or a negative one, for as many rows; returns the network's output. ``raw`` takes k
times as many rows of ``cond`` as of ``x`` and ``t``, answers as if these were repeated k times, and
computes what the answers share once (``trunk``). Sampling and
training go through the same call: DDPO (arXiv 2305.13301, section 4) found that training only the
conditional half lets the two drift apart until the guidance weight no longer fits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from burnish.types import Cond, Guidance, Network

ORIGINAL = "original."
"""Before the names of what the original of an expanded prompt is encoded as."""


@dataclass(frozen=True)
class NoGuidance(Guidance):
    """The prompt alone: one network row an image."""

    def __call__(self, raw: Network, x: Tensor, t: Tensor, cond: Cond, null: Cond) -> Tensor:
        """``raw``'s output (B, *latent) for the prompts."""
        return raw(x, t, cond)


@dataclass(frozen=True)
class EmbeddedGuidance(Guidance):
    """The weight as an input of the network, as consistency models learn it: one network row an
    image.

    ``weight`` is what diffusers calls ``guidance_scale``; the paper of the models (arXiv
    2310.04378) counts from 0, one less.
    """

    weight: float = 8.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(
                f"guidance.weight must be a finite number, at least 0, not {self.weight}."
            )

    def __call__(self, raw: Network, x: Tensor, t: Tensor, cond: Cond, null: Cond) -> Tensor:
        """``raw``'s output (B, *latent) for the prompts at this weight."""
        return raw(
            x, t, {**cond, "guidance": x.new_full((len(x),), self.weight, dtype=torch.float32)}
        )


@dataclass(frozen=True)
class CFG(Guidance):
    """Classifier-free guidance (arXiv 2207.12598): out = null + weight * (prompt - null), two
    network rows an image.

    ``negative`` is what ``null`` says in place of nothing: what the pictures shall move away from.
    """

    weight: float = 5.0
    negative: str = ""

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ValueError(f"guidance.weight must be a finite number, not {self.weight}.")

    def __call__(self, raw: Network, x: Tensor, t: Tensor, cond: Cond, null: Cond) -> Tensor:
        """The guided output (B, *latent), at least float32; at weight 1 the empty prompt is not
        asked.
        """
        if self.weight == 1:
            return raw(x, t, cond)

        both = {name: torch.cat([null[name], value]) for name, value in cond.items()}
        out = raw(x, t, both)
        # the difference of two near answers is magnified, so it is taken in float32
        without, with_prompt = out.to(torch.promote_types(out.dtype, torch.float32)).chunk(2)
        return without + self.weight * (with_prompt - without)


@dataclass(frozen=True)
class DualGuidance(Guidance):
    """Guidance centred on the original of an expanded prompt: three network rows an image (Parrot,
    arXiv 2401.05675).

        out = null + w1 * (original - null) + w2 * (expanded - null)

    ``w2`` brings the details of the expansion, ``w1`` keeps the subject; with one of them 0 it is
    ``cfg`` with the other. The paper has 5 for both, and draws with it but trains without. The
    prompt's metadata has the ``original``; without one a prompt is its own, and this is ``cfg``
    with w1 + w2.
    """

    w1: float = 5.0
    w2: float = 5.0
    negative: str = ""
    needs_original = True  # the condition must carry their states (``Sampler.encode``)

    def __post_init__(self) -> None:
        for name, value in (("w1", self.w1), ("w2", self.w2)):
            if not math.isfinite(value):
                raise ValueError(f"guidance.{name} must be a finite number, not {value}.")

    def __call__(self, raw: Network, x: Tensor, t: Tensor, cond: Cond, null: Cond) -> Tensor:
        """The guided output (B, *latent), at least float32; ``cond`` has each of its names also
        after "original.".

        Raises:
            ValueError: ``cond`` has no originals.
        """
        original, expanded = _both(cond)
        if self.w1 == 0 or self.w2 == 0:
            weight, asked = (self.w2, expanded) if self.w1 == 0 else (self.w1, original)
            return CFG(weight, self.negative)(raw, x, t, asked, null)

        three = {
            name: torch.cat([null[name], original[name], value]) for name, value in expanded.items()
        }
        out = raw(x, t, three)
        without, first, second = out.to(torch.promote_types(out.dtype, torch.float32)).chunk(3)

        return without + self.w1 * (first - without) + self.w2 * (second - without)


@dataclass(frozen=True)
class EmbeddedDualGuidance(Guidance):
    """`dual` for a network that takes the weight as an input (see `embedded`): two network rows an
    image.

    Such a network has learned f(c, w) = null + w * (c - null), and the mean of two of its answers
    at w = w1 + w2

        out = (w1 * f(original, w) + w2 * f(expanded, w)) / w

    is `dual` with these weights, as far as it has learned that. With one of them 0 it is `embedded`
    with the other.
    """

    w1: float = 4.0
    w2: float = 4.0
    needs_original = True

    def __post_init__(self) -> None:
        if not (self.w1 >= 0 and self.w2 >= 0 and 0 < self.w1 + self.w2 < math.inf):
            raise ValueError(
                f"guidance.w1 and guidance.w2 must be at least 0 and not both 0, and not {self.w1} and {self.w2}: "
                "this network knows no negative weights."
            )

    def __call__(self, raw: Network, x: Tensor, t: Tensor, cond: Cond, null: Cond) -> Tensor:
        """The network's output (B, *latent), at least float32 where both are asked.

        Raises:
            ValueError: ``cond`` has no originals.
        """
        original, expanded = _both(cond)
        guided = EmbeddedGuidance(self.w1 + self.w2)

        if self.w1 == 0 or self.w2 == 0:
            return guided(raw, x, t, expanded if self.w1 == 0 else original, null)

        two = {name: torch.cat([original[name], value]) for name, value in expanded.items()}
        weight = x.new_full((2 * len(x),), guided.weight, dtype=torch.float32)
        out = raw(x, t, {**two, "guidance": weight})
        first, second = out.to(torch.promote_types(out.dtype, torch.float32)).chunk(2)

        return (self.w1 * first + self.w2 * second) / guided.weight


def _both(cond: Cond) -> tuple[Cond, Cond]:
    """The condition of the original prompts and that of the expanded ones."""
    expanded = {name: value for name, value in cond.items() if not name.startswith(ORIGINAL)}
    if len(expanded) == len(cond):
        raise ValueError(
            "this guidance needs the original prompts: encode by Sampler.encode, not Policy.encode."
        )

    # what an original has no version of its own of, such as a control image, is the same for both
    return {name: cond.get(ORIGINAL + name, value) for name, value in expanded.items()}, expanded
