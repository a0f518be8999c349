"""Whole iterations of a recipe, and its network alone, in turns."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.workers import Worker
from burnish import catalog, zoo
from burnish import config as configuration
from burnish.config import Config

ITERATIONS_ONLY = [
    "evaluation.images_per_prompt=0",
    "run.sample_every=0",
    "run.checkpoint_every=10000",
    "iterations=10000",
]


@dataclass(frozen=True)
class Case:
    """A recipe with changes."""

    recipe: str
    changes: tuple[str, ...] = ()


CASES = {
    "lcm": Case("emoji-lcm-compressibility"),
    # an objective on the forward process
    "forward": Case(
        "demo", ("objective={use='ram',kl=0.0}", "batch.baseline=", "batch.minibatches=1")
    ),
    "flow": Case(
        "emoji-flow", ("objective={use='ram',strength=10.0,kl=0.0}", "batch.minibatches=1")
    ),
}


def measure(name: str, work: Path, rounds: int) -> dict[str, Any]:
    """Return the medians over the rounds; the first only warms up.

    Args:
        name: of the case.
        work: a temporary folder.
        rounds: iterations of Burnish and of the network alone.
    """
    case = CASES[name]
    config = configuration.load(case.recipe, [*ITERATIONS_ONLY, *case.changes])
    settings = {"config": asdict(config), "out": str(work / name)}
    burnish = Worker(sys.executable, "burnish_worker", work / f"{name}.log", settings)
    floor = _floor_worker(config, work / f"{name}-floor.log")
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
        f"{name}_iteration_s": median(seconds["burnish"]),
        f"{name}_ratio_floor": median(ratios),
        f"{name}_seconds": seconds,
    }


def _floor_worker(config: Config, log: Path) -> Worker:
    settings = {
        "model": str(zoo.path(config.model.id)),
        "rank": config.model.rank,
        "guidance": config.sampler.guidance,
    }
    return Worker(sys.executable, "floor_worker", log, settings)


def _network_seconds(floor: Worker, config: Config) -> float:
    """Return the seconds of an iteration's calls of the network, sampling and training."""
    batch = config.batch
    images = batch.prompts * batch.images_per_prompt
    forward = catalog.build("objective", config.objective).process == "forward"
    steps = config.sampler.steps if forward else config.sampler.steps - 1
    trained = images * (batch.transitions or steps) * batch.epochs
    guided = not forward or config.forward.guided

    sampling = floor.ask("forward", images=images * config.sampler.steps, batch=batch.sample_batch)
    training = floor.ask("backward", images=trained, batch=batch.train_batch, guided=guided)
    return sampling["seconds"] + training["seconds"]
