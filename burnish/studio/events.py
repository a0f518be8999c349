"""Server-sent events: the browser is told that something has changed, and fetches it again."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.concurrency import run_in_threadpool

from burnish.runs import Run
from burnish.studio.folder import SEARCH, TRIES, RunsFolder
from burnish.studio.reading import changed, is_training

EVERY = 1.0
"""Seconds between two looks at the files."""

SILENCE = 15
"""Looks without a change after which a line is sent: a connection that is gone is noticed then."""

WATCHED = (
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


def signature(folder: RunsFolder, name: str = "") -> tuple[object, ...]:
    """Return something that differs once files of a run, or of any run, have changed."""
    names = [name] if name else folder.names()
    logs = [folder.root / ".studio" / f"{one}.log" for one in names]
    files = [folder.root / one / file for one in names for file in WATCHED]
    held = (is_held(folder, one) for one in names)
    return (*names, *held, *(changed(path) for path in (*logs, *files)))


def is_held(folder: RunsFolder, name: str) -> bool:
    """Return whether a process trains a run: its end changes no file."""
    try:
        folder.check(folder.root / name / "lock")
        return is_training(Run(folder.root / name))
    except (OSError, ValueError):
        return False


def version(folder: RunsFolder, name: str = "") -> str:
    """Return a signature as a short text, which a page carries: it is as old as the page."""
    return hashlib.sha256(repr(signature(folder, name)).encode()).hexdigest()[:16]


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
