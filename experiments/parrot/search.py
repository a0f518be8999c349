"""The gains of the search's runs, each against its own evaluation before training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from burnish.runs import Run
from experiments.measurements import run_evaluation, share_right
from experiments.parrot import plan
from experiments.running import Trial


def print_gains(out: Path, jobs: Sequence[Trial]) -> None:
    """Print a line for each run: gains in standard deviations, and what the judge sees."""
    for job in jobs:
        run = Run(out / job.name)
        before = run_evaluation(run, 0)["train"]
        after = run_evaluation(run, job.iterations)["train"]
        start = np.array(before.parts, dtype=float)
        gains = (np.array(after.parts, dtype=float) - start).mean(0) / start.std(0)
        named = ", ".join(
            f"{name} {gain:+.2f}" for name, gain in zip(plan.REWARDS, gains, strict=True)
        )
        judged = f"judged right {share_right(before):.0%} -> {share_right(after):.0%}"
        print(f"{job.arm}: {named}; {judged}", flush=True)
