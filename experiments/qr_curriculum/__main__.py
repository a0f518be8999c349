"""A QR ControlNet fine-tuned by RL until its images are read at a low control scale. Resumable.

    python -m experiments.qr_curriculum                  # everything
    python -m experiments.qr_curriculum --only report    # figures and result.json of existing runs

`bases`: an image of every noun, drawn without a code. `train`: every run of `plan.py`, through
`burnish train`. `measure`: the ControlNet before training at many control scales, and every run
at the low one, on nouns and payloads that no training saw. `report`: `result.json`, the figure
and a grid of images.
"""

from __future__ import annotations

import argparse

from experiments.qr_curriculum import plan
from experiments.running import Stage, run_stages, train


def bases(options: argparse.Namespace) -> None:
    """Draw the images that those with a code should resemble."""
    from experiments.qr_curriculum.measure import draw_bases

    draw_bases(options.out / plan.BASES)


def train_all(options: argparse.Namespace) -> None:
    """Train every run of the plan."""
    train(plan.jobs(options.out), options.out, options.parallel)


def measure(options: argparse.Namespace) -> None:
    """Measure scan rates and similarities, before and after."""
    from experiments.qr_curriculum.measure import measure_all

    measure_all(options.out)


def report(options: argparse.Namespace) -> None:
    """Write the results and draw the figures."""
    from experiments.qr_curriculum import result

    result.report(options.out)


if __name__ == "__main__":
    stages: dict[str, Stage] = {
        "bases": bases,
        "train": train_all,
        "measure": measure,
        "report": report,
    }
    run_stages(__doc__, "runs/qr_curriculum", stages)
