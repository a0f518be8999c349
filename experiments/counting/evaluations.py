"""The evaluations of this experiment's runs: means, changes with intervals, curves, reasons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from burnish import config as configuration
from burnish.runs import Run
from experiments.counting.guarded import guard_reasons
from experiments.measurements import gain_interval, interval, run_evaluation

SPLITS = ("train", "unseen")
Names = Sequence[str]


def measured(run: Run, iteration: int, split: str, names: Names) -> dict[str, np.ndarray]:
    """Return the means of each prompt's images after an iteration, (prompts,) by measure."""
    evaluation = run_evaluation(run, iteration)[split]
    prompts = len(evaluation.prompts)
    rewards = {name: evaluation.reward(name) for name in evaluation.rewards}
    both = [float(value == 1) for value in rewards.get("question", ())]
    columns = evaluation.measures() | rewards | {"both_right": both}
    return {name: np.array(columns[name]).reshape(prompts, -1).mean(1) for name in names}


def reasons(run: Run, evaluated: Sequence[int]) -> dict[int, list[str]]:
    """Return the reasons that the guard finds after each evaluation, where it finds any."""
    config = configuration.load(run.config, purpose="compare")
    found = guard_reasons([run_evaluation(run, at)["train"] for at in evaluated], config)
    return {at: list(why) for at, why in zip(evaluated[1:], found, strict=True) if why}


def statistics(runs: list[Run], iteration: int, split: str, names: Names) -> dict[str, Any]:
    """Return each measure's mean and its change since before training, with intervals."""
    now = [measured(run, iteration, split, names) for run in runs]
    before = [measured(run, 0, split, names) for run in runs]
    found = {}

    for name in names:
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


def curve(run: Run, evaluated: Sequence[int], names: Names) -> list[dict[str, Any]]:
    """Return the means at every evaluation of a run, by split and measure."""

    def means(at: int, split: str) -> dict[str, float]:
        found = measured(run, at, split, names)
        return {name: float(values.mean()) for name, values in found.items()}

    return [{"iteration": at, **{split: means(at, split) for split in SPLITS}} for at in evaluated]
