"""The results of a run: what an evaluation says about each reward, as rows and as plain text.

Standard library only; `page` makes HTML of the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from burnish.errors import printable
from burnish.run_files import EvaluationFile, GuardFile, read_json
from burnish.runs import Run, guard_verdict

SUM = "weighted sum"

KL = "kl"
"""The one measure that is no quality of an image: how far training has gone, in nats an image."""


@dataclass(frozen=True)
class Change:
    """One measure before and after training, on the same prompts from the same noise."""

    name: str
    before: float
    after: float
    gain: float | None = None  # mean paired change
    ci95: tuple[float, float] | None = None  # of it
    sign: int = 1  # -1 where less is better, 0 where neither is
    percent: bool = False  # a fraction, shown in percent

    @property
    def verdict(self) -> str:
        """Return "good" or "bad" if the interval excludes zero, otherwise ""."""
        if self.ci95 is None:
            return ""

        low, high = sorted(self.sign * bound for bound in self.ci95)
        if low > 0:
            return "good"
        return "bad" if high < 0 else ""


def reward_weights(config: Mapping[str, Any]) -> dict[str, float]:
    """Return the weight of each reward of a run by its name, as its configuration has them."""
    return {
        str(table.get("name") or table["use"].rpartition(":")[2]): table.get("weight", 1.0)
        for table in config.get("rewards", ())
    }


def reward_changes(result: Mapping[str, Any]) -> list[Change]:
    """Return the change of each reward, then of their weighted sum where it is another number.

    Args:
        result: of one set of prompts, from evaluation.json.
    """
    rewards: Mapping[str, Any] = result.get("rewards") or {}
    rows = [
        _change(name, entry, -1 if entry.get("weight", 1.0) < 0 else 1)
        for name, entry in rewards.items()
    ]
    if len(rewards) == 1 and next(iter(rewards.values())).get("weight", 1.0) == 1:
        return rows
    return [*rows, _change(SUM if rewards else "reward", result)]


def judge_change(result: Mapping[str, Any]) -> list[Change]:
    """Return the change of the fraction that the judge calls right; [] without a judge."""
    before = result.get("judge_before")
    after = result.get("judge_after")
    if before is None or after is None:
        return []
    return [Change("judged right", before, after, percent=True)]


def panel_changes(result: Mapping[str, Any]) -> list[Change]:
    """Return the change of each held-out measure."""
    panel: Mapping[str, Any] = result.get("panel") or {}
    return [_change(name, entry, 0 if name == KL else 1) for name, entry in panel.items()]


def size(result: Mapping[str, Any]) -> str:
    """Return how many prompts and images an evaluation has; "" if that is not known."""
    if not result.get("prompts"):
        return ""

    prompts = result["prompts"]
    images = result["images"]
    return f"{prompts} prompts x {images // prompts} = {images} images"


def evaluation_lines(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """Yield an evaluation as text: a row and an interval for each measure."""
    for name, result in evaluation.items():
        if not result:
            continue

        rows = [*reward_changes(result), *judge_change(result)]
        held_out = panel_changes(result)
        count = f", {size(result)}" if size(result) else ""
        yield printable(f"{name} prompts{count}")
        yield from _rows(rows)

        if held_out:
            yield "  not trained on"
            yield from _rows(held_out)


def summary(run: Run, iterations: int) -> Iterator[str]:
    """Yield how a run ended: its result, where it lies, what to do next.

    Args:
        run: that has ended or was stopped.
        iterations: that it was to have.
    """
    records = run.records()
    done = records[-1]["iteration"] if records else 0
    guarded = run.guard.is_file()
    folder = quote(str(run.folder))

    if done < iterations and not guarded:
        yield f"Stopped after iteration {done}. Go on with: burnish train --resume --out {folder}"
        return

    yield f"Done: {run.folder}"
    if guarded:
        yield guard_line(stored(run.guard, GuardFile))
    yield from evaluation_lines(stored(run.evaluation, EvaluationFile))
    yield f"Next: burnish report {folder}, or burnish sample {folder} --prompt 'a cat'"
    if not guarded:
        more = f"--set iterations={2 * iterations}"
        yield f"To train further: burnish train --resume --out {folder} {more}"


def stored(path: Path, layout: Any) -> dict[str, Any]:
    """Return the object in a JSON file; {} if there is no file.

    Args:
        path: of the file.
        layout: the annotation that it must fit.

    Raises:
        ValueError: it does not.
    """
    if not path.is_file():
        return {}
    return dict(read_json(path, layout, "delete it, or make it again with burnish evaluate"))


def guard_line(decision: Mapping[str, Any]) -> str:
    """Return what the guard did, and why."""
    return printable(guard_verdict(decision))


def _rows(rows: Sequence[Change]) -> Iterator[str]:
    width = max(len(printable(row.name)) for row in rows)

    for row in rows:
        name = printable(row.name)
        if row.percent:
            yield f"  {name:<{width}}  {row.before:.1%} -> {row.after:.1%}"
            continue

        line = f"  {name:<{width}}  {row.before:.4g} -> {row.after:.4g}"
        if row.gain is not None and row.ci95 is not None:
            low, high = row.ci95
            line += f"  paired gain {row.gain:+.4g}, 95 % interval [{low:.4g}, {high:.4g}]"
        yield line


def _change(name: str, entry: Mapping[str, Any], sign: int = 1) -> Change:
    low, high = entry["ci95"]
    return Change(name, entry["before"], entry["after"], entry["paired_mean"], (low, high), sign)
