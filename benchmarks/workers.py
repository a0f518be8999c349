"""A parent and its worker processes: one JSON object a line, over stdin and stdout.

The workers live in different virtual environments, so that each library runs with the versions it
needs. Standard library only.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


class RequestStream:
    """A worker's end of the connection.

    Everything that a library prints goes to stderr, so that stdout carries nothing but answers.
    """

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def receive(self) -> dict[str, Any]:
        """Return the next request; `{"do": "end"}` when the parent is gone."""
        text = sys.stdin.readline()
        request: dict[str, Any] = json.loads(text) if text else {"do": "end"}
        return request

    def send(self, **answer: Any) -> None:
        """Answer a request."""
        print(json.dumps({**answer, "peak_mb": peak_mb()}), file=self._out, flush=True)


class Worker:
    """The parent's end: a process of `python -m benchmarks.MODULE`, started with some settings.

    It can be started anew with others, which saves the seconds of loading the libraries.
    """

    def __init__(
        self, python: Path | str, module: str, log: Path, settings: dict[str, Any]
    ) -> None:
        self._log = log.open("w")
        self.name = module
        self._path = log
        self._process = subprocess.Popen(
            [str(python), "-m", f"benchmarks.{module}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"},
        )
        self.ask("start", **settings)

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Send a request and return its answer.

        Raises:
            RuntimeError: the process ended; the message has the end of its log.
        """
        self._write({"do": do, **request})
        assert self._process.stdout is not None
        text = self._process.stdout.readline()

        if not text:
            last = "\n".join(self._path.read_text().splitlines()[-15:])
            raise RuntimeError(f"the {self.name} worker ended before it answered '{do}':\n{last}")

        answer: dict[str, Any] = json.loads(text)
        return answer

    def end(self) -> None:
        """Let the process finish by itself."""
        if self._process.poll() is None:
            self._write({"do": "end"})
            self._process.communicate(timeout=60)

        self._log.close()

    def _write(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()


def peak_mb() -> float:
    """Return the most memory this process has held so far, in MB of 1,000,000 bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
