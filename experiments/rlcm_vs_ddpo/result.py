"""From the runs to `result.json`, `curves.json` and the figure.

Rewards are means over the training prompts, the same noise at every evaluation. Intervals are
rliable's 95 % stratified bootstrap (arXiv 2108.13264) over the seeds of each prompt. Arms that were
not run with all seeds on a task are left out there, and said so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from burnish.files import dumps, write
from experiments.curves import Curve, learning_curve
from experiments.figures import pyplot, save_figure, style
from experiments.measurements import gain_interval, interval
from experiments.rlcm_vs_ddpo import plan
from experiments.rlcm_vs_ddpo.tables import NAMES, tables
from experiments.running import is_finished, run_folder
from experiments.time_to_target import compare

FOLDER = Path(__file__).parent
COLOURS = {
    "rlcm": "#b4501e",
    "rlcm_4": "#e0a030",
    "ddpo_best": "#555555",
    "ddpo_published": "#aaaaaa",
    "forward": "#20a0a0",
}

StepResults = dict[str, dict[str, float]]
"""Reward and judge by the number of network calls."""


def arm_curve(out: Path, task: str, name: str, seconds: float) -> Curve:
    """Return every evaluation of an arm: reward and paired gain over the seeds, and the costs."""
    job = plan.trial(task, name, plan.SEEDS[0])
    iterations = range(0, job.iterations + 1, job.every)
    costs = {"seconds": seconds, "images": plan.IMAGES}
    return learning_curve(out, task, name, plan.SEEDS, iterations, costs, _statistics)


def _statistics(rewards: np.ndarray, gains: np.ndarray) -> dict[str, Any]:
    return {
        "reward": float(rewards.mean()),
        "by_seed": gains.mean(1).tolist(),
        "ci95": interval(rewards),
        "gain": float(gains.mean()),
        "gain_ci95": gain_interval(gains),
    }


def finished_arms(out: Path, task: str) -> list[str]:
    """Return the arms whose runs on a task have all ended; print which have not."""
    finished = []
    for name in plan.ARMS:
        jobs = [plan.trial(task, name, seed) for seed in plan.SEEDS]
        missing = [job.name for job in jobs if not is_finished(job, out)]
        if missing:
            print(f"left out: {name} on {task}: {', '.join(missing)} not finished")
        else:
            finished.append(name)

    return finished


def report(out: Path) -> None:
    """Write the results, draw the figure and print the tables."""
    time = json.loads((out / "time.json").read_text())
    seconds = time["iteration"]
    curves = {
        task: {name: arm_curve(out, task, name, seconds[name]) for name in finished_arms(out, task)}
        for task in plan.TASKS
    }
    steps = {
        task: {name: step_results(out, task, name) for name in plan.MEASURED} for task in plan.TASKS
    }

    result = {
        "seeds": list(plan.SEEDS),
        **comparisons(curves),
        "final": {
            task: {
                name: curve[-1] | {"judge_before": curve[0]["train"]["judge"]}
                for name, curve in arms.items()
            }
            for task, arms in curves.items()
        },
        "iteration_seconds": seconds,
        "picture_seconds": time["picture"],
        "steps": steps,
    }
    write(FOLDER / "result.json", dumps(result, indent=1) + "\n")
    write(FOLDER / "curves.json", dumps(curves) + "\n")
    draw_figure(curves, steps, time["picture"])
    print("\n\n".join(tables(result)))


def comparisons(curves: Mapping[str, Mapping[str, Curve]]) -> dict[str, Any]:
    """Return by how much sooner each arm of RLCM is where the baselines ended.

    `same_gain` and `same_reward` have the seconds, by task, arm and baseline; `seconds_ratio` (at
    the same gain) and `seconds_ratio_same_reward` the ratios of the arm `rlcm` alone, None where
    that was not reached; `seconds_ratio_bound` and `seconds_ratio_same_reward_bound` have the
    bounds there.
    """
    same = {
        value: {
            task: {
                name: {
                    base: compare(arms[base], arms[name], value)
                    for base in plan.BASELINES
                    if base in arms
                }
                for name in plan.RLCM
            }
            for task, arms in curves.items()
        }
        for value in ("gain", "reward")
    }

    def ratios(value: str) -> dict[str, dict[str, float | None]]:
        return {
            task: {base: found["ratio"] for base, found in arms["rlcm"].items()}
            for task, arms in same[value].items()
        }

    def bounds(value: str) -> dict[str, dict[str, str]]:
        return {
            task: {
                base: found["bound"]
                for base, found in arms["rlcm"].items()
                if found["ratio"] is None
            }
            for task, arms in same[value].items()
        }

    return {
        "seconds_ratio": ratios("gain"),
        "seconds_ratio_bound": bounds("gain"),
        "seconds_ratio_same_reward": ratios("reward"),
        "seconds_ratio_same_reward_bound": bounds("reward"),
        "same_gain": same["gain"],
        "same_reward": same["reward"],
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


def draw_figure(
    curves: dict[str, dict[str, Curve]],
    steps: dict[str, dict[str, StepResults]],
    image_seconds: dict[str, dict[str, float]],
) -> None:
    """Draw a column a task: gain over seconds, the judge over the gain, fewer calls."""
    size = (4.2 * len(curves), 8.4)
    figure, axes = pyplot.subplots(3, len(curves), figsize=size)

    for column, (task, arms) in zip(axes.T, curves.items(), strict=True):
        column[0].set_title(task)
        _draw_gains(column[0], arms)
        _draw_judge(column[1], arms)
        _draw_steps(column[2], steps[task], image_seconds)

    style(axes.flat)
    lines = axes[0, 0].get_lines()  # where there is room for what they are
    axes[1, 0].legend(handles=lines, loc="lower left", frameon=False, fontsize=8)
    save_figure(figure, "rlcm_vs_ddpo.png")


def _draw_gains(axis: Axes, arms: dict[str, Curve]) -> None:
    for name, curve in arms.items():
        points = curve[1:]  # at the start no seconds have passed, and the axis is logarithmic
        seconds = [point["seconds"] for point in points]
        gains = [point["train"]["gain"] for point in points]
        low, high = np.array([point["train"]["gain_ci95"] for point in points]).T
        axis.plot(
            seconds, gains, color=COLOURS[name], label=_label(name), marker="o", markersize=2.5
        )
        axis.fill_between(seconds, low, high, color=COLOURS[name], alpha=0.2, linewidth=0)

    axis.set(xscale="log", xlabel="seconds", ylabel="paired gain")
    axis.xaxis.set_minor_formatter("")


def _label(name: str) -> str:
    return NAMES[name].replace("`", "")


def _draw_judge(axis: Axes, arms: dict[str, Curve]) -> None:
    for name, curve in arms.items():
        gains = [point["train"]["gain"] for point in curve]
        right = [point["train"]["judge"] for point in curve]
        axis.plot(gains, right, color=COLOURS[name], marker="o", markersize=2.5)

    axis.set(xlabel="paired gain", ylabel="judged right", ylim=(0, 1.05))


def _draw_steps(
    axis: Axes, arms: dict[str, StepResults], image_seconds: dict[str, dict[str, float]]
) -> None:
    for name, results in arms.items():
        seconds = [image_seconds[name][calls] for calls in results]
        rewards = [results[calls]["reward"] for calls in results]
        axis.plot(seconds, rewards, color=COLOURS[name], marker="o")

        for calls, x, y in zip(results, seconds, rewards, strict=True):
            axis.annotate(calls, (x, y), textcoords="offset points", xytext=(3, 4), fontsize=7)

    axis.set(xlabel="seconds an image, by network calls", ylabel="reward after training")
