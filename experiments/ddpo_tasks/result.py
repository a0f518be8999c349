"""From the runs to `result.json`, `curves.json`, the figure and the grids of images.

Rewards are means over the training prompts, one image each, the same noise at every evaluation;
intervals are rliable's stratified bootstrap over seeds and prompts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from burnish.files import dumps, write
from experiments.curves import Curve, learning_curve
from experiments.ddpo_tasks import plan
from experiments.ddpo_tasks.grids import draw_grids
from experiments.figures import IMAGES, pyplot, save_figure, style
from experiments.measurements import gain_interval

FOLDER = Path(__file__).parent
COLOURS = {
    "ddpo_is": "#333333",
    "ddpo_sf": "#888888",
    "rwr": "#3a7d44",
    "rwr_sparse": "#90c090",
    "rwr_control": "#c0a0d0",
    "awm": "#3060b0",
    "rlcm": "#b4501e",
}
# of the figure: the gain of a split against a cost
ROWS = (("queries", "train"), ("seconds", "train"), ("queries", "unseen"))


def arm_curve(out: Path, task: str, name: str, seconds: float) -> Curve:
    """Return every evaluation of an arm: reward and paired gain over the seeds, and the costs."""
    arm = plan.ARMS[name]
    iterations = range(0, arm.iterations + 1, arm.every)
    costs = {"seconds": seconds, "queries": arm.images}
    return learning_curve(out, task, name, plan.SEEDS, iterations, costs, _statistics)


def _statistics(rewards: np.ndarray, gains: np.ndarray) -> dict[str, Any]:
    return {
        "reward": float(rewards.mean()),
        "gain": float(gains.mean()),
        "ci95": gain_interval(gains),
        "by_seed": gains.mean(1).tolist(),
    }


def report(out: Path) -> None:
    """Write the results, draw the figures and print the table."""
    seconds = json.loads((out / "time.json").read_text())
    curves = {
        task: {name: arm_curve(out, task, name, seconds[name]) for name in plan.arms(task)}
        for task in plan.TASKS
    }
    result: dict[str, Any] = {"seeds": list(plan.SEEDS), "queries": plan.QUERIES}

    for key, split in (("paired_gain", "train"), ("unseen", "unseen")):
        result[key] = {
            task: {name: _outcome(curve, split) for name, curve in arms.items()}
            for task, arms in curves.items()
        }

    write(FOLDER / "result.json", dumps(result, indent=1) + "\n")
    write(FOLDER / "curves.json", dumps(curves) + "\n")
    draw_curves(curves)
    draw_grids(out, IMAGES)
    print(table(result))


def _outcome(curve: Curve, split: str) -> dict[str, Any]:
    first = curve[0][split]
    last = curve[-1][split]
    return {
        "mean": last["gain"],
        "ci95": last["ci95"],
        "by_seed": last["by_seed"],
        "seconds": curve[-1]["seconds"],
        "queries": curve[-1]["queries"],
        "reward_before": first["reward"],
        "reward_after": last["reward"],
        "judge_before": first["judge"],
        "judge_after": last["judge"],
    }


def table(result: dict[str, Any]) -> str:
    """Return the outcome as the Markdown table of the docs."""
    lines = [
        "| task | arm | seconds | paired gain | judged right | unseen: gain |",
        "|---|---|---|---|---|---|",
    ]

    for task, arms in result["paired_gain"].items():
        for name, outcome in arms.items():
            gain = _with_interval(outcome)
            unseen = _with_interval(result["unseen"][task][name])
            judged = f"{outcome['judge_before']:.0%} → {outcome['judge_after']:.0%}"
            seconds = f"{outcome['seconds']:.0f}"
            lines.append(f"| {task} | {name} | {seconds} | {gain} | {judged} | {unseen} |")

    return "\n".join(lines)


def _with_interval(outcome: dict[str, Any]) -> str:
    low, high = outcome["ci95"]
    return f"{outcome['mean']:+.3f} [{low:+.3f}, {high:+.3f}]"


def draw_curves(curves: dict[str, dict[str, Curve]]) -> None:
    """Draw a column a task: the paired gains against queries and seconds, and the judge."""
    height = len(ROWS) + 1
    size = (4.2 * len(curves), 2.7 * height)
    figure, axes = pyplot.subplots(height, len(curves), figsize=size)

    for column, (task, arms) in zip(axes.T, curves.items(), strict=True):
        column[0].set_title(task)
        for name, curve in arms.items():
            _draw_arm(column, name, curve)

        column[-1].set(xlabel="queries", ylabel="judged right", ylim=(0, 1.05))

    style(axes.flat)
    axes[0, 0].legend(frameon=False, fontsize=8)
    save_figure(figure, "ddpo_tasks.png")


def _draw_arm(column: np.ndarray, name: str, curve: Curve) -> None:
    colour = COLOURS[name]

    axis: Axes
    for axis, (cost, split) in zip(column, ROWS, strict=False):
        x = [point[cost] for point in curve]
        gains = [point[split]["gain"] for point in curve]
        low, high = np.array([point[split]["ci95"] for point in curve]).T
        axis.plot(x, gains, color=colour, label=name, marker=".")
        axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        label = "paired gain" if split == "train" else "gain, unseen prompts"
        axis.set(xlabel=cost, ylabel=label)

    queries = [point["queries"] for point in curve]
    right = [point["train"]["judge"] for point in curve]
    column[-1].plot(queries, right, color=colour, marker=".")
