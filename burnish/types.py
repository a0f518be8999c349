"""The nouns of the library: what flows from one part of an iteration to the next.

Everything here is immutable, so nothing downstream can write into anything upstream. Shapes: ``B``
images, ``T`` stochastic transitions, ``K`` rewards, ``*latent`` the latent's own shape (channels,
height, width).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Cond = dict[str, Tensor]
"""An encoded prompt: text states, later a control image and its scale. Every value is (B, ...)."""


@dataclass(frozen=True)
class Prompt:
    """One prompt: the text a generator reads and whatever else its source said about it."""

    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    # what the generator reads around the text, {}, and nobody else sees: see `identifiers`
    template: str = "{}"

    @property
    def generator_text(self) -> str:
        """What the generator reads."""
        return self.template.replace("{}", self.text)

    @property
    def original(self) -> str:
        """What an expanded prompt was made from, by its metadata; a prompt that says nothing is its
        own original.

        Raises:
            ValueError: what it calls its original is no text.
        """
        text = self.metadata.get("original", self.text)
        if not isinstance(text, str) or not text.strip():
            raise ValueError(
                f"the original of the prompt '{self.text}' is {text!r}; give a text that is not empty"
            )

        return text


@dataclass(frozen=True)
class Level:
    """A noise level of x = alpha * x0 + sigma * noise; each (B, 1, 1, 1) or broadcastable, float64."""

    alpha: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class Gaussian:
    """An isotropic Gaussian over latents: what one transition draws from."""

    mean: Tensor  # (B, *latent)
    std: Tensor  # (B, 1, ..., 1)


@dataclass(frozen=True)
class Trajectory:
    """B images, each reached through T stochastic transitions."""

    x: Tensor  # (B, T+1, *latent) states, noisiest first, float32
    t: Tensor  # (T+1,) their times (training timesteps); the last may be -1: the data itself
    logp: Tensor  # (B, T) mean log-density per latent dimension under the sampling weights
    latent: Tensor  # (B, *latent) what is decoded; no noise is added after it
    cond: Cond
    group: Tensor  # (B,) same number = same prompt; groups are contiguous
    # (B, T, *latent) the network's x0 before each move, where it was asked for
    x0_pred: Tensor | None = None


@dataclass(frozen=True)
class Replay:
    """What the current weights say about k stored transitions of b images."""

    logp: Tensor  # (b, k) mean log-density per latent dimension, with gradient
    logp_old: Tensor  # (b, k) the same under the weights that sampled
    dims: int  # scalars in one latent: logp * dims is in nats per image and transition
    logp_ref: Tensor | None = None  # (b, k) the same under the reference weights
    kl: Tensor | None = None  # (b, k) KL to the reference of one transition, in nats per image


@dataclass(frozen=True)
class Scores:
    """What the rewards said about B images: one column a reward, unweighted."""

    parts: Tensor  # (B, K) float64; NaN where a reward gave no answer
    names: tuple[str, ...]
    problems: tuple[str, ...] = ()  # why answers are missing
    target_reward: Tensor | None = (
        None  # (B,) int64: the column each image was asked to please alone; None: all of them
    )


@dataclass(frozen=True)
class Loss:
    """A scalar to call backward on, and what to write into the record about it."""

    value: Tensor
    metrics: Mapping[str, float]


# (x_t, x0, level_t, level_s) -> Gaussian
Kernel = Callable[[Tensor, Tensor, Level, Level], Gaussian]
# images (B, 3, H, W) in [0, 1], prompts -> (B,)
Reward = Callable[[Tensor, Sequence[Prompt]], Tensor]
Advantage = Callable[
    [Scores, Tensor, Tensor], Tensor
]  # (scores, weights (K,), group (B,)) -> (B,); heeds scores.target_reward
Objective = Callable[[Replay, Tensor], Loss]  # (replay, advantages (b,)) -> Loss


# images, prompts -> (B,) bool: shows what was asked
Judge = Callable[[Tensor, Sequence[Prompt]], Tensor]
