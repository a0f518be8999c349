"""Curricula: how closely a ControlNet is followed, iteration by iteration (spec of the seed: from
easy to hard).

A code is easy to read in a picture that follows it closely and hard in one that hardly does, so
training starts at a high control scale and lowers it. With p in [0, 1] the share of the run that is
done and q = min(1, p / until):

    linear    first + (last - first) q
    cosine    last + (first - last) (1 + cos(pi q)) / 2
    steps     one of ``values`` after another, each for as long
    gated     lowered by ``by`` after ``patience`` iterations in a row whose smoothed success is above ``above``, raised
              by as much when it is below ``below``; never outside first to last
    sampled   drawn evenly between linear's value and ``first``, so that what was easy is not forgotten

Called with (p, a random generator) and return the scale of one iteration; ``learn`` then hears the
success of its images, the mean of the reward named ``reward``. Only ``gated`` remembers anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch


class LinearCurriculum:
    """In a straight line from ``first`` to ``last``, which it reaches at the share ``until`` of the
    run.
    """

    reward = ""

    def __init__(self, first: float, last: float, until: float = 1.0) -> None:
        self.first = _scale("first", first)
        self.last = _scale("last", last)
        if not 0 < until <= 1:
            raise ValueError(f"curriculum.until must lie in (0, 1], not {until}.")
        self.until = until

    def __call__(self, progress: float, chance: torch.Generator) -> float:
        """The scale at ``progress`` in [0, 1]."""
        return self.first + (self.last - self.first) * min(1.0, progress / self.until)

    def learn(self, success: float) -> None:
        """Success changes nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing is remembered."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""


class CosineCurriculum(LinearCurriculum):
    """Slowly away from ``first`` and slowly to ``last``."""

    def __call__(self, progress: float, chance: torch.Generator) -> float:
        """The scale at ``progress`` in [0, 1]."""
        gone = min(1.0, progress / self.until)
        return self.last + (self.first - self.last) * (1 + math.cos(math.pi * gone)) / 2


class SampledCurriculum(LinearCurriculum):
    """Anywhere between ``first`` and where ``linear`` would be."""

    def __call__(self, progress: float, chance: torch.Generator) -> float:
        """The scale at ``progress`` in [0, 1]."""
        lowest = super().__call__(progress, chance)
        return lowest + (self.first - lowest) * float(torch.rand((), generator=chance))


class StepsCurriculum(LinearCurriculum):
    """The ``values`` one after another, for equally many iterations each."""

    def __init__(self, values: list[float]) -> None:
        if not values:
            raise ValueError("curriculum.values is empty; give at least one scale.")
        self.values = [_scale("values", value) for value in values]

    def __call__(self, progress: float, chance: torch.Generator) -> float:
        """The scale at ``progress`` in [0, 1]."""
        return self.values[min(int(progress * len(self.values)), len(self.values) - 1)]


class GatedCurriculum(LinearCurriculum):
    """As fast as it is learned, down and up again. ``smoothing``: the share that the average of the
    success keeps.
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
        super().__init__(first, last)
        if not (below < above and by > 0 and patience >= 1 and 0 <= smoothing < 1):
            raise ValueError(
                f"curriculum: below = {below} must be less than above = {above}, by = {by} more than 0, patience = "
                f"{patience} at least 1, and smoothing = {smoothing} in [0, 1)."
            )

        self.reward = reward
        self.above = above
        self.below = below
        self.by = by
        self.patience = patience
        self.smoothing = smoothing
        self._scale = self.first
        self._success = math.nan
        self._row = 0

    def __call__(self, progress: float, chance: torch.Generator) -> float:
        """The scale now, whatever ``progress`` is."""
        return self._scale

    def learn(self, success: float) -> None:
        """Takes in the success of an iteration; NaN says nothing. After a change of scale the
        average begins anew.
        """
        if math.isnan(success):
            return

        kept = 0.0 if math.isnan(self._success) else self.smoothing
        self._success = success if kept == 0 else kept * self._success + (1 - kept) * success
        self._row = self._row + 1 if self._success > self.above else 0
        towards = math.copysign(self.by, self.last - self.first)

        if self._row >= self.patience:
            self._move(towards)
        elif self._success < self.below:
            self._move(-towards)

    def _move(self, by: float) -> None:
        low, high = sorted((self.first, self.last))
        moved = min(high, max(low, self._scale + by))

        if moved != self._scale:
            self._scale = moved
            self._success = math.nan
            self._row = 0

    def state_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        success = None if math.isnan(self._success) else self._success
        return {"scale": self._scale, "success": success, "row": self._row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what ``state_dict`` gave."""
        success = state["success"]
        self._scale = float(state["scale"])
        self._row = int(state["row"])
        self._success = math.nan if success is None else float(success)


def _scale(name: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"curriculum.{name} must be a finite number, at least 0, not {value}.")
    return float(value)
