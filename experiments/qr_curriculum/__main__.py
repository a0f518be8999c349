"""A QR ControlNet fine-tuned by RL until its pictures are read at a low control scale. Run it again
and it goes on.

    python -m experiments.qr_curriculum                  # everything
    python -m experiments.qr_curriculum --only report    # the figures and result.json from what is there

``bases``: a picture of every noun, drawn without a code. ``train``: every run of `plan.py`, through
`burnish train`. ``measure``: the ControlNet before training at many control scales, and every run
at the low one, on nouns and payloads that no training saw. ``report``: `result.json`, the figure
and a grid of pictures.
"""

from __future__ import annotations

import argparse

from experiments.qr_curriculum import plan
from experiments.running import Stage, command, train


def bases(options: argparse.Namespace) -> None:
    """What pictures should resemble."""
    from experiments.qr_curriculum.measure import draw_bases

    draw_bases(options.out / plan.BASES)


def run(options: argparse.Namespace) -> None:
    """Every run of the plan."""
    train(plan.jobs(options.out), options.out, options.parallel)


def measure(options: argparse.Namespace) -> None:
    """How well codes and pictures are seen, before and after."""
    from experiments.qr_curriculum.measure import measure_all

    measure_all(options.out)


def report(options: argparse.Namespace) -> None:
    """What came out."""
    from experiments.qr_curriculum import result

    result.report(options.out)


if __name__ == "__main__":
    stages: dict[str, Stage] = {"bases": bases, "train": run, "measure": measure, "report": report}
    command(__doc__, "runs/qr_curriculum", stages)
