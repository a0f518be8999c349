"""One script for TRL, run by TRL 0.23.1 and by Burnish: the mean reward of each epoch.

Burnish's has another import line.

The options are TRL's tuned ones of `tuned.json`. The two draw different noise and prompts from a
seed, so their curves agree in the effect of training, not number by number.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.speed import model_folder
from benchmarks.workers import ROOT
from benchmarks.workload import for_old_transformers

IMPORT = "from trl import"
LIBRARIES = {"trl": IMPORT, "burnish": "from burnish.compat.trl import"}
RESULT = ROOT / "benchmarks" / "same_script.json"


def main() -> None:
    """Run the script for each library and seed, and print both curves."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.same_script")
    parser.add_argument(
        "--trl", type=Path, default=ROOT / "benchmarks" / ".venv-trl", help="TRL's environment"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()

    pythons = {"trl": str(options.trl / "bin" / "python"), "burnish": sys.executable}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in LIBRARIES}

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = for_old_transformers(model_folder("zoo:emoji-sd"), work / "model")

        for seed in options.seeds:
            for name in LIBRARIES:
                out = work / f"{name}-{seed}"
                arguments = [str(model), str(out), str(seed), str(options.epochs)]
                runs[name].append(run_script(name, pythons[name], work, out, arguments))
                means = [round(mean, 3) for mean in runs[name][-1]["means"]]
                print(name, seed, means, flush=True)

    RESULT.write_text(json.dumps({"seeds": options.seeds, **runs}, indent=1) + "\n")
    print(f"{'epoch':>5}  {'trl':>8}  {'burnish':>8}")

    for epoch in range(options.epochs):
        trl, burnish = (
            sum(run["means"][epoch] for run in runs[name]) / len(runs[name]) for name in LIBRARIES
        )
        print(f"{epoch + 1:5}  {trl:8.3f}  {burnish:8.3f}")


def run_script(
    name: str, python: str, work: Path, out: Path, arguments: list[str]
) -> dict[str, Any]:
    """Return the numbers that the script wrote with one library's import line."""
    source = (ROOT / "benchmarks" / "script.py").read_text()
    assert source.count(IMPORT) == 1
    script = work / f"{name}_script.py"
    script.write_text(source.replace(IMPORT, LIBRARIES[name]))

    log = Path(f"{out}.log")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log.open("w") as file:
        command = [python, str(script), *arguments]
        process = subprocess.run(command, env=environment, stdout=file, stderr=file, cwd=work)

    if process.returncode:
        sys.exit(f"{name} failed:\n{log.read_text()[-2000:]}")

    numbers: dict[str, Any] = json.loads(Path(f"{out}.json").read_text())
    return numbers


if __name__ == "__main__":
    main()
