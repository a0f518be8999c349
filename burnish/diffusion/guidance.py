"""Guidance: how a network is called, so that its output follows the prompt.

A guidance is called with (raw, x, t, cond, null) and returns the network's output. `raw(x, t,
cond)` is the bare network, and `null` the condition of the empty prompt, or of a negative one,
with as many rows. `raw` takes k times as many rows of `cond` as of `x` and `t`, returns the
outputs for `x` and `t` repeated k times, and computes what these outputs share only once (see
`shared_trunk`). The prompt's rows are the last ones of a call: some families scale what is guided
to the norm of the network's output for them.

Sampling and training go through the same call: DDPO (arXiv 2305.13301, section 4) found that
training only the conditional half lets the two drift apart until the guidance weight no longer
fits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from burnish.types import Cond, Guidance, Network

ORIGINAL_PREFIX = "original."
"""Stands before the names of the encoded original of an expanded prompt."""


@dataclass(frozen=True)
class NoGuidance(Guidance):
    """The prompt alone: one network row an image."""

    def __call__(self, raw: Network, x: Tensor, t: Tensor, cond: Cond, null: Cond) -> Tensor:
        """Return `raw`'s output (B, *latent) for the prompts."""
        return raw(x, t, cond)


@dataclass(frozen=True)
class EmbeddedGuidance(Guidance):
    """The weight as an input of the network, as consistency models learn it.

    One network row an image.

    Attributes:
        weight: as diffusers' `guidance_scale`; the paper of the models (arXiv 2310.04378) counts
            from 0, one less.
    """

    weight: float = 8.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(
                f"guidance.weight must be a finite number, at least 0, not {self.weight}"
            )

    def __call__(self, raw: Network, x: Tensor, t: Tensor, cond: Cond, null: Cond) -> Tensor:
        """Return `raw`'s output (B, *latent) for the prompts at this weight."""
        weight = x.new_full((len(x),), self.weight, dtype=torch.float32)
        return raw(x, t, {**cond, "guidance": weight})

    def unguided(self, raw: Network, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Return the same as in sampling: the network was trained with the weight."""
        return self(raw, x, t, cond, cond)


@dataclass(frozen=True)
class CFG(Guidance):
    """Classifier-free guidance (arXiv 2207.12598): two network rows an image.

        out = null + weight * (prompt - null)

    Its spread grows with the weight, which makes images too bright and too dark. `rescale` r brings
    it back towards that of the prompt's output (arXiv 2305.08891, equations 15 and 16):

        r * out * std(prompt) / std(out) + (1 - r) * out

    Attributes:
        weight: 1 is the prompt alone, 0 the empty prompt.
        negative: the text of `null` in place of the empty one: what images shall not show.
        rescale: from 0, not at all, to 1; diffusers' `guidance_rescale`, 0.7 in the paper.
    """

    weight: float = 5.0
    negative: str = ""
    rescale: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ValueError(f"guidance.weight must be a finite number, not {self.weight}")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"guidance.rescale must be between 0 and 1, not {self.rescale}")

    def __call__(self, raw: Network, x: Tensor, t: Tensor, cond: Cond, null: Cond) -> Tensor:
        """Return the guided output (B, *latent), at least float32.

        At weight 1 the network is not called for the empty prompt.
        """
        if self.weight == 1:
            return raw(x, t, cond)

        conds = {name: torch.cat([null[name], value]) for name, value in cond.items()}
        without, with_prompt = _at_least_float32(raw(x, t, conds)).chunk(2)
        guided = without + self.weight * (with_prompt - without)
        if self.rescale == 0:
            return guided

        axes = tuple(range(1, guided.ndim))
        spread = with_prompt.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
        return guided * (self.rescale * spread + 1 - self.rescale)


@dataclass(frozen=True)
class DualGuidance(Guidance):
    """Guidance centred on the original of an expanded prompt (Parrot, arXiv 2401.05675).

        out = null + w1 * (original - null) + w2 * (expanded - null)

    Three network rows an image. `w2` brings the details of the expansion, `w1` keeps the
    subject; with one of them 0 it is `cfg` with the other. The paper has 5 for both, and samples
    with it but trains without. The prompt's metadata has the `original`; without one a prompt is
    its own original, and this is `cfg` with w1 + w2.

    Attributes:
        w1: weight of the original prompt.
        w2: weight of the expanded prompt.
        negative: the text of `null` in place of the empty one.
    """

    w1: float = 5.0
    w2: float = 5.0
    negative: str = ""
    needs_original = True  # the condition must carry the originals' states (`Sampler.encode`)

    def __post_init__(self) -> None:
        for name, value in (("w1", self.w1), ("w2", self.w2)):
            if not math.isfinite(value):
                raise ValueError(f"guidance.{name} must be a finite number, not {value}")

    def __call__(self, raw: Network, x: Tensor, t: Tensor, cond: Cond, null: Cond) -> Tensor:
        """Return the guided output (B, *latent), at least float32.

        `cond` has each of its names also with "original." before it.

        Raises:
            ValueError: `cond` has no originals.
        """
        original, expanded = _split_originals(cond)

        if self.w1 == 0:
            return CFG(self.w2, self.negative)(raw, x, t, expanded, null)
        if self.w2 == 0:
            return CFG(self.w1, self.negative)(raw, x, t, original, null)

        conds = {
            name: torch.cat([null[name], original[name], value]) for name, value in expanded.items()
        }
        without, with_original, with_expanded = _at_least_float32(raw(x, t, conds)).chunk(3)
        return without + self.w1 * (with_original - without) + self.w2 * (with_expanded - without)

    def unguided(self, raw: Network, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Return the output (B, *latent) for the expanded prompts alone."""
        _, expanded = _split_originals(cond)
        return raw(x, t, expanded)


@dataclass(frozen=True)
class EmbeddedDualGuidance(Guidance):
    """`dual` for a network that takes the weight as an input (see `embedded`).

    Two network rows an image. Such a network has learned f(c, w) = null + w * (c - null), and the
    mean of two of its outputs at w = w1 + w2

        out = (w1 * f(original, w) + w2 * f(expanded, w)) / w

    is `dual` with these weights, as far as it has learned that. With one of them 0 it is `embedded`
    with the other.

    Attributes:
        w1: weight of the original prompt, at least 0.
        w2: weight of the expanded prompt, at least 0.
    """

    w1: float = 4.0
    w2: float = 4.0
    needs_original = True

    def __post_init__(self) -> None:
        if not (self.w1 >= 0 and self.w2 >= 0 and 0 < self.w1 + self.w2 < math.inf):
            raise ValueError(
                "guidance.w1 and guidance.w2 must be at least 0 and not both 0, and not "
                f"{self.w1} and {self.w2}: this network knows no negative weights"
            )

    def __call__(self, raw: Network, x: Tensor, t: Tensor, cond: Cond, null: Cond) -> Tensor:
        """Return the guided output (B, *latent), at least float32 if both weights are above 0.

        Raises:
            ValueError: `cond` has no originals.
        """
        original, expanded = _split_originals(cond)
        guided = EmbeddedGuidance(self.w1 + self.w2)

        if self.w1 == 0:
            return guided(raw, x, t, expanded, null)
        if self.w2 == 0:
            return guided(raw, x, t, original, null)

        conds = {name: torch.cat([original[name], value]) for name, value in expanded.items()}
        conds["guidance"] = x.new_full((2 * len(x),), guided.weight, dtype=torch.float32)
        with_original, with_expanded = _at_least_float32(raw(x, t, conds)).chunk(2)
        return (self.w1 * with_original + self.w2 * with_expanded) / guided.weight

    def unguided(self, raw: Network, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Return the output (B, *latent) for the expanded prompts at the sum of the weights."""
        _, expanded = _split_originals(cond)
        return EmbeddedGuidance(self.w1 + self.w2)(raw, x, t, expanded, expanded)


@dataclass(frozen=True)
class Unguided(Guidance):
    """The prompt alone, whatever the guidance of sampling is.

    Attributes:
        guidance: of sampling.
    """

    guidance: Guidance

    def __call__(self, raw: Network, x: Tensor, t: Tensor, cond: Cond, null: Cond) -> Tensor:
        """Return the output (B, *latent) for the prompts alone."""
        return self.guidance.unguided(raw, x, t, cond)


def _at_least_float32(out: Tensor) -> Tensor:
    """Return `out` in float32 or better: guidance magnifies the difference of close outputs."""
    return out.to(torch.promote_types(out.dtype, torch.float32))


def _split_originals(cond: Cond) -> tuple[Cond, Cond]:
    """Return the condition of the original prompts and that of the expanded ones."""
    expanded = {name: value for name, value in cond.items() if not name.startswith(ORIGINAL_PREFIX)}
    if len(expanded) == len(cond):
        raise ValueError(
            "this guidance needs the original prompts: encode by Sampler.encode, not Policy.encode"
        )

    # an entry without a version of the original, such as a control image, is the same for both
    original = {name: cond.get(ORIGINAL_PREFIX + name, value) for name, value in expanded.items()}
    return original, expanded
