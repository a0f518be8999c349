"""The tables of docs/rlcm.md, from `result.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.rlcm_vs_ddpo import plan

NAMES = {
    "rlcm": "RLCM, 2 calls",
    "rlcm_4": "RLCM, 4 calls",
    "ddpo_best": "our DDPO, 5 calls",
    "forward": "`dgpo`, 5 calls",
    "ddpo_published": "DDPO as published, 50 calls",
}


def tables(result: Mapping[str, Any]) -> list[str]:
    """Return the tables of the ratios, of the ends, and of other numbers of calls."""
    ratios = [ratio_table(result[f"same_{value}"]) for value in ("gain", "reward")]
    return [*ratios, final_table(result), step_table(result)]


def ratio_table(same: Mapping[str, Any]) -> str:
    """Return how much sooner RLCM is where each baseline ended, a row a task and arm."""
    header = ["task", "arm", *(f"than {NAMES[name]}" for name in plan.BASELINES)]
    rows = [
        ["" if number else task, NAMES[arm]]
        + [ratio_cell(found.get(base)) for base in plan.BASELINES]
        for task, arms in same.items()
        for number, (arm, found) in enumerate(arms.items())
    ]
    return markdown(header, rows)


def ratio_cell(found: Mapping[str, Any] | None) -> str:
    """Return a ratio with the share judged right there, or its bound.

    It is "" where the baseline gained nothing, and a dash where it was not run.
    """
    if found is None:
        return "–"
    if found["ratio"] is not None:
        return f"{found['ratio']:.1f} ({found['judge']:.0%})"
    return found["bound"] or ""


def final_table(result: Mapping[str, Any]) -> str:
    """Return what each arm came to, a row a task and arm."""
    header = ["task", "arm", "images", "seconds", "gain", "unseen nouns", "judged right"]
    rows = []

    for task, arms in result["final"].items():
        for number, (name, last) in enumerate(arms.items()):
            end = last["train"]
            low, high = end["gain_ci95"]
            rows.append(
                [
                    "" if number else task,
                    NAMES[name],
                    str(last["images"]),
                    f"{last['seconds']:.0f}",
                    f"{end['gain']:+.3f} [{low:+.3f}, {high:+.3f}]",
                    f"{last['unseen']['gain']:+.3f}",
                    f"{last['judge_before']:.0%} → {end['judge']:.0%}",
                ]
            )

    return markdown(header, rows)


def step_table(result: Mapping[str, Any]) -> str:
    """Return rewards with other numbers of calls after training, a row a task and arm."""
    header = ["task", "arm", *(f"{calls} calls" for calls in plan.STEPS)]
    rows = [
        ["" if number else task, NAMES[name]]
        + [
            f"{results[str(calls)]['reward']:.3f} ({results[str(calls)]['judge']:.0%})"
            for calls in plan.STEPS
        ]
        for task, arms in result["steps"].items()
        for number, (name, results) in enumerate(arms.items())
    ]
    return markdown(header, rows)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines).replace("%", " %")
