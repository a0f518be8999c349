"""The list of runs: a card for each, made again only once files of its run have changed."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from burnish.annotations import LARGEST
from burnish.runs import Record
from burnish.studio.events import Signature
from burnish.studio.folder import RunsFolder
from burnish.studio.reading import FileCache, Settings, points_cache, seconds_left, state_of


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
    latest: float | None = None  # its mean in the last record
    line: str = ""  # its mean over the run, as an SVG polyline's points; "" if there are too few
    changed: float = 0.0  # when the log was written last, in seconds since 1970


class Cards:
    """The cards of all runs, remembered by the signatures of their files; but no error is.

    Args:
        configs: the configurations of runs, which other pages need too.
    """

    def __init__(self, configs: FileCache[Settings]) -> None:
        self.configs = configs
        self.points = points_cache()
        self._known: dict[str, tuple[Signature, Card]] = {}
        self._lock = threading.Lock()

    def of(self, folder: RunsFolder, signatures: Mapping[str, Signature]) -> list[Card]:
        """Return a card of each run: those that are running, then the others, the latest first.

        Args:
            folder: of the runs.
            signatures: of the runs to show, by name; see `burnish.studio.events.signatures`.
        """
        with self._lock:
            known = {
                name: entry
                for name, entry in self._known.items()
                if signatures.get(name) == entry[0]
            }

        for name, signature in signatures.items():
            if name not in known:
                made = card(folder, name, self.configs, self.points, signature.held)
                known[name] = signature, made

        with self._lock:
            self._known = {name: entry for name, entry in known.items() if not entry[1].error}
        order = {"running": 0, "stopping": 0}
        return sorted(
            (one for _, one in known.values()),
            key=lambda one: (order.get(one.state, 1), -one.changed, one.name),
        )


def card(
    folder: RunsFolder,
    name: str,
    configs: FileCache[Settings],
    points_of: FileCache[list[Record]],
    held: bool,
) -> Card:
    """Return a run for the list of runs; whatever is wrong with it becomes an error card.

    Args:
        folder: of the runs.
        name: of the run.
        configs: the configurations of runs.
        points_of: the records of their small curves.
        held: a process trains it.
    """
    try:
        run = folder.find(name)
        for path in (run.config, run.log, run.guard, run.control, run.folder / "lock"):
            folder.check(path)

        settings = configs.of(run)
        iterations = int(settings.number("iterations", 100))
        records = points_of.of(run)
        done = records[-1]["iteration"] if records else 0
        reward = next(iter(settings.rewards), "")
        state = state_of(run, done, iterations, held)
        left = seconds_left(records, iterations) if state in ("running", "stopping") else None
        means = [mean_of(record, reward) for record in records]
        latest = means[-1] if means else None
        changed = (run.log if run.log.exists() else run.config).stat().st_mtime
        return Card(
            name, "", state, done, iterations, left, reward, latest, sparkline(means), changed
        )
    except Exception as error:  # a run of anybody must not take the list away
        return Card(name, error=str(error) or type(error).__name__)


def mean_of(record: Record, reward: str) -> float | None:
    """Return the mean of a reward in a record that nobody has checked; None if it has none."""
    rewards = record.get("rewards")
    numbers = rewards.get(reward) if isinstance(rewards, dict) else None
    mean = numbers.get("mean") if isinstance(numbers, dict) else None
    if not isinstance(mean, (int, float)) or not abs(mean) < LARGEST:
        return None
    return mean


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
