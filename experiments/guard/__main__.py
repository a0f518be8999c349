"""Over-optimisation on a learned reward whose ground truth is known, and the guard. Run it again
and it goes on.

    python -m experiments.guard                  # everything: 33 minutes on two busy cores
    python -m experiments.guard --only report    # the figure and result.json from what is there

The reward is `zoo:emoji-aesthetic`, a head on CLIP fitted to a stated taste. The truth is that
taste of a picture that shows what was asked, and 1 for a picture that does not. ``train``: three
seeds, 18 iterations of RLCM, with a panel that only measures, and again with the guard. ``dial``:
the hacked models with their adapters at lower strength. ``report``: `result.json` and the figure.
"""

from __future__ import annotations

import argparse

from experiments.guard import plan
from experiments.running import Stage, command, train


def run(options: argparse.Namespace) -> None:
    """Every run of the plan."""
    train(plan.jobs(), options.out, options.parallel)


def dial(options: argparse.Namespace) -> None:
    """The hacked adapters at lower strength."""
    from experiments.guard.dial import turn

    turn(options.out)


def report(options: argparse.Namespace) -> None:
    """What came out."""
    from experiments.guard import result

    result.report(options.out)


if __name__ == "__main__":
    stages: dict[str, Stage] = {"train": run, "dial": dial, "report": report}
    command(__doc__, "runs/guard", stages)
