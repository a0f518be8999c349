"""Commands as processes of their own, which outlive the server and the browser.

RUNS/.studio/NAME.log    what the latest command about the run NAME has printed
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from burnish.errors import printable
from burnish.redaction import redact
from burnish.studio.folder import RunsFolder

TAIL = 12_000
"""Bytes of a command's output that are shown."""

SHORT = 120.0
"""Seconds in which branching and rolling back are done."""


ENDING = 15.0
"""Seconds in which a process ends whose training has given the run free."""


@dataclass
class Processes:
    """The commands that this server has started.

    Args:
        folder: of the runs.
        allow_code: whether configurations may name Python code.
    """

    folder: RunsFolder
    allow_code: bool = False
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def launch(self, name: str, arguments: list[str], trusts: bool = False) -> None:
        """Start a command in a session of its own.

        Raises:
            ValueError: one of this name is still going on.
        """
        with self.lock:
            if self.is_going_on(name):
                raise ValueError(f"{name}: its command still goes on; wait for its end")

            if trusts and self.allow_code:
                arguments = [arguments[0], "--trust", *arguments[1:]]
            with open_log(self.folder, name) as log:
                self.started[name] = subprocess.Popen(
                    command(arguments),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment(),
                    start_new_session=True,
                )

    def end(self, name: str) -> None:
        """End a command.

        Raises:
            ValueError: there is none that this server has started and that goes on.
        """
        if not self.is_going_on(name):
            raise ValueError(f"{printable(name)}: nothing goes on that this studio has started")
        self.started[name].terminate()

    def let_end(self, name: str) -> None:
        """Wait a moment for a command whose training has ended, and which is about to end too."""
        if process := self.started.get(name):
            with suppress(subprocess.TimeoutExpired):
                process.wait(ENDING)

    def is_going_on(self, name: str) -> bool:
        """Return whether a command that this server has started is going on."""
        process = self.started.get(name)
        return process is not None and process.poll() is None

    def exit_code(self, name: str) -> int | None:
        """Return how the latest command ended; None if it goes on, or was not started here."""
        process = self.started.get(name)
        return None if process is None else process.poll()

    def failed(self) -> set[str]:
        """Return the names of commands that have ended with an error."""
        return {name for name in list(self.started) if self.exit_code(name)}

    def output(self, name: str) -> str:
        """Return the end of what the latest command about a run has printed; "" if nothing."""
        path = log_path(self.folder, name)
        if path.is_symlink() or path.parent.is_symlink() or not path.is_file():
            return ""

        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            return shown(file.read(TAIL))


def finish(arguments: list[str]) -> None:
    """Run a short command to its end.

    Raises:
        ValueError: it has failed; the message is its sentence.
    """
    done = subprocess.run(
        command(arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment(),
        timeout=SHORT,
        check=False,
    )
    if done.returncode:
        lines = shown(done.stderr).splitlines() or ["it failed without a word"]
        raise ValueError(lines[-1].removeprefix("burnish: "))


def log_path(folder: RunsFolder, name: str) -> Path:
    """Return where the output of the command about a run goes."""
    return folder.root / ".studio" / f"{name}.log"


def open_log(folder: RunsFolder, name: str) -> IO[bytes]:
    """Return the new, empty file for a command's output.

    Raises:
        ValueError: a link is in its place.
    """
    path = log_path(folder, name)
    if path.is_symlink() or path.parent.is_symlink():
        raise ValueError(f"{printable(path)} is a link; delete it")

    path.parent.mkdir(exist_ok=True)
    return path.open("wb")


def command(arguments: Sequence[str]) -> list[str]:
    """Return a command of Burnish as the system starts it."""
    return [sys.executable, "-m", "burnish.cli", *arguments]


def environment() -> dict[str, str]:
    """Return the environment of commands: their output is plain text."""
    return {**os.environ, "NO_COLOR": "1", "COLUMNS": "100", "PYTHONIOENCODING": "utf-8"}


def shown(output: bytes) -> str:
    """Return what a command has printed as text without control characters and keys."""
    lines = redact(output.decode("utf-8", "replace")).splitlines()
    return "\n".join(printable(line) for line in lines)
