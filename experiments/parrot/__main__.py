"""Parrot and its parts against weighted sums, on four rewards and the embedded models. Run it again
and it goes on.

    python -m experiments.parrot                  # everything
    python -m experiments.parrot --only report    # the figure and result.json from what is there

``train``: every run of `plan.py`, through `burnish train`. ``measure``: two pictures of every
animal and one of every other noun, for every arm the same noise. ``report``: `result.json`, the
figure and a grid of pictures.
"""

from __future__ import annotations

import argparse

from experiments.parrot import plan
from experiments.running import Stage, command, train


def run(options: argparse.Namespace) -> None:
    """Every run of the plan."""
    train(plan.jobs(), options.out, options.parallel)


def measure(options: argparse.Namespace) -> None:
    """What the pictures of every arm are like."""
    from experiments.parrot.measure import measure_all

    measure_all(options.out)


def report(options: argparse.Namespace) -> None:
    """What came out."""
    from experiments.parrot import result

    result.report(options.out)


if __name__ == "__main__":
    stages: dict[str, Stage] = {"train": run, "measure": measure, "report": report}
    command(__doc__, "runs/parrot", stages)
