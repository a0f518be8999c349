"""The two nouns of an iteration: the images that were collected, and the credit they get."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from burnish.prompts.expander import Expansions
from burnish.types import Prompt, Scores, Trajectory


@dataclass(frozen=True)
class RolloutBatch:
    """The B images of one process in one iteration, sampled and scored."""

    iteration: int
    prompts: list[Prompt]  # B, expanded if there is an expander; images of a prompt are neighbours
    expansions: Expansions | None  # the texts that the expander drew for them
    trajectory: Trajectory
    scores: Scores  # of this process's images
    group: Tensor  # (B,) int64: same number = same prompt
    control_scale: float | None  # at which they were sampled, where a curriculum moves it
    seconds_sampling: float  # without those in which votes were waited for
    seconds_scoring: float  # in a thread, while the next images are sampled
    metrics: Mapping[str, Any] = field(default_factory=dict)  # for the record


@dataclass(frozen=True)
class Credit:
    """The advantages of one process's B images, compared with those of all processes."""

    advantages: Tensor  # (B,) float32
    valid: Tensor  # (B,) bool: the images that have all their rewards
    group: Tensor  # (B,) int64: prompts, separated by control scale
    counted: Tensor  # (B,) bool: those that the loss is a mean over, such as a selected front
    loss_scale: float  # the loss of these times this, over all images, is that mean
    empty: bool = False  # no image of any process has its rewards, so there is nothing to learn
    metrics: Mapping[str, Any] = field(default_factory=dict)  # for the record
