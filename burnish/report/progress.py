"""What a run says while it runs: a live table in a terminal, one plain line an iteration anywhere
else.
"""

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

SHOWN = 12  # rows of the live table
PHASES = ("seconds_sampling", "seconds_scoring", "seconds_training")


class Progress:
    """Called with the record of each iteration; a context manager around the run."""

    def __init__(self, iterations: int, console: Console | None = None) -> None:
        self.console = console or Console()
        self.iterations = iterations
        self.records: deque[Mapping[str, Any]] = deque(maxlen=SHOWN)
        self.started = self.last = time.monotonic()
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
        now = time.monotonic()
        # the first iteration's time is without loading the model and measuring what comes before
        # training
        self.pace.append(
            now - self.last if self.records else sum(record.get(key) or 0 for key in PHASES)
        )
        self.last = now
        self.records.append(record)

        if not self.live.is_started:
            print(line(record, self.iterations, self.left()), flush=True)

    def left(self) -> float | None:
        """Seconds to the end at the pace of the latest iterations; None before the first has ended."""
        if not self.records:
            return None
        return (self.iterations - self.records[-1]["iteration"]) * sum(self.pace) / len(self.pace)

    def _view(self) -> RenderableType:
        done = self.records[-1]["iteration"] if self.records else 0
        left = self.left()
        rest = f"{duration(left)} left" if left is not None else "loading, then the first iteration"
        status = Table.grid(padding=(0, 1))
        status.add_row(
            Spinner("dots"),
            Text(f"{done}/{self.iterations}"),
            ProgressBar(self.iterations, done, width=30),
            Text(
                f"{duration(time.monotonic() - self.started)}, {rest}  (Ctrl+C: save and stop)",
                style="dim",
            ),
        )
        last = self.records[-1] if self.records else {}
        told = [Text(f"missing {lost(last)}", style="yellow")] if "missing" in last else []

        return Group(self._table(), *told, status) if self.records else status

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        names = list(self.records[-1].get("rewards", {}))
        more = [
            key for key in ("front", "control_scale", "expander_logp") if key in self.records[-1]
        ]
        heads = [
            "iteration",
            *names,
            *(key.partition("_")[0] for key in more),
            "ratio − 1",
            "clipped",
            "KL",
            "sample",
            "score",
            "train",
        ]

        for head in heads:
            table.add_column(head, justify="right", style="bold" if head in names else "")

        for record in self.records:
            rewards = record.get("rewards", {})
            table.add_row(
                str(record["iteration"]),
                *(
                    f"{short(rewards[n]['mean'])} ± {short(rewards[n]['std'])}"
                    for n in names
                    if n in rewards
                ),
                *(short(record.get(key)) for key in (*more, "ratio_deviation", "clip_fraction")),
                short(kl(record)),
                *(f"{record.get(key) or 0:.1f}s" for key in PHASES),
            )

        return table


def line(record: Mapping[str, Any], iterations: int, left: float | None) -> str:
    """One iteration in one line of plain text."""
    parts = [
        f"iteration {record['iteration']}/{iterations}",
        *(f"{name} {spread(one)}" for name, one in record.get("rewards", {}).items()),
        *([f"front {short(record['front'])}"] if "front" in record else []),
        *([f"control {short(record['control_scale'])}"] if "control_scale" in record else []),
        *([f"expander logp {short(record['expander_logp'])}"] if "expander_logp" in record else []),
        f"ratio-1 {short(record.get('ratio_deviation'))}",
        f"clipped {short(record.get('clip_fraction'))}",
        f"KL {short(kl(record))}",
        "seconds " + " + ".join(f"{record.get(key) or 0:.1f}" for key in PHASES),
        *([f"missing {lost(record)}"] if "missing" in record else []),
    ]
    return "  ".join(parts if left is None else [*parts, f"left {duration(left)}"])


def spread(reward: Mapping[str, Any]) -> str:
    """A reward's mean and standard deviation; with several rewards also the one within a prompt."""
    within = f" ({short(reward['within'])} within a prompt)" if "within" in reward else ""
    return f"{short(reward['mean'])} ± {short(reward['std'])}{within}"


def lost(record: Mapping[str, Any]) -> str:
    """How many images have no score, and the first reason."""
    return f"{max(record['missing'].values())} of {record['images']} ({(record.get('problems') or ['?'])[0]})"


def kl(record: Mapping[str, Any]) -> float | None:
    """KL to the reference if it is measured, else the approximate one to the weights that sampled."""
    value = record.get("kl")
    return record.get("approx_kl") if value is None else value


def short(value: float | None) -> str:
    """Three digits that matter."""
    return "-" if value is None or math.isnan(value) else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
