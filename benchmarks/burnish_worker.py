"""Burnish's own `train`, held between iterations until the next request.

    {"config": {...}, "out"}    the configuration as its TOML would be read, and a run directory; first line
    {"do": "iterate"}           -> {"seconds", "sampling", "training", "reward", "ratio_deviation"}

The first iteration includes loading.
"""

from __future__ import annotations

import time

from benchmarks.line import Line
from burnish import config as configuration
from burnish.runs import Record
from burnish.trainer import train


def main() -> None:
    line = Line()
    settings = line.receive()
    ended = line.receive()["do"] == "end"
    started, busy = time.perf_counter(), time.process_time()

    def gate(record: Record) -> None:
        nonlocal ended, started, busy
        taken = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - busy}
        line.send(
            **taken,
            sampling=record["seconds_sampling"],
            training=record["seconds_training"],
            reward=next(iter(record["rewards"].values()))["mean"],
            ratio_deviation=record["ratio_deviation"],
        )
        ended = line.receive()["do"] == "end"
        started, busy = time.perf_counter(), time.process_time()

    if not ended:
        train(configuration.parse(settings["config"]), settings["out"], on_record=gate, stop=lambda: ended)


if __name__ == "__main__":
    main()
