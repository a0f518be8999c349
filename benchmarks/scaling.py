"""Seconds of an iteration with one, two, ... processes of this machine; the same images in all.

    python -m benchmarks.scaling demo --processes 1 2
    python -m benchmarks.scaling sd15-compressibility --processes 1 2 4 8 --set iterations=4

Each is a training of a few iterations by torchrun, of which the first is left out: it warms up.
On a CPU every process has one thread. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from burnish.runs import Run

QUICK = ("iterations=4", "evaluation.images_per_prompt=0", "run.sample_every=0")
STAGES = ("seconds_sampling", "seconds_training")


def measure(recipe: str, processes: int, changes: list[str], folder: Path) -> list[float]:
    """Return the median seconds of sampling with scoring, and of training."""
    out = folder / str(processes)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    settings = [part for change in (*QUICK, *changes) for part in ("--set", change)]
    command = ["-m", "burnish.cli", "train", recipe, "--out", str(out), *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    subprocess.run([sys.executable, *launcher, *command], env=environment, check=True)

    records = Run(out).records()[1:]
    return [median(record[name] for record in records) for name in STAGES]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", default="demo")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        found = {
            count: measure(options.recipe, count, options.set, Path(folder))
            for count in options.processes
        }

    first = min(found)
    print("| processes | sampling, s | training, s | times as fast | of what would be ideal |")
    print("|---|---|---|---|---|")
    for count, (sampling, training) in found.items():
        speed = sum(found[first]) / (sampling + training)
        print(
            f"| {count} | {sampling:.2f} | {training:.2f} | {speed:.2f} "
            f"| {speed * first / count:.0%} |"
        )


if __name__ == "__main__":
    main()
