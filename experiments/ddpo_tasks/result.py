"""From the runs to `result.json`, `curves.json`, the figure and the grid of pictures.

Rewards are means over the training prompts, one image each, the same noise at every evaluation;
intervals are rliable's stratified bootstrap over seeds and prompts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot

from burnish.runs import dumps, write
from experiments.ddpo_tasks import plan
from experiments.ddpo_tasks.pictures import grids
from experiments.reading import evaluations, interval, rewards, share

matplotlib.use("Agg")
HERE = Path(__file__).parent
PICTURES = HERE.parent.parent / "docs" / "images"
COLOURS = {
    "ddpo_is": "#333333",
    "ddpo_sf": "#888888",
    "rwr": "#3a7d44",
    "rwr_sparse": "#90c090",
    "rwr_control": "#c0a0d0",
    "awm": "#3060b0",
    "rlcm": "#b4501e",
}


def curve(out: Path, task: str, name: str, seconds: float) -> list[dict[str, Any]]:
    """Every evaluation of an arm: over the seeds, the reward, its paired gain, and what had been
    spent until then.
    """
    arm = plan.ARMS[name]
    points = []
    first = evaluations(out, task, name, plan.SEEDS, 0)

    for iteration in range(0, arm.iterations + 1, arm.every):
        seen = evaluations(out, task, name, plan.SEEDS, iteration)
        point: dict[str, Any] = {
            "iteration": iteration,
            "seconds": iteration * seconds,
            "queries": iteration * arm.images,
        }

        for split in ("train", "unseen"):
            now = np.stack([rewards(each[split]) for each in seen])
            gain = now - np.stack([rewards(each[split]) for each in first])
            point[split] = {
                "reward": float(now.mean()),
                "gain": float(gain.mean()),
                "ci95": interval(gain) if iteration else [0.0, 0.0],
                "by_seed": gain.mean(1).tolist(),
                "judge": float(np.mean([share(each[split]) for each in seen])),
            }

        points.append(point)

    return points


def report(out: Path) -> None:
    """Everything that is written down."""
    time = json.loads((out / "time.json").read_text())
    curves = {
        task: {name: curve(out, task, name, time[name]) for name in plan.arms(task)}
        for task in plan.TASKS
    }
    result: dict[str, Any] = {"seeds": list(plan.SEEDS), "queries": plan.QUERIES}

    for key, split in (("paired_gain", "train"), ("unseen", "unseen")):
        result[key] = {
            task: {
                name: {
                    "mean": points[-1][split]["gain"],
                    "ci95": points[-1][split]["ci95"],
                    "by_seed": points[-1][split]["by_seed"],
                    "seconds": points[-1]["seconds"],
                    "queries": points[-1]["queries"],
                    "reward_before": points[0][split]["reward"],
                    "reward_after": points[-1][split]["reward"],
                    "judge_before": points[0][split]["judge"],
                    "judge_after": points[-1][split]["judge"],
                }
                for name, points in arms.items()
            }
            for task, arms in curves.items()
        }

    write(HERE / "result.json", dumps(result, indent=1) + "\n")
    write(HERE / "curves.json", dumps(curves) + "\n")
    draw(curves)
    grids(out, PICTURES)
    print(table(result))


def table(result: dict[str, Any]) -> str:
    """The outcome in Markdown, as the docs have it."""
    lines = [
        "| task | arm | seconds | paired gain | judged right | unseen: gain |",
        "|---|---|---|---|---|---|",
    ]

    for task, arms in result["paired_gain"].items():
        for name, one in arms.items():
            far = result["unseen"][task][name]
            shown = [
                f"{x['mean']:+.3f} [{x['ci95'][0]:+.3f}, {x['ci95'][1]:+.3f}]" for x in (one, far)
            ]
            judged = f"{one['judge_before']:.0%} → {one['judge_after']:.0%}"
            lines.append(
                f"| {task} | {name} | {one['seconds']:.0f} | {shown[0]} | {judged} | {shown[1]} |"
            )

    return "\n".join(lines)


def draw(curves: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """One column a task: the paired gain against queries and seconds, on unseen prompts, and the
    judge.
    """
    rows = (("queries", "train"), ("seconds", "train"), ("queries", "unseen"))
    figure, axes = pyplot.subplots(
        len(rows) + 1, len(curves), figsize=(4.2 * len(curves), 2.7 * (len(rows) + 1))
    )

    for column, (task, arms) in zip(axes.T, curves.items(), strict=True):
        column[0].set_title(task)

        for name, points in arms.items():
            for axis, (x, split) in zip(column, rows, strict=False):
                low, high = np.array([point[split]["ci95"] for point in points]).T
                at = [point[x] for point in points]
                axis.plot(
                    at,
                    [point[split]["gain"] for point in points],
                    color=COLOURS[name],
                    label=name,
                    marker=".",
                )
                axis.fill_between(at, low, high, color=COLOURS[name], alpha=0.15, linewidth=0)
                axis.set(
                    xlabel=x, ylabel="paired gain" if split == "train" else "gain, unseen prompts"
                )

            right = [point["train"]["judge"] for point in points]
            column[-1].plot(
                [point["queries"] for point in points], right, color=COLOURS[name], marker="."
            )

        column[-1].set(xlabel="queries", ylabel="judged right", ylim=(0, 1.05))

    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)

    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(PICTURES / "ddpo_tasks.png", dpi=110)
