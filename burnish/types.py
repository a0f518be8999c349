"""The nouns of the library: what flows from one part of an iteration to the next.

Everything here is immutable, so nothing downstream can write into anything upstream. Shapes: `B`
images, `T` stochastic transitions, `K` rewards, `*latent` the latent's own shape (channels,
height, width).

The second half are protocols: what the training loop needs of a kernel, a guidance, an advantage,
an objective, a curriculum and a process. An attribute that a part does not have takes the value
that stands here, so a part that a user writes says only what differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from burnish.errors import HALF_CHARACTER

Cond = dict[str, Tensor]
"""An encoded prompt: text states, a control image and its scale, ... Every value is (B, ...)."""

MOST_PROMPTS = 1_000_000
"""Prompts that one source may give: more would take for ever, and memory without end."""


@dataclass(frozen=True)
class Prompt:
    """One prompt: the text a generator reads and whatever else its source knows about it."""

    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    # what the generator reads around the text, {}, and nobody else sees: see `prompts.identifiers`
    template: str = "{}"

    def __post_init__(self) -> None:
        if isinstance(self.text, str) and (half := HALF_CHARACTER.search(self.text)):
            raise ValueError(
                f"the prompt {self.text!r} contains {half[0]!r}, which is half of a character and "
                "which no file can hold; write the whole character"
            )

    @property
    def generator_text(self) -> str:
        """The text that the generator reads."""
        return self.template.replace("{}", self.text)

    @property
    def original(self) -> str:
        """The text before expansion, from the metadata; a prompt without one is its own original.

        Raises:
            ValueError: the metadata's original is not a text.
        """
        if "original" not in self.metadata:
            return self.text

        text = self.metadata["original"]
        if not isinstance(text, str) or not text.strip():
            raise ValueError(
                f"the original of the prompt '{self.text}' is {text!r}; "
                "give a text that is not empty"
            )
        return text

    def unexpanded(self) -> Prompt:
        """Return the prompt as it was before expansion, without reward identifiers."""
        return Prompt(self.original, self.metadata)


@dataclass(frozen=True)
class Level:
    """A noise level of x = alpha * x0 + sigma * noise; each (B, 1, 1, 1), float64."""

    alpha: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class Gaussian:
    """An isotropic Gaussian over latents: the distribution that one transition samples from."""

    mean: Tensor  # (B, *latent)
    std: Tensor  # (B, 1, ..., 1)


@dataclass(frozen=True)
class Trajectory:
    """B images, each reached through T stochastic transitions."""

    x: Tensor  # (B, T+1, *latent) states, noisiest first, float32
    t: Tensor  # (T+1,) their times (training timesteps); the last may be -1: the data itself
    logp: Tensor  # (B, T) mean log-density per latent dimension under the sampling weights
    latent: Tensor  # (B, *latent) the finished latent, which is decoded
    cond: Cond  # B rows, on the CPU
    group: Tensor  # (B,) same number = same prompt; groups are contiguous
    # (B, T, *latent) the predicted x0 before each transition, if it is kept
    x0_pred: Tensor | None = None


@dataclass(frozen=True)
class Replay:
    """Pairs (image, transition) under the current weights, which objectives learn from.

    On the reverse process a pair is a transition that was sampled, and l its log-density. On the
    forward process it is an image noised again, -l the mean squared error of the prediction, and a
    KL half the squared distance of two predictions. The old policy is the one that sampled. The
    loop replays b pairs as a column, so k is 1.
    """

    logp: Tensor  # (b, k) l, a mean over the latent's dimensions, with gradient
    logp_old: Tensor  # (b, k) the same under the old policy
    dims: int  # scalars in one latent: logp * dims is in nats per image and transition
    logp_ref: Tensor | None = None  # (b, k) the same under the reference weights
    kl: Tensor | None = None  # (b, k) KL to the reference or anchor, nats a pair, with gradient
    kl_old: Tensor | None = None  # (b, k) KL to the old policy, nats a pair, with gradient
    std: Tensor | None = None  # (b, k) of the transition; None on the forward process
    # (b, mixtures) mean absolute errors of the mixtures that the objective asked for, no gradient
    mixture_errors: Tensor | None = None


@dataclass(frozen=True)
class Scores:
    """The rewards of B images: one column a reward, unweighted."""

    parts: Tensor  # (B, K) float64; NaN where a reward gave no answer
    names: tuple[str, ...]
    problems: tuple[str, ...] = ()  # why answers are missing

    # (B,) int64: the one reward that is each image's target; None: all of them are
    target_reward: Tensor | None = None

    @property
    def valid(self) -> Tensor:
        """The images that have all their rewards, (B,) bool."""
        return self.parts.isfinite().all(1)


@dataclass(frozen=True)
class Loss:
    """A scalar to call backward on, and numbers about it for the record."""

    value: Tensor
    metrics: Mapping[str, float]


def describe_value(value: object) -> str:
    """Return a short description of a value for a message: its type, and a tensor's shape."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    return "nothing" if value is None else f"a {type(value).__name__}"


Reward = Callable[[Tensor, Sequence[Prompt]], Tensor]
"""(images (B, 3, H, W) in [0, 1], B prompts) -> (B,), higher is better."""

Judge = Callable[[Tensor, Sequence[Prompt]], Tensor]
"""(images, prompts) -> (B,) bool: whether the image shows its prompt."""

Network = Callable[[Tensor, Tensor, Cond], Tensor]
"""(x_t, t, cond) -> the network's raw output."""


class Kernel(Protocol):
    """One transition of a sampler, x_t -> x_s, as a Gaussian."""

    deterministic: bool = False
    """Its transitions have no noise, so only an objective on the forward process can learn."""

    schedule: Literal["any", "diffusion", "consistency", "flow"] = "any"
    """The kind of model that it needs; "diffusion" is variance preserving, "any" includes it."""

    def __call__(self, x_t: Tensor, x0: Tensor, level_t: Level, level_s: Level) -> Gaussian:
        """Return the Gaussian of the transition from level t to level s; x is (B, *latent)."""
        ...


class Guidance(Protocol):
    """A way to call the network so that its output follows the prompt."""

    negative: str = ""
    """A negative prompt, in place of the empty one."""

    needs_original: bool = False
    """The condition must also carry the states of the prompts before expansion."""

    def __call__(self, raw: Network, x: Tensor, t: Tensor, cond: Cond, null: Cond) -> Tensor:
        """Return the guided output (B, *latent); `null` is the empty prompt for B rows."""
        ...

    def unguided(self, raw: Network, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Return the output (B, *latent) for the prompts alone, as networks are pretrained."""
        return raw(x, t, cond)


class Advantage(Protocol):
    """The measure of how much better than expected each image was."""

    imitates: bool = False
    """It gives weights >= 0 to imitate images by, not signed advantages."""

    compares_images: bool = False
    """It compares the images of a prompt, so one image alone has no advantage."""

    selects: bool = False
    """Only the images of `front` are learned from; all others have advantage 0."""

    min_count: int = 0
    """Rewards of a prompt after which a running mean of it is used; 0: none is kept."""

    def __call__(self, scores: Scores, weights: Tensor, group: Tensor) -> Tensor:
        """Return the advantages (B,) float32 from the rewards' weights (K,) and groups (B,)."""
        ...

    def front(self, scores: Scores, weights: Tensor, group: Tensor) -> Tensor:
        """Return the images (B,) bool that are learned from; called only where it `selects`.

        Args:
            scores: of the images.
            weights: (K,) of the rewards.
            group: (B,) prompts.
        """
        return scores.valid

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered from iteration to iteration, ready for JSON."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        return None


class Objective(Protocol):
    """A loss from log-probabilities and advantages."""

    process: Literal["reverse", "forward"] = "reverse"
    """The transitions that were sampled, or the finished images noised again."""

    data: Literal["latent", "encoded"] = "latent"
    """Of the forward process: the sampled latents, or those of the decoded images."""

    imitates: bool = False
    """It needs weights >= 0, as the advantages "softmax" and "top_fraction" give them."""

    compares_images: bool = False
    """It replaces the advantages of images by `targets`, and needs all their transitions."""

    compares_with_reference: bool = False
    """The change that `targets` is given is that from the reference, not from the old policy."""

    uses_ratio: bool = False
    """It reads `logp_old`, which is otherwise a copy of `logp` on the forward process."""

    uses_old_prediction: bool = False
    """It reads `kl_old`, so the old policy's predictions are kept."""

    mixtures: tuple[float, ...] = ()
    """Mixtures (1 - c) old + c current of predictions whose `mixture_errors` it reads."""

    clip: float = 1.64
    """The clip range, nats per image and transition; `burnish check` compares rounding to it."""

    kl: float = 0.0
    """The coefficient of the KL to the reference; above 0 the reference weights are called too."""

    def __call__(self, replay: Replay, adv: Tensor) -> Loss:
        """Return the mean loss over images and transitions; `adv` is (b,)."""
        ...

    def learns_from(self, adv: Tensor, group: Tensor) -> Tensor:
        """Return the images (b,) bool that the loss is about; called where it `compares_images`.

        Args:
            adv: (b,) advantages of images that have all their rewards.
            group: (b,) prompts.
        """
        return torch.ones_like(adv, dtype=torch.bool)

    def targets(self, change: Tensor, adv: Tensor, group: Tensor, transitions: int) -> Tensor:
        """Return what replaces the advantages; called only where it `compares_images`.

        Args:
            change: (b, T) the change of the log-probability of each image's transitions; 0 of
                those that are not in the minibatch.
            adv: (b,) advantages.
            group: (b,) prompts.
            transitions: of one image in the minibatch.

        Returns:
            (b,), or (b, T) with one for each transition.
        """
        return adv


class Curriculum(Protocol):
    """The control scale of a ControlNet, iteration by iteration."""

    varies: bool = True
    """False of the constant one: the control scale stays as it is configured."""

    reward: str = ""
    """The name of the reward whose success it follows; "": it follows none."""

    def __call__(self, progress: float, generator: torch.Generator) -> float:
        """Return the control scale at `progress` in [0, 1] of the run."""
        ...

    def observe(self, scores: Scores) -> None:
        """Take in the rewards of the iteration's images, those of all processes.

        Args:
            scores: of these images.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered from iteration to iteration, ready for JSON."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        return None


class Process(Protocol):
    """The pairs that an objective learns from: transitions, or images noised again."""

    def replay(self, images: Tensor, transitions: Tensor, reference: bool = False) -> Replay:
        """Return the log-probabilities (b, 1) of pairs (image, transition).

        Args:
            images: (b,) rows of the batch.
            transitions: (b,) one for each image.
            reference: add `logp_ref` and `kl`.
        """
        ...
