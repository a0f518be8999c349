"""From the runs to `result.json` and the figure: where the reward and the truth part, and what the
guard does then.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot

from burnish import config as configuration
from burnish.evaluation.guard import verdict
from burnish.runs import Run, dumps, write
from experiments.guard import plan
from experiments.reading import interval, measured, rewards, share

matplotlib.use("Agg")
HERE = Path(__file__).parent
FIGURE = HERE.parent.parent / "docs" / "images" / "guard.png"
MEASURES = ("taste", "truth", "clip_similarity", "diversity", "kl")


def curve(run: Run) -> list[dict[str, float]]:
    """Means over the images of every evaluation of a run without a guard."""
    points = []

    for iteration in range(0, plan.ITERATIONS + 1, plan.EVERY):
        seen = measured(run, iteration)["train"]
        held_out = {name: float(np.nanmean(seen.measures()[name])) for name in MEASURES}
        points.append(
            {
                "iteration": iteration,
                "aesthetic": float(rewards(seen).mean()),
                "judge": share(seen),
                **held_out,
            }
        )

    return points


def truths(run: Run, iteration: int) -> np.ndarray:
    """(prompts,) the ground truth after an iteration."""
    seen = measured(run, iteration)["train"]
    return np.array(seen.measures()["truth"]).reshape(len(seen.prompts), -1).mean(1)


def one(out: Path, seed: int) -> dict[str, Any]:
    """A seed: when the guard tripped, where it went back to, and the truth there and in the end
    without it.
    """
    free, guarded = (Run(out / plan.Job(arm, seed).name) for arm in ("free", "guarded"))
    about = json.loads(guarded.guard.read_text())
    first = measured(guarded, 0)["train"]
    best = about["best"]
    said = verdict(
        guarded, configuration.load(guarded.config), torch.ones(1), first, about["iteration"]
    )
    assert (said.best, said.tripped) == (best, True)

    # until then the two are one and the same run
    for iteration in range(0, about["iteration"] + 1, plan.EVERY):
        assert (
            measured(guarded, iteration)["train"].parts == measured(free, iteration)["train"].parts
        )

    points = curve(free)
    return {
        "seed": seed,
        "tripped": about["iteration"],
        "best": best,
        "reasons": about["reasons"],
        "before": points[0],
        "rolled_back": next(point for point in points if point["iteration"] == best),
        "end": points[-1],
        "curve": points,
        "dial": json.loads((free.folder / "dial.json").read_text()),
    }


def report(out: Path) -> None:
    """Everything that is written down."""
    seeds = [one(out, seed) for seed in plan.SEEDS]
    free = [Run(out / plan.Job("free", seed).name) for seed in plan.SEEDS]
    back = np.stack([truths(run, each["best"]) for run, each in zip(free, seeds, strict=True)])
    last = np.stack([truths(run, plan.ITERATIONS) for run in free])
    first = np.stack([truths(run, 0) for run in free])
    truth: dict[str, dict[str, Any]] = {
        name: {"mean": float(values.mean()), "ci95": interval(values)}
        for name, values in (
            ("before", first),
            ("rolled_back", back),
            ("end", last),
            ("rolled_back_less_before", back - first),
            ("rolled_back_less_end", back - last),
        )
    }
    write(
        HERE / "result.json",
        dumps({"seeds": list(plan.SEEDS), "truth": truth, "runs": seeds}, indent=1) + "\n",
    )
    draw(seeds)

    for each in seeds:
        print(
            f"seed {each['seed']}: tripped at {each['tripped']}, back to {each['best']}: {'; '.join(each['reasons'])}"
        )

    for name, values in truth.items():
        print(
            f"{name:24} {values['mean']:+.3f} [{values['ci95'][0]:+.3f}, {values['ci95'][1]:+.3f}]"
        )


def draw(seeds: list[dict[str, Any]]) -> None:
    """The reward, the truth and the held-out measures by iteration; and the dial."""
    figure, axes = pyplot.subplots(1, 4, figsize=(16, 3.4))

    for each in seeds:
        x = [point["iteration"] for point in each["curve"]]
        for name, colour in (("aesthetic", "#b4501e"), ("taste", "#e0a030"), ("truth", "#333333")):
            y = [point[name] for point in each["curve"]]
            axes[0].plot(x, y, color=colour, label=name if each is seeds[0] else None)

        axes[0].axvline(each["tripped"], color="#3a7d44", linestyle=":", linewidth=1)
        for axis, name in ((axes[1], "clip_similarity"), (axes[2], "kl")):
            axis.plot(x, [point[name] for point in each["curve"]], color="#555555")
            axis.axvline(each["tripped"], color="#3a7d44", linestyle=":", linewidth=1)
            axis.set(xlabel="iteration", ylabel={"kl": "KL, nats an image"}.get(name, name))

        strengths = [float(value) for value in each["dial"]]

        for name, colour in (("aesthetic", "#b4501e"), ("truth", "#333333")):
            axes[3].plot(
                strengths,
                [point[name] for point in each["dial"].values()],
                color=colour,
                marker="o",
            )

    axes[0].set(xlabel="iteration (dotted: the guard trips)", ylabel="mean over the pictures")
    axes[0].legend(frameon=False)
    axes[3].set(xlabel="strength of the hacked adapter", ylabel="reward and truth")

    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)

    figure.tight_layout()
    figure.savefig(FIGURE, dpi=110)
