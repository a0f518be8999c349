"""Compare how fast objectives learn, on three models and three tasks. Resumable.

    python -m experiments.objectives                  # everything: some hours on two cores
    python -m experiments.objectives --only report    # figure and result.json of existing runs

`train`: every run of `plan.py`, through `burnish train`, several at once with a thread each.
`time`: seconds of an iteration of each arm, measured in turns while nothing else runs.
`report`: `result.json`, `curves.json` and the figure.
"""

from __future__ import annotations

import argparse
import json
from statistics import median

from burnish.files import dumps, write
from experiments.objectives import plan
from experiments.running import Stage, iteration_seconds, run_stages, train


def train_all(options: argparse.Namespace) -> None:
    """Train every run of the plan, or those of some models and tasks."""
    chosen = options.task or plan.TASK_NAMES
    jobs = [job for job in plan.jobs() if job.task in chosen]
    train(jobs, options.out, options.parallel)


def measure_time(options: argparse.Namespace) -> None:
    """Write the seconds of an iteration of each arm to `time.json`, as far as they are missing.

    They are measured on compressibility: other tasks differ in rewards, which cost little.
    """
    target = options.out / "time.json"
    measured = json.loads(target.read_text()) if target.exists() else {}

    for model, settings in plan.MODELS.items():
        if model in measured:
            continue

        arms = {
            name: (settings.recipe, plan.trial(model, "compressibility", name, 0).settings)
            for name in settings.arms
        }
        seconds = iteration_seconds(arms, options.out / model, rounds=2, iterations=3)
        measured[model] = {name: median(each) for name, each in seconds.items()}
        write(target, dumps(measured, indent=1))


def report(options: argparse.Namespace) -> None:
    """Write the results and draw the figure."""
    from experiments.objectives import result

    result.report(options.out)


if __name__ == "__main__":
    stages: dict[str, Stage] = {"train": train_all, "time": measure_time, "report": report}
    run_stages(__doc__, "runs/objectives", stages, tasks=plan.TASK_NAMES)
