"""One script for TRL, run by TRL 0.23.1 and, with another import line, by Burnish: mean reward of
each epoch.

The options are TRL's tuned ones of `tuned.json`. The two draw different noise and prompts from a
seed, so their curves agree in what they learn, not number by number.
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

from benchmarks.line import ROOT
from benchmarks.run import model
from benchmarks.setting import for_old_transformers

IMPORT = "from trl import"
LIBRARIES = {"trl": IMPORT, "burnish": "from burnish.compat.trl import"}
RESULT = ROOT / "benchmarks" / "same_script.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.same_script")
    parser.add_argument(
        "--trl", type=Path, default=ROOT / "benchmarks" / ".venv-trl", help="TRL's environment"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    pythons = {"trl": str(options.trl / "bin" / "python"), "burnish": sys.executable}
    source = (ROOT / "benchmarks" / "script.py").read_text()
    assert source.count(IMPORT) == 1
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in LIBRARIES}

    with tempfile.TemporaryDirectory() as work:
        folder = for_old_transformers(Path(model("zoo:emoji-sd")), Path(work) / "model")

        for seed in options.seeds:
            for name, line in LIBRARIES.items():
                script = Path(work) / f"{name}_script.py"
                out = Path(work) / f"{name}-{seed}"
                script.write_text(source.replace(IMPORT, line))
                command = [
                    pythons[name],
                    str(script),
                    str(folder),
                    str(out),
                    str(seed),
                    str(options.epochs),
                ]
                log = Path(work) / f"{name}-{seed}.log"

                with log.open("w") as file:
                    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
                    done = subprocess.run(
                        command, env=environment, stdout=file, stderr=file, cwd=work
                    )

                if done.returncode:
                    sys.exit(f"{name} failed:\n{log.read_text()[-2000:]}")

                found[name].append(json.loads(Path(f"{out}.json").read_text()))
                print(name, seed, [round(mean, 3) for mean in found[name][-1]["means"]], flush=True)

    RESULT.write_text(json.dumps({"seeds": options.seeds, **found}, indent=1) + "\n")
    print(f"{'epoch':>5}  {'trl':>8}  {'burnish':>8}")

    for epoch in range(options.epochs):
        row = [
            sum(one["means"][epoch] for one in found[name]) / len(found[name]) for name in LIBRARIES
        ]
        print(f"{epoch + 1:5}  {row[0]:8.3f}  {row[1]:8.3f}")


if __name__ == "__main__":
    main()
