"""A reader's answers about counts as the reward: what is learned, and the guard. Resumable.

    python -m experiments.counting                  # everything: hours on two cores
    python -m experiments.counting --only report    # figure and result.json of existing runs

The reward is `question` by `zoo:emoji-captioner-128`, text allowed. `written`: what a written
number does to its answers. `train`: three seeds, far too long, with a panel that only measures, and
again with the guard. `report`: `result.json` and the figure.
"""

from __future__ import annotations

import argparse

from experiments.counting import plan
from experiments.running import Stage, run_stages, train


def written(options: argparse.Namespace) -> None:
    """Measure what a wrong number does that is written over a scene."""
    from burnish.files import dumps, write
    from burnish.rewards.vlm import load
    from experiments.caption_rewards import written_numbers

    numbers = written_numbers(load(plan.READER), plan.SCENES, seed=0, size=plan.SIZE)
    write(options.out / "written.json", dumps(numbers, indent=1))


def train_all(options: argparse.Namespace) -> None:
    """Train every run of the plan."""
    train(plan.jobs(), options.out, options.parallel)


def report(options: argparse.Namespace) -> None:
    """Write the results and draw the figure."""
    from experiments.counting import result

    result.report(options.out)


if __name__ == "__main__":
    stages: dict[str, Stage] = {"written": written, "train": train_all, "report": report}
    run_stages(__doc__, "runs/counting", stages)
