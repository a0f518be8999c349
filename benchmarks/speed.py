"""Whole iterations of both libraries and of the network alone, in one alternating run.

Each runs at its best batch size.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import workload
from benchmarks.workers import ROOT, Worker
from burnish import zoo

BATCHES = (4, 8, 16, 32)  # images a sampling call, or (image, timestep) pairs a training call
GROUP = 8  # images of a prompt in Burnish; TRL draws a prompt for each image
TRL_PYTHON = ROOT / "benchmarks" / ".venv-trl" / "bin" / "python"
# part of an iteration -> the floor worker's request
NETWORK_CALLS = {"sampling": "forward", "training": "backward"}

Seconds = dict[str, dict[str, dict[int, float]]]
"""By library, part of an iteration, and batch size."""


@dataclass(frozen=True)
class Benchmark:
    """The model, a temporary folder, and the extent of the measurements."""

    model: Path
    work: Path  # a temporary folder
    images: int = workload.IMAGES
    steps: int = workload.STEPS
    rounds: int = 4

    def trl_settings(self, sample: int, train: int, **more: Any) -> dict[str, Any]:
        """Return TRL's settings with these batch sizes.

        Its samples come in whole batches, each split into whole training batches.
        """
        model = workload.for_old_transformers(self.model, self.work / "model")
        return {
            "model": str(model),
            "guidance": workload.GUIDANCE,
            "images": self.images,
            "steps": self.steps,
            "updates": workload.UPDATES,
            "sample": sample,
            "train": train,
            **more,
        }

    def burnish_settings(
        self, name: str, sample_batch: int, train_batch: int, **sections: Any
    ) -> dict[str, Any]:
        """Return Burnish's settings with these batch sizes.

        Args:
            name: of the run directory.
            sample_batch: images sampled at once.
            train_batch: (image, transition) pairs trained at once.
            sections: of its configuration; they replace or complete those of the workload.
        """
        config = self._burnish_config(sample_batch, train_batch)

        for section, values in sections.items():
            old = config.get(section)
            if isinstance(old, dict) and "use" not in values:
                config[section] = {**old, **values}
            else:
                config[section] = values

        return {"config": config, "out": str(self.work / name)}

    def _burnish_config(self, sample_batch: int, train_batch: int) -> dict[str, Any]:
        prompts = self.work / "prompts.txt"
        prompts.write_text("\n".join(workload.PROMPTS) + "\n")
        rank = workload.RANK
        return {
            "iterations": 10_000,
            "model": {"id": str(self.model), "rank": rank, "alpha": rank, "device": "cpu"},
            "sampler": {
                "steps": self.steps,
                "guidance": {"use": "cfg", "weight": workload.GUIDANCE},
            },
            "prompts": {"use": "lines", "path": str(prompts)},
            "rewards": [{"use": "compressibility", "quality": workload.QUALITY}],
            "objective": {"use": "clipped"},
            "advantage": {"use": "batch"},
            "batch": {
                "prompts": self.images // GROUP,
                "images_per_prompt": GROUP,
                "minibatches": workload.UPDATES,
                "sample_batch": sample_batch,
                "train_batch": train_batch,
            },
            "evaluation": {"images_per_prompt": 0},
            "run": {"checkpoint_every": 10_000, "sample_every": 0},
        }

    def start_worker(self, module: str, settings: dict[str, Any]) -> Worker:
        """Return a process started with some settings."""
        python = TRL_PYTHON if module == "trl_worker" else sys.executable
        return Worker(python, module, self.work / f"{module}.log", settings)

    def start_floor(self) -> Worker:
        """Return the process that computes the network alone."""
        settings = {"model": str(self.model), "rank": workload.RANK}
        return self.start_worker("floor_worker", settings)


def model_folder(name: str) -> Path:
    """Return a pipeline's folder: of zoo:NAME, or the folder itself."""
    return zoo.path(name) if name.startswith("zoo:") else Path(name).resolve()


def sweep(benchmark: Benchmark) -> dict[str, dict[str, int]]:
    """Return the best batch sizes, from the better of two short iterations each."""
    seconds = _sweep_libraries(benchmark) | {"floor": _sweep_floor(benchmark)}
    best = {
        name: {part: min(times, key=times.__getitem__) for part, times in parts.items()}
        for name, parts in seconds.items()
    }

    # it splits a sampling batch into training batches
    best["trl"]["training"] = min(best["trl"].values())

    return best


def _sweep_libraries(benchmark: Benchmark) -> Seconds:
    short = replace(benchmark, steps=3)
    batches = {  # TRL trains on whole sampling batches
        "trl": [batch for batch in BATCHES if batch <= benchmark.images // workload.UPDATES],
        "burnish": [batch for batch in BATCHES if batch <= benchmark.images],
    }
    settings = {
        "trl": [short.trl_settings(batch, batch) for batch in batches["trl"]],
        "burnish": [
            short.burnish_settings(f"sweep-{batch}", batch, batch) for batch in batches["burnish"]
        ],
    }
    seconds: Seconds = {name: {"sampling": {}, "training": {}} for name in settings}

    for name, choices in settings.items():
        worker = benchmark.start_worker(f"{name}_worker", choices[0])

        for batch, choice in zip(batches[name], choices, strict=True):
            worker.ask("start", **choice)
            worker.ask("iterate")  # warms up
            answers = [worker.ask("iterate") for _ in range(2)]
            for part in ("sampling", "training"):
                seconds[name][part][batch] = min(answer[part] for answer in answers)

        worker.end()

    return seconds


def _sweep_floor(benchmark: Benchmark) -> dict[str, dict[int, float]]:
    floor = benchmark.start_floor()
    images = 3 * max(BATCHES)
    seconds: dict[str, dict[int, float]] = {}

    for part, call in NETWORK_CALLS.items():
        seconds[part] = {}
        for batch in BATCHES:
            floor.ask(call, images=batch, batch=batch)  # warms up
            seconds[part][batch] = floor.ask(call, images=images, batch=batch)["seconds"]

    floor.end()
    return seconds


def compare(benchmark: Benchmark, best: dict[str, dict[str, int]]) -> dict[str, Any]:
    """Alternate whole iterations and return medians over the rounds."""
    batches = best["trl"]
    trl_settings = benchmark.trl_settings(batches["sampling"], batches["training"])
    trl = benchmark.start_worker("trl_worker", trl_settings)

    batches = best["burnish"]
    settings = benchmark.burnish_settings("speed", batches["sampling"], batches["training"])
    burnish = benchmark.start_worker("burnish_worker", settings)

    floor = benchmark.start_floor()
    calls = benchmark.images * benchmark.steps
    seconds: dict[str, list[float]] = {"trl": [], "burnish": [], "floor": []}
    deviation = 0.0

    for number in range(benchmark.rounds + 1):  # the first warms up
        trl_answer = trl.ask("iterate")
        answer = burnish.ask("iterate")
        network = sum(
            floor.ask(call, images=calls, batch=best["floor"][part])["seconds"]
            for part, call in NETWORK_CALLS.items()
        )
        deviation = max(deviation, answer["ratio_deviation"])

        if number:
            seconds["trl"].append(trl_answer["seconds"])
            seconds["burnish"].append(answer["seconds"])
            seconds["floor"].append(network)
            latest = [f"{name} {values[-1]:.2f} s" for name, values in seconds.items()]
            print(f"  round {number}:", *latest, flush=True)

    for worker in (trl, burnish, floor):
        worker.end()

    return {
        "images_per_s": benchmark.images / median(seconds["burnish"]),
        "trl_images_per_s": benchmark.images / median(seconds["trl"]),
        "ratio_trl": _median_ratio(seconds["trl"], seconds["burnish"]),
        "ratio_floor": _median_ratio(seconds["burnish"], seconds["floor"]),
        "peak_mb": answer["peak_mb"],
        "trl_peak_mb": trl_answer["peak_mb"],
        "ratio_deviation": deviation,
        "seconds": seconds,
        "batch": best,
    }


def _median_ratio(numerators: list[float], denominators: list[float]) -> float:
    return median(n / d for n, d in zip(numerators, denominators, strict=True))
