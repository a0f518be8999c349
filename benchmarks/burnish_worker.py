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
    """Both callbacks of `train`: after each iteration, and for the decision to stop.

    The answer is sent when `train` asks whether to stop, for then a checkpoint that was due is
    written; writing it is not in the iteration's seconds.
    """

    def __init__(self, stream: RequestStream) -> None:
        self.stream = stream
        self.request: dict[str, Any] = stream.receive()
        self.answer: dict[str, Any] = {}

    def next(self) -> None:
        """Wait for a request, then start the clock."""
        self.request = self.stream.receive()
        self._started = time.perf_counter()
        self._cpu_started = time.process_time()

    def __call__(self, record: Record) -> None:
        """Keep the iteration's times as the answer."""
        seconds = time.perf_counter() - self._started
        cpu_seconds = time.process_time() - self._cpu_started
        parts = {"sampling": record["seconds_sampling"], "training": record["seconds_training"]}
        if record["iteration"] == 1:
            seconds = sum(parts.values())

        self.answer = {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            **parts,
            "reward": next(iter(record["rewards"].values()))["mean"],
            "ratio_deviation": record.get("ratio_deviation", 0.0),
        }

    def stop(self) -> bool:
        """Answer if an iteration is finished; return True if no other one is requested."""
        if self.answer:
            self.stream.send(**self.answer)
            self.answer = {}
            self.next()

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
