"""Server-sent events: the browser is told that something has changed, and fetches it again."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from starlette.concurrency import run_in_threadpool

from burnish.runs import Run
from burnish.studio.folder import MOST, SEARCH, TRIES, RunsFolder
from burnish.studio.reading import (
    MISSING,
    Change,
    Owner,
    changed,
    is_gone,
    is_training,
    owner,
    what_is,
)

EVERY = 1.0
"""Seconds between two looks at the files."""

SILENCE = 15
"""Looks without a change after which a line is sent: a connection that is gone is noticed then."""

LISTED = ("config.toml", "log.jsonl", "guard.json", "control.json", "lock")
"""Files of a run that its card in the list is made of."""

WATCHED = (
    *LISTED,
    "samples",
    "evaluations",
    "groups",
    "questions.jsonl",
    "waiting.json",
    "votes.jsonl",
    SEARCH,
    TRIES,
)
"""Files and folders of a run, or of a search for codes, that its pages are made of."""


class Signature(NamedTuple):
    """Something of a run that differs once its files have changed.

    Attributes:
        held: a process trains it: the end of a training changes no file.
        folder: what the run's folder is, which may be a link.
        files: when each was changed.
    """

    held: bool
    folder: tuple[int, int]
    files: tuple[Change, ...]


def signatures(folder: RunsFolder, name: str = "") -> dict[str, Signature]:
    """Return the signature of a run by its name; without a name, of every run in the list."""
    if name:
        return {name: _signature(folder, name, WATCHED)}
    return {one: _signature(folder, one, LISTED) for one in folder.names()}


def _signature(folder: RunsFolder, name: str, watched: Sequence[str]) -> Signature:
    # paths as texts: 50 runs are looked at every second, and Path objects take five times as long
    path = f"{folder.root}/{name}"
    files = [changed(f"{path}/{file}") for file in watched]
    output = changed(f"{folder.root}/.studio/{name}.log")
    lock = files[watched.index("lock")]
    return Signature(is_held(folder, name, lock), what_is(path), (*files, output))


def is_held(folder: RunsFolder, name: str, lock: Change) -> bool:
    """Return whether a process trains a run; `lock` is what `changed` returns of its lock."""
    if lock == MISSING:
        return False

    try:
        if is_gone(lock_owner(folder, name, lock)):
            return False
        folder.check(folder.root / name / "lock")
        return is_training(Run(folder.root / name))
    except (OSError, ValueError):
        return False


@lru_cache(MOST)
def lock_owner(folder: RunsFolder, name: str, lock: Change) -> Owner | None:
    """Return who wrote a run's lock, read again only after the lock has changed."""
    path = folder.root / name / "lock"
    folder.check(path)
    return owner(Run(path.parent))


def version_of(found: Mapping[str, Signature], commands: Mapping[str, int | None]) -> str:
    """Return what a page is made of as a short text, which it carries: it is as old as the page.

    Args:
        found: the signatures of the runs that it shows.
        commands: how commands about them have ended, see `Processes.states`.
    """
    parts = repr(found) + repr(sorted(commands.items()))
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


async def changes(
    version: Callable[[], str],
    since: str,
    is_gone: Callable[[], Awaitable[bool]],
    every: float = EVERY,
) -> AsyncIterator[str]:
    """Yield an event each time that something has changed, until the browser is gone.

    Args:
        version: returns that of the page now, see `version_of`.
        since: the version that the page is of; "": the present one.
        is_gone: tells whether anybody still listens.
        every: seconds between two looks.
    """
    last = since or await run_in_threadpool(version)
    quiet = 0
    yield "retry: 2000\n\n"

    while not await is_gone():
        await asyncio.sleep(every)
        now = await run_in_threadpool(version)
        quiet = 0 if now != last else quiet + 1

        if now != last:
            last = now
            yield "event: changed\ndata: 1\n\n"
        elif quiet % SILENCE == 0:
            yield ": still here\n\n"
