"""Learners that a user gives to `train`, checked where they are given and each time they return."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from burnish.checked import LIKELY_SLIP, name_of, own_names
from burnish.training.batch import Credit, RolloutBatch
from burnish.training.learners import Learner
from burnish.training.metrics import plain_number
from burnish.types import describe_value
from burnish.user_code import call_user

RESERVED = ("generator", "identifiers", "expander")


def checked_learners(learners: Mapping[str, Any]) -> dict[str, Learner]:
    """Return a user's learners, wrapped.

    Raises:
        ValueError: a name is taken or no identifier, or an object has no method `learn`.
    """
    checked: dict[str, Learner] = {}

    for name, learner in learners.items():
        if name in RESERVED:
            raise ValueError(f'overrides.learners: the name "{name}" is taken; choose another')
        if not name.isidentifier():
            raise ValueError(
                f'overrides.learners: "{name}" is no name for a learner; use letters, digits and _'
            )
        if isinstance(learner, type) or not callable(getattr(learner, "learn", None)):
            raise ValueError(
                f'overrides.learners: "{name}" is {describe_value(learner)} without a method '
                "learn; give an object with learn(batch, credit) -> metrics"
            )
        _check_methods(learner, name)
        checked[name] = CheckedLearner(learner, name)

    return checked


def _check_methods(learner: Any, name: str) -> None:
    """Refuse a method that was misspelt, or a state that could not be restored."""
    known = [method for method in vars(Learner) if not method.startswith("_")]

    for own in own_names(learner):
        if own in known or own.startswith("_") or not callable(getattr(learner, own)):
            continue
        close = get_close_matches(own, known, n=1, cutoff=LIKELY_SLIP)
        if close and not _has(learner, close[0]):
            raise ValueError(
                f'overrides.learners: "{name}" has a method {own}; did you mean {close[0]}?'
            )

    if _has(learner, "state") != _has(learner, "load_state"):
        raise ValueError(
            f'overrides.learners: "{name}" has only one of state and load_state; a run that is '
            "resumed needs both"
        )


def _has(learner: Any, method: str) -> bool:
    """Return whether a learner has a method of its own, not only what it inherits."""
    inherited = getattr(Learner, method)
    return hasattr(learner, method) and getattr(type(learner), method, None) is not inherited


class CheckedLearner(Learner):
    """A user's learner: methods that it does not have do what `Learner` does; it gets copies.

    Args:
        learner: the object.
        name: its name in the run.
    """

    def __init__(self, learner: Any, name: str) -> None:
        self.learner = learner
        self.name = f"learner {name} ({name_of(learner)})"

    def learn(self, batch: RolloutBatch, credit: Credit) -> dict[str, Any]:
        """Return its metrics, with tensors of one number as numbers.

        Raises:
            ValueError: they are no mapping from texts to what JSON can hold.
        """
        metrics = self._call("learn", deepcopy(batch), deepcopy(credit))
        if not isinstance(metrics, Mapping):
            raise ValueError(
                f"{self.name}.learn returned {describe_value(metrics)}; return a dict of metrics"
            )

        plain = {str(key): plain_number(value) for key, value in metrics.items()}
        try:
            json.dumps(plain)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{self.name}.learn returned metrics that JSON cannot hold ({error}); return "
                "numbers, texts, lists and dicts"
            ) from error
        return plain

    def state(self) -> dict[str, Tensor]:
        """Return a copy of its state on the CPU.

        Raises:
            ValueError: it is no dict of tensors.
        """
        if not hasattr(self.learner, "state"):
            return {}

        state = self._call("state")
        if not isinstance(state, Mapping) or not all(
            isinstance(tensor, Tensor) for tensor in state.values()
        ):
            raise ValueError(
                f"{self.name}.state returned {describe_value(state)}; return a dict of tensors by "
                "name"
            )
        return {
            str(key): tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for key, tensor in state.items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore its state, if it keeps one."""
        if hasattr(self.learner, "load_state"):
            self._call("load_state", state)

    def averaged(self) -> AbstractContextManager[None]:
        """Return the context in which its weights are averaged, if it has one."""
        if hasattr(self.learner, "averaged"):
            context: AbstractContextManager[None] = self.learner.averaged()
            return context
        return super().averaged()

    def sampling(self) -> AbstractContextManager[None]:
        """Return the context in which its weights are those that sample, if it has one."""
        if hasattr(self.learner, "sampling"):
            context: AbstractContextManager[None] = self.learner.sampling()
            return context
        return super().sampling()

    def reset(self, state: Mapping[str, Tensor] | None) -> None:
        """Let it go back, if it can."""
        if hasattr(self.learner, "reset"):
            self._call("reset", state)

    def export(self, folder: Path) -> None:
        """Let it export itself, if it can."""
        if hasattr(self.learner, "export"):
            self._call("export", folder)

    def _call(self, method: str, *arguments: Any) -> Any:
        return call_user(f"{self.name}.{method}", getattr(self.learner, method), *arguments)
