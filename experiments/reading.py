"""What the runs of an experiment measured, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rliable import library, metrics

from burnish.evaluation.paired import Evaluation, load_evaluation
from burnish.runs import Run
from experiments.running import place

REPEATS = 2000  # of the bootstrap


def interval(values: np.ndarray) -> list[float]:
    """rliable's 95 % stratified bootstrap interval (arXiv 2108.13264) of the mean of (seeds,
    prompts).
    """
    # its bootstrap draws from the global stream, whatever random_state it is given
    np.random.seed(0)
    _, limits = library.get_interval_estimates(
        {"": values}, lambda x: np.array([metrics.aggregate_mean(x)]), reps=REPEATS
    )
    return [float(limits[""][0, 0]), float(limits[""][1, 0])]


def rewards(seen: Evaluation) -> np.ndarray:
    """(prompts,) the mean of the first reward over a prompt's images."""
    return seen.total(torch.tensor([1.0, *[0.0] * (len(seen.rewards) - 1)])).mean(1).numpy()


def share(seen: Evaluation) -> float:
    """Judged right."""
    return float(np.mean(seen.measures().get("judge", np.nan)))


def evaluations(
    out: Path, task: str, arm: str, seeds: Sequence[int], iteration: int
) -> list[dict[str, Evaluation]]:
    """An evaluation of an arm's run with each seed."""
    return [measured(Run(out / place(task, arm, seed)), iteration) for seed in seeds]


def measured(run: Run, iteration: int) -> dict[str, Evaluation]:
    """An evaluation of a run; SystemExit if it was not made."""
    found = load_evaluation(run.measured(iteration))
    if found is None:
        raise SystemExit(
            f"{run.measured(iteration)} is missing: run the experiment again, it goes on where it was"
        )

    return found
