"""An iteration of RLCM on the embedded consistency model, and its network alone, in turns."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.workers import Worker
from burnish import config as configuration
from burnish import zoo
from burnish.config import Config

RECIPE = "emoji-lcm-compressibility"
ITERATIONS_ONLY = [
    "evaluation.images_per_prompt=0",
    "run.sample_every=0",
    "run.checkpoint_every=10000",
    "iterations=10000",
]


def measure(work: Path, rounds: int, changes: list[str] | None = None) -> dict[str, Any]:
    """Return the medians over the rounds; the first only warms up.

    Args:
        work: a temporary folder.
        rounds: iterations of Burnish and of the network alone.
        changes: of the recipe.
    """
    config = configuration.load(RECIPE, [*ITERATIONS_ONLY, *(changes or [])])
    burnish = _burnish_worker(config, work)
    floor = _floor_worker(config, work)
    seconds: dict[str, list[float]] = {"burnish": [], "floor": []}

    for number in range(rounds + 1):
        iteration = burnish.ask("iterate")["seconds"]
        network = _network_seconds(floor, config)

        if number:
            seconds["burnish"].append(iteration)
            seconds["floor"].append(network)
            print(f"  round {number}: burnish {iteration:.2f} s floor {network:.2f} s", flush=True)

    burnish.end()
    floor.end()

    ratios = [b / f for b, f in zip(seconds["burnish"], seconds["floor"], strict=True)]
    return {
        "lcm_iteration_s": median(seconds["burnish"]),
        "lcm_ratio_floor": median(ratios),
        "lcm_seconds": seconds,
    }


def _burnish_worker(config: Config, work: Path) -> Worker:
    settings = {"config": asdict(config), "out": str(work / "lcm")}
    return Worker(sys.executable, "burnish_worker", work / "lcm.log", settings)


def _floor_worker(config: Config, work: Path) -> Worker:
    settings = {
        "model": str(zoo.path(config.model.id)),
        "rank": config.model.rank,
        "weight": config.sampler.guidance["weight"],
    }
    return Worker(sys.executable, "floor_worker", work / "lcm-floor.log", settings)


def _network_seconds(floor: Worker, config: Config) -> float:
    images = config.batch.prompts * config.batch.images_per_prompt
    calls = images * config.sampler.steps
    transitions = images * (config.batch.transitions or config.sampler.steps - 1)

    forward = floor.ask("forward", images=calls, batch=config.batch.sample_batch)
    backward = floor.ask("backward", images=transitions, batch=config.batch.train_batch)
    return forward["seconds"] + backward["seconds"]
