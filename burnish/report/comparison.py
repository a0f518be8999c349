"""Several runs beside each other: what differs in their configurations, and what came of it.

The gains of two runs mean the same only on the same prompts, from the same noise, by the same
rewards, so runs without that are refused rather than mixed. As text, as JSON, and as a page with
their curves in one chart a reward. Standard library only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any

from burnish.errors import printable, type_and_message
from burnish.redaction import without_secret
from burnish.report.charts import Series, duration, line_chart, number
from burnish.report.markup import Html, fill, join, tag
from burnish.report.page import (
    LEAST_KNOWN,
    SECONDS,
    known_share,
    legend,
    paragraph,
    sheet,
)
from burnish.report.results import (
    SUM,
    Change,
    guard_line,
    judge_change,
    panel_changes,
    reward_changes,
    stored,
)
from burnish.run_files import EvaluationFile, GuardFile, read_evaluation, read_toml
from burnish.runs import Record, Run

MOST = 8
"""Runs in one comparison: a page has as many colours."""

MEANINGLESS = frozenset(
    "weight device batch workers timeout retries backoff key_variable endpoint".split()
)
"""Arguments of a reward that do not change what its numbers mean."""

Rows = list[list[str]]
"""A table: what a row is about, then a cell for each run."""


@dataclass(frozen=True)
class Compared:
    """One run of a comparison, by a name that no other one has."""

    name: str
    folder: Path
    settings: Mapping[str, str]  # the value of each key; rewards go by their names
    rewards: Mapping[str, Mapping[str, Any]]  # the table of each, by its name
    held_out: Mapping[str, Mapping[str, Any]]  # likewise of the guard's panel
    records: Sequence[Record]
    results: Mapping[str, Mapping[str, Any]]  # of the last evaluation, by the set of prompts
    initial: Mapping[str, Mapping[str, Any]]  # the evaluation before training
    guard: Mapping[str, Any]  # what it decided; {} if it has not ended the run

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each reward."""
        return {name: table.get("weight", 1.0) for name, table in self.rewards.items()}

    @property
    def iterations(self) -> int:
        """The iterations that are done."""
        return self.records[-1]["iteration"] if self.records else 0

    @property
    def images(self) -> int:
        """The images that were trained on."""
        return sum(record.get("images") or 0 for record in self.records)

    @property
    def seconds(self) -> float:
        """The seconds that the iterations took."""
        return sum(record.get(key) or 0 for record in self.records for key in SECONDS)

    def changes(self, prompts: str) -> list[Change]:
        """Return every change in the evaluation on a set of prompts."""
        result = self.results.get(prompts)
        if not result:
            return []
        return [*reward_changes(result), *judge_change(result), *panel_changes(result)]


def read(name: str, run: Run) -> Compared:
    """Return a run, read whole.

    Raises:
        ValueError: its files are not as this version of Burnish writes them; the message names it.
    """
    try:
        config = read_toml(run.config)
        rewards = _by_name(config.get("rewards", []))
        results = stored(run.evaluation, EvaluationFile)
        path = run.evaluation_file(0)
        initial = read_evaluation(path) if path.is_file() else {}
        compared = Compared(
            name=name,
            folder=run.folder,
            settings=dict(_settings({**config, "rewards": rewards})),
            rewards=rewards,
            held_out=_by_name(config.get("guard", {}).get("panel", [])),
            records=run.records(),
            results={prompts: result for prompts, result in results.items() if result},
            initial=initial,
            guard=stored(run.guard, GuardFile),
        )
        # what is read later must not fail there
        outcomes([compared])
        verdicts([compared])
        _ = [one["prompts"] for one in compared.initial.values()]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{run.folder}: its files are not as this version of Burnish writes them "
            f"({type_and_message(error)})"
        ) from error

    return compared


def compare(folders: Sequence[str | os.PathLike[str]]) -> list[Compared]:
    """Return the runs to be compared, if they can be.

    Args:
        folders: two or more run directories.

    Raises:
        FileNotFoundError: one holds no run.
        ValueError: their results do not mean the same; the message says why.
    """
    paths = [Path(folder) for folder in folders]
    if not 2 <= len(paths) <= MOST:
        raise ValueError(f"compare takes 2 to {MOST} runs, not {len(paths)}")
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError("compare: the same run is named twice; name each once")

    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]

    runs = [read(name, Run.open(path)) for name, path in zip(names, paths, strict=True)]
    for first, second in combinations(runs, 2):
        check_rewards(first, second)
        check_evaluations(first, second)
    return runs


def check_rewards(first: Compared, second: Compared) -> None:
    """Refuse runs without a common reward, or with two rewards of one name.

    Raises:
        ValueError: they have.
    """
    if not first.rewards.keys() & second.rewards.keys():
        raise ValueError(
            f"{first.name} and {second.name} have no reward in common "
            f"({', '.join(first.rewards)}; {', '.join(second.rewards)}), so there is nothing to "
            "compare"
        )

    for ones, others in ((first.rewards, second.rewards), (first.held_out, second.held_out)):
        for name in sorted(ones.keys() & others.keys()):
            one = ones[name]
            other = others[name]
            keys = sorted({**one, **other}.keys() - MEANINGLESS)
            different = [key for key in keys if one.get(key) != other.get(key)]
            if different:
                values = [_shown(table.get(different[0]), different[0]) for table in (one, other)]
                raise ValueError(
                    f"{first.name} and {second.name} mean different rewards by {name}: "
                    f"{different[0]} = {values[0]} and {values[1]}; their numbers cannot be "
                    "compared"
                )


def check_evaluations(first: Compared, second: Compared) -> None:
    """Refuse runs that were evaluated on different prompts, or from different noise.

    Raises:
        ValueError: they were.
    """
    for name in sorted(first.initial.keys() & second.initial.keys()):
        one = first.initial[name]
        other = second.initial[name]
        difference = _prompts_difference(one.get("prompts", []), other.get("prompts", []))

        for key, words in (
            ("images_per_prompt", "images a prompt"),
            ("seed", "as evaluation.seed"),
            ("chunk", "as batch.sample_batch, which decides the noise"),
        ):
            if not difference and one.get(key) != other.get(key):
                difference = f"{one.get(key)} and {other.get(key)} {words}"

        if not difference:
            counts = [run.results.get(name, {}).get("images") for run in (first, second)]
            if None not in counts and counts[0] != counts[1]:
                difference = f"{counts[0]} and {counts[1]} images"

        if difference:
            raise ValueError(
                f"{first.name} and {second.name} were not evaluated alike on the {name} prompts "
                f"({difference}), so their gains cannot be compared; train both with the same "
                "[evaluation]"
            )


def _prompts_difference(one: Sequence[str], other: Sequence[str]) -> str:
    """Return how two lists of prompts differ, with an example; "" if they are the same."""
    if one == other:
        return ""

    only = [text for text in one if text not in set(other)]
    only += [text for text in other if text not in set(one)]
    example = f', such as "{printable(only[0])}" in one only' if only else ", in another order"
    return f"{len(one)} and {len(other)} prompts{example}"


# Tables -----------------------------------------------------------------------------------------


def differences(runs: Sequence[Compared]) -> Rows:
    """Return the keys of the configuration that differ, with the value of each run."""
    settings = [run.settings for run in runs]
    keys = dict.fromkeys(key for one in settings for key in one)
    rows = [[key, *(one.get(key, "–") for one in settings)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def outcomes(runs: Sequence[Compared]) -> Rows:
    """Return what came of the runs: their length, every measured change, the guard's verdict."""
    rows = [
        ["iterations", *(str(run.iterations) for run in runs)],
        ["images", *(str(run.images) for run in runs)],
        ["time", *(duration(run.seconds) for run in runs)],
    ]
    sums_alike = all(run.weights == runs[0].weights for run in runs)

    for prompts in dict.fromkeys(name for run in runs for name in run.results):
        columns = [{change.name: change for change in run.changes(prompts)} for run in runs]
        for name in dict.fromkeys(name for column in columns for name in column):
            # the sum of other rewards, or with other weights, is another number
            if name == SUM and not sums_alike:
                continue
            rows.append([f"{name}, {prompts} prompts", *(_cell(one.get(name)) for one in columns)])

    rows.append(["guard", *("ended it, see below" if run.guard else "–" for run in runs)])
    return rows


def verdicts(runs: Sequence[Compared]) -> list[str]:
    """Return one sentence for each run that the guard has ended."""
    return [f"{run.name}: {guard_line(run.guard)}" for run in runs if run.guard]


def _cell(change: Change | None) -> str:
    """Return a change as text: the paired gain with its interval, and both means."""
    if change is None:
        return "–"
    if change.percent:
        return f"{change.before:.0%} → {change.after:.0%}"

    means = f"{number(change.before)} → {number(change.after)}"
    if change.gain is None or change.ci95 is None:
        return means

    low, high = change.ci95
    sign = "+" if change.gain > 0 else ""
    return f"{sign}{number(change.gain)} [{number(low)}, {number(high)}] ({means})"


def as_text(runs: Sequence[Compared]) -> str:
    """Return the comparison as aligned text; nothing is cut."""
    head = ["", *(run.name for run in runs)]
    rows = [head, *differences(runs), ["", *[""] * len(runs)], *outcomes(runs)]
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = (
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        for row in cells
    )
    return "\n".join([*(line.rstrip() for line in lines), *verdicts(runs)])


def as_json(runs: Sequence[Compared]) -> dict[str, Any]:
    """Return the comparison as an object of plain values, by the runs' names."""
    differing = {key: values for key, *values in differences(runs)}
    return {
        run.name: {
            "folder": str(run.folder),
            "differences": {key: values[column] for key, values in differing.items()},
            "iterations": run.iterations,
            "images": run.images,
            "seconds": run.seconds,
            "evaluation": run.results,
            "guard": run.guard or None,
        }
        for column, run in enumerate(runs)
    }


def as_page(runs: Sequence[Compared]) -> str:
    """Return the comparison as an HTML page: the tables, and the curves of each reward."""
    names = [run.name for run in runs]
    configuration = sheet(["key", *names], differences(runs))
    if not differences(runs):
        configuration = paragraph("There is no difference.")

    text = (
        "Paired gain with its 95 % interval, then the means before and after: on the same prompts "
        "from the same noise. The intervals are over prompts; another seed may give another gain."
    )
    outcome = [tag("h2", "Results"), paragraph(text), sheet(["", *names], outcomes(runs))]
    outcome += [paragraph(verdict) for verdict in verdicts(runs)]
    empty = join()
    parts = {
        "title": join([" · ".join(names)]),
        "subtitle": join([f"{len(runs)} runs compared"]),
        "evaluation": join(outcome),
        "rewards": reward_curves(runs),
        "configuration": join([tag("h2", "Differences of configuration"), configuration]),
        **dict.fromkeys(
            ("images_css", "tiles", "images", "strips", "diagnostics", "groups"), empty
        ),
    }
    template = (files("burnish") / "data" / "report.html").read_text("utf-8")
    return fill(template, parts)


# Curves -----------------------------------------------------------------------------------------


def reward_curves(runs: Sequence[Compared]) -> Html:
    """Return one chart a reward, with a curve for each run."""
    x = sorted({record["iteration"] for run in runs for record in run.records})
    names = dict.fromkeys(name for run in runs for name in run.rewards)
    figures = []

    for name in names:
        rewards = [[one.get("rewards", {}).get(name, {}) for one in run.records] for run in runs]
        shares = [known_share(run.records, row) for run, row in zip(runs, rewards, strict=True)]
        key = "gain" if min(shares) >= LEAST_KNOWN else "mean"
        series = [
            Series(run.name, _aligned(run.records, [reward.get(key) for reward in row], x))
            for run, row in zip(runs, rewards, strict=True)
        ]

        if chart := line_chart(x, series, 960, 300):
            note = " change since before training" if key == "gain" else " mean of an iteration"
            caption = tag("figcaption", tag("b", name), f"{note} ", legend(series))
            figures.append(tag("figure", caption, chart))

    if not figures:
        return join()
    return join([tag("h2", "Reward"), tag("div", *figures, class_="wide")])


def _aligned(
    records: Sequence[Record], values: Sequence[float | None], x: Sequence[int]
) -> list[float | None]:
    """Return a run's values at the iterations `x`, with gaps where it has none."""
    by_iteration = {
        record["iteration"]: value for record, value in zip(records, values, strict=True)
    }
    return [by_iteration.get(iteration) for iteration in x]


def _settings(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield each key of a configuration by its path, and its value as text."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _settings(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, _shown(value, name)


def _shown(value: Any, name: str) -> str:
    """Return a value as TOML writes it, or "none"; no secrets."""
    if value is None:
        return "none"

    public = without_secret(name, value)
    return json.dumps(public, ensure_ascii=False, default=str)


def _by_name(tables: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the tables of rewards by their names in logs."""
    return {
        str(table.get("name") or str(table["use"]).rpartition(":")[2]): dict(table)
        for table in tables
    }
