"""Time to the same reward: each library trains until JPEG files are smaller by `target`, tuned.

The clock runs during iterations only. Every few of them one process, the same for both libraries,
loads the adapter into the same sampler and measures fixed prompts from fixed noise. The settings
are in tuned.json, with the sweep that found them: `python -m benchmarks.reward` runs it again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import workload
from benchmarks.speed import Benchmark, model_folder
from benchmarks.workers import ROOT, Worker

TUNED = ROOT / "benchmarks" / "tuned.json"


@dataclass
class Racer:
    """One library in training."""

    worker: Worker
    adapter: Path
    every: int  # iterations between two measurements
    budget: float  # seconds after which it gives up
    saves: bool = False  # the adapter is written on request
    seconds: float = 0.0
    iterations: int = 0
    # (seconds, relative gain)
    curve: list[tuple[float, float]] = field(default_factory=lambda: [(0.0, 0.0)])

    def step(self) -> None:
        """Train up to the next measurement."""
        for _ in range(self.every):
            self.seconds += self.worker.ask("iterate")["seconds"]

        self.iterations += self.every
        if self.saves:
            self.worker.ask("save", folder=str(self.adapter))

    def time_to_target(self, target: float) -> float | None:
        """Return the second in which the gain passed the target, None before that.

        The curve is a straight line between two measurements.
        """
        for (t0, g0), (t1, g1) in itertools.pairwise(self.curve):
            if g1 >= target:
                return t0 + (t1 - t0) * (target - g0) / (g1 - g0)
        return None

    def done(self, target: float) -> bool:
        """Return True if the target is passed or the time is over."""
        return self.time_to_target(target) is not None or self.seconds >= self.budget


def burnish_racer(benchmark: Benchmark, tuned: dict[str, Any], name: str, budget: float) -> Racer:
    """Return Burnish with its tuned settings."""
    every = tuned["every"]
    run = {"checkpoint_every": every, "keep": 1, "sample_every": 0}
    settings = replace(benchmark, images=tuned["images"]).burnish_settings(
        name, tuned["sample_batch"], tuned["train_batch"], **tuned["sections"], run=run
    )
    worker = benchmark.start_worker("burnish_worker", settings)
    return Racer(worker, benchmark.work / name / "adapter", every, budget)


def trl_racer(benchmark: Benchmark, tuned: dict[str, Any], name: str, budget: float) -> Racer:
    """Return TRL with its tuned settings."""
    options = {key: value for key, value in tuned.items() if key != "every"}
    worker = benchmark.start_worker("trl_worker", benchmark.trl_settings(**options))
    return Racer(worker, benchmark.work / name, tuned["every"], budget, saves=True)


def start_judge(benchmark: Benchmark, images: int) -> Worker:
    """Return the process that measures adapters, with some images of each prompt."""
    settings = {
        "model": str(benchmark.model),
        "steps": benchmark.steps,
        "guidance": workload.GUIDANCE,
        "prompts": workload.PROMPTS,
        "images": images,
    }
    return benchmark.start_worker("judge_worker", settings)


def train_until(name: str, racer: Racer, judge: Worker, target: float) -> None:
    """Train a library until it passes the target or its time is over."""
    before = judge.ask("judge", adapter="")["reward"]

    while not racer.done(target):
        racer.step()
        reward = judge.ask("judge", adapter=str(racer.adapter))["reward"]
        gain = 1 - reward / before
        racer.curve.append((racer.seconds, gain))
        print(
            f"  {name}: {racer.iterations} iterations, {racer.seconds:.0f} s, gain {gain:+.1%}",
            flush=True,
        )

    racer.worker.end()


def race(benchmark: Benchmark, quick: bool = False) -> dict[str, Any]:
    """Return the ratio of the two times to the target, and both curves.

    If TRL does not pass the target in its time, the ratio is that time's: a lower bound.
    """
    tuned = json.loads(TUNED.read_text())
    target = tuned["target"] / 2 if quick else tuned["target"]
    judge = start_judge(benchmark, tuned["judged"])
    burnish = burnish_racer(benchmark, tuned["burnish"], "race", tuned["budget_s"])
    train_until("burnish", burnish, judge, target)
    seconds = burnish.time_to_target(target)

    if seconds is None:
        judge.end()
        return {"ratio_time_to_reward": 0.0, "race": {"target": target, "burnish": burnish.curve}}

    trl = trl_racer(benchmark, tuned["trl"], "race-trl", tuned["trl_budget"] * seconds)
    train_until("trl", trl, judge, target)
    judge.end()
    arrived = trl.time_to_target(target)
    trl_seconds = arrived or trl.seconds

    return {
        "ratio_time_to_reward": trl_seconds / seconds,
        "race": {
            "target": target,
            "seconds": seconds,
            "trl_seconds": trl_seconds,
            "trl_arrived": arrived is not None,
            "burnish": burnish.curve,
            "trl": trl.curve,
        },
    }


def sweep(benchmark: Benchmark, library: str, budget: float, target: float) -> None:
    """Run every combination of tuned.json's sweep, one after the other, and print the ranking."""
    tuned = json.loads(TUNED.read_text())
    grid = tuned["sweep"][library]
    judge = start_judge(benchmark, tuned["judged"])
    ranking = []

    for number, values in enumerate(itertools.product(*grid.values())):
        changes = dict(zip(grid, values, strict=True))
        print(changes, flush=True)

        if library == "trl":
            racer = trl_racer(benchmark, {**tuned["trl"], **changes}, f"trl-{number}", budget)
        else:
            settings = _with_sections(tuned["burnish"], changes)
            racer = burnish_racer(benchmark, settings, f"own-{number}", budget)

        train_until(library, racer, judge, target)
        seconds = racer.time_to_target(target) or float("inf")
        ranking.append((seconds, -racer.curve[-1][1], str(changes)))

    judge.end()
    for seconds, loss, description in sorted(ranking):
        print(f"{seconds:8.1f} s   last {-loss:+.1%}   {description}")


def _with_sections(tuned: dict[str, Any], changes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    sections = dict(tuned["sections"])
    for section, values in changes.items():
        sections[section] = {**sections.get(section, {}), **values}

    return {**tuned, "sections": sections}


def main() -> None:
    """Run the sweep of one library."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.reward")
    parser.add_argument("library", choices=("burnish", "trl"))
    parser.add_argument("--model", default="zoo:emoji-sd")
    parser.add_argument("--seconds", type=float, default=180, help="time for each combination")
    parser.add_argument(
        "--target", type=float, default=0.1, help="how much smaller the files must be"
    )
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as work:
        benchmark = Benchmark(model_folder(options.model), Path(work))
        sweep(benchmark, options.library, options.seconds, options.target)


if __name__ == "__main__":
    main()
