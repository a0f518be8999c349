"""Learning curves: every evaluation of an arm over its seeds, with what had been spent by then.

gain = reward after an iteration - reward before training, on the same prompts and noise
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

Curve = list[dict[str, Any]]
"""Points with "iteration", the costs until then, and the statistics of "train" and "unseen"."""

Statistics = Callable[["np.ndarray", "np.ndarray"], dict[str, Any]]
"""From the (seeds, prompts) rewards now, and their gains since before training."""


def learning_curve(
    out: Path,
    task: str,
    arm: str,
    seeds: Sequence[int],
    iterations: Iterable[int],
    costs: Mapping[str, float],
    statistics: Statistics,
) -> Curve:
    """Return a point for each evaluation of an arm.

    Args:
        out: the experiment's folder.
        task: the task of the arm's runs.
        arm: the arm.
        seeds: its runs.
        iterations: when they were evaluated; 0 is before training.
        costs: of one iteration, by name; a point has them times its iteration.
        statistics: of a split's rewards and gains.
    """
    import numpy as np

    from experiments.measurements import load_evaluations, mean_rewards, share_right

    before = load_evaluations(out, task, arm, seeds, 0)
    points = []

    for iteration in iterations:
        evaluations = load_evaluations(out, task, arm, seeds, iteration)
        point: dict[str, Any] = {"iteration": iteration}
        point |= {name: iteration * cost for name, cost in costs.items()}

        for split in ("train", "unseen"):
            rewards = np.stack([mean_rewards(each[split]) for each in evaluations])
            gains = rewards - np.stack([mean_rewards(each[split]) for each in before])
            right = [share_right(each[split]) for each in evaluations]
            point[split] = statistics(rewards, gains) | {"judge": float(np.mean(right))}

        points.append(point)

    return points
