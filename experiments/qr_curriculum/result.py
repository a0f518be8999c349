"""From the runs to `result.json`, the figure and the grids of pictures.

Intervals are over the seeds alone: smallest and largest of three. The trade-off before training is
interpolated between the control scales that were measured.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot

from burnish.config import ControlConfig
from burnish.runs import Run, dumps, write
from burnish.tools.control_curve import drawn
from burnish.tools.gallery import open_source
from experiments.qr_curriculum import plan
from experiments.qr_curriculum.measure import SEED, asked, at_rate
from experiments.running import place
from experiments.sheet import sheet

matplotlib.use("Agg")
HERE = Path(__file__).parent
PICTURES = HERE.parent.parent / "docs" / "images"
COLOURS = {
    "curriculum": "#b4501e",
    "no_curriculum": "#3060b0",
    "no_clip": "#6a51a3",
    "control": "#888888",
}
SIMILARITIES = ("clip_text", "clip_other", "clip_image", "clip_code", "judged")
SHOWN = 10  # pictures in a row of the grid

Numbers = dict[str, float]


def report(out: Path) -> None:
    """Everything that is written down."""
    start: dict[str, Numbers] = json.loads((out / "start.json").read_text())
    ends = {name: [_measured(out, name, seed) for seed in _seeds(name)] for name in plan.ARMS}
    before = start[f"{plan.SCALE:g}"]
    reference = at_rate(start, plan.REACHED)
    result: dict[str, Any] = {
        "seeds": list(plan.SEEDS),
        "scale": plan.SCALE,
        "scan_before": before["strict"],
        **{
            f"scan_{key}": value for key, value in _over_seeds(ends["curriculum"], "strict").items()
        },
        "held_out": _compare(before, reference, ends["curriculum"], "held_out"),
        "other_binarizer": _compare(before, reference, ends["curriculum"], "other"),
        **{key: _compare(before, reference, ends["curriculum"], key) for key in SIMILARITIES},
        "reference_scale": reference["scale"],
        "ablations": {name: _arm(ends[name]) for name in plan.ARMS if name != "curriculum"},
        "start": start,
    }
    write(HERE / "result.json", dumps(result, indent=1) + "\n")
    draw(out, start, ends)
    grid(out, reference["scale"])
    print(table(before, reference, ends))


def _seeds(name: str) -> tuple[int, ...]:
    return plan.SEEDS if name != "control" else plan.SEEDS[:1]


def _measured(out: Path, name: str, seed: int) -> Numbers:
    numbers: Numbers = json.loads(
        (out / place(plan.TASK, name, seed) / "measured.json").read_text()
    )
    return numbers


def _over_seeds(ends: list[Numbers], key: str) -> dict[str, Any]:
    values = [end[key] for end in ends]
    return {"after": float(np.mean(values)), "after_by_seed": values}


def _compare(before: Numbers, reference: Numbers, ends: list[Numbers], key: str) -> dict[str, Any]:
    return {"before": before[key], **_over_seeds(ends, key), "reference": reference[key]}


def _arm(ends: list[Numbers]) -> dict[str, Any]:
    keys = ("strict", "held_out", "other", *SIMILARITIES)
    return {key: float(np.mean([end[key] for end in ends])) for key in keys} | {
        "strict_by_seed": [end["strict"] for end in ends]
    }


def table(before: Numbers, reference: Numbers, ends: dict[str, list[Numbers]]) -> str:
    """The outcome in Markdown, as the docs have it."""
    keys = {"strict": "read", "held_out": "held-out conditions", "other": "other binarizer"}
    keys |= {
        "clip_text": "to prompt",
        "clip_other": "to other prompts",
        "clip_image": "to base",
        "clip_code": "to code",
        "judged": "judged right",
    }
    lines = [f"| | {' | '.join(keys.values())} |", "|---" * (len(keys) + 1) + "|"]
    start = {
        f"before, scale {plan.SCALE:g}": [before],
        f"before, scale {reference['scale']:.2f}": [reference],
    }

    for name, each in (start | ends).items():
        cells = []

        for key in keys:
            values = [one[key] for one in each]
            share = key in ("strict", "held_out", "other", "judged")
            text = (lambda x: f"{x:.0%}") if share else (lambda x: f"{x:.3f}")
            spread = (
                f" ({text(min(values))} to {text(max(values))})"
                if len(values) > 1 and key == "strict"
                else ""
            )
            cells.append(text(float(np.mean(values))) + spread)

        lines.append(f"| {name} | {' | '.join(cells)} |")

    return "\n".join(lines)


def draw(out: Path, start: dict[str, Numbers], ends: dict[str, list[Numbers]]) -> None:
    """Left the trade-off, with every run as a point; right what training saw, iteration by
    iteration.
    """
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(14, 4.2))

    for axis, key, label in (
        (left, "clip_image", "similarity to base picture"),
        (middle, "clip_text", "to prompt"),
    ):
        rates, seen = ([numbers[name] for numbers in start.values()] for name in ("strict", key))
        axis.plot(
            rates, seen, color="#333333", marker=".", label="before training, by control scale"
        )

        for scale, numbers in start.items():
            axis.annotate(
                scale,
                (numbers["strict"], numbers[key]),
                fontsize=7,
                xytext=(3, 3),
                textcoords="offset points",
            )

        for name, each in ends.items():
            axis.scatter(
                [one["strict"] for one in each],
                [one[key] for one in each],
                color=COLOURS[name],
                label=name,
            )

        axis.set(xlabel="read under every condition", ylabel=label, xlim=(-0.03, 1.03))

    for name in plan.ARMS:
        curves = [Run(out / place(plan.TASK, name, seed)).records() for seed in _seeds(name)]
        read = np.array(
            [[record["rewards"]["qr_scan"]["mean"] for record in records] for records in curves]
        )
        at = np.arange(1, read.shape[1] + 1)
        right.plot(at, read.mean(0), color=COLOURS[name], label=name)
        right.fill_between(
            at, read.min(0), read.max(0), color=COLOURS[name], alpha=0.15, linewidth=0
        )

    scales = [
        record["control_scale"]
        for record in Run(out / place(plan.TASK, "curriculum", plan.SEEDS[0])).records()
    ]
    right.plot(
        range(1, len(scales) + 1),
        scales,
        color="#b4501e",
        linestyle=":",
        label="control scale of curriculum",
    )
    right.set(
        xlabel="iteration", ylabel="share of conditions that read, in training", ylim=(0, None)
    )

    for axis in (left, middle, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)

    left.legend(frameon=False, fontsize=8)
    right.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(PICTURES / "qr_curriculum.png", dpi=110)


def grid(out: Path, reference: float) -> None:
    """The same prompts, payloads and noise, before training and after each arm, first seed."""
    some = asked()[:: max(1, len(asked()) // SHOWN)][:SHOWN]
    runs = {
        name: str(out / place(plan.TASK, name, plan.SEEDS[0]))
        for name in plan.ARMS
        if name != "control"
    }
    first = next(iter(runs.values()))
    rows = {
        "no code": (first, True, 0.0),
        f"before, {plan.SCALE:g}": (first, True, plan.SCALE),
        f"before, {reference:.2f}": (first, True, reference),
        **{f"{name}, {plan.SCALE:g}": (run, False, plan.SCALE) for name, run in runs.items()},
    }
    pictures = {}

    for name, (run, before, scale) in rows.items():
        policy, sampler = open_source(run, before=before)
        pictures[name] = drawn(policy, replace(sampler, control=ControlConfig(scale)), some, SEED)

    sheet(pictures).save(PICTURES / "qr_curriculum_grid.png")
