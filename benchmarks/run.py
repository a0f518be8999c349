"""`python -m benchmarks.run`: measure everything, print a table, write benchmarks/result.json."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import consistency, speed
from benchmarks.line import ROOT
from benchmarks.speed import Bench

ROWS = (
    ("images_per_s", "Burnish, images/s", "{:.2f}", ""),
    ("trl_images_per_s", "TRL 0.23.1, images/s", "{:.2f}", ""),
    ("ratio_trl", "Burnish / TRL", "{:.2f} x", ">= 1.15"),
    ("ratio_floor", "iteration / network alone", "{:.2f} x", "<= 1.10"),
    ("ratio_time_to_reward", "TRL's time to the same reward / Burnish's", "{:.2f} x", ">= 3"),
    ("lcm_iteration_s", "RLCM: an iteration of 64 images, 4 calls, s", "{:.2f}", "<= 4"),
    ("lcm_ratio_floor", "the same / network alone", "{:.2f} x", "<= 1.10"),
    ("peak_mb", "Burnish, peak memory, MB", "{:.0f}", ""),
    ("trl_peak_mb", "TRL, peak memory, MB", "{:.0f}", ""),
)

PARTS = ("speed", "lcm", "reward")


def main() -> None:
    options = arguments()
    if {"speed", "reward"} & set(options.only) and not speed.TRL_PYTHON.exists():
        raise SystemExit(
            f"{speed.TRL_PYTHON.relative_to(ROOT)} is missing: make TRL's environment as README.md says."
        )

    file = options.out
    result: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}

    with tempfile.TemporaryDirectory() as work:
        bench = Bench(model(options.model), Path(work), rounds=2 if options.quick else 4)
        if "speed" in options.only:
            print("batch sizes ...", flush=True)
            best = speed.sweep(bench)
            print(f"whole iterations at {best} ...", flush=True)
            result.update(speed.compare(bench, best))

        if "lcm" in options.only:
            print("iterations of the consistency model ...", flush=True)
            result.update(consistency.measure(Path(work), rounds=3 if options.quick else 6))

        if "reward" in options.only:
            from benchmarks import reward

            print("time to the same reward ...", flush=True)
            result.update(reward.race(bench, quick=options.quick))

    result["threads"] = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    file.write_text(json.dumps(result, indent=1) + "\n")

    for key, label, form, target in ROWS:
        if key in result:
            print(f"{label:45}{form.format(result[key]):>10}   {target}")


def arguments() -> argparse.Namespace:
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


def model(name: str) -> Path:
    """A pipeline's folder."""
    from burnish import zoo

    return zoo.path(name) if name.startswith("zoo:") else Path(name).resolve()


if __name__ == "__main__":
    main()
