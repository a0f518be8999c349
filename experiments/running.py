"""Training runs of an experiment: through `burnish train`, several at once, resumable."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Protocol

from burnish import config as configuration
from burnish.files import write
from burnish.runs import Run

Stage = Callable[[argparse.Namespace], None]
BURNISH = (sys.executable, "-c", "from burnish.cli import main; main()")


class Job(Protocol):
    """One training run."""

    @property
    def name(self) -> str:
        """The run's folder, below the experiment's."""

    @property
    def recipe(self) -> str:
        """The recipe that the run starts from."""

    @property
    def iterations(self) -> int:
        """The number of iterations after which the run is finished."""

    def changes(self) -> list[str]:
        """Return the changes that its configuration makes to the recipe."""


@dataclass(frozen=True)
class Trial:
    """One arm on one task with one seed."""

    task: str
    arm: str
    seed: int
    recipe: str
    iterations: int
    every: int  # iterations between two evaluations
    settings: tuple[str, ...]

    @property
    def name(self) -> str:
        """The run's folder, below the experiment's."""
        return run_folder(self.task, self.arm, self.seed)

    def changes(self) -> list[str]:
        """Return the changes that its configuration makes to the recipe."""
        return [
            *self.settings,
            f"iterations={self.iterations}",
            f"evaluation.every={self.every}",
            f"seed={self.seed}",
        ]


def run_folder(task: str, arm: str, seed: int) -> str:
    """Return the folder of a trial, below the experiment's."""
    return f"{task}/{arm}-{seed}"


def run_stages(
    doc: str | None,
    out: str,
    stages: Mapping[str, Stage],
    tasks: Sequence[str] = (),
    quick: bool = False,
) -> None:
    """Run an experiment's command line: all its stages in order, or one of them.

    Args:
        doc: what --help prints.
        out: the default folder of the runs.
        stages: by name; each gets the options.
        tasks: choices of --task, if there is such an option.
        quick: there is an option --quick; its runs go into a folder of their own by default.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(out), help="where the runs go")
    parser.add_argument(
        "--parallel", type=int, default=2, help="runs at once, with one thread each if several"
    )
    parser.add_argument("--only", choices=tuple(stages), help="one stage")

    if tasks:
        parser.add_argument(
            "--task", action="append", choices=tuple(tasks), help="train these only"
        )

    if quick:
        parser.add_argument(
            "--quick", action="store_true", help="a tiny budget: does everything run?"
        )

    options = parser.parse_args()
    if quick and options.quick and options.out == Path(out):
        options.out = Path(f"{out}_quick")

    for name, stage in stages.items():
        if options.only in (None, name):
            stage(options)


def run_burnish(*arguments: str, log: Path, threads: int = 0) -> None:
    """Run one command of Burnish's command line; its output goes to a file."""
    limit = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    log.parent.mkdir(parents=True, exist_ok=True)

    with log.open("a") as file:
        process = subprocess.run(
            [*BURNISH, *arguments],
            stdout=file,
            stderr=file,
            env={**os.environ, **limit},
            check=False,
        )

    if process.returncode:
        last = (log.read_text().strip().splitlines() or ["(nothing)"])[-1]
        raise SystemExit(f"burnish {' '.join(arguments)} failed; {log} ends with: {last}")


def set_options(changes: Sequence[str]) -> list[str]:
    """Return the command line's --set options for changes of a recipe."""
    return [argument for change in changes for argument in ("--set", change)]


def train(
    jobs: Sequence[Job],
    out: Path,
    parallel: int,
    on_finished: Callable[[Job, Path], None] = lambda job, folder: None,
) -> None:
    """Train all runs that are not finished yet; call `on_finished` with each finished one.

    Once a run has failed or was killed, no other begins.

    Raises:
        SystemExit: a run failed; the message says which, and where its log is.
    """
    failed = threading.Event()

    def finish(job: Job) -> None:
        if failed.is_set():
            return

        try:
            if not is_finished(job, out):
                _train_run(job, Run(out / job.name), out, threads=1 if parallel > 1 else 0)
            on_finished(job, out / job.name)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(parallel) as pool:
        list(pool.map(finish, jobs))


def is_finished(job: Job, out: Path) -> bool:
    """Return True if a run has been evaluated at its end, or the guard has ended it."""
    run = Run(out / job.name)
    return run.evaluation_file(job.iterations).exists() or run.guard.exists()


def _train_run(job: Job, run: Run, out: Path, threads: int) -> None:
    started = time.monotonic()
    shared = share_initial_evaluation(job, run, out)

    resume = ["--resume"] if run.exists() else []
    log = out / "logs" / f"{job.name.replace('/', '-')}.log"
    arguments = ["train", job.recipe, *set_options(job.changes()), "--out", str(out / job.name)]
    run_burnish(*arguments, *resume, log=log, threads=threads)

    if run.evaluation_file(0).exists() and not shared.exists():
        write(shared, run.evaluation_file(0).read_text())

    print(f"{job.name}: {(time.monotonic() - started) / 60:.1f} min", flush=True)


def share_initial_evaluation(job: Job, run: Run, out: Path) -> Path:
    """Return the file with the evaluation before training that this run shares with others.

    It depends on neither the algorithm nor its settings, so one measurement serves every arm that
    starts from the same. A run that does not exist yet begins with it.
    """
    config = configuration.load(job.recipe, job.changes())
    sections = {
        name: asdict(config)[name]
        for name in ("seed", "model", "sampler", "prompts", "rewards", "evaluation")
    }
    sections["evaluation"].pop("every")
    digest = sha256(json.dumps(sections, sort_keys=True, default=str).encode()).hexdigest()
    shared = out / "start" / f"{digest[:16]}.json"

    if shared.exists() and not run.exists():
        Run.create(run.folder)
        run.evaluation_file(0).parent.mkdir(exist_ok=True)
        shutil.copyfile(shared, run.evaluation_file(0))
        write(run.config, configuration.dump(config, run.folder))

    return shared


def iteration_seconds(
    arms: Mapping[str, tuple[str, Sequence[str]]], out: Path, rounds: int = 2, iterations: int = 4
) -> dict[str, list[float]]:
    """Return seconds of single iterations of each arm, timed in turns while nothing else runs.

    The first of each run warms up and does not count, nor do evaluations, sample images and saving.

    Args:
        arms: recipe and changes, by name.
        out: the experiment's folder.
        rounds: runs of each arm.
        iterations: of a run.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}

    for number in range(rounds):
        for name, (recipe, changes) in arms.items():
            folder = out / "time" / f"{name}-{number}-{os.getpid()}"
            options = set_options(
                [
                    *changes,
                    f"iterations={iterations}",
                    "evaluation.images_per_prompt=0",
                    "run.sample_every=0",
                ]
            )
            log = out / "logs" / "time.log"
            run_burnish("train", recipe, *options, "--out", str(folder), log=log)

            seconds[name] += [
                record["seconds_sampling"] + record["seconds_training"]
                for record in Run(folder).records()[1:]
            ]
            print(f"{name}: {median(seconds[name]):.2f} s an iteration", flush=True)

    return seconds
