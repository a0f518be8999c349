"""Parrot and its parts against weighted sums, on four rewards and the embedded models. Resumable.

    python -m experiments.parrot                  # everything
    python -m experiments.parrot --only report    # figure and result.json of existing runs

`train`: every run of `plan.py`, through `burnish train`. `measure`: two images of every
animal and one of every other noun, for every arm the same noise. `report`: `result.json`, the
figure and a grid of images.
"""

from __future__ import annotations

import argparse

from experiments.parrot import plan
from experiments.running import Stage, run_stages, train


def train_all(options: argparse.Namespace) -> None:
    """Train every run of the plan."""
    train(plan.jobs(), options.out, options.parallel)


def measure(options: argparse.Namespace) -> None:
    """Measure the images of every arm."""
    from experiments.parrot.measure import measure_all

    measure_all(options.out)


def report(options: argparse.Namespace) -> None:
    """Write the results and draw the figures."""
    from experiments.parrot import result

    result.report(options.out)


if __name__ == "__main__":
    stages: dict[str, Stage] = {"train": train_all, "measure": measure, "report": report}
    run_stages(__doc__, "runs/parrot", stages)
