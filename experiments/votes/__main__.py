"""The gain that so many votes bring, by a simulated voter with a stated taste. Resumable.

    python -m experiments.votes                  # everything: an hour and a half of one core
    python -m experiments.votes --only report    # figures and result.json of what there is

The voter prefers what `burnish.zoo.taste` rates higher, and errs in one answer of ten. `heads`:
what a preference head knows of images of the model before training. `train`: every run of
`plan.py`, measured after 50, 100, 200 and 400 votes, and those with fresh seeds after 50 and 100.
`report`: `result.json`, the figure, the grid and the tables, of the budgets that all runs of an arm
have come to.
"""

from __future__ import annotations

import argparse

from experiments.running import Stage, run_stages, train
from experiments.votes import plan


def train_all(options: argparse.Namespace) -> None:
    """Train every run of the plan, all of them up to a smaller budget first."""
    for votes in plan.PASSES:
        train(plan.jobs(votes), options.out, options.parallel)
    train(plan.fresh_jobs(), options.out, options.parallel)


def heads(options: argparse.Namespace) -> None:
    """Measure what a preference head knows, by what it reads of an image."""
    from experiments.votes.heads import measure_heads

    measure_heads(options.out)


def report(options: argparse.Namespace) -> None:
    """Write the results and draw the figures."""
    from experiments.votes import result

    result.report(options.out)


if __name__ == "__main__":
    stages: dict[str, Stage] = {"heads": heads, "train": train_all, "report": report}
    run_stages(__doc__, "runs/votes", stages)
