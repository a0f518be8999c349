"""`python -m benchmarks.gpu`: five models at their true shapes, with random weights, on a GPU.

Nothing is downloaded. Each model is written into a folder, loaded from it and trained for an
iteration by Burnish itself, each step in a process of its own; see README.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import gpu_models, gpu_worker
from benchmarks.gpu_worker import CASES, GIB, Task
from benchmarks.workers import ROOT
from burnish.diffusion import shapes
from burnish.files import write

CAPS = (24, 16, 12, 8)
"""GiB that a card has; from the largest on, until the first that is too small."""

LARGEST = 40
"""GiB of the scratch folder that the largest model takes, and half as much again."""

ENOUGH = 10
"""Seconds without which nothing more is begun for a model."""

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    # asks the driver, so that CUDA is left alone in the process that others are forked from
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}


@dataclass
class Processes:
    """Starts the processes.

    Attributes:
        scratch: a folder for what they write.
        log: a file with what they print.
        method: "fork" spares each process the seconds of loading the libraries; "spawn" where CUDA
            does not allow that.
    """

    scratch: Path
    log: Path
    method: str = "fork"
    started: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """Print a line with the seconds since the start."""
        print(f"{time.monotonic() - self.started:6.1f} s  {text}", flush=True)

    def call(self, do: str, task: Task, seconds: float) -> dict[str, Any]:
        """Return what a process found within so many seconds; "error" has what went wrong."""
        file = self.scratch / "answer.json"
        file.unlink(missing_ok=True)
        context: Any = multiprocessing.get_context(self.method)
        process = context.Process(target=gpu_worker.answer, args=(do, task, file, self.log))
        process.start()
        process.join(max(seconds, 0))
        late = process.is_alive()
        if late:
            process.kill()
            process.join()

        found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        if late:
            found["error"] = f"stopped after {seconds:.0f} s"
        elif not found.pop("done", False) and "error" not in found:
            found["error"] = f"the process ended with exit code {process.exitcode}"
        return found

    def probe(self, task: Task) -> dict[str, Any]:
        """Return what the device is, and start processes in a way that can use it.

        Raises:
            SystemExit: no process can.
        """
        found: dict[str, Any] = {}
        for method in ("fork", "spawn"):
            self.method = method
            found = self.call("probe", task, 60)
            if "error" not in found:
                return {**found, "processes": method}
        raise SystemExit(f"{task.device} cannot be used: {found['error']}")


def main() -> None:
    """Measure the chosen models; the file is written anew after each."""
    options = arguments()
    os.environ.update(ENVIRONMENT)
    log = options.out.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)

    with tempfile.TemporaryDirectory(dir=options.scratch or scratch()) as work:
        processes = Processes(Path(work), log)
        deadline = processes.started + 60 * options.limit
        preload(options)
        task = Task("", Path(work) / "model", Path(work), options.device, options.tiny)
        result: dict[str, Any] = {**versions(), **processes.probe(task), "models": {}}
        processes.say(f"{result['device']}, processes by {result['processes']}, files in {work}")

        for number, name in enumerate(options.models):
            left = deadline - time.monotonic()
            share = left / (len(options.models) - number)
            result["models"][name] = run_model(processes, replace(task, model=name), share, left)
            result["seconds"] = time.monotonic() - processes.started
            write(options.out, json.dumps(result, indent=1) + "\n")

    show(result)


def run_model(processes: Processes, task: Task, share: float, left: float) -> dict[str, Any]:
    """Return a model's numbers.

    Args:
        processes: that do it.
        task: with the model's name.
        share: seconds for all of it.
        left: seconds until the end; building and the iteration may take more than their share.
    """
    started = time.monotonic()
    longest = min(left, 1.5 * share)
    processes.say(f"{task.model}: {share:.0f} s, at most {longest:.0f}")
    result = processes.call("build", task, longest)
    say_end(processes, task.model, "built", result)

    if "error" not in result:
        result |= processes.call("measure", task, longest - (time.monotonic() - started))
        say_end(processes, task.model, "measured", result)
        result["runs_within"] = {}
        for gib in CAPS:
            seconds = share - (time.monotonic() - started)
            verdict = within(processes, replace(task, gib=gib), seconds)
            result["runs_within"][str(gib)] = verdict
            processes.say(f"{task.model}: {gib} GiB: {verdict['runs']}")
            if verdict["runs"] != "yes":
                break

    for path in task.out.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
    result["seconds"] = time.monotonic() - started
    return result


def within(processes: Processes, task: Task, seconds: float) -> dict[str, Any]:
    """Return whether a short iteration runs in so much memory: "yes", "no" or "?", and why."""
    if seconds < ENOUGH:
        return {"runs": "?", "error": "no time left"}

    found = processes.call("run_within", task, seconds)
    if "error" not in found:
        return {"runs": "yes", **found}
    return {"runs": "no" if found.pop("out_of_memory", False) else "?", **found}


def say_end(processes: Processes, name: str, done: str, result: dict[str, Any]) -> None:
    """Print how a step ended."""
    processes.say(f"{name}: {result.get('error', done)}")


def preload(options: argparse.Namespace) -> None:
    """Import what all processes need, once.

    bitsandbytes is hidden from them: its import starts CUDA, which does not survive a fork.
    """
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    import peft  # noqa: F401

    for name in options.models:
        shape = gpu_models.shape_of(name)
        for kind in (f"diffusers.{shape.pipeline}", *(p.kind for p in shape.parts.values())):
            shapes.class_of(kind)


def versions() -> dict[str, str]:
    """Return the versions that the speed depends on."""
    import diffusers
    import torch
    import transformers

    return {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }


def scratch() -> str:
    """Return a folder in memory if it has room for the largest model, otherwise on the disk."""
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > LARGEST * GIB:
        return str(memory)
    return tempfile.gettempdir()


def show(result: dict[str, Any]) -> None:
    """Print the table, and below it what went wrong."""
    from rich.console import Console
    from rich.table import Table

    columns = {
        "images": ("images", "{:.0f}"),
        "iteration, s": ("iteration_s", "{:.2f}"),
        "images/s": ("images_per_s", "{:.2f}"),
        "sampling": ("sampling_s", "{:.2f}"),
        "scoring": ("scoring_s", "{:.2f}"),
        "training": ("training_s", "{:.2f}"),
        "network": ("network_s", "{:.2f}"),
        "ratio": ("ratio_network", "{:.2f}"),
        "start, GiB": ("start_allocated_gib", "{:.1f}"),
        "iteration, GiB": ("allocated_gib", "{:.1f}"),
        "reserved": ("reserved_gib", "{:.1f}"),
    }
    table = Table(
        "model", *columns, "runs in", title=f"{result['device']}, {result['seconds']:.0f} s"
    )

    for name, values in result["models"].items():
        cells = [
            form.format(values[key]) if key in values else "-" for key, form in columns.values()
        ]
        runs = [
            f"{gib} {verdict['runs']}" for gib, verdict in values.get("runs_within", {}).items()
        ]
        table.add_row(name, *cells, ", ".join(runs))

    console = Console(width=150)
    console.print(table)
    for name, values in result["models"].items():
        if "error" in values:
            console.print(f"{name}: {values['error']}", markup=False)


def arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.gpu")
    parser.add_argument("--models", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "gpu.json")
    parser.add_argument("--limit", type=float, default=8, help="minutes for all of it")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models of the same architectures")
    parser.add_argument("--scratch", help="a folder for the models, one at a time: 21 GB at most")

    return parser.parse_args()


if __name__ == "__main__":
    main()
