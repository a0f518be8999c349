"""A reader's answers about counts as the reward: what is learned, and what it is worth. Resumable.

    python -m experiments.counting                  # everything: two hours of one core
    python -m experiments.counting --only report    # figure and result.json of existing runs

The reward is `question` by `zoo:emoji-captioner`, text allowed. `written`: what a written number
does to the answers of `zoo:emoji-captioner-128`. `train`: three seeds and a control, for long, with
a panel that only measures; and the same rewarded for letters alone, at 128 px. `letters`: what
readers see in those. `report`: `result.json`, figures, and what the guard would have done.
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

    numbers = written_numbers(load(plan.OTHER_READER), plan.SCENES, seed=0, size=plan.SIZE)
    write(options.out / "written.json", dumps(numbers, indent=1))


def train_all(options: argparse.Namespace) -> None:
    """Train every run of the plan."""
    train(plan.jobs(), options.out, options.parallel)


def letters(options: argparse.Namespace) -> None:
    """Let readers read what the runs that are rewarded for letters draw."""
    from experiments.counting import writing

    writing.read_all(options.out)


def report(options: argparse.Namespace) -> None:
    """Write the results and draw the figure."""
    from experiments.counting import result

    result.report(options.out)


if __name__ == "__main__":
    stages: dict[str, Stage] = {
        "written": written,
        "train": train_all,
        "letters": letters,
        "report": report,
    }
    run_stages(__doc__, "runs/counting", stages)
