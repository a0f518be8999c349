"""From the runs to `result.json`, the figure and the grid of images.

Intervals are over the seeds alone: smallest and largest of three. The trade-off before training is
interpolated between the control scales that were measured.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from burnish.config import ControlConfig
from burnish.files import dumps, write
from burnish.runs import Run
from burnish.tools.control_curve import sample_images
from burnish.tools.gallery import open_source
from experiments.figures import IMAGES, pyplot, save_figure, style
from experiments.image_rows import image_rows
from experiments.qr_curriculum import plan
from experiments.qr_curriculum.measure import SEED, Numbers, at_rate, measured_prompts
from experiments.running import run_folder

FOLDER = Path(__file__).parent
COLOURS = {
    "curriculum": "#b4501e",
    "no_curriculum": "#3060b0",
    "no_clip": "#6a51a3",
    "control": "#888888",
}
SIMILARITIES = ("clip_text", "clip_other", "clip_image", "clip_code", "judged")
# of the table; the others are similarities
SHARES = ("strict", "held_out", "other", "judged")
HEADINGS = {
    "strict": "read",
    "held_out": "held-out conditions",
    "other": "other binarizer",
    "clip_text": "to prompt",
    "clip_other": "to other prompts",
    "clip_image": "to base",
    "clip_code": "to code",
    "judged": "judged right",
}
GRID_COLUMNS = 10  # images in a row of the grid


def report(out: Path) -> None:
    """Write the results, draw the figures and print the table."""
    start: dict[str, Numbers] = json.loads((out / "start.json").read_text())
    ends = {name: [_measured(out, name, seed) for seed in plan.seeds(name)] for name in plan.ARMS}
    before = start[f"{plan.SCALE:g}"]
    reference = at_rate(start, plan.REACHED)
    curriculum = ends["curriculum"]

    scans = {f"scan_{key}": value for key, value in _over_seeds(curriculum, "strict").items()}
    result: dict[str, Any] = {
        "seeds": list(plan.SEEDS),
        "scale": plan.SCALE,
        "scan_before": before["strict"],
        **scans,
        "held_out": _compare(before, reference, curriculum, "held_out"),
        "other_binarizer": _compare(before, reference, curriculum, "other"),
        **{key: _compare(before, reference, curriculum, key) for key in SIMILARITIES},
        "reference_scale": reference["scale"],
        "ablations": {name: _ablation(ends[name]) for name in plan.ARMS if name != "curriculum"},
        "start": start,
    }
    write(FOLDER / "result.json", dumps(result, indent=1) + "\n")
    draw_figure(out, start, ends)
    draw_grid(out, reference["scale"])
    print(table(before, reference, ends))


def _measured(out: Path, name: str, seed: int) -> Numbers:
    file = out / run_folder(plan.TASK, name, seed) / "measured.json"
    numbers: Numbers = json.loads(file.read_text())
    return numbers


def _over_seeds(ends: list[Numbers], key: str) -> dict[str, Any]:
    values = [end[key] for end in ends]
    return {"after": float(np.mean(values)), "after_by_seed": values}


def _compare(before: Numbers, reference: Numbers, ends: list[Numbers], key: str) -> dict[str, Any]:
    return {"before": before[key], **_over_seeds(ends, key), "reference": reference[key]}


def _ablation(ends: list[Numbers]) -> dict[str, Any]:
    keys = ("strict", "held_out", "other", *SIMILARITIES)
    means = {key: float(np.mean([end[key] for end in ends])) for key in keys}
    return {**means, "strict_by_seed": [end["strict"] for end in ends]}


def table(before: Numbers, reference: Numbers, ends: dict[str, list[Numbers]]) -> str:
    """Return the outcome as the Markdown table of the docs."""
    rows = {
        f"before, scale {plan.SCALE:g}": [before],
        f"before, scale {reference['scale']:.2f}": [reference],
        **ends,
    }
    lines = [f"| | {' | '.join(HEADINGS.values())} |", "|---" * (len(HEADINGS) + 1) + "|"]

    for name, seeds in rows.items():
        cells = [_cell(key, [numbers[key] for numbers in seeds]) for key in HEADINGS]
        lines.append(f"| {name} | {' | '.join(cells)} |")

    return "\n".join(lines)


def _cell(key: str, values: list[float]) -> str:
    digits = ".0%" if key in SHARES else ".3f"
    mean = format(float(np.mean(values)), digits)
    if len(values) == 1 or key != "strict":
        return mean

    return f"{mean} ({min(values):{digits}} to {max(values):{digits}})"


def draw_figure(out: Path, start: dict[str, Numbers], ends: dict[str, list[Numbers]]) -> None:
    """Draw the trade-offs, every run as a point, and training, iteration by iteration."""
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(14, 4.2))
    _draw_trade_off(left, start, ends, "clip_image", "similarity to base image")
    _draw_trade_off(middle, start, ends, "clip_text", "to prompt")
    _draw_training(right, out)

    style((left, middle, right))
    left.legend(frameon=False, fontsize=8)
    right.legend(frameon=False, fontsize=8)
    save_figure(figure, "qr_curriculum.png")


def _draw_trade_off(
    axis: Axes, start: dict[str, Numbers], ends: dict[str, list[Numbers]], key: str, label: str
) -> None:
    rates = [numbers["strict"] for numbers in start.values()]
    similarities = [numbers[key] for numbers in start.values()]
    before = "before training, by control scale"
    axis.plot(rates, similarities, color="#333333", marker=".", label=before)

    for scale, rate, similarity in zip(start, rates, similarities, strict=True):
        point = (rate, similarity)
        axis.annotate(scale, point, xytext=(3, 3), textcoords="offset points", fontsize=7)

    for name, seeds in ends.items():
        x = [numbers["strict"] for numbers in seeds]
        y = [numbers[key] for numbers in seeds]
        axis.scatter(x, y, color=COLOURS[name], label=name)

    axis.set(xlabel="read under every condition", ylabel=label, xlim=(-0.03, 1.03))


def _draw_training(axis: Axes, out: Path) -> None:
    for name in plan.ARMS:
        runs = [Run(out / run_folder(plan.TASK, name, seed)) for seed in plan.seeds(name)]
        read = np.array(
            [[record["rewards"]["qr_scan"]["mean"] for record in run.records()] for run in runs]
        )
        iterations = np.arange(1, read.shape[1] + 1)
        low = read.min(0)
        high = read.max(0)
        axis.plot(iterations, read.mean(0), color=COLOURS[name], label=name)
        axis.fill_between(iterations, low, high, color=COLOURS[name], alpha=0.15, linewidth=0)

    records = Run(out / run_folder(plan.TASK, "curriculum", plan.SEEDS[0])).records()
    scales = [record["control_scale"] for record in records]
    axis.plot(
        range(1, len(scales) + 1),
        scales,
        color="#b4501e",
        linestyle=":",
        label="control scale of curriculum",
    )
    label = "share of conditions that read, in training"
    axis.set(xlabel="iteration", ylabel=label, ylim=(0, None))


def draw_grid(out: Path, reference: float) -> None:
    """Draw the same prompts, payloads and noise, before training and after each arm, first seed."""
    coded = measured_prompts()
    coded = coded[:: max(1, len(coded) // GRID_COLUMNS)][:GRID_COLUMNS]
    runs = {
        name: str(out / run_folder(plan.TASK, name, plan.SEEDS[0]))
        for name in plan.ARMS
        if name != "control"
    }
    first = next(iter(runs.values()))

    # name of the row -> run, whether it is drawn as before training, and the control scale
    rows = {
        "no code": (first, True, 0.0),
        f"before, {plan.SCALE:g}": (first, True, plan.SCALE),
        f"before, {reference:.2f}": (first, True, reference),
        **{f"{name}, {plan.SCALE:g}": (run, False, plan.SCALE) for name, run in runs.items()},
    }
    images = {}

    for name, (run, before, scale) in rows.items():
        policy, sampler = open_source(run, before=before)
        images[name] = sample_images(
            policy, replace(sampler, control=ControlConfig(scale)), coded, SEED
        )

    image_rows(images).save(IMAGES / "qr_curriculum_grid.png")
