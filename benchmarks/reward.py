"""Time to the same reward: how long each library trains until JPEG files are smaller by `target`,
both tuned.

The clock runs during iterations only. Every few of them one process, the same for both libraries,
loads the adapter into the same sampler and measures fixed prompts from fixed noise. The settings
are in tuned.json, with the sweep
that found them: `python -m benchmarks.reward` runs it again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import setting
from benchmarks.line import ROOT, Worker
from benchmarks.speed import Bench

TUNED = ROOT / "benchmarks" / "tuned.json"


@dataclass
class Racer:
    """One library under way."""

    worker: Worker
    adapter: Path
    every: int  # iterations between two looks
    budget: float  # seconds after which it gives up
    saves: bool = False  # whether it must be told to write its adapter
    seconds: float = 0.0
    iterations: int = 0
    # (seconds, relative gain)
    curve: list[tuple[float, float]] = field(default_factory=lambda: [(0.0, 0.0)])

    def step(self) -> None:
        """Iterations up to the next look."""
        for _ in range(self.every):
            self.seconds += self.worker.ask("iterate")["seconds"]
        self.iterations += self.every
        if self.saves:
            self.worker.ask("save", folder=str(self.adapter))

    def reached(self, target: float) -> float | None:
        """The second in which the gain passed the target, between two looks by a straight line."""
        for (t0, g0), (t1, g1) in itertools.pairwise(self.curve):
            if g1 >= target:
                return t0 + (t1 - t0) * (target - g0) / (g1 - g0)
        return None

    def done(self, target: float) -> bool:
        return self.reached(target) is not None or self.seconds >= self.budget


def burnish(bench: Bench, tuned: dict[str, Any], name: str, budget: float) -> Racer:
    bench = replace(bench, images=tuned["images"])
    every = tuned["every"]
    run = {"checkpoint_every": every, "keep": 1, "sample_every": 0}
    settings = bench.burnish(name, tuned["sample"], tuned["replay"], **tuned["sections"], run=run)
    return Racer(
        bench.worker("burnish_worker", settings), bench.work / name / "adapter", every, budget
    )


def trl(bench: Bench, tuned: dict[str, Any], name: str, budget: float) -> Racer:
    settings = bench.trl(**{key: value for key, value in tuned.items() if key != "every"})
    return Racer(
        bench.worker("trl_worker", settings), bench.work / name, tuned["every"], budget, saves=True
    )


def judge(bench: Bench, images: int) -> Worker:
    model = str(bench.model)
    prompts = setting.PROMPTS
    settings = {
        "steps": bench.steps,
        "guidance": setting.GUIDANCE,
        "prompts": prompts,
        "images": images,
    }

    return bench.worker("judge_worker", {"model": model, **settings})


def run(racers: dict[str, Racer], look: Worker, target: float) -> None:
    """Let all of them train in turns, each until it is there or its time is up."""
    before = look.ask("judge", adapter="")["reward"]

    while active := {name: racer for name, racer in racers.items() if not racer.done(target)}:
        for name, racer in active.items():
            racer.step()
            gain = 1 - look.ask("judge", adapter=str(racer.adapter))["reward"] / before
            racer.curve.append((racer.seconds, gain))
            print(
                f"  {name}: {racer.iterations} iterations, {racer.seconds:.0f} s, gain {gain:+.1%}",
                flush=True,
            )

            if racer.done(target):
                racer.worker.end()


def race(bench: Bench, quick: bool = False) -> dict[str, Any]:
    """The ratio of the two times. If TRL does not get there in its time, the ratio is that time's:
    a lower bound.
    """
    tuned = json.loads(TUNED.read_text())
    target = tuned["target"] / 2 if quick else tuned["target"]
    look = judge(bench, tuned["judged"])
    own = burnish(bench, tuned["burnish"], "race", tuned["budget_s"])
    run({"burnish": own}, look, target)
    seconds = own.reached(target)

    if seconds is None:
        look.end()
        return {"ratio_time_to_reward": 0.0, "race": {"target": target, "burnish": own.curve}}

    theirs = trl(bench, tuned["trl"], "race-trl", tuned["trl_budget"] * seconds)
    run({"trl": theirs}, look, target)
    look.end()
    arrived = theirs.reached(target)

    return {
        "ratio_time_to_reward": (arrived or theirs.seconds) / seconds,
        "race": {
            "target": target,
            "seconds": seconds,
            "trl_seconds": arrived or theirs.seconds,
            "trl_arrived": arrived is not None,
            "burnish": own.curve,
            "trl": theirs.curve,
        },
    }


def sweep(bench: Bench, library: str, budget: float, target: float) -> None:
    """Every combination of tuned.json's sweep, one after the other."""
    tuned = json.loads(TUNED.read_text())
    grid = tuned["sweep"][library]
    look = judge(bench, tuned["judged"])
    found = []

    for number, values in enumerate(itertools.product(*grid.values())):
        changes = dict(zip(grid, values, strict=True))
        print(changes, flush=True)

        if library == "trl":
            racer = trl(bench, {**tuned["trl"], **changes}, f"trl-{number}", budget)
        else:
            old = tuned["burnish"]["sections"]
            sections = {
                **old,
                **{section: {**old.get(section, {}), **more} for section, more in changes.items()},
            }
            racer = burnish(
                bench, {**tuned["burnish"], "sections": sections}, f"own-{number}", budget
            )

        run({library: racer}, look, target)
        found.append((racer.reached(target) or float("inf"), -racer.curve[-1][1], str(changes)))

    look.end()
    for seconds, gain, changes_text in sorted(found):
        print(f"{seconds:8.1f} s   last {-gain:+.1%}   {changes_text}")


def main() -> None:
    from benchmarks.run import model

    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.reward")
    parser.add_argument("library", choices=("burnish", "trl"))
    parser.add_argument("--model", default="zoo:emoji-sd")
    parser.add_argument("--seconds", type=float, default=180, help="time for each combination")
    parser.add_argument(
        "--target", type=float, default=0.1, help="how much smaller the files must be"
    )
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as work:
        sweep(
            Bench(model(options.model), Path(work)),
            options.library,
            options.seconds,
            options.target,
        )


if __name__ == "__main__":
    main()
