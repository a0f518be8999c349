"""From the runs to `result.json`, `curves.json` and the figure.

Rewards are means over the 45 training prompts, one image each, the same noise at every evaluation.
Intervals are rliable's 95 % stratified bootstrap (arXiv 2108.13264): of three seeds by 45 prompts,
with the prompts as its tasks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from burnish.files import dumps, write
from experiments.curves import Curve, learning_curve
from experiments.figures import pyplot, save_figure, style
from experiments.measurements import gain_interval, interval
from experiments.rlcm_vs_ddpo import plan
from experiments.running import run_folder
from experiments.time_to_target import compare

FOLDER = Path(__file__).parent
COLOURS = {"ddpo": "#555555", "rlcm": "#b4501e", "rlcm-2": "#e0a030", "rlcm-8": "#6a51a3"}
COSTS = ("seconds", "queries", "network_calls")

StepResults = dict[str, dict[str, float]]
"""Reward and judge by the number of network calls."""


def arm_curve(out: Path, task: str, name: str, seconds: float) -> Curve:
    """Return every evaluation of an arm: reward and paired gain over the seeds, and the costs."""
    arm = plan.ARMS[name]
    iterations = range(0, arm.iterations + 1, arm.every)
    costs = {
        "seconds": seconds,
        "queries": plan.IMAGES * arm.queries,
        "network_calls": plan.IMAGES * arm.network,
    }
    return learning_curve(out, task, name, plan.SEEDS, iterations, costs, _statistics)


def _statistics(rewards: np.ndarray, gains: np.ndarray) -> dict[str, Any]:
    return {
        "reward": float(rewards.mean()),
        "by_seed": rewards.mean(1).tolist(),
        "ci95": interval(rewards),
        "gain": float(gains.mean()),
        "gain_ci95": gain_interval(gains),
    }


def report(out: Path) -> None:
    """Write the results, draw the figure and print the table."""
    time = json.loads((out / "time.json").read_text())
    seconds = time["iteration"]
    curves = {
        task: {
            name: arm_curve(out, task, name, seconds[name])
            for name, arm in plan.ARMS.items()
            if task in arm.tasks
        }
        for task in plan.TASKS
    }
    steps = {
        task: {
            name: step_results(out, task, name)
            for name in ("ddpo", "rlcm")
            if (out / task).exists()
        }
        for task in plan.TASKS
    }

    result = {
        "seeds": list(plan.SEEDS),
        **_comparisons(curves),
        "final": {
            task: {name: curve[-1] for name, curve in arms.items()} for task, arms in curves.items()
        },
        "iteration_seconds": seconds,
        "picture_seconds": time["picture"],
        "steps": steps,
    }
    write(FOLDER / "result.json", dumps(result, indent=1) + "\n")
    write(FOLDER / "curves.json", dumps(curves) + "\n")
    draw_figure(curves, steps, time["picture"])
    print(table(result))


def _comparisons(curves: dict[str, dict[str, Curve]]) -> dict[str, Any]:
    same_reward = {
        task: compare(arms["ddpo"], arms["rlcm"], "reward") for task, arms in curves.items()
    }
    same_gain = {task: compare(arms["ddpo"], arms["rlcm"], "gain") for task, arms in curves.items()}
    return {
        "seconds_ratio": {task: times["ratio"] for task, times in same_reward.items()},
        "seconds_ratio_same_gain": {task: times["ratio"] for task, times in same_gain.items()},
        "same_reward": same_reward,
        "same_gain": same_gain,
    }


def step_results(out: Path, task: str, name: str) -> StepResults:
    """Return reward and judge by the number of network calls, means over the seeds."""
    seeds = [
        json.loads((out / run_folder(task, name, seed) / "steps.json").read_text())
        for seed in plan.SEEDS
    ]
    return {
        calls: {
            key: float(np.mean([each[calls][key] for each in seeds])) for key in ("reward", "judge")
        }
        for calls in seeds[0]
    }


def table(result: dict[str, Any]) -> str:
    """Return the outcome in a few lines."""
    lines = []

    for task, arms in result["final"].items():
        for name, last in arms.items():
            end = last["train"]
            low, high = end["gain_ci95"]
            lines.append(
                f"{task:18} {name:7} {last['seconds']:6.0f} s   reward {end['reward']:8.4f}   "
                f"gain {end['gain']:+.4f} [{low:+.4f}, {high:+.4f}]   "
                f"judged {end['judge']:.0%}   unseen {last['unseen']['gain']:+.4f}"
            )

    for key in ("seconds_ratio", "seconds_ratio_same_gain"):
        ratios = [
            f"{task} {'-' if ratio is None else f'{ratio:.1f}'}"
            for task, ratio in result[key].items()
        ]
        lines.append(f"{key}: {', '.join(ratios)}")

    return "\n".join(lines)


def draw_figure(
    curves: dict[str, dict[str, Curve]],
    steps: dict[str, dict[str, StepResults]],
    image_seconds: dict[str, dict[str, float]],
) -> None:
    """Draw a column a task: reward against each cost, the judge, and the steps after training."""
    height = len(COSTS) + 2
    size = (4.2 * len(curves), 2.7 * height)
    figure, axes = pyplot.subplots(height, len(curves), figsize=size)

    for column, (task, arms) in zip(axes.T, curves.items(), strict=True):
        column[0].set_title(task)
        for axis, cost in zip(column, COSTS, strict=False):
            _draw_rewards(axis, cost, arms)

        _draw_judge(column[-2], arms)
        _draw_steps(column[-1], steps[task], image_seconds)

    style(axes.flat)
    axes[0, 0].legend(frameon=False, fontsize=8)
    save_figure(figure, "rlcm_vs_ddpo.png")


def _draw_rewards(axis: Axes, cost: str, arms: dict[str, Curve]) -> None:
    for name, curve in arms.items():
        x = [point[cost] for point in curve]
        rewards = np.array([point["train"]["reward"] for point in curve])
        low, high = np.array([point["train"]["ci95"] for point in curve]).T
        axis.plot(x, rewards, color=COLOURS[name], label=name, marker="o", markersize=2.5)
        axis.fill_between(x, low, high, color=COLOURS[name], alpha=0.2, linewidth=0)

    axis.set(xlabel=cost.replace("_", " "), ylabel="reward")


def _draw_judge(axis: Axes, arms: dict[str, Curve]) -> None:
    for name, curve in arms.items():
        seconds = [point["seconds"] for point in curve]
        right = [point["train"]["judge"] for point in curve]
        axis.plot(seconds, right, color=COLOURS[name], label=name)

    axis.set(xlabel="seconds", ylabel="judged right", ylim=(0, 1.05))


def _draw_steps(
    axis: Axes, arms: dict[str, StepResults], image_seconds: dict[str, dict[str, float]]
) -> None:
    for name, results in arms.items():
        seconds = [image_seconds[name][calls] for calls in results]
        rewards = [results[calls]["reward"] for calls in results]
        axis.plot(seconds, rewards, color=COLOURS[name], marker="o", label=name)

        for calls, x, y in zip(results, seconds, rewards, strict=True):
            axis.annotate(calls, (x, y), textcoords="offset points", xytext=(3, 4), fontsize=7)

    axis.set(xlabel="seconds an image, by network calls", ylabel="reward after training")
