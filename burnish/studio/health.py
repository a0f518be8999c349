"""The health of a run in words: one light a question, with what to do about it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from burnish.report.charts import number
from burnish.report.results import (
    KL,
    SUM,
    Change,
    guard_line,
    judge_change,
    panel_changes,
    reward_changes,
)
from burnish.runs import Record

LATEST = 5
"""Iterations whose mean a light judges: a single one may be chance."""

ROUNDING = 1e-2  # of the ratio before the first update: more is a fault
MUCH_CLIPPED = 0.5
LITTLE_LEARNED = 0.5  # share of images that teach nothing

Level = Literal["good", "warning", "bad", "unknown"]


@dataclass(frozen=True)
class Light:
    """The answer to one question about a run."""

    level: Level
    title: str
    text: str


def lights(
    records: Sequence[Record], evaluation: Mapping[str, Any], guard: Mapping[str, Any], tree: Any
) -> list[Light]:
    """Return the lights of a run.

    Args:
        records: of its log, at least the latest ones.
        evaluation: the contents of evaluation.json; {} if there is none.
        guard: the contents of guard.json; {} if there is none.
        tree: its configuration.
    """
    latest = records[-LATEST:]
    found = [
        *_updates(latest, tree),
        _divergence(latest, evaluation, _table(tree, "guard").get("kl", 0)),
        *_learning(latest),
        *_missing(latest, tree),
        *_held_out(evaluation, tree),
    ]
    if guard:
        found.append(Light("bad", "Guard", guard_line(guard)))
    elif _table(tree, "guard").get("action", "none") != "none":
        found.append(Light("good", "Guard", "The guard watches, and has found nothing."))
    return [light for light in found if light is not None]


def _updates(latest: Sequence[Record], tree: Any) -> Iterator[Light]:
    """Yield the lights about the size and soundness of updates."""
    ratio = _mean(latest, "ratio_deviation")
    if ratio is not None and not _table(tree, "old_policy").get("decay"):
        fine = ratio <= ROUNDING
        text = (
            "Before the first update the policy that trains is the one that sampled: the ratio is "
            f"1 within {number(ratio)}."
            if fine
            else f"The ratio is off 1 by {number(ratio)} before the first update: the policy that "
            "trains is not the one that sampled. Take model.dtype float32 or bfloat16."
        )
        yield Light("good" if fine else "bad", "Ratio", text)

    clipped = _mean(latest, "clip_fraction")
    if clipped is not None:
        fine = clipped <= MUCH_CLIPPED
        advice = "" if fine else " Most of each update is cut off: lower optimizer.lr."
        text = f"{clipped:.0%} of the transitions are clipped or masked.{advice}"
        yield Light("good" if fine else "warning", "Clipped", text)

    if any("grad_norm" in record for record in latest):
        norm = _mean(latest, "grad_norm")
        if norm is None:
            text = "The gradient is not finite: lower optimizer.lr, or take model.dtype bfloat16."
            yield Light("bad", "Gradient", text)


def _divergence(
    latest: Sequence[Record], evaluation: Mapping[str, Any], budget: float
) -> Light | None:
    """Return the light about the way that training has gone; None where nothing measures it.

    Args:
        latest: records of the log.
        evaluation: the contents of evaluation.json.
        budget: the guard's, in nats an image; 0 if it has none.
    """
    panel = (evaluation.get("train") or {}).get("panel") or {}
    if KL in panel:
        measured = panel[KL]["after"]
        text = f"{number(measured)} nats an image away from the model before training"
        if not budget:
            return Light("unknown", "KL", f"{text}, in the latest evaluation.")
        level: Level = "good" if measured <= budget else "bad"
        within = "within" if level == "good" else "over"
        return Light(level, "KL", f"{text}: {within} the guard's budget of {number(budget)}.")

    kl = _mean(latest, "kl")
    if kl is not None:
        text = f"{number(kl)} nats an image and transition away from the model before training."
        return Light("unknown", "KL", f"{text} guard.kl gives it a budget.")

    kl = _mean(latest, "approx_kl")
    if kl is None:
        return None
    text = f"{number(kl)} nats an image and transition away from the weights that sampled."
    return Light("unknown", "KL", f"{text} How far training has gone is not measured.")


def _learning(latest: Sequence[Record]) -> Iterator[Light]:
    """Yield the lights about what there is to learn from."""
    idle = _mean(latest, "zero_advantage")
    if idle is not None:
        level: Level = "good" if idle < LITTLE_LEARNED else "bad" if idle >= 1 else "warning"
        advice = (
            ""
            if level == "good"
            else " Images of a prompt get the same rewards: raise batch.images_per_prompt, or take "
            "prompts that are neither too easy nor too hard."
        )
        yield Light(level, "Something to learn", f"{idle:.0%} of the images teach nothing.{advice}")

    for name in dict.fromkeys(name for record in latest for name in record.get("rewards", {})):
        rewards = [record.get("rewards", {}).get(name, {}) for record in latest]
        within = _mean(rewards, "within")
        if within is not None:
            level = "good" if within > 0 else "bad"
            text = f"Images of a prompt differ by {number(within)} in {name} (standard deviation)."
            yield Light(level, "Spread", text)


def _missing(latest: Sequence[Record], tree: Any) -> Iterator[Light]:
    """Yield the light about images without a reward; nobody votes on every image."""
    for record in reversed(latest):
        counts = {
            name: count
            for name, count in (record.get("missing") or {}).items()
            if count and name not in _voted(tree)
        }
        if counts:
            reason = (record.get("problems") or ["no reason is known"])[0]
            total = record.get("images", "?")
            text = f"{max(counts.values())} of {total} images of iteration {record['iteration']} "
            yield Light("warning", "Rewards", f"{text}lack a reward: {reason}")
            return


def _voted(tree: Any) -> set[str]:
    """Return the names of the rewards that are votes."""
    return {
        str(table.get("name") or "votes")
        for table in _reward_tables(tree)
        if table.get("use") == "votes"
    }


def _reward_tables(tree: Any) -> list[Mapping[str, Any]]:
    """Return the tables of the rewards in a configuration of anybody."""
    tables = tree.get("rewards") if isinstance(tree, Mapping) else None
    return [
        table
        for table in (tables if isinstance(tables, list) else ())
        if isinstance(table, Mapping)
    ]


def _held_out(evaluation: Mapping[str, Any], tree: Any) -> Iterator[Light]:
    """Yield the lights about held-out measures against the reward that is trained."""
    result = evaluation.get("train")
    if not result:
        text = (
            "This state is not evaluated: nothing says whether a higher reward is a better image."
        )
        yield Light("unknown", "Held-out", text)
        return

    trained = trained_change(reward_changes(result), tree)
    if trained is None:
        text = "No reward that is trained on is evaluated, so nothing says whether it rises."
        yield Light("unknown", "Reward", text)
    else:
        yield Light(_level(trained), "Reward", f"{trained.name} {_moved(trained)}.")

    rises = trained is not None and trained.verdict == "good"
    held_out = [change for change in panel_changes(result) if change.name != KL]
    measures = [*judge_change(result), *held_out]
    for change in measures:
        falls = change.verdict == "bad" or (change.percent and change.after < change.before - 0.1)
        level: Level = "bad" if falls and rises else "warning" if falls else "good"
        title = "Diversity" if change.name == "diversity" else "Held-out"
        text = f"{change.name} {_moved(change)}."
        if level == "bad":
            text += " It falls while the reward rises: the reward is being exploited."
        yield Light(level, title, text)

    if not measures:
        text = "Nothing but the reward is measured: set evaluation.judge or guard.panel."
        yield Light("unknown", "Held-out", text)


def trained_change(changes: Sequence[Change], tree: Any) -> Change | None:
    """Return what became of the weighted sum of rewards, or of the only one that is trained on.

    Args:
        changes: of the evaluated rewards.
        tree: of the configuration; a reward of weight 0 is only measured.
    """
    idle = {
        str(table.get("name") or table.get("use"))
        for table in _reward_tables(tree)
        if table.get("weight") == 0
    }
    trained = [change for change in changes if change.name not in idle]
    return next((change for change in trained if change.name == SUM), next(iter(trained), None))


def _moved(change: Change) -> str:
    """Return what became of a measure, in words."""
    if change.percent:
        return f"went from {change.before:.0%} to {change.after:.0%}"

    values = f"from {number(change.before)} to {number(change.after)}"
    if change.verdict == "":
        return f"has not clearly changed, {values}"
    rose = (change.after > change.before) == (change.sign > 0)
    return f"{'improved' if rose else 'fell'} {values}"


def _level(change: Change) -> Level:
    levels: dict[str, Level] = {"good": "good", "bad": "bad"}
    return levels.get(change.verdict, "warning")


def _mean(records: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Return the mean of a number over records; None if none of them has a finite one."""
    values = [record[key] for record in records if record.get(key) is not None]
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None


def _table(tree: Any, name: str) -> Mapping[str, Any]:
    table = tree.get(name) if isinstance(tree, Mapping) else None
    return table if isinstance(table, Mapping) else {}
