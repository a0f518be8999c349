"""From the runs to `result.json` and the figure: does the count that is rewarded become true?

The truth is the judge's: the right nouns in the right number. Intervals are rliable's over seeds
and prompts. What the guard would have done is found afterwards, from the evaluations of the runs:
it reads these and nothing else, and not the judge, which is the truth here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from burnish.files import dumps, write
from burnish.runs import Run
from experiments.counting import plan, writing
from experiments.counting.evaluations import SPLITS, curve, reasons, statistics
from experiments.figures import pyplot, save_figure, style

FOLDER = Path(__file__).parent
COLOURS = {
    "question": "#b4501e",
    "both_right": "#d99a2b",
    "judge": "#333333",
    "other_reader": "#3060b0",
    "text": "#6a51a3",
    "clip_similarity": "#3a7d44",
}
"""The measures: the reward; in which images both of its answers are right, which the truth, the
judge's, is to be compared with; another reader's answers, text by that, and CLIP's similarity."""
NAMES = tuple(COLOURS)
HEADINGS = ("reward", "both answers", "true count", "other reader", "text seen", "clip_similarity")
EVALUATED = range(0, plan.ITERATIONS + 1, plan.EVERY)


def report(out: Path) -> None:
    """Write the results, draw the figure and print the table."""
    runs = [Run(out / plan.trial("long", seed).name) for seed in plan.SEEDS]
    control = Run(out / plan.trial("control", plan.SEEDS[0]).name)
    result = {
        "seeds": list(plan.SEEDS),
        "written": json.loads((out / "written.json").read_text()),
        "before": {split: statistics(runs, 0, split, NAMES) for split in SPLITS},
        "after": {split: statistics(runs, plan.ITERATIONS, split, NAMES) for split in SPLITS},
        "control": {split: statistics([control], plan.EVERY, split, NAMES) for split in SPLITS},
        "guard": [reasons(run, EVALUATED) for run in runs],
        "curves": [curve(run, EVALUATED, NAMES) for run in runs],
        "letters": writing.result(out),
    }
    write(FOLDER / "result.json", dumps(result, indent=1) + "\n")
    draw_figure(result["curves"])
    writing.draw_figures(out, result["letters"])
    print(table(result), *writing.tables(result["letters"]), sep="\n\n")


def table(result: dict[str, Any]) -> str:
    """Return the outcome as a Markdown table of docs/vlm.md."""
    lines = [f"| | {' | '.join(HEADINGS)} |", "|---" * (len(HEADINGS) + 1) + "|"]

    for state in ("before", "after", "control"):
        for split, measures in result[state].items():
            cells = [f"{state}, {'trained prompts' if split == 'train' else 'unseen'}"]
            for name in COLOURS:
                low, high = measures[name]["change_ci95"]
                change = f" [{low:+.2f}, {high:+.2f}]" if state == "after" else ""
                cells.append(f"{measures[name]['mean']:.2f}{change}")
            lines.append("| " + " | ".join(cells) + " |")

    return "\n".join(lines)


def draw_figure(curves: list[list[dict[str, Any]]]) -> None:
    """Draw the measures over the iterations, a line a seed; trained prompts, then unseen ones."""
    figure, axes = pyplot.subplots(1, len(SPLITS), figsize=(10, 3.6), sharey=True)

    for axis, split in zip(axes, SPLITS, strict=True):
        for number, points in enumerate(curves):
            x = [point["iteration"] for point in points]
            for name, heading, colour in zip(COLOURS, HEADINGS, COLOURS.values(), strict=True):
                label = heading if number == 0 else None
                axis.plot(x, [point[split][name] for point in points], color=colour, label=label)
        title = "trained prompts" if split == "train" else "unseen prompts"
        axis.set(title=title, xlabel="iteration", ylim=(0, 1.02))

    axes[0].legend(frameon=False, fontsize=8, loc=(0.7, 0.12))
    style(axes)
    save_figure(figure, "counting.png")
