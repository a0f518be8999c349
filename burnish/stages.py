"""Stages: what a long piece of work is doing now, told to whoever shows it.

    with stage("evaluation before training", "45 prompts x 2 images", total=90):
        for chunk in chunks:
            ...
            advance(len(chunk))

A stage is told when it begins, each time it advances and when it ends, as a log is: work says what
it does without knowing who reads it, and nobody does unless a program is `listening`. Threads have
no stage of their own. Standard library only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass
class Stage:
    """A piece of work, and how far it has come."""

    name: str
    detail: str = ""  # how much there is to do, in words
    total: int = 0  # of what is counted; 0: nothing is
    routine: bool = False  # it comes again in each iteration
    done: int = 0
    ended: bool = False
    started: float = field(default_factory=lambda: time.monotonic())

    @property
    def seconds(self) -> float:
        """Return the seconds since it began."""
        return time.monotonic() - self.started

    @property
    def left(self) -> float | None:
        """Return the seconds to its end at its pace so far; None where that is not known."""
        if not 0 < self.done < self.total:
            return None
        return self.seconds * (self.total - self.done) / self.done


class Listener(Protocol):
    """Somebody who shows the work to a user; by default nobody does."""

    def on_stage(self, stage: Stage) -> None:
        """Take in a stage that has begun, advanced or ended."""
        return None

    def on_record(self, record: Mapping[str, Any]) -> None:
        """Take in the record of an iteration of training."""
        return None


class Nobody(Listener):
    """A listener that shows nothing."""


_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)
_stage: ContextVar[Stage | None] = ContextVar("stage", default=None)


@contextmanager
def listening(somebody: Listener) -> Iterator[None]:
    """Tell `somebody` of all stages within this context."""
    token = _listener.set(somebody)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def stage(name: str, detail: str = "", total: int = 0, routine: bool = False) -> Iterator[None]:
    """Tell who listens that a piece of work begins, and at the end of this context that it ends.

    Args:
        name: of the work.
        detail: how much there is to do.
        total: what `advance` counts up to.
        routine: it is part of each iteration.
    """
    begun = Stage(name, detail, total, routine)
    token = _stage.set(begun)
    _tell(begun)

    try:
        yield
    finally:
        _stage.reset(token)
        begun.ended = True
        _tell(begun)


def advance(count: int = 1) -> None:
    """Tell who listens that `count` more of the current stage is done; without a stage nobody."""
    current = _stage.get()
    if current is not None and current.total:
        current.done = min(current.total, current.done + count)
        _tell(current)


def tell_record(record: Mapping[str, Any]) -> None:
    """Tell who listens of an iteration's record."""
    somebody = _listener.get()
    if somebody is not None:
        somebody.on_record(record)


def _tell(current: Stage) -> None:
    somebody = _listener.get()
    if somebody is not None:
        somebody.on_stage(current)
