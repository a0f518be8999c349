"""The studio's first paint, and what it costs the training that it watches.

    python -m benchmarks.studio                 # 50 runs of 1,000 iterations
    python -m benchmarks.studio --only paint    # without the training

    paint      seconds from a click until Chromium has painted the list of runs, and the page of a
               run: first by a server that has just started and has read nothing, then again; and
               the processor's seconds that the server takes for each page
    training   seconds of an iteration with two pages open (the list and the run, whose every change
               is told and fetched, as a browser does) over those without, in turns; and the
               processor's seconds that the studio takes for one of them, until its last change is
               fetched, as a share of the iteration's seconds

Written to benchmarks/studio.json.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from benchmarks import chromium
from benchmarks.iterations import ITERATIONS_ONLY
from benchmarks.workers import ROOT, Worker
from burnish import config as configuration
from burnish.files import dumps, write
from burnish.runs import Run

OUT = Path(__file__).with_suffix(".json")
RECIPE = "emoji-lcm-compressibility"
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
GONE = 2**31 - 1  # the number of no process
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
    "0000000d4944415478da63fcffff3f030005fe02fea7d6059b0000000049454e44ae426082"
)


def write_runs(folder: Path, runs: int, iterations: int) -> None:
    """Write made-up runs: configuration, log, a sample grid every ten iterations."""
    config = configuration.dump(configuration.load("demo", [f"iterations={iterations}"]))
    for number in range(runs):
        run = Run(folder / f"run-{number:02d}")
        write(run.config, config)
        rows = (dumps(record(iteration)) + "\n" for iteration in range(1, iterations + 1))
        write(run.log, "".join(rows))
        write(run.folder / "lock", f"process {GONE} on {socket.gethostname()}")
        for iteration in range(0, iterations + 1, 10):
            run.samples.mkdir(exist_ok=True)
            run.sample_grid(iteration).write_bytes(PNG)
        write(run.samples / "prompts.json", dumps({"texts": ["a cat"], "columns": 1}))


def record(iteration: int) -> dict[str, Any]:
    """Return a made-up record with the numbers that a run of the recipe `demo` writes."""
    reward = {"mean": -2.5 + iteration / 3000, "std": 0.31, "within": 0.2, "gain": 0.1}
    names = (
        "ratio_deviation clip_fraction approx_kl explained_variance zero_advantage grad_norm lr "
        "seconds_sampling seconds_scoring seconds_training"
    )
    numbers = dict.fromkeys(names.split(), 0.1234567 + iteration / 10000.0)
    return {"iteration": iteration, "images": 64, "rewards": {"compressibility": reward}, **numbers}


@contextmanager
def served(runs: Path) -> Iterator[tuple[str, int]]:
    """Yield the address of a studio that has just started, and its process."""
    command = [sys.executable, "-m", "burnish.cli", "studio", str(runs), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    with process:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found, "the studio did not start"
        try:
            yield found[0], process.pid
        finally:
            process.terminate()


def paint(runs: Path, work: Path, rounds: int) -> dict[str, Any]:
    """Return the seconds to the first paint, the medians over several servers."""
    seconds: dict[str, list[float]] = {}
    work_seconds: dict[str, list[float]] = {}
    for number in range(rounds):
        with (
            served(runs) as (address, process),
            chromium.opened(work / f"profile-{number}") as page,
        ):
            for name, path in (
                ("list, first", ""),
                ("list, again", ""),
                ("run, first", "runs/run-00/curves"),
                ("run, again", "runs/run-00/curves"),
            ):
                began = cpu_seconds(process)
                page.open(f"{address}{path}")
                seconds.setdefault(name, []).append(page.wait(PAINT) / 1000)
                work_seconds.setdefault(name, []).append(cpu_seconds(process) - began)
                page.open("about:blank")

    return {
        name: {"paint_s": round(median(values), 3), "server_cpu_s": median(work_seconds[name])}
        for name, values in seconds.items()
    }


class Reader(threading.Thread):
    """An open page: it is told of changes, and fetches the page anew, as studio.js and htmx do."""

    def __init__(self, address: str, page: str, events: str) -> None:
        super().__init__(daemon=True)
        self.server = urlsplit(address).netloc
        self.page = page
        self.events = events
        self.fetched = 0
        self.connection = http.client.HTTPConnection(self.server)

    def run(self) -> None:
        """Read until the connection is closed."""
        self.connection.request("GET", self.events)
        stream = self.connection.getresponse()
        with suppress(OSError, http.client.HTTPException):  # from `end`
            while line := stream.readline():
                if line.startswith(b"event: changed"):
                    time.sleep(0.2)
                    self.fetch()

    def end(self) -> None:
        """Close the connection; without `shutdown` that waits for the next line, up to 15 s."""
        self.connection.sock.shutdown(socket.SHUT_RDWR)
        self.join()
        self.connection.close()

    def fetch(self) -> None:
        """Fetch the page."""
        connection = http.client.HTTPConnection(self.server)
        connection.request("GET", self.page)
        connection.getresponse().read()
        connection.close()
        self.fetched += 1


def training(runs: Path, work: Path, rounds: int) -> dict[str, Any]:
    """Return the seconds of iterations that are watched and of those that are not, in turns."""
    changes = [*ITERATIONS_ONLY, "run.sample_every=10"]
    settings = {
        "config": asdict(configuration.load(RECIPE, changes)),
        "out": str(runs / "watched"),
    }
    worker = Worker(sys.executable, "burnish_worker", work / "worker.log", settings)
    seconds: dict[str, list[float]] = {"alone": [], "watched": []}
    shares = []
    fetched = []

    with served(runs) as (address, process):
        for number in range(rounds + 1):
            alone = worker.ask("iterate")["seconds"]
            pages = [
                Reader(address, "/", "/events"),
                Reader(address, "/runs/watched/curves", "/events?run=watched"),
            ]
            for page in pages:
                page.start()
                page.fetch()

            began = cpu_seconds(process)
            watched = worker.ask("iterate")["seconds"]
            time.sleep(2.5)  # the last change is told, and fetched
            share = (cpu_seconds(process) - began) / watched
            for page in pages:
                page.end()

            if number:  # the first warms up
                seconds["alone"].append(alone)
                seconds["watched"].append(watched)
                shares.append(share)
                fetched.append(sum(page.fetched - 1 for page in pages))
                print(f"  {alone:.2f} s alone, {watched:.2f} s watched", flush=True)

    worker.end()
    ratios = (a / b for a, b in zip(seconds["watched"], seconds["alone"], strict=True))
    return {
        "ratio": round(median(ratios), 4),
        "core_share": round(median(shares), 4),
        "pages_fetched": median(fetched),
        "cores": os.cpu_count(),
        "seconds": seconds,
    }


def cpu_seconds(process: int) -> float:
    """Return the processor's seconds that a process has taken, on Linux."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("paint", "training"))
    options = parser.parse_args()
    result = json.loads(OUT.read_text()) if OUT.is_file() else {}

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        runs = work / "runs"
        write_runs(runs, options.runs, options.iterations)
        result |= {"runs": options.runs, "iterations": options.iterations}
        if options.only != "training":
            result["paint"] = paint(runs, work, options.rounds)
            print(result["paint"])
        if options.only != "paint":
            result["training"] = training(runs, work, options.rounds)
            print(result["training"])

    write(OUT, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
