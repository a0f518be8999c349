"""The evaluations that the runs of an experiment left, and intervals over seeds and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rliable import library, metrics

from burnish.evaluation.paired import Evaluation, load_evaluation
from burnish.runs import Run
from experiments.running import run_folder

REPEATS = 2000  # of the bootstrap


def interval(values: np.ndarray) -> list[float]:
    """Return rliable's 95 % interval [low, high] of the mean of (seeds, prompts) values.

    It is a stratified bootstrap (arXiv 2108.13264): over the seeds of each prompt, the prompts
    being fixed; over the prompts where there is one seed.
    """
    if len(values) == 1:
        values = values.T
    # its bootstrap draws from the global stream, whatever random_state it is given
    np.random.seed(0)
    _, limits = library.get_interval_estimates(
        {"": values}, lambda x: np.array([metrics.aggregate_mean(x)]), reps=REPEATS
    )
    return [float(limits[""][0, 0]), float(limits[""][1, 0])]


def gain_interval(gains: np.ndarray) -> list[float]:
    """Return `interval` of gains, and [0, 0] where nothing has changed yet."""
    return interval(gains) if gains.any() else [0.0, 0.0]


def mean_rewards(evaluation: Evaluation) -> np.ndarray:
    """Return the mean of the first reward over each prompt's images, (prompts,)."""
    weights = torch.zeros(len(evaluation.rewards))
    weights[0] = 1.0
    return evaluation.total(weights).mean(1).numpy()


def share_right(evaluation: Evaluation) -> float:
    """Return the share of images that the judge found right; NaN without a judge."""
    return float(np.mean(evaluation.measures().get("judge", np.nan)))


def load_evaluations(
    out: Path, task: str, arm: str, seeds: Sequence[int], iteration: int
) -> list[dict[str, Evaluation]]:
    """Return one evaluation of an arm's run for each seed, by split."""
    return [run_evaluation(Run(out / run_folder(task, arm, seed)), iteration) for seed in seeds]


def run_evaluation(run: Run, iteration: int) -> dict[str, Evaluation]:
    """Return an evaluation of a run, by split; SystemExit if it was not made."""
    return require_evaluation(run.evaluation_file(iteration))


def require_evaluation(path: Path) -> dict[str, Evaluation]:
    """Return the evaluation in a file, by split; SystemExit if it was not made."""
    evaluation = load_evaluation(path)
    if evaluation is None:
        raise SystemExit(f"{path} is missing: run the experiment again, it goes on where it was")

    return evaluation
