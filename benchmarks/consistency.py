"""An iteration of RLCM on the embedded consistency model, and its network alone, in turns."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.line import Worker
from burnish import config as configuration
from burnish import zoo

RECIPE = "emoji-lcm-compressibility"
OFF = [
    "evaluation.images_per_prompt=0",
    "run.sample_every=0",
    "run.checkpoint_every=10000",
    "iterations=10000",
]


def measure(work: Path, rounds: int, changes: list[str] | None = None) -> dict[str, Any]:
    """Medians over the rounds; the first only warms up. ``changes`` are made to the recipe."""
    config = configuration.load(RECIPE, [*OFF, *(changes or [])])
    images = config.batch.prompts * config.batch.images_per_prompt
    moves = config.batch.transitions or config.sampler.steps - 1
    own = Worker(
        sys.executable,
        "burnish_worker",
        work / "lcm.log",
        {"config": asdict(config), "out": str(work / "lcm")},
    )
    weight = config.sampler.guidance["weight"]
    settings = {
        "model": str(zoo.path(config.model.id)),
        "rank": config.model.rank,
        "weight": weight,
    }
    floor = Worker(sys.executable, "floor_worker", work / "lcm-floor.log", settings)
    seconds: dict[str, list[float]] = {"burnish": [], "floor": []}

    for number in range(rounds + 1):
        ours = own.ask("iterate")
        alone = floor.ask(
            "forward", images=images * config.sampler.steps, batch=config.batch.sample_batch
        )["seconds"]
        alone += floor.ask("backward", images=images * moves, batch=config.batch.train_batch)[
            "seconds"
        ]

        if number:
            seconds["burnish"].append(ours["seconds"])
            seconds["floor"].append(alone)
            print(
                f"  round {number}: burnish {ours['seconds']:.2f} s floor {alone:.2f} s", flush=True
            )

    for worker in (own, floor):
        worker.end()

    return {
        "lcm_iteration_s": median(seconds["burnish"]),
        "lcm_ratio_floor": median(
            b / f for b, f in zip(seconds["burnish"], seconds["floor"], strict=True)
        ),
        "lcm_seconds": seconds,
    }
