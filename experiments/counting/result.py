"""From the runs to `result.json` and the figure: what rises, what falls, is anything written?

The truth is the judge's: the right nouns in the right number. Intervals are rliable's over seeds
and prompts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from burnish.files import dumps, write
from burnish.runs import Run
from experiments.counting import plan
from experiments.figures import pyplot, save_figure, style
from experiments.measurements import gain_interval, interval, run_evaluation

FOLDER = Path(__file__).parent
COLOURS = {
    "question": "#b4501e",
    "judge": "#333333",
    "text": "#3060b0",
    "clip_similarity": "#3a7d44",
}
"""The measures: the reward, the truth, text by the reader, and what the guard watches."""
SPLITS = ("train", "unseen")


def measured(run: Run, iteration: int, split: str) -> dict[str, np.ndarray]:
    """Return the means of each prompt's images after an iteration, (prompts,) by measure."""
    evaluation = run_evaluation(run, iteration)[split]
    prompts = len(evaluation.prompts)
    columns = evaluation.measures() | {"question": evaluation.reward("question")}
    return {name: np.array(columns[name]).reshape(prompts, -1).mean(1) for name in COLOURS}


def last_state(out: Path, seed: int) -> int:
    """Return the iteration that the guard went back to with a seed; the last if it never did."""
    guard = Run(out / plan.trial("guarded", seed).name).guard
    return int(json.loads(guard.read_text())["best"]) if guard.exists() else plan.ITERATIONS


def report(out: Path) -> None:
    """Write the results, draw the figure and print the table."""
    runs = [Run(out / plan.trial("free", seed).name) for seed in plan.SEEDS]
    last = [last_state(out, seed) for seed in plan.SEEDS]
    states = {
        "before": [0] * len(runs),
        "guarded": last,
        "end": [plan.ITERATIONS] * len(runs),
    }
    result = {
        "seeds": list(plan.SEEDS),
        "written": json.loads((out / "written.json").read_text()),
        "guarded_until": last,
        "states": {
            name: {split: statistics(runs, at, split) for split in SPLITS}
            for name, at in states.items()
        },
        "curves": [curve(run) for run in runs],
    }
    write(FOLDER / "result.json", dumps(result, indent=1) + "\n")
    draw_figure(result["curves"], last)
    print(table(result))


def statistics(runs: list[Run], iterations: list[int], split: str) -> dict[str, Any]:
    """Return each measure's mean and its change since before training, with intervals."""
    now = [measured(run, at, split) for run, at in zip(runs, iterations, strict=True)]
    before = [measured(run, 0, split) for run in runs]
    found = {}

    for name in COLOURS:
        values = np.stack([each[name] for each in now])
        changes = values - np.stack([each[name] for each in before])
        found[name] = {
            "mean": float(values.mean()),
            "ci95": interval(values),
            "by_seed": values.mean(1).tolist(),
            "change": float(changes.mean()),
            "change_ci95": gain_interval(changes),
        }

    return found


def curve(run: Run) -> list[dict[str, float]]:
    """Return the means of the training prompts at every evaluation of a run."""
    return [
        {"iteration": at}
        | {name: float(values.mean()) for name, values in measured(run, at, "train").items()}
        for at in range(0, plan.ITERATIONS + 1, plan.EVERY)
    ]


def table(result: dict[str, Any]) -> str:
    """Return the states as a Markdown table of docs/vlm.md."""
    lines = ["| | reward | true count | text seen | clip_similarity |", "|---|---|---|---|---|"]

    for state, splits in result["states"].items():
        for split, measures in splits.items():
            cells = [f"{state}, {'trained prompts' if split == 'train' else 'unseen'}"]
            for name in COLOURS:
                low, high = measures[name]["change_ci95"]
                change = "" if state == "before" else f" [{low:+.2f}, {high:+.2f}]"
                cells.append(f"{measures[name]['mean']:.2f}{change}")
            lines.append("| " + " | ".join(cells) + " |")

    return "\n".join(lines)


def draw_figure(curves: list[list[dict[str, float]]], last: list[int]) -> None:
    """Draw each seed's measures over its iterations; a dotted line is where the guard went back."""
    figure, axes = pyplot.subplots(1, len(curves), figsize=(4 * len(curves), 3), sharey=True)

    for axis, points, best in zip(axes, curves, last, strict=True):
        x = [point["iteration"] for point in points]
        for name, colour in COLOURS.items():
            axis.plot(x, [point[name] for point in points], color=colour, label=name)
        axis.axvline(best, color="#888888", linestyle=":")
        axis.set(xlabel="iteration", ylim=(0, 1.05))

    axes[0].legend(frameon=False, fontsize=8)
    style(axes)
    save_figure(figure, "counting.png")
