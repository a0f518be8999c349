"""Training runs of an experiment: through `burnish train`, several at once, resumable."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Protocol

from burnish import config as configuration
from burnish.runs import Run, write

Stage = Callable[[argparse.Namespace], None]
BURNISH = (sys.executable, "-c", "from burnish.cli import main; main()")


class Job(Protocol):
    """One training run."""

    @property
    def name(self) -> str:
        """Where it goes, below the experiment's folder."""

    @property
    def recipe(self) -> str:
        """What it starts from."""

    @property
    def iterations(self) -> int:
        """After which it is finished."""

    def changes(self) -> list[str]:
        """What its configuration changes of the recipe."""


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
        """Where it goes."""
        return place(self.task, self.arm, self.seed)

    def changes(self) -> list[str]:
        """Everything that its configuration changes of the recipe."""
        length = (
            f"iterations={self.iterations}",
            f"evaluation.every={self.every}",
            f"seed={self.seed}",
        )
        return [*self.settings, *length]


def place(task: str, arm: str, seed: int) -> str:
    """The folder of a trial, below the experiment's."""
    return f"{task}/{arm}-{seed}"


def command(
    doc: str | None, out: str, stages: Mapping[str, Stage], tasks: Sequence[str] = ()
) -> None:
    """The command line of an experiment: all its stages in order, or one; they get the options."""
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

    options = parser.parse_args()
    for name, stage in stages.items():
        if options.only in (None, name):
            stage(options)


def burnish(*words: str, log: Path, threads: int = 0) -> None:
    """One command of Burnish's command line; what it prints goes to a file."""
    limit = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    log.parent.mkdir(parents=True, exist_ok=True)

    with log.open("a") as file:
        done = subprocess.run(
            [*BURNISH, *words], stdout=file, stderr=file, env={**os.environ, **limit}, check=False
        )

    if done.returncode:
        last = (log.read_text().strip().splitlines() or ["(nothing)"])[-1]
        raise SystemExit(f"burnish {' '.join(words)} failed; {log} ends with: {last}")


def train(
    jobs: Sequence[Job],
    out: Path,
    parallel: int,
    after: Callable[[Job, Path], None] = lambda job, folder: None,
) -> None:
    """All runs that are not finished yet; ``after`` is called with each finished one."""

    def one(job: Job) -> None:
        folder = out / job.name
        run = Run(folder)

        if not (run.measured(job.iterations).exists() or run.guard.exists()):
            started = time.monotonic()
            start = begin(job, run, out)
            sets = [word for change in job.changes() for word in ("--set", change)]
            again = ["--resume"] if run.exists() else []
            log = out / "logs" / f"{job.name.replace('/', '-')}.log"
            words = ["train", job.recipe, *sets, "--out", str(folder), *again]
            burnish(*words, log=log, threads=1 if parallel > 1 else 0)

            if run.measured(0).exists() and not start.exists():
                write(start, run.measured(0).read_text())

            print(f"{job.name}: {(time.monotonic() - started) / 60:.1f} min", flush=True)

        after(job, folder)

    with ThreadPoolExecutor(parallel) as pool:
        list(pool.map(one, jobs))


def begin(job: Job, run: Run, out: Path) -> Path:
    """Where the evaluation before training is kept for all runs that start from the same; a run
    that does not exist yet begins with it. It depends on neither the algorithm nor its settings, so
    one measurement serves every arm.
    """
    config = configuration.load(job.recipe, job.changes())
    sections = {
        name: asdict(config)[name]
        for name in ("seed", "model", "sampler", "prompts", "rewards", "evaluation")
    }
    sections["evaluation"].pop("every")
    digest = sha256(json.dumps(sections, sort_keys=True, default=str).encode()).hexdigest()
    start = out / "start" / f"{digest[:16]}.json"

    if start.exists() and not run.exists():
        Run.create(run.folder)
        run.measured(0).parent.mkdir(exist_ok=True)
        shutil.copyfile(start, run.measured(0))
        write(run.config, configuration.dump(config))

    return start


def iteration_seconds(
    arms: Mapping[str, tuple[str, Sequence[str]]], out: Path, rounds: int = 2, iterations: int = 4
) -> dict[str, list[float]]:
    """Seconds of single iterations of each arm (recipe, changes), in turns while nothing else runs.
    The first of each run warms up and does not count, nor do evaluations, pictures and saving.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}

    for number in range(rounds):
        for name, (recipe, changes) in arms.items():
            folder = out / "time" / f"{name}-{number}-{os.getpid()}"
            sets = (
                *changes,
                f"iterations={iterations}",
                "evaluation.images_per_prompt=0",
                "run.sample_every=0",
            )
            words = [word for change in sets for word in ("--set", change)]
            burnish("train", recipe, *words, "--out", str(folder), log=out / "logs" / "time.log")
            seconds[name] += [
                r["seconds_sampling"] + r["seconds_training"] for r in Run(folder).records()[1:]
            ]
            print(f"{name}: {median(seconds[name]):.2f} s an iteration", flush=True)

    return seconds
