"""From the runs to `result.json` and the figure: reward and truth part, and the guard reacts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes

from burnish import config as configuration
from burnish.evaluation.guard import decide
from burnish.files import dumps, write
from burnish.runs import Run
from experiments.figures import pyplot, save_figure, style
from experiments.guard import plan
from experiments.measurements import interval, mean_rewards, run_evaluation, share_right

FOLDER = Path(__file__).parent
MEASURES = ("taste", "truth", "clip_similarity", "diversity", "kl")
REWARD_COLOUR = "#b4501e"
TASTE_COLOUR = "#e0a030"
TRUTH_COLOUR = "#333333"
GUARD_COLOUR = "#3a7d44"

Point = dict[str, Any]


def unguarded_curve(run: Run) -> list[Point]:
    """Return means over the images of every evaluation of a run without a guard."""
    points = []

    for iteration in range(0, plan.ITERATIONS + 1, plan.EVERY):
        evaluation = run_evaluation(run, iteration)["train"]
        measures = evaluation.measures()
        points.append(
            {
                "iteration": iteration,
                "aesthetic": float(mean_rewards(evaluation).mean()),
                "judge": share_right(evaluation),
                **{name: float(np.nanmean(measures[name])) for name in MEASURES},
            }
        )

    return points


def truth_by_prompt(run: Run, iteration: int) -> np.ndarray:
    """Return the ground truth after an iteration, (prompts,)."""
    evaluation = run_evaluation(run, iteration)["train"]
    truths = np.array(evaluation.measures()["truth"])
    return truths.reshape(len(evaluation.prompts), -1).mean(1)


def seed_result(out: Path, seed: int) -> dict[str, Any]:
    """Return a seed's outcome: when the guard tripped, where it went back to, and the truths."""
    free = Run(out / plan.Job("free", seed).name)
    guarded = Run(out / plan.Job("guarded", seed).name)
    tripped = json.loads(guarded.guard.read_text())
    _check_guard(free, guarded, tripped)

    points = unguarded_curve(free)
    return {
        "seed": seed,
        "tripped": tripped["iteration"],
        "best": tripped["best"],
        "reasons": tripped["reasons"],
        "before": points[0],
        "rolled_back": next(point for point in points if point["iteration"] == tripped["best"]),
        "end": points[-1],
        "curve": points,
        "dial": json.loads((free.folder / "dial.json").read_text()),
    }


def _check_guard(free: Run, guarded: Run, tripped: dict[str, Any]) -> None:
    last = tripped["iteration"]
    config = configuration.load(guarded.config)
    first = run_evaluation(guarded, 0)["train"]
    again = decide(guarded, config, torch.ones(1), first, last)
    assert (again.best, again.tripped) == (tripped["best"], True)

    # until then the two are one and the same run
    for iteration in range(0, last + 1, plan.EVERY):
        with_guard = run_evaluation(guarded, iteration)["train"]
        without = run_evaluation(free, iteration)["train"]
        assert with_guard.parts == without.parts


def report(out: Path) -> None:
    """Write the results, draw the figure and print both tables."""
    seeds = [seed_result(out, seed) for seed in plan.SEEDS]
    truth = _truth_statistics(out, seeds)
    result = {"seeds": list(plan.SEEDS), "truth": truth, "runs": seeds}
    write(FOLDER / "result.json", dumps(result, indent=1) + "\n")
    draw_figure(seeds)

    for each in seeds:
        reasons = "; ".join(each["reasons"])
        print(
            f"seed {each['seed']}: tripped at {each['tripped']}, back to {each['best']}: {reasons}"
        )

    for name, values in truth.items():
        low, high = values["ci95"]
        print(f"{name:24} {values['mean']:+.3f} [{low:+.3f}, {high:+.3f}]")


def _truth_statistics(out: Path, seeds: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    runs = [Run(out / plan.Job("free", seed).name) for seed in plan.SEEDS]
    best = [each["best"] for each in seeds]
    rolled_back = np.stack(
        [truth_by_prompt(run, iteration) for run, iteration in zip(runs, best, strict=True)]
    )
    end = np.stack([truth_by_prompt(run, plan.ITERATIONS) for run in runs])
    before = np.stack([truth_by_prompt(run, 0) for run in runs])

    values = {
        "before": before,
        "rolled_back": rolled_back,
        "end": end,
        "rolled_back_less_before": rolled_back - before,
        "rolled_back_less_end": rolled_back - end,
    }
    return {
        name: {"mean": float(truths.mean()), "ci95": interval(truths)}
        for name, truths in values.items()
    }


def draw_figure(seeds: list[dict[str, Any]]) -> None:
    """Draw the reward, the truth and the held-out measures by iteration; and by strength."""
    figure, axes = pyplot.subplots(1, 4, figsize=(16, 3.4))

    for each in seeds:
        _draw_rewards(axes[0], each, labelled=each is seeds[0])
        _draw_measure(axes[1], each, "clip_similarity", "clip_similarity")
        _draw_measure(axes[2], each, "kl", "KL, nats an image")
        _draw_strengths(axes[3], each)

    axes[0].set(xlabel="iteration (dotted: the guard trips)", ylabel="mean over the images")
    axes[0].legend(frameon=False)
    axes[3].set(xlabel="strength of the hacked adapter", ylabel="reward and truth")

    style(axes)
    save_figure(figure, "guard.png")


def _draw_rewards(axis: Axes, each: dict[str, Any], labelled: bool) -> None:
    x = [point["iteration"] for point in each["curve"]]
    colours = {"aesthetic": REWARD_COLOUR, "taste": TASTE_COLOUR, "truth": TRUTH_COLOUR}

    for name, colour in colours.items():
        y = [point[name] for point in each["curve"]]
        axis.plot(x, y, color=colour, label=name if labelled else None)

    _mark_guard(axis, each)


def _draw_measure(axis: Axes, each: dict[str, Any], name: str, label: str) -> None:
    x = [point["iteration"] for point in each["curve"]]
    y = [point[name] for point in each["curve"]]
    axis.plot(x, y, color="#555555")
    axis.set(xlabel="iteration", ylabel=label)
    _mark_guard(axis, each)


def _mark_guard(axis: Axes, each: dict[str, Any]) -> None:
    axis.axvline(each["tripped"], color=GUARD_COLOUR, linestyle=":", linewidth=1)


def _draw_strengths(axis: Axes, each: dict[str, Any]) -> None:
    strengths = [float(strength) for strength in each["dial"]]
    for name, colour in (("aesthetic", REWARD_COLOUR), ("truth", TRUTH_COLOUR)):
        y = [point[name] for point in each["dial"].values()]
        axis.plot(strengths, y, color=colour, marker="o")
