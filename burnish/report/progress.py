"""The view of work that goes on: live in a terminal, elsewhere lines.

A run has a table of its last iterations and the seconds that are left, evaluations included. Any
other long work has a bar for the stage that it is in. Where the output is no terminal (a file, a
notebook), a line says that a stage begins, how long it will take once that is known, and what came
out of each iteration.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from burnish.errors import printable
from burnish.redaction import redact
from burnish.report.charts import duration
from burnish.report.results import summary
from burnish.runs import Run
from burnish.stages import Listener, Stage
from burnish.terminal import say

SHOWN = 12  # rows of the live table
PHASES = ("seconds_sampling", "seconds_scoring", "seconds_training")
WAITING = "seconds_waiting"
"""The record's key of the time in which votes were waited for, in a run that asks for some."""

EVALUATION = "evaluation"
"""The beginning of the names of stages whose time counts as an evaluation's."""

PAUSE = 60.0  # seconds after which a stage that goes on gets another line
PATIENCE = 10.0  # seconds of silence allowed where only slow work is told of

EXTRA_COLUMNS = {
    "pareto_front": "front",
    "control_scale": "control",
    "expander_logp": "expander",
    "ratio_deviation": "ratio − 1",
    "clip_fraction": "clipped",
    "denoising_error": "error",
}
"""Numbers that only some runs have, with the head of their column."""

LINE = {
    "pareto_front": "Pareto front",
    "control_scale": "control",
    "expander_logp": "expander logp",
    "ratio_deviation": "ratio-1",
    "clip_fraction": "clipped",
    "denoising_error": "denoising error",
}
"""The same for a line of text."""


@dataclass(frozen=True)
class Plan:
    """The work that a run has before it, from its configuration."""

    folder: Path
    iterations: int
    evaluations: bool = True  # whether there are any: one after the last iteration
    evaluate_every: int = 0  # iterations; 0: no others

    def evaluations_from(self, iteration: int) -> int:
        """Return how many evaluations follow this iteration or a later one."""
        if not self.evaluations:
            return 0

        every = self.evaluate_every
        if not every:
            return 1

        last = self.iterations
        return last // every - (iteration - 1) // every + (last % every > 0)


class Progress(Listener):
    """Shows stages and records; a context manager around the work.

    Args:
        plan: of a run; None: of any other work.
        console: where it is shown; by default on stdout.
        slow_only: without a terminal, say nothing of what ends within seconds.
    """

    def __init__(
        self, plan: Plan | None = None, console: Console | None = None, slow_only: bool = False
    ) -> None:
        self.plan = plan
        self.console = console or Console()
        self.slow_only = slow_only
        self.stage: Stage | None = None
        self.estimated: Stage | None = None  # the latest stage whose time was told
        self.records: deque[Mapping[str, Any]] = deque(maxlen=SHOWN)
        self.started = time.monotonic()
        self.clock = _Clock()
        self.printed = self.started  # when the last line was
        self.live = Live(
            get_renderable=self._view,
            console=self.console,
            refresh_per_second=4,
            transient=plan is None,
        )

    def __enter__(self) -> Progress:
        if self.plan is not None:
            folder = self.plan.folder
            report = f"burnish report {quote(str(folder))}"
            self._print(f"run {folder}; {report} makes a page of it, also meanwhile")
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
        if self.plan is not None and error is None:
            for text in summary(Run(self.plan.folder), self.plan.iterations):
                self._print(text)

    def on_stage(self, stage: Stage) -> None:
        """Show a stage that has begun, advanced or ended."""
        begun = stage is not self.stage
        self.stage = None if stage.ended else stage
        if stage.ended:
            self.clock.end(stage)
        if self.live.is_started or stage.ended:
            return

        now = time.monotonic()
        paused = now - self.printed > (PATIENCE if self.slow_only else PAUSE)
        if begun:
            due = not (stage.routine or self.slow_only)
        else:
            due = stage.left is not None and (paused or self._is_first_estimate(stage))

        if due:
            self._print(describe(stage))

    def on_record(self, record: Mapping[str, Any]) -> None:
        """Show an iteration's record: in the table, or as one line."""
        self.clock.record(record)
        self.records.append(record)

        if not self.live.is_started and self.plan is not None:
            self._print(line(record, self.plan.iterations, self.left()))

    def left(self) -> float | None:
        """Return the seconds to the end at the latest pace; None before the first iteration.

        They count the iterations and the evaluations that are still to come.
        """
        if not self.records or self.plan is None:
            return None

        done: int = self.records[-1]["iteration"]
        evaluations = self.plan.evaluations_from(done) - self.clock.evaluated
        iterations = self.plan.iterations - done
        return iterations * self.clock.iteration + max(0, evaluations) * self.clock.evaluation

    def _is_first_estimate(self, stage: Stage) -> bool:
        """Return whether this is the first time that the stage can say how long it will take."""
        first = stage is not self.estimated and not stage.routine and not self.slow_only
        if first:
            self.estimated = stage
        return first

    def _print(self, text: str) -> None:
        self.printed = time.monotonic()
        if self.console.is_terminal:
            self.console.print(Text(printable(redact(text))))
        else:
            say(text, self.console.file)

    def _view(self) -> RenderableType:
        elapsed = time.monotonic() - self.started
        if self.plan is None:
            return _stage_row(self.stage, elapsed)

        done = self.records[-1]["iteration"] if self.records else 0
        row = _run_row(self.plan, done, self.stage, elapsed, self.left())
        if not self.records:
            return row

        parts: list[RenderableType] = [_table(list(self.records))]
        if "missing" in self.records[-1]:
            parts.append(Text(f"missing {missing(self.records[-1])}", style="yellow"))

        return Group(*parts, row)


class _Clock:
    """The seconds that an iteration takes, and an evaluation."""

    def __init__(self) -> None:
        self.last: float | None = None  # when the latest record came
        self.pace: deque[float] = deque(maxlen=10)  # of iterations, saving and grids included
        self.evaluations: deque[float] = deque(maxlen=3)
        self.evaluated = 0  # evaluations since the latest record
        self._evaluating = 0.0  # seconds of these

    @property
    def iteration(self) -> float:
        """Return the seconds of an iteration; 0 if there was none."""
        return sum(self.pace) / len(self.pace) if self.pace else 0.0

    @property
    def evaluation(self) -> float:
        """Return the seconds of an evaluation; 0 if there was none."""
        return sum(self.evaluations) / len(self.evaluations) if self.evaluations else 0.0

    def end(self, stage: Stage) -> None:
        """Take in a stage that has ended."""
        if stage.name.startswith(EVALUATION):
            self.evaluations.append(stage.seconds)
            self.evaluated += 1
            self._evaluating += stage.seconds

    def record(self, record: Mapping[str, Any]) -> None:
        """Take in the record of an iteration that has just ended."""
        now = time.monotonic()

        # the first one here began after loading, evaluation and grids
        if self.last is None:
            self.pace.append(sum(record.get(key) or 0 for key in (*PHASES, WAITING)))
        else:
            self.pace.append(now - self.last - self._evaluating)

        self.last = now
        self.evaluated = 0
        self._evaluating = 0.0


def describe(stage: Stage) -> str:
    """Return a stage as a line: what there is to do, or how far it has come."""
    if stage.left is None:
        return printable(f"{stage.name}: {stage.detail}" if stage.detail else stage.name)

    rest = f"{stage.done} of {stage.total}, about {duration(stage.left)} left"
    return printable(f"{stage.name}: {rest}")


def _run_row(
    plan: Plan, done: int, stage: Stage | None, elapsed: float, left: float | None
) -> Table:
    """Return the last row of a run's live view."""
    rest = "" if left is None else f", {duration(left)} left"
    doing = "" if stage is None else f", {describe(stage)}"

    row = Table.grid(padding=(0, 1))
    row.add_row(
        Spinner("dots"),
        Text(f"{done}/{plan.iterations}"),
        ProgressBar(plan.iterations, done, width=20),
        Text(f"{duration(elapsed)}{rest}{doing}  (Ctrl+C: save and stop)", style="dim"),
    )
    return row


def _stage_row(stage: Stage | None, elapsed: float) -> Table:
    """Return the live view of other work: its stage."""
    doing = "starting" if stage is None else describe(stage)
    cells: list[RenderableType] = [Spinner("dots")]
    if stage is not None and stage.total:
        cells.append(ProgressBar(stage.total, stage.done, width=20))

    row = Table.grid(padding=(0, 1))
    row.add_row(*cells, Text(f"{duration(elapsed)}, {doing}", style="dim"))
    return row


def _table(records: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of the latest iterations."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    rewards = list(records[-1].get("rewards", {}))
    extra = [key for key in EXTRA_COLUMNS if key in records[-1]]

    table.add_column("iteration", justify="right")
    for name in rewards:
        table.add_column(Text(printable(name)), justify="right", style="bold")
    for key in extra:
        table.add_column(EXTRA_COLUMNS[key], justify="right")
    for head in ("KL", "sample", "score", "train"):
        table.add_column(head, justify="right")

    for record in records:
        table.add_row(*_cells(record, rewards, extra))

    return table


def _cells(record: Mapping[str, Any], rewards: list[str], extra: list[str]) -> list[str]:
    """Return the cells of a record's row in the live table."""
    scores = record.get("rewards", {})
    none = {"mean": None, "std": None}
    values = [scores.get(name, none) for name in rewards]

    return [
        str(record["iteration"]),
        *(f"{short(value['mean'])} ± {short(value['std'])}" for value in values),
        *(short(record.get(key)) for key in extra),
        short(kl(record)),
        *(f"{record.get(key) or 0:.1f}s" for key in PHASES),
    ]


def line(record: Mapping[str, Any], iterations: int, left: float | None) -> str:
    """Return one iteration as one line of plain text; `left` seconds remain."""
    parts = [f"iteration {record['iteration']}/{iterations}"]
    parts += [f"{name} {spread(reward)}" for name, reward in record.get("rewards", {}).items()]
    numbers = {**{label: record.get(key) for key, label in LINE.items()}, "KL": kl(record)}
    parts += [f"{label} {short(value)}" for label, value in numbers.items() if value is not None]
    phases = (*PHASES, WAITING) if WAITING in record else PHASES
    parts += [f"{key.removeprefix('seconds_')} {record.get(key) or 0:.1f} s" for key in phases]

    if "missing" in record:
        parts.append(f"missing {missing(record)}")
    if left is not None:
        parts.append(f"left {duration(left)}")

    return printable("  ".join(parts))


def spread(reward: Mapping[str, Any]) -> str:
    """Return a reward's mean and standard deviation, and where they are known two more numbers.

    These are the deviation within a prompt, and the gain: the change since before training, each
    image compared with its prompt's mean then.
    """
    within = f" ({short(reward['within'])} within a prompt)" if "within" in reward else ""
    gain = f", gain {reward['gain']:+.3g}" if reward.get("gain") is not None else ""
    return f"{short(reward['mean'])} ± {short(reward['std'])}{within}{gain}"


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
