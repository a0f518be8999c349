"""RLCM against DDPO on the embedded models: trains, measures, draws. Resumable.

    python -m experiments.rlcm_vs_ddpo                  # everything: some hours on two cores
    python -m experiments.rlcm_vs_ddpo --only report    # figure and result.json of existing runs

Three stages. `train`: every run of `plan.py`, through `burnish train`, several at once with a
thread each. `time`: the seconds of an iteration of each arm and of an image, measured in turns
while nothing else runs; a run's seconds are its iterations times that, so that the load of the
other runs does not count. `report`: `result.json`, `curves.json`, and the figure.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

from burnish.files import dumps, write
from experiments.rlcm_vs_ddpo import plan
from experiments.running import Job, Stage, Trial, iteration_seconds, run_stages, train

STEPS_MODULE = "experiments.rlcm_vs_ddpo.steps"


def measure_steps(job: Job, folder: Path) -> None:
    """Measure a trained run with fewer and more network calls an image, in a process of its own."""
    if not (isinstance(job, Trial) and job.arm in plan.MEASURED):
        return
    if (folder / "steps.json").exists():
        return

    log = folder / "steps.log"
    command = [sys.executable, "-m", STEPS_MODULE, str(folder)]
    with log.open("w") as file:
        process = subprocess.run(command, stdout=file, stderr=file, check=False)

    if process.returncode:
        raise SystemExit(f"{' '.join(command[1:])} failed; {log} says why")


def measure_time(options: argparse.Namespace) -> None:
    """Write the median seconds of an iteration of each arm, and of an image, to `time.json`."""
    target = options.out / "time.json"
    if target.exists():
        return

    arms = {name: (arm.recipe, (plan.NO_PREVIEWS, *arm.changes)) for name, arm in plan.ARMS.items()}
    seconds = iteration_seconds(arms, options.out)

    command = [sys.executable, "-m", STEPS_MODULE, "--time"]
    images = subprocess.run(command, check=True, capture_output=True, text=True)
    answer = {
        "iteration": {name: median(each) for name, each in seconds.items()},
        "all": seconds,
        "picture": json.loads(images.stdout),
    }
    write(target, dumps(answer, indent=1))


def train_all(options: argparse.Namespace) -> None:
    """Train every run of the plan."""
    train(plan.jobs(), options.out, options.parallel, on_finished=measure_steps)


def report(options: argparse.Namespace) -> None:
    """Write the results and draw the figure."""
    from experiments.rlcm_vs_ddpo import result

    result.report(options.out)


if __name__ == "__main__":
    stages: dict[str, Stage] = {"train": train_all, "time": measure_time, "report": report}
    run_stages(__doc__, "runs/rlcm_vs_ddpo", stages)
