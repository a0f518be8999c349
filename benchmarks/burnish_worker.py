"""Burnish's own `train`, held between iterations until the next request.

{"do": "start", "config": {...}, "out"}    the configuration as its TOML would be read,
                                           and a run directory
{"do": "iterate"}    -> {"seconds", "cpu_seconds", "sampling", "training", "reward",
                         "ratio_deviation"}

The first iteration's seconds leave out loading, as TRL's do.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.workers import RequestStream
from burnish import config as configuration
from burnish.runs import Record
from burnish.training.loop import train


class IterationGate:
    """Both callbacks of `train`: after each iteration, and for the decision to stop."""

    def __init__(self, stream: RequestStream) -> None:
        self.stream = stream
        self.request: dict[str, Any] = stream.receive()

    def next(self) -> None:
        """Wait for a request, then start the clock."""
        self.request = self.stream.receive()
        self._started = time.perf_counter()
        self._cpu_started = time.process_time()

    def __call__(self, record: Record) -> None:
        """Answer with the iteration's times and wait for the next request."""
        seconds = time.perf_counter() - self._started
        cpu_seconds = time.process_time() - self._cpu_started
        parts = {"sampling": record["seconds_sampling"], "training": record["seconds_training"]}
        if record["iteration"] == 1:
            seconds = sum(parts.values())

        self.stream.send(
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            **parts,
            reward=next(iter(record["rewards"].values()))["mean"],
            ratio_deviation=record.get("ratio_deviation", 0.0),
        )
        self.next()

    def stop(self) -> bool:
        """Return True if the request is not for another iteration."""
        return self.request["do"] != "iterate"


def main() -> None:
    """Answer requests until the parent ends."""
    gate = IterationGate(RequestStream())

    while gate.request["do"] == "start":
        settings = gate.request
        gate.stream.send()
        gate.next()

        if not gate.stop():
            config = configuration.parse(settings["config"])
            train(config, settings["out"], on_record=gate, stop=gate.stop, progress=False)


if __name__ == "__main__":
    main()
