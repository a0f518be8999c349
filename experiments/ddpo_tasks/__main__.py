"""DDPO-IS, DDPO-SF, RWR, sparse RWR and RLCM on the DDPO paper's tasks. Resumable.

    python -m experiments.ddpo_tasks                  # everything: some hours on two cores
    python -m experiments.ddpo_tasks --only report    # figures and result.json of existing runs

The hours are an estimate.

`train`: every run of `plan.py`, through `burnish train`, several at once with a thread each.
`control`: imitation without a reward, on tasks where that needs no run of its own.
`time`: seconds of an iteration of each arm, measured in turns while nothing else runs.
`report`: `result.json`, `curves.json`, the figure, and a grid of images a task.
"""

from __future__ import annotations

import argparse
from statistics import median

from burnish.files import dumps, write
from experiments.ddpo_tasks import plan
from experiments.running import Stage, iteration_seconds, run_stages, train


def measure_time(options: argparse.Namespace) -> None:
    """Write the seconds of an iteration of each arm to `time.json`.

    They are measured on compressibility: other tasks differ in rewards, which cost little.
    """
    target = options.out / "time.json"
    if target.exists():
        return

    arms = {
        name: (arm.recipe, plan.trial("compressibility", name, 0).settings)
        for name, arm in plan.ARMS.items()
    }
    seconds = iteration_seconds(arms, options.out, rounds=1, iterations=3)
    medians = {name: median(each) for name, each in seconds.items()}
    write(target, dumps(medians, indent=1))


def train_all(options: argparse.Namespace) -> None:
    """Train every run of the plan, or those of some tasks."""
    tasks = options.task or list(plan.TASKS)
    jobs = [job for job in plan.jobs() if job.task in tasks]
    train(jobs, options.out, options.parallel)


def control(options: argparse.Namespace) -> None:
    """Measure the control on the tasks that it shares with compressibility."""
    from experiments.ddpo_tasks.shared_control import measure_control

    measure_control(options.out)


def report(options: argparse.Namespace) -> None:
    """Write the results and draw the figures."""
    from experiments.ddpo_tasks import result

    result.report(options.out)


if __name__ == "__main__":
    stages: dict[str, Stage] = {
        "train": train_all,
        "control": control,
        "time": measure_time,
        "report": report,
    }
    run_stages(__doc__, "runs/ddpo_tasks", stages, tasks=tuple(plan.TASKS))
