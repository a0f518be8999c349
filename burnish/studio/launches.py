"""Commands that the studio starts: processes of their own, which outlive it and the browser.

    RUNS/.studio/NAME.log    what the latest command about the run NAME has printed

A training is `burnish train`, as somebody would type it, so its checks and sentences are the same.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Literal

from burnish.errors import printable
from burnish.redaction import redact
from burnish.studio.folder import RunsFolder

TAIL = 12_000
"""Bytes of a command's output that are shown."""

SHORT = 120.0
"""Seconds in which branching and rolling back are done."""

CHECK = "check"
"""The name under which a check is shown; it is no run."""


@dataclass(frozen=True)
class Plan:
    """A training that somebody wants: the fields of the form."""

    recipe: str  # the name of a recipe, or of a run whose configuration is taken
    name: str  # of the new run
    changes: tuple[str, ...] = ()  # KEY=VALUE


@dataclass
class Launches:
    """Starts commands about the runs of a folder.

    Args:
        folder: of the runs.
        allow_code: whether configurations may name Python code.
    """

    folder: RunsFolder
    allow_code: bool = False
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    searches: set[str] = field(default_factory=set)  # names of processes that look for codes
    lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self, plan: Plan) -> None:
        """Start `burnish check` of a plan."""
        source = checked_source(self.folder, plan, self.allow_code)
        self.launch(CHECK, ["check", source, *options(plan.changes)], trusts=True)

    def start(self, plan: Plan) -> None:
        """Start to train a new run.

        Raises:
            ValueError, OSError: what is wrong with the plan.
        """
        out = new_folder(self.folder, plan.name)
        source = checked_source(self.folder, plan, self.allow_code)
        arguments = ["train", source, *options(plan.changes), f"--out={out}"]
        self.launch(plan.name, arguments, trusts=True)

    def resume(self, name: str, changes: Sequence[str] = (), accept: bool = False) -> None:
        """Start to go on with a run.

        Raises:
            ValueError, OSError: what is wrong with it, or with the changes.
        """
        run = self.folder.run(name)
        check_configuration(run.config, changes, self.allow_code)
        arguments = ["train", str(run.config), *options(changes), "--resume", f"--out={run.folder}"]
        arguments += ["--accept-changes"] if accept else []
        self.launch(name, arguments, trusts=True)

    def branch(self, name: str, iteration: int, new: str) -> None:
        """Copy a run as it was after an iteration.

        Raises:
            ValueError: it cannot be; the command's sentence says why.
        """
        out = new_folder(self.folder, new)
        run = self.folder.run(name)
        finish(["branch", f"--out={out}", str(run.folder), str(iteration)])

    def roll_back(self, name: str, iteration: int) -> None:
        """Take a run back to what it was after an iteration.

        Raises:
            ValueError: it cannot be; the command's sentence says why.
        """
        run = self.folder.run(name)
        finish(["rollback", str(run.folder), str(iteration)])

    def search(self, name: str, arguments: list[str]) -> None:
        """Start a search for codes, whose arguments come from `burnish.studio.codes`.

        Raises:
            ValueError: its name is none, or is taken.
        """
        out = new_folder(self.folder, name)
        self.launch(name, ["qr", "--keep-tries", f"--out={out}", *arguments], trusts=True)
        self.searches.add(name)

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
                self.processes[name] = subprocess.Popen(
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
        self.processes[name].terminate()

    def is_going_on(self, name: str) -> bool:
        """Return whether a command that this server has started is going on."""
        process = self.processes.get(name)
        return process is not None and process.poll() is None

    def exit_code(self, name: str) -> int | None:
        """Return how the latest command ended; None if it goes on, or was not started here."""
        process = self.processes.get(name)
        return None if process is None else process.poll()

    def output(self, name: str) -> str:
        """Return the end of what the latest command about a run has printed; "" if nothing."""
        path = log_path(self.folder, name)
        if path.is_symlink() or path.parent.is_symlink() or not path.is_file():
            return ""

        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            return shown(file.read(TAIL))

    def failures(self) -> list[str]:
        """Return the names of what was started here and failed before it became a run."""
        known = {*self.folder.names(), *self.searches, CHECK}
        return sorted(name for name in self.processes if self.exit_code(name) and name not in known)


def new_folder(folder: RunsFolder, name: str) -> Path:
    """Return the path of a new run or search, which is not made.

    Raises:
        ValueError: its name is none, or is taken.
    """
    if name == CHECK:
        raise ValueError(f"{name} is no name for a folder; choose another one")
    return folder.new(name)


def checked_source(folder: RunsFolder, plan: Plan, allow_code: bool) -> str:
    """Return what to train: the name of a recipe, or the path of a run's configuration.

    Raises:
        ValueError, OSError: the configuration is wrong; the sentence is the command line's.
    """
    from burnish.config import recipes

    source = plan.recipe
    if source not in recipes():
        source = str(folder.run(plan.recipe).config)
    check_configuration(source, plan.changes, allow_code)
    return source


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


def check_configuration(
    source: str | Path,
    changes: Sequence[str],
    allow_code: bool,
    purpose: Literal["train", "sample"] = "train",
) -> None:
    """Refuse a configuration that is wrong, in the words of the command line, or names code.

    Nothing that it names is imported unless that is allowed.

    Args:
        source: the name of a recipe, or the path of a configuration.
        changes: KEY=VALUE.
        allow_code: whether it may name Python code.
        purpose: what it is read for.

    Raises:
        ValueError, OSError: the sentence.
    """
    from burnish import config, references
    from burnish.catalog import is_code

    whole = asdict(config.load(source, changes, purpose="compare"))
    codes = [
        f"{part.where} = {part.table['use']}"
        for part in references.parts(whole)
        if is_code(part.kind, str(part.table.get("use", "")))
    ]
    if codes and not allow_code:
        raise ValueError(
            f"it names Python code ({printable(', '.join(codes))}), which would run with your "
            "rights; read it, and if you trust it start the studio with --allow-code"
        )

    config.load(source, changes, purpose=purpose, trust=allow_code)


def options(changes: Sequence[str]) -> list[str]:
    """Return changed keys as options of the command line."""
    return [f"--set={change}" for change in changes]


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
