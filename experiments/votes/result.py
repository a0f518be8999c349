"""From the runs to `result.json`, the figure, the grid and the tables of docs/votes.md.

Gains are of the true taste, which no run but the ceiling's is trained on: of each prompt's image,
after less before, with the same noise. Intervals are rliable's over seeds and prompts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from burnish.evaluation.paired import Evaluation
from burnish.files import dumps, write
from burnish.runs import Run
from experiments.figures import IMAGES, pyplot, save_figure, style
from experiments.measurements import gain_interval, load_evaluations, share_right
from experiments.votes import plan
from experiments.votes.grid import draw_grid
from experiments.votes.tables import (
    AIM,
    HALF,
    KEPT,
    TABLES,
    Point,
    asks,
    at_aim,
    ceilings,
    with_table,
)

FOLDER = Path(__file__).parent
PAGE = IMAGES.parent / "votes.md"
COLOURS = {
    "rvm": "#3060b0",
    "dpo": "#3a7d44",
    "fdfo": "#d0a000",
    "head": "#b4501e",
    "taste": "#999999",
    "taste_640": "#333333",
}


def report(out: Path) -> None:
    """Write the results, draw the figures and print the tables."""
    curves = {name: arm_curve(out, name) for name in plan.ARMS if trained(out, name)}
    result: dict[str, Any] = {
        "seeds": list(plan.SEEDS),
        "control": largest_change(curves["control"]),
        "arms": {name: curve for name, curve in curves.items() if name != "control"},
        "heads": json.loads((out / "heads.json").read_text()),
        "accuracy": {str(seed): accuracy(out, seed) for seed in plan.SEEDS},
        "fresh": {name: fresh_curve(out, name) for name in plan.FRESH},
    }
    write(FOLDER / "result.json", dumps(result, indent=1) + "\n")
    draw_figure(result["arms"])
    draw_grid(out, IMAGES)
    page = PAGE.read_text()
    for table in TABLES:
        print(f"{table(result)}\n")
        page = with_table(page, table(result))
    write(PAGE, page)


def arm_curve(out: Path, name: str) -> list[Point]:
    """Return every evaluation of an arm that all of its runs have come to."""
    return _curve(out, plan.TASK, name, plan.ARMS[name], plan.SEEDS, trained(out, name))


def fresh_curve(out: Path, name: str) -> list[Point]:
    """Return every evaluation of an arm whose rate was chosen anew."""
    arm = plan.FRESH[name]
    return _curve(out, plan.FRESH_TASK, name, arm, plan.FRESH_SEEDS, arm.last)


def _curve(
    out: Path, task: str, name: str, arm: plan.Arm, seeds: Sequence[int], last: int
) -> list[Point]:
    before = load_evaluations(out, task, name, seeds, 0)
    start = np.array([tastes(each["train"]) for each in before])
    points = []

    for iteration in range(0, last + 1, plan.EVERY):
        now = load_evaluations(out, task, name, seeds, iteration)
        gains = np.array([tastes(each["train"]) for each in now]) - start
        points.append(
            {
                "iteration": iteration,
                "votes": iteration * plan.VOTES * arm.votes,
                "images": iteration * arm.drawn,
                "gain": float(gains.mean()),
                "ci95": gain_interval(gains),
                "by_seed": gains.mean(1).tolist(),
                "judge": float(np.mean([share_right(each["train"]) for each in now])),
            }
        )

    return points


def trained(out: Path, name: str) -> int:
    """Return the last iteration at which all runs of an arm were measured; 0 if there is none."""
    runs = [Run(out / plan.trial(name, seed).name) for seed in plan.SEEDS]
    iterations = range(0, plan.ARMS[name].last + 1, plan.EVERY)
    measured = (at for at in iterations if all(run.evaluation_file(at).exists() for run in runs))
    return max(measured, default=0)


def tastes(evaluation: Evaluation) -> list[float]:
    """Return the true taste of each prompt's image."""
    return evaluation.reward("taste")


def largest_change(curve: Sequence[Point]) -> float:
    """Return by how much the gain of any seed ever differs from 0."""
    return max(abs(gain) for point in curve for gain in point["by_seed"])


def accuracy(out: Path, seed: int) -> dict[str, float]:
    """Return the share of held-out votes that a run's head foretells, by the votes so far."""
    records = Run(out / plan.trial("head", seed).name).records()
    by_votes = {record["iteration"] * plan.VOTES: record["votes"] for record in records}
    return {str(n): by_votes[n]["accuracy"] for n in plan.BUDGETS if n in by_votes}


def draw_figure(curves: Mapping[str, list[Point]]) -> None:
    """Draw the gains by votes, and what the judge finds right against the gain."""
    figure, (by_votes, judged) = pyplot.subplots(1, 2, figsize=(10, 3.6))

    for name, curve in curves.items():
        colour, label = COLOURS[name], plan.ARMS[name].label.replace("`", "")
        gains = [point["gain"] for point in curve]
        rights = [100 * point["judge"] for point in curve]
        judged.plot(gains, rights, color=colour, marker=".", label=label)
        if asks(name):
            votes = [point["votes"] for point in curve]
            low, high = np.array([point["ci95"] for point in curve]).T
            by_votes.plot(votes, gains, color=colour, marker=".", label=label)
            by_votes.fill_between(votes, low, high, color=colour, alpha=0.12, linewidth=0)

    for name in ceilings(curves):
        half = HALF * at_aim(curves[name])["gain"]
        by_votes.plot(AIM, half, color=COLOURS[name], marker="_", markersize=16, linestyle="")
    by_votes.set(xlabel="votes", ylabel="gain of the true taste")
    least = 100 * KEPT * curves["taste"][0]["judge"]
    judged.axhline(least, color="#888888", linestyle=":")
    judged.set(xlabel="gain of the true taste", ylabel="judged right, %")
    by_votes.legend(frameon=False, fontsize=8)
    judged.legend(frameon=False, fontsize=8, loc="lower left")
    style((by_votes, judged))
    save_figure(figure, "votes.png")
