"""Curricula: how closely a ControlNet is followed, iteration by iteration, from easy to hard.

A code is easy to read in an image that follows it closely, so training starts at a high control
scale and lowers it. With p in [0, 1] the part of the run that is done and q = min(1, p / until):

    constant  the scale of `sampler.control`
    linear    first + (last - first) q
    cosine    last + (first - last) (1 + cos(pi q)) / 2
    steps     one of `values` after another, each for as long
    gated     lowered by `by` after `patience` iterations in a row whose smoothed success is
              above `above`, raised by as much when it is below `below`
    sampled   uniform between linear's value and `first`, so that easy images are not forgotten

Each is called with (p, a random generator) and returns the control scale of one iteration.
`observe` then gets the rewards of its images. Only `gated` remembers anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from burnish.types import Curriculum, Scores


class ConstantCurriculum(Curriculum):
    """The same control scale in every iteration: no curriculum."""

    varies = False

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = _checked_scale("scale", scale)

    def __call__(self, progress: float, generator: torch.Generator) -> float:
        """Return the scale."""
        return self.scale


class LinearCurriculum(Curriculum):
    """A straight line from `first` to `last`.

    Args:
        first: the scale at the beginning of the run.
        last: the scale at its end.
        until: the fraction of the run after which `last` is reached.
    """

    def __init__(self, first: float, last: float, until: float = 1.0) -> None:
        self.first = _checked_scale("first", first)
        self.last = _checked_scale("last", last)
        if not 0 < until <= 1:
            raise ValueError(f"curriculum.until must lie in (0, 1], not {until}")

        self.until = until

    def __call__(self, progress: float, generator: torch.Generator) -> float:
        """Return the scale at `progress` in [0, 1]."""
        return self.first + (self.last - self.first) * min(1.0, progress / self.until)


class CosineCurriculum(LinearCurriculum):
    """Half a cosine: slow at `first`, fast between, slow at `last`."""

    def __call__(self, progress: float, generator: torch.Generator) -> float:
        """Return the scale at `progress` in [0, 1]."""
        done = min(1.0, progress / self.until)
        return self.last + (self.first - self.last) * (1 + math.cos(math.pi * done)) / 2


class SampledCurriculum(LinearCurriculum):
    """A random scale between `first` and the value of `linear`."""

    def __call__(self, progress: float, generator: torch.Generator) -> float:
        """Return the scale at `progress` in [0, 1]."""
        lowest = super().__call__(progress, generator)
        return lowest + (self.first - lowest) * float(torch.rand((), generator=generator))


class StepsCurriculum(Curriculum):
    """The `values` one after another, for equally many iterations each.

    Args:
        values: the scales, at least one, in the order in which they are used.
    """

    def __init__(self, values: list[float]) -> None:
        if not values:
            raise ValueError("curriculum.values is empty; give at least one scale")

        self.values = [_checked_scale("values", value) for value in values]

    def __call__(self, progress: float, generator: torch.Generator) -> float:
        """Return the scale at `progress` in [0, 1]."""
        index = int(progress * len(self.values))
        return self.values[min(index, len(self.values) - 1)]


class GatedCurriculum(Curriculum):
    """As fast as it is learned, from `first` to `last` and back again where it is too hard.

    Args:
        first: the scale of the first iteration.
        last: the scale that is aimed at.
        reward: the name of the reward whose mean is the success.
        above: smoothed success above which the scale goes on towards `last`.
        below: smoothed success below which it goes back towards `first`.
        by: the size of one change.
        patience: iterations in a row `above` before a change towards `last`.
        smoothing: the weight that the moving average of the success keeps of the past.
    """

    def __init__(
        self,
        first: float,
        last: float,
        reward: str = "qr_scan",
        above: float = 0.8,
        below: float = 0.4,
        by: float = 0.05,
        patience: int = 1,
        smoothing: float = 0.5,
    ) -> None:
        if not (below < above and by > 0 and patience >= 1 and 0 <= smoothing < 1):
            raise ValueError(
                f"curriculum: below = {below} must be less than above = {above}, by = {by} more "
                f"than 0, patience = {patience} at least 1, and smoothing = {smoothing} in [0, 1)"
            )

        self.first = _checked_scale("first", first)
        self.last = _checked_scale("last", last)
        self.reward = reward
        self.above = above
        self.below = below
        self.by = by
        self.patience = patience
        self.smoothing = smoothing
        self._scale = self.first
        self._success = math.nan
        self._streak = 0

    def __call__(self, progress: float, generator: torch.Generator) -> float:
        """Return the scale now, whatever `progress` is."""
        return self._scale

    def observe(self, scores: Scores) -> None:
        """Take in the success of an iteration; after a change of scale the average starts anew."""
        success = float(scores.parts[:, scores.names.index(self.reward)].nanmean())
        if math.isnan(success):
            return

        if math.isnan(self._success):
            self._success = success
        else:
            self._success = self.smoothing * self._success + (1 - self.smoothing) * success

        self._streak = self._streak + 1 if self._success > self.above else 0
        step = math.copysign(self.by, self.last - self.first)

        if self._streak >= self.patience:
            self._change(step)
        elif self._success < self.below:
            self._change(-step)

    def _change(self, by: float) -> None:
        low, high = sorted((self.first, self.last))
        changed = min(high, max(low, self._scale + by))

        if changed != self._scale:
            self._scale = changed
            self._success = math.nan
            self._streak = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the scale and the success so far, ready for JSON."""
        success = None if math.isnan(self._success) else self._success
        return {"scale": self._scale, "success": success, "streak": self._streak}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; a scale that is beyond `first` or `last` moves there.

        Raises:
            ValueError: the scale is no finite number.
        """
        success = state["success"]
        low, high = sorted((self.first, self.last))
        self._scale = min(high, max(low, _checked_scale("scale", float(state["scale"]))))
        self._streak = int(state["streak"])
        self._success = math.nan if success is None else float(success)


def _checked_scale(name: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"curriculum.{name} must be a finite number, at least 0, not {value}")
    return float(value)
