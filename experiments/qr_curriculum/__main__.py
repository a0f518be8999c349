"""A QR ControlNet fine-tuned by RL until its images are read at a low control scale. Resumable.

    python -m experiments.qr_curriculum                  # everything
    python -m experiments.qr_curriculum --only report    # figures and result.json of existing runs
    python -m experiments.qr_curriculum --quick          # all of it on a tiny budget, in minutes

`bases`: an image of every noun, drawn without a code. `start`: the ControlNet before training at
many control scales, on nouns and links that no training saw; it says at which scales runs start.
`modules`: the same for modules of 4 and of 5 px, on codes of version 1.
`train`: every run of `plan.py`, through `burnish train`. `measure`: every run, at the scale of its
start. `report`: `result.json`, the figure and a grid of images; with --quick they stay in --out.
"""

from __future__ import annotations

import argparse

from experiments.qr_curriculum import plan
from experiments.running import Stage, run_stages, train


def bases(options: argparse.Namespace) -> None:
    """Draw the images that those with a code should resemble."""
    from experiments.qr_curriculum.measure import draw_bases

    draw_bases(options.out / plan.BASES)


def start(options: argparse.Namespace) -> None:
    """Measure the ControlNet before training."""
    from experiments.qr_curriculum.measure import measure_start

    measure_start(options.out, plan.budget(options.quick))


def modules(options: argparse.Namespace) -> None:
    """Measure the ControlNet before training with modules of another side."""
    from experiments.qr_curriculum.measure import measure_modules

    measure_modules(options.out, plan.budget(options.quick))


def train_all(options: argparse.Namespace) -> None:
    """Train every run of the plan."""
    from experiments.qr_curriculum.measure import load_numbers, start_scales

    scales = start_scales(load_numbers(options.out / "start.json"))
    jobs = plan.jobs(options.out, scales, plan.budget(options.quick))
    train(jobs, options.out, options.parallel)


def measure(options: argparse.Namespace) -> None:
    """Measure scan rates and similarities after training."""
    from experiments.qr_curriculum.measure import measure_runs

    measure_runs(options.out, plan.budget(options.quick))


def report(options: argparse.Namespace) -> None:
    """Write the results and draw the figures."""
    from experiments.qr_curriculum import result

    result.report(options.out, plan.budget(options.quick))


if __name__ == "__main__":
    stages: dict[str, Stage] = {
        "bases": bases,
        "start": start,
        "modules": modules,
        "train": train_all,
        "measure": measure,
        "report": report,
    }
    run_stages(__doc__, "runs/qr_curriculum", stages, quick=True)
