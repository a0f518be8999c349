"""`python -m benchmarks.run`: measure everything, print a table, write benchmarks/result.json."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import iterations, reward, speed
from benchmarks.speed import Benchmark, model_folder
from benchmarks.workers import ROOT

ROWS = (
    ("images_per_s", "Burnish, images/s", "{:.2f}", ""),
    ("trl_images_per_s", "TRL 0.23.1, images/s", "{:.2f}", ""),
    ("ratio_trl", "Burnish / TRL", "{:.2f} x", ">= 1.15"),
    ("ratio_floor", "iteration / network alone", "{:.2f} x", "<= 1.10"),
    ("ratio_time_to_reward", "TRL's time to the same reward / Burnish's", "{:.2f} x", ">= 10"),
    ("lcm_iteration_s", "RLCM: an iteration of 64 images, 4 calls, s", "{:.2f}", "<= 4"),
    ("lcm_ratio_floor", "the same / network alone", "{:.2f} x", "<= 1.10"),
    ("forward_ratio_floor", "forward objective / network alone", "{:.2f} x", "<= 1.10"),
    ("flow_ratio_floor", "flow model / network alone", "{:.2f} x", "<= 1.10"),
    ("peak_mb", "Burnish, peak memory, MB", "{:.0f}", ""),
    ("trl_peak_mb", "TRL, peak memory, MB", "{:.0f}", ""),
)

PARTS = ("speed", *iterations.CASES, "reward")


def main() -> None:
    """Measure the chosen parts; numbers of the others stay in the result file."""
    options = arguments()
    if {"speed", "reward"} & set(options.only) and not speed.TRL_PYTHON.exists():
        python = speed.TRL_PYTHON.relative_to(ROOT)
        raise SystemExit(f"{python} is missing: make TRL's environment as README.md says.")

    file = options.out
    result: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}

    with tempfile.TemporaryDirectory() as work:
        result.update(measure(options, Path(work)))

    result["threads"] = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    file.write_text(json.dumps(result, indent=1) + "\n")

    for key, label, form, target in ROWS:
        if key in result:
            print(f"{label:45}{form.format(result[key]):>10}   {target}")


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Return the numbers of the chosen parts."""
    rounds = 2 if options.quick else 4
    benchmark = Benchmark(model_folder(options.model), work, rounds=rounds)
    result: dict[str, Any] = {}

    if "speed" in options.only:
        print("batch sizes ...", flush=True)
        best = speed.sweep(benchmark)
        print(f"whole iterations at {best} ...", flush=True)
        result.update(speed.compare(benchmark, best))

    for name in iterations.CASES:
        if name in options.only:
            print(f"iterations, {name} ...", flush=True)
            result.update(iterations.measure(name, work, rounds=3 if options.quick else 6))

    if "reward" in options.only:
        print("time to the same reward ...", flush=True)
        result.update(reward.race(benchmark, quick=options.quick))

    return result


def arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.run")
    parser.add_argument(
        "--model", default="zoo:emoji-sd", help="zoo:NAME or a StableDiffusionPipeline's folder"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument(
        "--quick", action="store_true", help="fewer rounds, and the race ends earlier"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "result.json")

    return parser.parse_args()


if __name__ == "__main__":
    main()
