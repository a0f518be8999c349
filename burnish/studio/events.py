"""Server-sent events: the browser is told that something has changed, and fetches it again."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from starlette.concurrency import run_in_threadpool

from burnish.runs import Run
from burnish.studio.folder import SEARCH, TRIES, RunsFolder
from burnish.studio.reading import MISSING, changed, is_training

EVERY = 1.0
"""Seconds between two looks at the files."""

SILENCE = 15
"""Looks without a change after which a line is sent: a connection that is gone is noticed then."""

WATCHED = (
    "config.toml",
    "log.jsonl",
    "samples",
    "evaluations",
    "groups",
    "guard.json",
    "control.json",
    "lock",
    "questions.jsonl",
    "votes.jsonl",
    SEARCH,
    TRIES,
)
LOCK = WATCHED.index("lock")

Signature = tuple[object, ...]


def signatures(folder: RunsFolder, name: str = "") -> dict[str, Signature]:
    """Return something for a run, or for every run, that differs once its files have changed."""
    names = [name] if name else folder.names()
    root = str(folder.root)
    return {one: _signature(folder, root, one) for one in names}


def _signature(folder: RunsFolder, root: str, name: str) -> Signature:
    # paths as texts: 50 runs are looked at every second, and Path objects take five times as long
    below = f"{root}/{name}/"
    files = [changed(below + file) for file in WATCHED]
    log = changed(f"{root}/.studio/{name}.log")
    # the end of a training changes no file
    held = files[LOCK] != MISSING and is_held(folder, name)
    return held, log, *files


def is_held(folder: RunsFolder, name: str) -> bool:
    """Return whether a process trains a run."""
    try:
        folder.check(folder.root / name / "lock")
        return is_training(Run(folder.root / name))
    except (OSError, ValueError):
        return False


def version(folder: RunsFolder, name: str = "") -> str:
    """Return the version of a run's page, or of the list's; see `version_of`."""
    return version_of(signatures(folder, name))


def version_of(found: Mapping[str, Signature]) -> str:
    """Return signatures as a short text, which a page carries: it is as old as the page."""
    return hashlib.sha256(repr(found).encode()).hexdigest()[:16]


async def changes(
    folder: RunsFolder,
    name: str,
    since: str,
    is_gone: Callable[[], Awaitable[bool]],
    every: float = EVERY,
) -> AsyncIterator[str]:
    """Yield an event each time that something has changed, until the browser is gone.

    Args:
        folder: of the runs.
        name: of the run that is watched; "": all of them.
        since: the version that the page is of; "": the present one.
        is_gone: tells whether anybody still listens.
        every: seconds between two looks.
    """
    last = since or await run_in_threadpool(version, folder, name)
    quiet = 0
    yield "retry: 2000\n\n"

    while not await is_gone():
        await asyncio.sleep(every)
        now = await run_in_threadpool(version, folder, name)
        quiet = 0 if now != last else quiet + 1

        if now != last:
            last = now
            yield "event: changed\ndata: 1\n\n"
        elif quiet % SILENCE == 0:
            yield ": still here\n\n"
