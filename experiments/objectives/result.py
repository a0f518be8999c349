"""From the runs to `result.json`, `curves.json` and the figure.

Rewards are means over the prompts, with the same noise at every evaluation; intervals are rliable's
stratified bootstrap over seeds and prompts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from burnish.files import dumps, write
from experiments.curves import Curve, learning_curve
from experiments.figures import pyplot, save_figure, style
from experiments.measurements import gain_interval, load_evaluations
from experiments.objectives import plan
from experiments.objectives.outcome import outcome, right_by_prompt, table

FOLDER = Path(__file__).parent
SPLITS = ("train", "unseen")


def statistics(rewards: np.ndarray, gains: np.ndarray) -> dict[str, Any]:
    """Return what a point of a curve has of a split."""
    return {
        "reward": float(rewards.mean()),
        "gain": float(gains.mean()),
        "ci95": gain_interval(gains),
        "by_seed": gains.mean(1).tolist(),
    }


def arm_curve(out: Path, model: str, task: str, name: str, seconds: float) -> Curve:
    """Return every evaluation of an arm: reward and paired gain over the seeds, and the costs."""
    job = plan.trial(model, task, name, plan.SEEDS[0])
    iterations = range(0, job.iterations + 1, job.every)
    costs = {"seconds": seconds, "images": plan.IMAGES}
    return learning_curve(out, job.task, name, plan.SEEDS, iterations, costs, statistics)


def judge_change(out: Path, model: str, task: str, name: str) -> dict[str, Any]:
    """Return by how much the share that is judged right changed over an arm's runs, paired."""
    job = plan.trial(model, task, name, plan.SEEDS[0])

    def shares(iteration: int) -> np.ndarray:  # (seeds, prompts)
        evaluations = load_evaluations(out, job.task, name, plan.SEEDS, iteration)
        return np.array([right_by_prompt(each["train"]) for each in evaluations])

    changes = shares(job.iterations) - shares(0)
    return {"judge_change": float(changes.mean()), "judge_change_ci95": gain_interval(changes)}


def report(out: Path) -> None:
    """Write the results, draw the figure and print the table."""
    seconds = json.loads((out / "time.json").read_text())
    curves = {
        model: {
            task: {
                name: arm_curve(out, model, task, name, seconds[model][name])
                for name in plan.arms(model, task)
            }
            for task in plan.TASKS
        }
        for model in plan.MODELS
    }
    gain = {
        model: {
            task: {
                name: outcome(curve, arms[plan.MODELS[model].baseline])
                | judge_change(out, model, task, name)
                for name, curve in arms.items()
            }
            for task, arms in tasks.items()
        }
        for model, tasks in curves.items()
    }
    result = {
        "seeds": list(plan.SEEDS),
        "baseline": {name: model.baseline for name, model in plan.MODELS.items()},
        "gain": gain,
    }
    write(FOLDER / "result.json", dumps(result, indent=1) + "\n")
    write(FOLDER / "curves.json", dumps(curves) + "\n")
    draw_fronts(curves)
    for model, tasks in gain.items():
        print(f"\n{model}\n\n{table(tasks, plan.MODELS[model].baseline)}")


def draw_fronts(curves: dict[str, dict[str, dict[str, Curve]]]) -> None:
    """Draw, a row a model and a column a task, the judge against the gain over each run."""
    size = (4.2 * len(plan.TASKS), 3.2 * len(curves))
    figure, axes = pyplot.subplots(len(curves), len(plan.TASKS), figsize=size, squeeze=False)

    for row, (model, tasks) in zip(axes, curves.items(), strict=True):
        for axis, (task, arms) in zip(row, tasks.items(), strict=True):
            for name, curve in arms.items():
                gains = [point["train"]["gain"] for point in curve]
                judged = [point["train"]["judge"] for point in curve]
                axis.plot(gains, judged, marker=".", label=name, color=plan.COLOURS[name])

            axis.set(title=f"{model}, {task}", xlabel="paired gain", ylabel="judged right")
        row[0].legend(frameon=False, fontsize=8)

    style(axes.flat)
    save_figure(figure, "objectives.png")
