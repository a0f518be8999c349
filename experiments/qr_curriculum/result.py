"""From the runs to `result.json`, the figure and the grid of images.

Intervals are over the seeds alone: smallest and largest of three. The trade-off before training is
interpolated between the control scales that were measured. The numbers on top of `result.json` are
those of `plan.HEADLINE` and of its first arm; `starts` has every start and arm.
Arms that were not run with all their seeds are left out, and said so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
from experiments.qr_curriculum.measure import (
    READERS,
    SEED,
    Numbers,
    at_rate,
    load_measured,
    load_numbers,
    measured_prompts,
    open_before,
    start_scales,
)
from experiments.running import run_folder

FOLDER = Path(__file__).parent
COLOURS = {
    "gradient": "#b4501e",
    "no_picture": "#6a51a3",
    "scanner": "#3060b0",
    "scanner_curriculum": "#20a0a0",
    "strict": "#c03070",
    "strict_curriculum": "#e0a030",
    "strict_gated": "#3a7d44",
    "control": "#888888",
}
MARKERS = {"low": "^", plan.HEADLINE: "o"}
HEADINGS = {
    "strict": "read",
    "held_out": "held-out conditions",
    "other": "other binarizer",
    "opencv": "OpenCV",
    "pyzbar": "ZBar",
    "retrieval_top1": "noun first of 106",
    "retrieval_top5": "among first five",
    "contrast": "own less others",
    "clip_text": "to prompt",
    "clip_other": "to other prompts",
    "clip_image": "to base",
    "clip_code": "to code",
    "judged": "judged right",
}
# of the table; the others are similarities
SHARES = (
    "strict",
    "held_out",
    "other",
    "opencv",
    "pyzbar",
    "retrieval_top1",
    "retrieval_top5",
    "judged",
)
COMPARED = tuple(key for key in HEADINGS if key not in ("strict", "other"))
GRID_COLUMNS = 10  # images in a row of the grid

Arms = dict[str, list[Numbers]]
"""The numbers of each seed, by arm."""


def report(out: Path, budget: plan.Budget) -> None:
    """Write the results, draw the figures and print the tables.

    Those of the quick budget, which mean nothing, stay in the experiment's folder.
    """
    start = load_numbers(out / "start.json")
    before = load_numbers(out / "before.json")
    scales = start_scales(start)
    reference = at_rate(start, plan.REACHED)
    ends = {name: _load_arms(out, name, budget) for name in plan.STARTS}
    ends = {name: arms for name, arms in ends.items() if set(arms) - {"control"}}

    by_start = {
        name: _start_result(scales.starts[name], before[name], reference, arms)
        for name, arms in ends.items()
    }
    result: dict[str, Any] = {
        "seeds": list(budget.seeds),
        "size": plan.SIZE,
        **by_start[plan.HEADLINE],
        "reference_scale": reference["scale"],
        "curriculum_first": scales.first,
        "independent_readers": READERS.note(),
        "starts": by_start,
        "start": start,
        **{
            name: json.loads((out / f"{name}.json").read_text())
            for name in plan.MODULE_CONTROLNETS
            if (out / f"{name}.json").exists()
        },
    }
    full = budget == plan.FULL
    images = IMAGES if full else out
    write((FOLDER if full else out) / "result.json", dumps(result, indent=1) + "\n")
    draw_figure(out, images, start, ends, budget)
    draw_grid(out, images, scales, reference["scale"], ends, budget)

    for name, arms in ends.items():
        print(f"\nstart: {name}\n")
        print(table(scales.starts[name], before[name], reference, arms))


def _load_arms(out: Path, start: str, budget: plan.Budget) -> Arms:
    """Return the numbers of the arms of a start of which every seed is measured."""
    arms: Arms = {}
    for arm in plan.STARTS[start].arms:
        names = [run_folder(start, arm, seed) for seed in plan.seeds(arm, budget)]
        missing = [name for name in names if not (out / name / "measured.json").exists()]
        if missing:
            print(f"left out: {arm}, start {start}: {', '.join(missing)} not measured")
        else:
            arms[arm] = [load_measured(out, name) for name in names]

    return arms


def _start_result(scale: float, before: Numbers, reference: Numbers, ends: Arms) -> dict[str, Any]:
    """Return the results of one start, which is at a control scale."""
    first, *others = ends
    runs = ends[first]
    scans = {f"scan_{key}": value for key, value in _over_seeds(runs, "strict").items()}
    return {
        "scale": scale,
        "scan_before": before["strict"],
        **scans,
        "arm": first,
        "other_binarizer": _compare(before, reference, runs, "other"),
        **{key: _compare(before, reference, runs, key) for key in COMPARED},
        "ablations": {name: _ablation(ends[name]) for name in others},
    }


def _over_seeds(ends: list[Numbers], key: str) -> dict[str, Any]:
    values = [end[key] for end in ends]
    return {"after": float(np.mean(values)), "after_by_seed": values}


def _compare(before: Numbers, reference: Numbers, ends: list[Numbers], key: str) -> dict[str, Any]:
    return {"before": before[key], **_over_seeds(ends, key), "reference": reference[key]}


def _ablation(ends: list[Numbers]) -> dict[str, Any]:
    means = {key: float(np.mean([end[key] for end in ends])) for key in HEADINGS}
    return {**means, "strict_by_seed": [end["strict"] for end in ends]}


def table(scale: float, before: Numbers, reference: Numbers, ends: Arms) -> str:
    """Return the outcome of one start as the Markdown table of the docs."""
    rows = {
        f"before, scale {scale:.2f}": [before],
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


def draw_figure(
    out: Path,
    images: Path,
    start: dict[str, Numbers],
    ends: Mapping[str, Arms],
    budget: plan.Budget,
) -> None:
    """Draw the trade-offs, every run as a point, and the training of each start."""
    count = 2 + len(ends)
    figure, axes = pyplot.subplots(1, count, figsize=(4.5 * count, 4.2))
    left, second, *training = axes
    _draw_trade_off(left, start, ends, "retrieval_top5", "noun among first five of 106")
    _draw_trade_off(second, start, ends, "contrast", "similarity: own less other prompts")
    for axis, (name, arms) in zip(training, ends.items(), strict=True):
        _draw_training(axis, out, name, tuple(arms), budget)

    style(axes)
    for axis in (left, *training):
        legend_below(axis)
    save_figure(figure, "qr_curriculum.png", images)


def legend_below(axis: Axes) -> None:
    """Write below an axis what its colours are: there are too many for a place inside."""
    axis.legend(frameon=False, fontsize=8, ncol=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def _draw_trade_off(
    axis: Axes, start: dict[str, Numbers], ends: Mapping[str, Arms], key: str, label: str
) -> None:
    rates = [numbers["strict"] for numbers in start.values()]
    values = [numbers[key] for numbers in start.values()]
    before = "before training, by control scale"
    axis.plot(rates, values, color="#333333", marker=".", label=before)

    for scale, rate, value in zip(start, rates, values, strict=True):
        point = (rate, value)
        axis.annotate(scale, point, xytext=(3, 3), textcoords="offset points", fontsize=7)

    for name, arms in ends.items():
        for arm, seeds in arms.items():
            x = [numbers["strict"] for numbers in seeds]
            y = [numbers[key] for numbers in seeds]
            label_of_arm = f"{arm}, start {name}"
            axis.scatter(x, y, color=COLOURS[arm], marker=MARKERS[name], label=label_of_arm)

    axis.set(xlabel="read under every condition", ylabel=label, xlim=(-0.03, 1.03))


def _draw_training(
    axis: Axes, out: Path, start: str, measured: Sequence[str], budget: plan.Budget
) -> None:
    arms = [arm for arm in measured if arm != "control"]
    for arm in arms:
        runs = [Run(out / run_folder(start, arm, seed)) for seed in plan.seeds(arm, budget)]
        read = np.array(
            [[record["rewards"]["qr_scan"]["mean"] for record in run.records()] for run in runs]
        )
        iterations = np.arange(1, read.shape[1] + 1)
        low = read.min(0)
        high = read.max(0)
        axis.plot(iterations, read.mean(0), color=COLOURS[arm], label=arm)
        axis.fill_between(iterations, low, high, color=COLOURS[arm], alpha=0.15, linewidth=0)

    for arm in arms:
        if arm.endswith(("_curriculum", "_gated")):
            first = plan.seeds(arm, budget)[0]
            records = Run(out / run_folder(start, arm, first)).records()
            scales = [record["control_scale"] for record in records]
            places = range(1, len(scales) + 1)
            axis.step(
                places, scales, where="mid", color=COLOURS[arm], ls=":", label=f"{arm}: scale"
            )

    label = "share of conditions that read, in training"
    axis.set(title=f"start: {start}", xlabel="iteration", ylabel=label, ylim=(0, None))


def draw_grid(
    out: Path,
    images: Path,
    scales: plan.Scales,
    reference: float,
    ends: Mapping[str, Arms],
    budget: plan.Budget,
) -> None:
    """Draw the same prompts, links and noise, before training and after each arm's first seed."""
    coded = measured_prompts(budget)
    coded = coded[:: max(1, len(coded) // GRID_COLUMNS)][:GRID_COLUMNS]
    drawn = {}
    policy, sampler = open_before()
    starts = [scales.starts[name] for name in ends]
    before = {f"before, {scale:.2f}": scale for scale in (*starts, reference)}

    for name, scale in {"no code": 0.0, **before}.items():
        controlled = replace(sampler, control=ControlConfig(scale))
        drawn[name] = sample_images(policy, controlled, coded, SEED)

    for start, arms in ends.items():
        scale = scales.starts[start]
        for arm in arms:
            if arm != "control":
                run = str(out / run_folder(start, arm, plan.seeds(arm, budget)[0]))
                policy, sampler = open_source(run)
                controlled = replace(sampler, control=ControlConfig(scale))
                drawn[f"{arm}, {scale:.2f}"] = sample_images(policy, controlled, coded, SEED)

    image_rows(drawn).save(images / "qr_curriculum_grid.png")
