"""DDPO-IS, DDPO-SF, RWR, sparse RWR and RLCM on the DDPO paper's tasks. Run it again and it goes on
where it was.

    python -m experiments.ddpo_tasks                  # everything: some hours on two cores (an estimate)
    python -m experiments.ddpo_tasks --only report    # the figures and result.json from what is there

``train``: every run of `plan.py`, through `burnish train`, several at once with a thread each.
``control``: what imitation does without a reward, on tasks where that needs no run of its own.
``time``: what an iteration of each arm costs, measured in turns while nothing else runs.
``report``: `result.json`, `curves.json`, the figure, and a grid of pictures.
"""

from __future__ import annotations

import argparse
from statistics import median

from burnish.runs import dumps, write
from experiments.ddpo_tasks import plan
from experiments.running import Stage, command, iteration_seconds, train


def measure_time(options: argparse.Namespace) -> None:
    """Seconds of an iteration of each arm, on compressibility: other tasks differ in rewards, which
    cost little.
    """
    out = options.out
    if (out / "time.json").exists():
        return

    arms = {
        name: (arm.recipe, plan.trial("compressibility", name, 0).settings)
        for name, arm in plan.ARMS.items()
    }
    seconds = iteration_seconds(arms, out, rounds=1, iterations=3)
    write(
        out / "time.json", dumps({name: median(each) for name, each in seconds.items()}, indent=1)
    )


def run(options: argparse.Namespace) -> None:
    """Every run of the plan, or those of some tasks."""
    wanted = options.task or list(plan.TASKS)
    train([job for job in plan.jobs() if job.task in wanted], options.out, options.parallel)


def control(options: argparse.Namespace) -> None:
    """The control on the tasks that it shares with compressibility."""
    from experiments.ddpo_tasks.control import borrow

    borrow(options.out)


def report(options: argparse.Namespace) -> None:
    """What came out."""
    from experiments.ddpo_tasks import result

    result.report(options.out)


if __name__ == "__main__":
    stages: dict[str, Stage] = {
        "train": run,
        "control": control,
        "time": measure_time,
        "report": report,
    }
    command(__doc__, "runs/ddpo_tasks", stages, tasks=tuple(plan.TASKS))
