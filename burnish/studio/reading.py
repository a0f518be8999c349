"""A run directory, read quickly: its state, its latest records, a small curve."""

from __future__ import annotations

import math
import os
import re
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.annotations import LARGEST, complaint
from burnish.files import decode_row, json_object, raw_rows
from burnish.report.page import SECONDS, report_config
from burnish.report.results import reward_weights
from burnish.run_control import pending
from burnish.run_files import LogRow
from burnish.runs import Record, Run, is_locked
from burnish.studio.folder import RunsFolder

POINTS = 40
"""Records of a log that are read for a small curve."""

PACE = 10
"""Latest iterations whose mean time is that of those to come."""

OWNER = re.compile(r"process (\d+) on (.*)")


@dataclass(frozen=True)
class Card:
    """A run in the list of runs; with an `error` it has nothing else."""

    name: str
    error: str = ""
    state: str = ""  # running, stopping, finished, stopped, guarded
    done: int = 0  # iterations
    iterations: int = 0
    seconds_left: float | None = None
    reward: str = ""  # the name of the first reward
    points: tuple[float | None, ...] = ()  # of its mean over the run
    changed: float = 0.0  # when the log was written last, in seconds since 1970


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


class LogCache:
    """Records of logs, read again only after a log has changed.

    Args:
        read: returns a run's records.
        most: logs whose records are remembered, the latest ones.
    """

    def __init__(self, read: Callable[[Run], list[Record]], most: int) -> None:
        self.read = read
        self.most = most
        self._known: dict[Path, tuple[tuple[int, int], list[Record]]] = {}
        self._lock = threading.Lock()

    def records(self, run: Run) -> list[Record]:
        """Return records of a run, oldest first; [] if it has no log yet.

        Raises:
            ValueError: a row is no record.
        """
        if not run.log.exists():
            return []

        status = os.stat(run.log)
        key = status.st_mtime_ns, status.st_size
        with self._lock:
            known = self._known.get(run.log)
        if known and known[0] == key:
            return known[1]

        records = self.read(run)
        with self._lock:
            self._known.pop(run.log, None)
            self._known[run.log] = key, records
            while len(self._known) > self.most:
                del self._known[next(iter(self._known))]
        return records


def spread_records(run: Run) -> list[Record]:
    """Return at most `POINTS` records of a log at even distances, then its `PACE` last ones.

    Only the last ones are compared with the layout of a record.
    """
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


def mean_of(record: Record, reward: str) -> float | None:
    """Return the mean of a reward in a record that nobody has checked; None if it has none."""
    rewards = record.get("rewards")
    numbers = rewards.get(reward) if isinstance(rewards, dict) else None
    mean = numbers.get("mean") if isinstance(numbers, dict) else None
    if not isinstance(mean, (int, float)) or not abs(mean) < LARGEST:
        return None
    return mean


def is_training(run: Run) -> bool:
    """Return whether a process holds the run.

    The lock is only tried where its owner may be alive: a process that starts must find it free.
    """
    path = run.folder / "lock"
    if not path.is_file():
        return False

    owner = OWNER.fullmatch(path.read_text("utf-8", "replace"))
    if owner and owner[2] == socket.gethostname() and not is_alive(int(owner[1])):
        return False
    return is_locked(run)


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


def state_of(run: Run, done: int, iterations: int) -> str:
    """Return the state of a run in one word."""
    if is_training(run):
        return "stopping" if pending(run).stop else "running"
    if run.guard.is_file():
        return "guarded"
    return "finished" if iterations and done >= iterations else "stopped"


def seconds_left(records: Sequence[Record], iterations: int) -> float | None:
    """Return the seconds to a run's end at the pace of its latest iterations; None if unknown."""
    latest = records[-PACE:]
    if not latest:
        return None

    pace = sum(record.get(key) or 0.0 for record in latest for key in SECONDS) / len(latest)
    return pace * max(0, iterations - latest[-1]["iteration"])


def card(folder: RunsFolder, name: str, logs: LogCache) -> Card:
    """Return a run for the list of runs; whatever is wrong with it becomes an error card."""
    try:
        run = folder.find(name)
        for path in (run.config, run.log, run.guard, run.control, run.folder / "lock"):
            folder.check(path)

        settings = Settings(report_config(run))
        iterations = int(settings.number("iterations", 100))
        records = logs.records(run)
        done = records[-1]["iteration"] if records else 0
        reward = next(iter(settings.rewards), "")
        state = state_of(run, done, iterations)
        left = seconds_left(records, iterations) if state in ("running", "stopping") else None
        points = tuple(mean_of(record, reward) for record in records)
        changed = (run.log if run.log.exists() else run.config).stat().st_mtime
        return Card(name, "", state, done, iterations, left, reward, points, changed)
    except Exception as error:  # a run of anybody must not take the list away
        return Card(name, error=str(error) or type(error).__name__)


def sparkline(points: Sequence[float | None], width: int = 120, height: int = 28) -> str:
    """Return the points of an SVG polyline; "" if there are fewer than two numbers."""
    numbers = [value for value in points if value is not None and math.isfinite(value)]
    if len(numbers) < 2:
        return ""

    low = min(numbers)
    span = (max(numbers) - low) or 1.0
    step = (width - 4) / (len(numbers) - 1)
    return " ".join(
        f"{2 + index * step:.1f},{height - 3 - (value - low) / span * (height - 6):.1f}"
        for index, value in enumerate(numbers)
    )
