"""Whole iterations of both libraries and of the network alone, in one alternating run, each at its
best batch size.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import setting
from benchmarks.line import ROOT, Worker

BATCHES = (4, 8, 16, 32)  # images a sampling call, or (image, timestep) pairs a training call
GROUP = 8  # images of a prompt in Burnish; TRL draws a prompt for each image
TRL_PYTHON = ROOT / "benchmarks" / ".venv-trl" / "bin" / "python"


@dataclass(frozen=True)
class Bench:
    """Where things are, and how much is measured."""

    model: Path
    work: Path  # a temporary folder
    images: int = setting.IMAGES
    steps: int = setting.STEPS
    rounds: int = 4

    def trl(self, sample: int, train: int, **more: Any) -> dict[str, Any]:
        """TRL's settings with these batch sizes. Its samples come in whole batches, each split into
        whole ones.
        """
        model = setting.for_old_transformers(self.model, self.work / "model")
        return {
            "model": str(model),
            "guidance": setting.GUIDANCE,
            "images": self.images,
            "steps": self.steps,
            "updates": setting.UPDATES,
            "sample": sample,
            "train": train,
            **more,
        }

    def burnish(self, name: str, sample: int, replay: int, **sections: Any) -> dict[str, Any]:
        """Burnish's settings with these batch sizes; `sections` of its configuration go over those
        of the workload.
        """
        prompts = self.work / "prompts.txt"
        prompts.write_text("\n".join(setting.PROMPTS) + "\n")
        config: dict[str, Any] = {
            "iterations": 10_000,
            "model": {
                "id": str(self.model),
                "rank": setting.RANK,
                "alpha": setting.RANK,
                "device": "cpu",
            },
            "sampler": {
                "steps": self.steps,
                "guidance": {"use": "cfg", "weight": setting.GUIDANCE},
            },
            "prompts": {"use": "lines", "path": str(prompts)},
            "rewards": [{"use": "compressibility", "quality": setting.QUALITY}],
            "objective": {"use": "clipped"},
            "advantage": {"use": "batch"},
            "batch": {
                "prompts": self.images // GROUP,
                "images_per_prompt": GROUP,
                "updates": setting.UPDATES,
                "sample": sample,
                "replay": replay,
            },
            "evaluation": {"images_per_prompt": 0},
            "run": {"checkpoint_every": 10_000, "sample_every": 0},
        }

        for section, values in sections.items():
            old = config.get(section)
            config[section] = (
                {**old, **values} if isinstance(old, dict) and "use" not in values else values
            )

        return {"config": config, "out": str(self.work / name)}

    def worker(self, module: str, settings: dict[str, Any]) -> Worker:
        """A process started with some settings."""
        python = TRL_PYTHON if module == "trl_worker" else sys.executable
        return Worker(python, module, self.work / f"{module}.log", settings)

    def floor(self) -> Worker:
        """The network alone."""
        return self.worker("floor_worker", {"model": str(self.model), "rank": setting.RANK})


def sweep(bench: Bench) -> dict[str, dict[str, int]]:
    """The best batch sizes, from the better of two short iterations each, after one to warm up."""
    short = replace(bench, steps=3)
    batches = {  # TRL trains on whole sampling batches
        "trl": [batch for batch in BATCHES if batch <= bench.images // setting.UPDATES],
        "burnish": [batch for batch in BATCHES if batch <= bench.images],
    }
    settings = {
        "trl": [short.trl(batch, batch) for batch in batches["trl"]],
        "burnish": [short.burnish(f"sweep-{batch}", batch, batch) for batch in batches["burnish"]],
    }
    seconds: dict[str, dict[str, dict[int, float]]] = {
        name: {"sampling": {}, "training": {}} for name in (*settings, "floor")
    }

    for name, several in settings.items():
        worker = bench.worker(f"{name}_worker", several[0])

        for batch, one in zip(batches[name], several, strict=True):
            worker.ask("start", **one)
            worker.ask("iterate")
            answers = [worker.ask("iterate") for _ in range(2)]
            for part in ("sampling", "training"):
                seconds[name][part][batch] = min(answer[part] for answer in answers)

        worker.end()

    floor = bench.floor()

    for part, work in (("sampling", "forward"), ("training", "backward")):
        for batch in BATCHES:
            floor.ask(work, images=batch, batch=batch)
            seconds["floor"][part][batch] = floor.ask(work, images=3 * max(BATCHES), batch=batch)[
                "seconds"
            ]

    floor.end()
    best = {
        name: {part: min(times, key=times.__getitem__) for part, times in parts.items()}
        for name, parts in seconds.items()
    }
    # it splits a sampling batch into training batches
    best["trl"]["training"] = min(best["trl"].values())

    return best


def compare(bench: Bench, best: dict[str, dict[str, int]]) -> dict[str, Any]:
    """Alternate whole iterations; medians over the rounds."""
    trl = bench.worker("trl_worker", bench.trl(best["trl"]["sampling"], best["trl"]["training"]))
    settings = bench.burnish("speed", best["burnish"]["sampling"], best["burnish"]["training"])
    own = bench.worker("burnish_worker", settings)
    floor = bench.floor()
    calls = bench.images * bench.steps
    seconds: dict[str, list[float]] = {"trl": [], "burnish": [], "floor": []}
    deviation = 0.0

    for number in range(bench.rounds + 1):  # the first warms up
        theirs = trl.ask("iterate")
        ours = own.ask("iterate")
        alone = sum(
            floor.ask(work, images=calls, batch=best["floor"][part])["seconds"]
            for part, work in (("sampling", "forward"), ("training", "backward"))
        )
        deviation = max(deviation, ours["ratio_deviation"])

        if number:
            taken = {"trl": theirs["seconds"], "burnish": ours["seconds"], "floor": alone}
            for name, value in taken.items():
                seconds[name].append(value)

            print(
                f"  round {number}:",
                *(f"{name} {value:.2f} s" for name, value in taken.items()),
                flush=True,
            )

    for worker in (trl, own, floor):
        worker.end()

    middle = {name: median(values) for name, values in seconds.items()}
    return {
        "images_per_s": bench.images / middle["burnish"],
        "trl_images_per_s": bench.images / middle["trl"],
        "ratio_trl": median(t / b for t, b in zip(seconds["trl"], seconds["burnish"], strict=True)),
        "ratio_floor": median(
            b / f for b, f in zip(seconds["burnish"], seconds["floor"], strict=True)
        ),
        "peak_mb": ours["peak_mb"],
        "trl_peak_mb": theirs["peak_mb"],
        "ratio_deviation": deviation,
        "seconds": seconds,
        "batch": best,
    }
