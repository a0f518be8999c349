"""Burnish's own `train`, held between iterations until the next request.

{"do": "start", "config": {...}, "out"}    the configuration as its TOML would be read, and a run directory
{"do": "iterate"}    -> {"seconds", "cpu_seconds", "sampling", "training", "reward", "ratio_deviation"}

The first iteration's seconds leave out loading, as TRL's do.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.line import Line
from burnish import config as configuration
from burnish.runs import Record
from burnish.training.loop import train


class Gate:
    """What `train` calls after each iteration and asks whether to stop."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.request: dict[str, Any] = line.receive()

    def next(self) -> None:
        """Wait for a request, then start the clock."""
        self.request = self.line.receive()
        self._started = time.perf_counter()
        self._busy = time.process_time()

    def __call__(self, record: Record) -> None:
        """Answer with what the iteration took."""
        seconds = time.perf_counter() - self._started
        busy = time.process_time() - self._busy
        parts = {"sampling": record["seconds_sampling"], "training": record["seconds_training"]}
        self.line.send(
            seconds=sum(parts.values()) if record["iteration"] == 1 else seconds,
            cpu_seconds=busy,
            **parts,
            reward=next(iter(record["rewards"].values()))["mean"],
            ratio_deviation=record["ratio_deviation"],
        )
        self.next()

    def stop(self) -> bool:
        return self.request["do"] != "iterate"


def main() -> None:
    gate = Gate(Line())

    while gate.request["do"] == "start":
        settings = gate.request
        gate.line.send()
        gate.next()

        if not gate.stop():
            train(
                configuration.parse(settings["config"]),
                settings["out"],
                on_record=gate,
                stop=gate.stop,
            )


if __name__ == "__main__":
    main()
