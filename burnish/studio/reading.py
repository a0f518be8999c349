"""A run directory, read quickly: its state, its latest records, those of a small curve."""

from __future__ import annotations

import math
import os
import re
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from burnish.annotations import complaint
from burnish.files import decode_row, json_object, raw_rows
from burnish.report.page import SECONDS, WAITING, report_config
from burnish.report.results import reward_weights
from burnish.run_control import pending
from burnish.run_files import LogRow
from burnish.runs import Record, Run, is_locked
from burnish.studio.folder import MOST

POINTS = 40
"""Records of a log that are read for a small curve."""

PACE = 10
"""Latest iterations whose mean time is that of those to come."""

MOST_LOGS = 8
"""Whole logs that are remembered."""

Change = tuple[int, int, int, int]
"""When a file was changed, in two ways, its size and its number: see `changed`."""

MISSING: Change = (0, 0, 0, 0)
"""The answer of `changed` where there is nothing."""

Content = TypeVar("Content")

OWNER = re.compile(r"process (\d+) on (.*)")


class Owner(NamedTuple):
    """A process that wrote a lock."""

    process: int
    host: str


@dataclass(frozen=True)
class Settings:
    """The part of a run's configuration that the studio needs."""

    tree: Mapping[str, Any]

    def number(self, name: str, default: float = 0) -> float:
        """Return the number under a dotted key, or the default."""
        node: Any = self.tree
        for key in name.split("."):
            node = node.get(key) if isinstance(node, Mapping) else None
        return node if type(node) in (int, float) else default

    @property
    def rewards(self) -> dict[str, float]:
        """The rewards' weights by name."""
        return reward_weights(self.tree)


class FileCache(Generic[Content]):
    """The contents of a file of each run, read again only after it has changed.

    Args:
        path: returns the path of a run's file.
        read: returns the contents, given the run and what was read before; None: nothing was.
        most: runs whose contents are remembered, the latest ones.
    """

    def __init__(
        self,
        path: Callable[[Run], Path],
        read: Callable[[Run, Content | None], Content],
        most: int,
    ) -> None:
        self.path = path
        self.read = read
        self.most = most
        self._known: dict[Path, tuple[Change, Content]] = {}
        self._lock = threading.Lock()

    def of(self, run: Run) -> Content:
        """Return the contents.

        Raises:
            ValueError: the file is none of a run.
        """
        path = self.path(run)
        key = changed(path)
        with self._lock:
            known = self._known.get(path)
        if known and known[0] == key:
            return known[1]

        content = self.read(run, known[1] if known else None)
        with self._lock:
            self._known.pop(path, None)
            self._known[path] = key, content
            while len(self._known) > self.most:
                del self._known[next(iter(self._known))]
        return content


def changed(path: Path | str) -> Change:
    """Return what differs once a file or folder was changed, or is another one.

    That is when its content and when its rights were changed, its size and its number on the disk;
    `MISSING` if there is none. A link is looked at itself.
    """
    try:
        status = os.stat(path, follow_symlinks=False)
    except OSError:
        return MISSING
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def what_is(path: str) -> tuple[int, int]:
    """Return a folder's number on the disk and its kind, whatever is written into it."""
    try:
        status = os.stat(path, follow_symlinks=False)
    except OSError:
        return 0, 0
    return status.st_ino, status.st_mode


def settings_cache() -> FileCache[Settings]:
    """Return a cache of the configurations of runs."""
    return FileCache(lambda run: run.config, lambda run, before: Settings(report_config(run)), MOST)


def points_cache() -> FileCache[list[Record]]:
    """Return a cache of the records that a small curve is drawn from."""
    return FileCache(lambda run: run.log, lambda run, before: spread_records(run), MOST)


def log_cache() -> FileCache[Log]:
    """Return a cache of whole logs."""
    return FileCache(lambda run: run.log, read_on, MOST_LOGS)


@dataclass(frozen=True)
class Log:
    """The records of a log, and where to read on."""

    records: list[Record]  # with the last row, if that is a record without its line feed
    rows: int = 0  # that end in a line feed
    end: int = 0  # bytes up to there
    last: bytes = b""  # the last of these rows


def read_on(run: Run, before: Log | None = None) -> Log:
    """Return the records of a log; of one that has only grown, just the new rows are read.

    A log of which an earlier row is another one now, but not the last row, is taken for one that
    has grown: training adds rows, replaces the last one, and removes the latest.

    Raises:
        ValueError: a row is no record.
    """
    before = before or Log([])
    if not run.log.exists():
        return Log([])

    with run.log.open("rb") as file:
        file.seek(before.end - len(before.last))
        new = file.read()
    if not new.startswith(before.last):
        return read_on(run)

    *complete, unfinished = new[len(before.last) :].split(b"\n")
    rows = before.rows + len(complete)
    records = before.records[: before.rows]
    for row, line in enumerate(complete, before.rows + 1):
        records.append(checked(run, row, line.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\r")))

    log = Log(
        records,
        rows,
        before.end + len(new) - len(before.last) - len(unfinished),
        complete[-1] + b"\n" if complete else before.last,
    )
    with suppress(ValueError):  # whole, if an editor took away the last line's end
        return replace(log, records=[*records, checked(run, rows + 1, unfinished)])
    return log


def spread_records(run: Run) -> list[Record]:
    """Return at most `POINTS` records of a log at even distances, then its `PACE` last ones.

    Only the last ones are compared with the layout of a record.
    """
    if not run.log.exists():
        return []

    *rows, _ = raw_rows(run.log)  # the last one is empty, or being written
    last = max(0, len(rows) - PACE)
    step = max(1, math.ceil(last / POINTS))
    earlier = [parsed(run, *rows[index]) for index in range(0, last, step)]
    return earlier + [checked(run, *row) for row in rows[last:]]


def checked(run: Run, row: int, line: bytes) -> Record:
    """Return the record in a row of a log, compared with its layout.

    Raises:
        ValueError: it is none.
    """
    record = parsed(run, row, line)
    if wrong := complaint(record, LogRow, ""):
        raise ValueError(f"{run.log.name}, row {row}: {wrong}; delete this line")
    return record


def parsed(run: Run, row: int, line: bytes) -> Record:
    """Return the JSON object in a row of a log.

    Raises:
        ValueError: it is none.
    """
    place = f"{run.log.name}, row {row}"
    return json_object(decode_row(run.log, row, line), place, "delete this line")


def is_training(run: Run) -> bool:
    """Return whether a process holds the run.

    The lock is only tried where its owner may be alive: a process that starts must find it free.
    """
    return (run.folder / "lock").is_file() and not is_gone(owner(run)) and is_locked(run)


def owner(run: Run) -> Owner | None:
    """Return the process that wrote the run's lock last, and its machine; None if unknown."""
    found = OWNER.fullmatch((run.folder / "lock").read_text("utf-8", "replace"))
    return Owner(int(found[1]), found[2]) if found else None


def is_gone(who: Owner | None) -> bool:
    """Return True if the owner of a lock surely is no process of this machine any more."""
    return who is not None and who.host == socket.gethostname() and not is_alive(who.process)


def is_alive(process: int) -> bool:
    """Return whether there is a process of this number; True where that cannot be told."""
    if os.name == "nt":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def state_of(run: Run, done: int, iterations: int, held: bool) -> str:
    """Return the state of a run in one word; `held`: a process trains it."""
    if held:
        return "stopping" if pending(run).stop else "running"
    if run.guard.is_file():
        return "guarded"
    return "finished" if iterations and done >= iterations else "stopped"


def seconds_left(records: Sequence[Record], iterations: int) -> float | None:
    """Return the seconds to a run's end at the pace of its latest iterations; None if unknown."""
    latest = records[-PACE:]
    if not latest:
        return None

    keys = (*SECONDS, WAITING)
    pace = sum(record.get(key) or 0.0 for record in latest for key in keys) / len(latest)
    return pace * max(0, iterations - latest[-1]["iteration"])
