"""Over-optimisation on a learned reward whose ground truth is known, and the guard. Run it again and it goes on.

    python -m experiments.guard                  # everything: ten minutes on two cores
    python -m experiments.guard --only report    # the figure and result.json from what is there

The reward is `zoo:emoji-aesthetic`, a head on CLIP fitted to a stated taste. The truth is that taste of a picture that
shows what was asked, and 1 for a picture that does not. ``train``: three seeds, 18 iterations of RLCM, with a panel
that only measures, and again with the guard. ``dial``: the hacked models with their adapters at lower strength.
``report``: `result.json` and the figure.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.guard import plan
from experiments.running import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/guard"), help="where the runs go")
    parser.add_argument("--parallel", type=int, default=2, help="runs at once, with one thread each if several")
    parser.add_argument("--only", choices=("train", "dial", "report"), help="one stage")
    options = parser.parse_args()
    if options.only in (None, "train"):
        train(plan.jobs(), options.out, options.parallel)
    if options.only in (None, "dial"):
        from experiments.guard.dial import turn

        turn(options.out)
    if options.only in (None, "report"):
        from experiments.guard.result import report

        report(options.out)


if __name__ == "__main__":
    main()
