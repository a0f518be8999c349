"""DDPO-IS, DDPO-SF, RWR, sparse RWR and RLCM on the DDPO paper's tasks. Run it again and it goes on where it was.

    python -m experiments.ddpo_tasks                  # everything: about three hours on two cores
    python -m experiments.ddpo_tasks --only report    # the figures and result.json from what is there

``train``: every run of `plan.py`, through `burnish train`, several at once with a thread each. ``time``: what an
iteration of each arm costs, measured in turns while nothing else runs. ``report``: `result.json`, `curves.json`, the
figure, and a grid of pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median

from burnish.runs import dumps, write
from experiments.ddpo_tasks import plan
from experiments.running import iteration_seconds, train


def measure_time(out: Path) -> None:
    """Median seconds of an iteration of each arm on each task, whose rewards differ in what they cost."""
    if (out / "time.json").exists():
        return
    arms = {
        f"{task}/{name}": (arm.recipe, (*plan.COMMON, *changes, *arm.changes))
        for task, changes in plan.TASKS.items()
        for name, arm in plan.ARMS.items()
    }
    seconds = iteration_seconds(arms, out, rounds=1, iterations=3)
    write(out / "time.json", dumps({name: median(each) for name, each in seconds.items()}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/ddpo_tasks"), help="where the runs go")
    parser.add_argument("--parallel", type=int, default=2, help="runs at once, with one thread each if several")
    parser.add_argument("--only", choices=("train", "time", "report"), help="one stage")
    parser.add_argument("--task", action="append", choices=tuple(plan.TASKS), help="train these only")
    options = parser.parse_args()
    if options.only in (None, "train"):
        wanted = options.task or list(plan.TASKS)
        train([job for job in plan.jobs() if job.task in wanted], options.out, options.parallel)
    if options.only in (None, "time"):
        measure_time(options.out)
    if options.only in (None, "report"):
        from experiments.ddpo_tasks.result import report

        report(options.out)


if __name__ == "__main__":
    main()
