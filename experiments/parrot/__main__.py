"""Parrot and its parts against weighted sums, on four rewards and the embedded models. Resumable.

    python -m experiments.parrot                  # everything: three and a half hours of one thread
    python -m experiments.parrot --only report    # figure and result.json of existing runs
    python -m experiments.parrot --quick          # all of it on a tiny budget, in two minutes
    python -m experiments.parrot --only search    # the runs that settings were chosen by

`train`: every run of `plan.py`, through `burnish train`. `measure`: images of every training prompt
and of every unseen one, for every arm the same noise; and with the identifier of one reward alone.
`simulate`: the rewards of a pool of images, from which selections are compared. `report`:
`result.json`, the figure and a grid of images; with --quick they stay in --out. `search`: on a seed
and prompts that are not reported; `endings`: expansions of such prompts for the supervised start;
`arrangements`: what scenes of such prompts gain where things stand elsewhere; these three only when
they are asked for.
"""

from __future__ import annotations

import argparse
import json

from experiments.parrot import plan
from experiments.running import Stage, run_stages, train


def train_all(options: argparse.Namespace) -> None:
    """Train every run of the plan."""
    train(plan.jobs(plan.budget(options.quick)), options.out, options.parallel)


def measure(options: argparse.Namespace) -> None:
    """Measure the images of every arm."""
    from experiments.parrot.measure import measure_all

    measure_all(options.out, plan.finished(options.out, plan.budget(options.quick)))


def simulate(options: argparse.Namespace) -> None:
    """Draw the pool of images that selections are compared on."""
    from experiments.parrot.simulate import draw_pool

    draw_pool(options.out, plan.budget(options.quick))


def report(options: argparse.Namespace) -> None:
    """Write the results and draw the figures."""
    from experiments.parrot import result

    result.report(options.out, plan.finished(options.out, plan.budget(options.quick)))


def search(options: argparse.Namespace) -> None:
    """Train the runs of the search, and print what each has gained."""
    from experiments.parrot.search import print_gains

    if options.only != "search":
        return

    jobs = plan.search_jobs(plan.budget(options.quick))
    train(jobs, options.out, options.parallel)
    print_gains(options.out, jobs)


def endings(options: argparse.Namespace) -> None:
    """Choose the expansions of the supervised start."""
    from experiments.parrot.endings import choose_endings

    if options.only == "endings":
        choose_endings(options.out)


def arrangements(options: argparse.Namespace) -> None:
    """Measure what other arrangements of scenes would gain."""
    from experiments.parrot.arrangements import measure_arrangements
    from experiments.parrot.result import FOLDER
    from experiments.parrot.tables import arrangements_table

    if options.only == "arrangements":
        std = json.loads((FOLDER / "result.json").read_text())["std"]
        print(arrangements_table(measure_arrangements(std)))


if __name__ == "__main__":
    stages: dict[str, Stage] = {
        "search": search,
        "endings": endings,
        "arrangements": arrangements,
        "train": train_all,
        "measure": measure,
        "simulate": simulate,
        "report": report,
    }
    run_stages(__doc__, "runs/parrot", stages, quick=True)
