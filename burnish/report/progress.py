"""The progress of a run: a live table in a terminal, elsewhere one line an iteration."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from burnish.errors import printable
from burnish.report.charts import duration
from burnish.terminal import say

SHOWN = 12  # rows of the live table
PHASES = ("seconds_sampling", "seconds_scoring", "seconds_training")

EXTRA_COLUMNS = {
    "pareto_front": "front",
    "control_scale": "control",
    "expander_logp": "expander",
}
"""Numbers that only some runs have, with the head of their column."""


class Progress:
    """Called with the record of each iteration; a context manager around the run."""

    def __init__(self, iterations: int, console: Console | None = None) -> None:
        self.console = console or Console()
        self.iterations = iterations
        self.records: deque[Mapping[str, Any]] = deque(maxlen=SHOWN)
        self.started = time.monotonic()
        self.last = self.started
        # seconds of the latest iterations, evaluation and saving included
        self.pace: deque[float] = deque(maxlen=10)
        self.live = Live(get_renderable=self._view, console=self.console, refresh_per_second=4)

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live.is_started:
            self.live.stop()

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Show an iteration's record: update the live view, or print one line."""
        now = time.monotonic()

        # the first iteration's time leaves out loading the model and the evaluation before training
        if self.records:
            self.pace.append(now - self.last)
        else:
            self.pace.append(sum(record.get(key) or 0 for key in PHASES))

        self.last = now
        self.records.append(record)

        if not self.live.is_started:
            say(line(record, self.iterations, self.left()))

    def left(self) -> float | None:
        """Return the seconds to the end at the latest pace; None before the first iteration."""
        if not self.records:
            return None

        done: int = self.records[-1]["iteration"]
        return (self.iterations - done) * sum(self.pace) / len(self.pace)

    def _view(self) -> RenderableType:
        if not self.records:
            return self._status(0)

        last = self.records[-1]
        parts: list[RenderableType] = [self._table()]
        if "missing" in last:
            parts.append(Text(printable(f"missing {missing(last)}"), style="yellow"))

        return Group(*parts, self._status(last["iteration"]))

    def _status(self, done: int) -> Table:
        left = self.left()
        rest = "loading, then the first iteration" if left is None else f"{duration(left)} left"
        elapsed = duration(time.monotonic() - self.started)

        status = Table.grid(padding=(0, 1))
        status.add_row(
            Spinner("dots"),
            Text(f"{done}/{self.iterations}"),
            ProgressBar(self.iterations, done, width=30),
            Text(f"{elapsed}, {rest}  (Ctrl+C: save and stop)", style="dim"),
        )
        return status

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        rewards = list(self.records[-1].get("rewards", {}))
        extra = [key for key in EXTRA_COLUMNS if key in self.records[-1]]

        table.add_column("iteration", justify="right")
        for name in rewards:
            table.add_column(Text(printable(name)), justify="right", style="bold")
        for key in extra:
            table.add_column(EXTRA_COLUMNS[key], justify="right")
        for head in ("ratio − 1", "clipped", "KL", "sample", "score", "train"):
            table.add_column(head, justify="right")

        for record in self.records:
            table.add_row(*_cells(record, rewards, extra))

        return table


def _cells(record: Mapping[str, Any], rewards: list[str], extra: list[str]) -> list[str]:
    """Return the cells of a record's row in the live table."""
    scores = record.get("rewards", {})
    numbers = [*extra, "ratio_deviation", "clip_fraction"]

    return [
        str(record["iteration"]),
        *(
            f"{short(scores[name]['mean'])} ± {short(scores[name]['std'])}"
            for name in rewards
            if name in scores
        ),
        *(short(record.get(key)) for key in numbers),
        short(kl(record)),
        *(f"{record.get(key) or 0:.1f}s" for key in PHASES),
    ]


def line(record: Mapping[str, Any], iterations: int, left: float | None) -> str:
    """Return one iteration as one line of plain text; `left` seconds remain."""
    parts = [f"iteration {record['iteration']}/{iterations}"]
    parts += [f"{name} {spread(reward)}" for name, reward in record.get("rewards", {}).items()]

    if "pareto_front" in record:
        parts.append(f"Pareto front {short(record['pareto_front'])}")
    if "control_scale" in record:
        parts.append(f"control {short(record['control_scale'])}")
    if "expander_logp" in record:
        parts.append(f"expander logp {short(record['expander_logp'])}")

    parts += [
        f"ratio-1 {short(record.get('ratio_deviation'))}",
        f"clipped {short(record.get('clip_fraction'))}",
        f"KL {short(kl(record))}",
        *(f"{key.removeprefix('seconds_')} {record.get(key) or 0:.1f} s" for key in PHASES),
    ]

    if "missing" in record:
        parts.append(f"missing {missing(record)}")
    if left is not None:
        parts.append(f"left {duration(left)}")

    return "  ".join(parts)


def spread(reward: Mapping[str, Any]) -> str:
    """Return a reward's mean and standard deviation; of several rewards also within a prompt."""
    within = f" ({short(reward['within'])} within a prompt)" if "within" in reward else ""
    return f"{short(reward['mean'])} ± {short(reward['std'])}{within}"


def missing(record: Mapping[str, Any]) -> str:
    """Return how many images have no score, and the first reason."""
    count = max(record["missing"].values())
    reason = (record.get("problems") or ["?"])[0]
    return f"{count} of {record['images']} ({reason})"


def kl(record: Mapping[str, Any]) -> float | None:
    """Return the KL to the reference if it is measured, else the one to the sampling weights."""
    value = record.get("kl")
    return record.get("approx_kl") if value is None else value


def short(value: float | None) -> str:
    """Return a number with three significant digits; "-" if there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:.3g}"
