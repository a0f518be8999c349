"""From the runs to `result.json`, `curves.json` and the figure.

Rewards are means over the 45 training prompts, one image each, the same noise at every evaluation.
Intervals are rliable's 95 % stratified bootstrap (arXiv 2108.13264): of three seeds by 45 prompts,
with the prompts as its tasks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot

from burnish.runs import dumps, write
from experiments.reach import Curve, compare
from experiments.reading import evaluations, interval, rewards, share
from experiments.rlcm_vs_ddpo import plan
from experiments.running import place

matplotlib.use("Agg")
HERE = Path(__file__).parent
FIGURE = HERE.parent.parent / "docs" / "images" / "rlcm_vs_ddpo.png"
COLOURS = {"ddpo": "#555555", "rlcm": "#b4501e", "rlcm-2": "#e0a030", "rlcm-8": "#6a51a3"}


def curve(out: Path, task: str, name: str, seconds: float) -> Curve:
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
            "queries": iteration * plan.IMAGES * arm.queries,
            "network_calls": iteration * plan.IMAGES * arm.network,
        }

        for split in ("train", "unseen"):
            now = np.stack([rewards(each[split]) for each in seen])
            gain = now - np.stack([rewards(each[split]) for each in first])
            point[split] = {
                "reward": float(now.mean()),
                "by_seed": now.mean(1).tolist(),
                "ci95": interval(now),
                "gain": float(gain.mean()),
                "gain_ci95": interval(gain) if iteration else [0.0, 0.0],
                "judge": float(np.mean([share(each[split]) for each in seen])),
            }

        points.append(point)

    return points


def report(out: Path) -> None:
    """Everything that is written down."""
    time = json.loads((out / "time.json").read_text())
    curves = {
        task: {
            name: curve(out, task, name, time["iteration"][name])
            for name, a in plan.ARMS.items()
            if task in a.tasks
        }
        for task in plan.TASKS
    }
    steps = {
        task: {name: _steps(out, task, name) for name in ("ddpo", "rlcm") if (out / task).exists()}
        for task in plan.TASKS
    }
    same_reward = {
        task: compare(arms["ddpo"], arms["rlcm"], "reward") for task, arms in curves.items()
    }
    same_gain = {task: compare(arms["ddpo"], arms["rlcm"], "gain") for task, arms in curves.items()}
    result = {
        "seeds": list(plan.SEEDS),
        "seconds_ratio": {task: found["ratio"] for task, found in same_reward.items()},
        "seconds_ratio_same_gain": {task: found["ratio"] for task, found in same_gain.items()},
        "same_reward": same_reward,
        "same_gain": same_gain,
        "final": {
            task: {name: points[-1] for name, points in arms.items()}
            for task, arms in curves.items()
        },
        "iteration_seconds": time["iteration"],
        "picture_seconds": time["picture"],
        "steps": steps,
    }
    write(HERE / "result.json", dumps(result, indent=1) + "\n")
    write(HERE / "curves.json", dumps(curves) + "\n")
    draw(curves, steps, time["picture"])
    print(table(result))


def _steps(out: Path, task: str, name: str) -> dict[str, dict[str, float]]:
    """Reward and judge by number of network calls, means over the seeds."""
    each = [
        json.loads((out / place(task, name, seed) / "steps.json").read_text())
        for seed in plan.SEEDS
    ]
    return {
        calls: {
            key: float(np.mean([one[calls][key] for one in each])) for key in ("reward", "judge")
        }
        for calls in each[0]
    }


def table(result: dict[str, Any]) -> str:
    """The outcome in a few lines."""
    lines = []

    for task, arms in result["final"].items():
        for name, last in arms.items():
            end = last["train"]
            low, high = end["gain_ci95"]
            lines.append(
                f"{task:18} {name:7} {last['seconds']:6.0f} s   reward {end['reward']:8.4f}   gain {end['gain']:+.4f} "
                f"[{low:+.4f}, {high:+.4f}]   judged {end['judge']:.0%}   unseen {last['unseen']['gain']:+.4f}"
            )

    for key in ("seconds_ratio", "seconds_ratio_same_gain"):
        shown = (
            f"{task} {'-' if ratio is None else f'{ratio:.1f}'}"
            for task, ratio in result[key].items()
        )
        lines.append(f"{key}: {', '.join(shown)}")

    return "\n".join(lines)


def draw(
    curves: dict[str, dict[str, Curve]], steps: dict[str, Any], picture: dict[str, dict[str, float]]
) -> None:
    """One column a task: reward against seconds, queries and network calls, the judge, and the
    steps after training.
    """
    rows = ("seconds", "queries", "network_calls", "judge", "steps")
    figure, axes = pyplot.subplots(
        len(rows), len(curves), figsize=(4.2 * len(curves), 2.7 * len(rows))
    )

    for column, (task, arms) in zip(axes.T, curves.items(), strict=True):
        column[0].set_title(task)

        for axis, row in zip(column[:3], rows, strict=False):
            for name, points in arms.items():
                x = [p[row] for p in points]
                y = np.array([p["train"]["reward"] for p in points])
                low, high = np.array([p["train"]["ci95"] for p in points]).T
                axis.plot(x, y, color=COLOURS[name], label=name, marker="o", markersize=2.5)
                axis.fill_between(x, low, high, color=COLOURS[name], alpha=0.2, linewidth=0)

            axis.set_xlabel(row.replace("_", " "))
            axis.set_ylabel("reward")

        for name, points in arms.items():
            seconds = [p["seconds"] for p in points]
            column[3].plot(
                seconds, [p["train"]["judge"] for p in points], color=COLOURS[name], label=name
            )

        column[3].set(xlabel="seconds", ylabel="judged right", ylim=(0, 1.05))

        for name, found in steps[task].items():
            times = [picture[name][calls] for calls in found]
            values = [found[calls]["reward"] for calls in found]
            column[4].plot(times, values, color=COLOURS[name], marker="o", label=name)

            for point, calls in zip(zip(times, values, strict=True), found, strict=True):
                column[4].annotate(
                    calls, point, textcoords="offset points", xytext=(3, 4), fontsize=7
                )

        column[4].set(xlabel="seconds a picture, by network calls", ylabel="reward after training")

    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)

    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=110)
