"""RLCM against DDPO on the embedded models: trains, measures, draws. Run it again and it goes on
where it was.

    python -m experiments.rlcm_vs_ddpo                  # everything: an hour and a half on two cores
    python -m experiments.rlcm_vs_ddpo --only report    # the figure and result.json from what is there

Three stages. ``train``: every run of `plan.py`, through `burnish train`, several at once with a
thread each. ``time``: what an iteration of each arm and a picture cost, measured in turns while
nothing else runs; a run's seconds are its iterations times that, so that the load of the other runs
does not count. ``report``: `result.json`, `curves.json`, and the figure.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

from burnish.runs import dumps, write
from experiments.rlcm_vs_ddpo import plan
from experiments.running import Job, Stage, Trial, command, iteration_seconds, train


def other_steps(job: Job, folder: Path) -> None:
    """The reward of a trained run with fewer and more network calls an image, in a process of its
    own.
    """
    if (
        not (isinstance(job, Trial) and job.arm in ("ddpo", "rlcm"))
        or (folder / "steps.json").exists()
    ):
        return

    log = folder / "steps.log"
    with log.open("w") as file:
        command = [sys.executable, "-m", "experiments.rlcm_vs_ddpo.steps", str(folder)]
        done = subprocess.run(command, stdout=file, stderr=file, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[1:])} failed; {log} says why")


def measure_time(options: argparse.Namespace) -> None:
    """Median seconds of an iteration of each arm, and of a picture."""
    out = options.out
    if (out / "time.json").exists():
        return

    seconds = iteration_seconds(
        {name: (arm.recipe, arm.changes) for name, arm in plan.ARMS.items()}, out
    )
    pictures = subprocess.run(
        [sys.executable, "-m", "experiments.rlcm_vs_ddpo.steps", "--time"],
        check=True,
        capture_output=True,
        text=True,
    )
    answer = {"iteration": {name: median(each) for name, each in seconds.items()}, "all": seconds}
    write(out / "time.json", dumps(answer | {"picture": json.loads(pictures.stdout)}, indent=1))


def run(options: argparse.Namespace) -> None:
    """Every run of the plan."""
    train(plan.jobs(), options.out, options.parallel, after=other_steps)


def report(options: argparse.Namespace) -> None:
    """What came out."""
    from experiments.rlcm_vs_ddpo import result

    result.report(options.out)


if __name__ == "__main__":
    stages: dict[str, Stage] = {"train": run, "time": measure_time, "report": report}
    command(__doc__, "runs/rlcm_vs_ddpo", stages)
