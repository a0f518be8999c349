"""The run directory: the files that a run leaves behind, how they are written and read.

Standard library only.

    RUN/config.toml                  the resolved configuration; can be trained again as it is
    RUN/log.jsonl                    one JSON object an iteration
    RUN/samples/000012.png           the same prompts and noise after 12 iterations (000000: before
                                     the first)
    RUN/samples/prompts.json         the layout of these grids:
                                     {"texts": [...], "columns": 4, "size": 64}
    RUN/samples/identifiers-000012.png   with reward identifiers: the same prompts and noise for all
                                     rewards together and for each reward alone
    RUN/samples/identifiers-000012.json  its layout:
                                     {"texts": [...], "rewards": ["all", ...], "columns": 4}
    RUN/checkpoints/000012/          everything needed to go on after iteration 12
    RUN/evaluations/000012.json      each image's rewards in an evaluation after 12 iterations, of
                                     train and unseen prompts
    RUN/evaluation.json              the last evaluation compared with the one before training
    RUN/adapter/                     the trained weights in diffusers' LoRA format (a model folder
                                     after full fine-tuning)
    RUN/guard.json                   when and why the guard ended the run, and to which iteration it
                                     went back
    RUN/trackers.json                the ids under which experiment trackers file the run
    RUN/lock                         the process that is writing here

Every file is written beside its final place, flushed to the disk and moved there, so a crash leaves
the old file or the new one.
"""

from __future__ import annotations

import json
import math
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from burnish.errors import os_error_context

Record = dict[str, Any]
"""One line of log.jsonl."""


class RunPath:
    """A descriptor: the path of a file or a folder in a run directory, by its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: Run, kind: object = None) -> Path:
        return run.folder / self.name


@dataclass(frozen=True)
class Run:
    """A run directory: its paths, its log and its lock."""

    folder: Path

    config = RunPath("config.toml")
    log = RunPath("log.jsonl")
    samples = RunPath("samples")
    checkpoints = RunPath("checkpoints")
    evaluation = RunPath("evaluation.json")
    adapter = RunPath("adapter")
    guard = RunPath("guard.json")
    trackers = RunPath("trackers.json")

    @staticmethod
    def create(folder: str | os.PathLike[str]) -> Run:
        """Return a new run in `folder`, which is a run once it has a config.toml.

        Raises:
            FileExistsError: anything is in the folder already, or it is a file.
        """
        run = Run(Path(folder))
        if run.exists():
            raise FileExistsError(
                f"{run.folder} already holds a run; go on with it (--resume, in Python "
                "resume=True) or choose another folder (--out)"
            )
        if run.folder.exists() and not run.folder.is_dir():
            raise FileExistsError(f"{run.folder} is a file; choose another --out")

        if run.folder.exists():
            others = [path.name for path in run.folder.iterdir() if path.name != "lock"]
            if others:
                raise FileExistsError(
                    f"{run.folder} is not empty and not a run ({others[0]} is in it); "
                    "choose another --out"
                )

        with os_error_context(run.folder):
            run.folder.mkdir(parents=True, exist_ok=True)

        return run

    @staticmethod
    def open(folder: str | os.PathLike[str]) -> Run:
        """Return the run in `folder`.

        Raises:
            FileNotFoundError: there is none.
        """
        run = Run(Path(folder))
        if not run.exists():
            raise FileNotFoundError(
                f"{run.folder} holds no run (no config.toml in it); give the --out of a training"
            )

        return run

    def exists(self) -> bool:
        """Return whether the folder holds a run."""
        return self.config.is_file()

    def sample_grid(self, iteration: int) -> Path:
        """Return the path of the sample grid after an iteration."""
        return self.samples / f"{iteration:06d}.png"

    def identifier_grid(self, iteration: int) -> Path:
        """Return the path of the grid of reward identifiers; its layout lies beside it as JSON."""
        return self.samples / f"identifiers-{iteration:06d}.png"

    def evaluation_file(self, iteration: int) -> Path:
        """Return the path of the evaluation after an iteration: each image's rewards."""
        return self.folder / "evaluations" / f"{iteration:06d}.json"

    def records(self) -> list[Record]:
        """Return the records of the log, oldest first, without a last line that a crash cut off."""
        if not self.log.exists():
            return []

        records = []
        rows = self.log.read_text("utf-8").splitlines()

        for row, line in enumerate(rows, 1):
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                if row == len(rows):
                    break
                raise ValueError(
                    f"{self.log}, row {row}: not a JSON object; delete this line"
                ) from error

        return records

    def append(self, record: Mapping[str, Any], *, amend: bool = False) -> None:
        """Add a line to the log, or put it in place of the last one; it is on the disk then."""
        if amend:
            records = [*self.records()[:-1], record]
            write(self.log, "".join(dumps(record) + "\n" for record in records))
            return

        with os_error_context(self.log), open(self.log, "a", encoding="utf-8") as file:
            file.write(dumps(record) + "\n")
            flush(file)

    def forget(self, iteration: int) -> None:
        """Remove the log's lines and the evaluations after `iteration`: they are made again."""
        records = [r for r in self.records() if r.get("iteration", 0) <= iteration]
        # also when nothing is removed: a last line that was cut off must not run into the next one
        if self.log.exists():
            write(self.log, "".join(dumps(record) + "\n" for record in records))

        for path in (self.folder / "evaluations").glob("[0-9]*.json"):
            if int(path.stem) > iteration:
                path.unlink()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory, so that no other process writes into it.

        The system releases the lock when a process dies, so no lock is ever stale. The file only
        names the process.

        Raises:
            RuntimeError: another process holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)

        with open(self.folder / "lock", "a+", encoding="utf-8") as file:
            if not _try_lock(file):
                file.seek(0)
                owner = file.read().strip() or "another process"
                raise RuntimeError(
                    f"{self.folder} is in use by {owner}; "
                    "wait for it to end or choose another --out"
                )

            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield


def write(path: Path, content: str | bytes) -> None:
    """Write `content` to `path`, completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")

    with os_error_context(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                flush(file)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def flush(file: IO[Any]) -> None:
    """Wait until everything that was written to `file` is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def dumps(value: Any, indent: int | None = None) -> str:
    """Return JSON that every reader accepts: numbers that are not finite become null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers of a nested record by path.

    >>> flat({"rewards": {"a": {"mean": 1}}})
    {'rewards/a/mean': 1}
    """
    numbers: dict[str, float] = {}

    for key, value in record.items():
        if isinstance(value, Mapping):
            numbers |= flat(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            numbers[prefix + key] = value

    return numbers


def guard_verdict(decision: Mapping[str, Any]) -> str:
    """Return one sentence about the contents of guard.json: what the guard did, and why."""
    back = ""
    if decision["action"] == "rollback":
        back = f", and went back to iteration {decision['best']}"

    reasons = "; ".join(map(str, decision["reasons"]))
    return f"The guard ended the run after iteration {decision['iteration']}{back}: {reasons}"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]

    return value


def _try_lock(file: IO[Any]) -> bool:
    """Take the system's lock on an open file; return False if another process has it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            # a byte nobody writes: the text before it must stay readable to others
            file.seek(1 << 30)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False

    return True
