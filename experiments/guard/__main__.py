"""Over-optimisation on a learned reward whose ground truth is known, and the guard. Resumable.

    python -m experiments.guard                  # everything: 33 minutes on two busy cores
    python -m experiments.guard --only report    # figure and result.json of existing runs

The reward is `zoo:emoji-aesthetic`, a head on CLIP fitted to a stated taste. The truth is that
taste of an image that shows what its prompt names, and 1 for an image that does not. `train`:
three seeds, 18 iterations of RLCM, with a panel that only measures, and again with the guard.
`dial`: the hacked models with their adapters at lower strength. `report`: `result.json` and
the figure.
"""

from __future__ import annotations

import argparse

from experiments.guard import plan
from experiments.running import Stage, run_stages, train


def train_all(options: argparse.Namespace) -> None:
    """Train every run of the plan."""
    train(plan.jobs(), options.out, options.parallel)


def dial(options: argparse.Namespace) -> None:
    """Measure the hacked adapters at lower strength."""
    from experiments.guard.strengths import measure_strengths

    measure_strengths(options.out)


def report(options: argparse.Namespace) -> None:
    """Write the results and draw the figure."""
    from experiments.guard import result

    result.report(options.out)


if __name__ == "__main__":
    stages: dict[str, Stage] = {"train": train_all, "dial": dial, "report": report}
    run_stages(__doc__, "runs/guard", stages)
