"""Commands as processes of their own, which outlive the server and the browser.

    RUNS/.studio/NAME.log    what the latest command about the run NAME has printed
    RUNS/.studio/NAME.pid    the number of its process

A command holds the lock of its log for as long as it lives, so that another studio finds it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from burnish.errors import os_error_context, printable
from burnish.files import write
from burnish.redaction import redact
from burnish.runs import try_lock
from burnish.studio.folder import RunsFolder, is_name

SPEAKER = "burnish: "
"""Begins the sentences of a command."""

TAIL = 12_000
"""Bytes of a command's output that are shown."""

SHORT = 60.0
"""Seconds for which a page waits for a branch or a way back, which go on if they take longer."""

ENDING = 15.0
"""Seconds in which a process ends whose training has given the run free."""

PROBING = 1.0
"""Seconds in which somebody who tries whether a log is locked has let it go."""

PAUSE = 0.02
"""Seconds between two tries."""


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
                process = subprocess.Popen(
                    command(arguments),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment(),
                    start_new_session=True,
                )
            self.started[name] = process
            write(number_path(self.folder, name), str(process.pid))

    def finish(self, name: str, arguments: list[str]) -> bool:
        """Start a short command; return whether it has ended, or goes on because it takes long.

        Raises:
            ValueError: it has failed, and the message is its sentence; or one of this name is
                still going on.
        """
        self.launch(name, arguments)
        process = self.started[name]
        try:
            code = process.wait(SHORT)
        except subprocess.TimeoutExpired:
            return False

        if code:
            del self.started[name]
            raise ValueError(last_sentence(self.output(name)))
        return True

    def end(self, name: str) -> None:
        """End a command.

        Raises:
            ValueError: there is none that a studio has started and that goes on.
        """
        if not self.is_going_on(name):
            raise ValueError(f"{printable(name)}: nothing goes on that a studio has started")

        process = self.started.get(name)
        if process is not None:
            process.terminate()
        else:
            os.kill(number_of(self.folder, name), signal.SIGTERM)

    def let_end(self, name: str) -> None:
        """Wait a moment for a command whose training has ended, and which is about to end too."""
        ends = time.monotonic() + ENDING
        while self.is_going_on(name) and time.monotonic() < ends:
            time.sleep(PAUSE)

    def is_going_on(self, name: str) -> bool:
        """Return whether a command is going on that this server has started, or an earlier one."""
        process = self.started.get(name)
        if process is None:
            return is_name(name) and is_log_held(self.folder, name)
        return process.poll() is None

    def exit_code(self, name: str) -> int | None:
        """Return how the latest command ended; None if it goes on, or was not started here."""
        process = self.started.get(name)
        return None if process is None else process.poll()

    def states(self, name: str = "") -> dict[str, int | None]:
        """Return the exit codes of commands by name, None for one that goes on.

        Args:
            name: of the only one that is wanted; "": all that this server has started.
        """
        if not name:
            return {one: self.exit_code(one) for one in list(self.started)}
        if self.is_going_on(name):
            return {name: None}
        return {name: self.exit_code(name)} if name in self.started else {}

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


def last_sentence(output: str) -> str:
    """Return the sentence with which a command has failed, from what it has printed."""
    lines = output.splitlines() or ["it failed without a word"]
    sentences = [line for line in lines if line.startswith(SPEAKER)]
    return (sentences or lines)[-1].removeprefix(SPEAKER)


def log_path(folder: RunsFolder, name: str) -> Path:
    """Return where the output of the command about a run goes."""
    return folder.root / ".studio" / f"{name}.log"


def number_path(folder: RunsFolder, name: str) -> Path:
    """Return where the number of the process is written that is the command about a run."""
    return log_path(folder, name).with_suffix(".pid")


def number_of(folder: RunsFolder, name: str) -> int:
    """Return the number of the process of a command that an earlier studio has started.

    Raises:
        ValueError: it is not known, or its process does not write this log; without /proc that
            cannot be told.
    """
    path = number_path(folder, name)
    unknown = f"{printable(path)} does not name its process; end that one by hand"
    if path.is_symlink() or not path.is_file():
        raise ValueError(unknown)

    with path.open("rb") as file:
        digits = file.read(20)
    try:
        number = int(digits)
        # another machine or container may have written it, and a number is used again
        writes = number > 1 and os.path.samefile(f"/proc/{number}/fd/1", log_path(folder, name))
    except (ValueError, OSError) as error:
        raise ValueError(unknown) from error
    if not writes:
        raise ValueError(unknown)
    return number


def is_log_held(folder: RunsFolder, name: str) -> bool:
    """Return whether the command lives that writes a log; False where that cannot be told."""
    path = log_path(folder, name)
    if os.name == "nt" or path.is_symlink() or path.parent.is_symlink() or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return not try_lock(file, shared=True)
    except OSError:
        return False


def open_log(folder: RunsFolder, name: str) -> IO[bytes]:
    """Return the new, empty file for a command's output, which is locked while it is open.

    Raises:
        ValueError: a link is in its place, or another command writes there.
    """
    path = log_path(folder, name)
    if path.is_symlink() or path.parent.is_symlink():
        raise ValueError(f"{printable(path)} is a link; delete it")

    with os_error_context(path):
        path.parent.mkdir(exist_ok=True)
        log = path.open("ab")
    ends = time.monotonic() + PROBING
    while os.name != "nt" and not try_lock(log):
        if time.monotonic() > ends:
            log.close()
            raise ValueError(f"{printable(name)}: its command still goes on; wait for its end")
        time.sleep(PAUSE)
    log.truncate(0)
    return log


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
