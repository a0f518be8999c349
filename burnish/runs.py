"""The run directory: the files that a run leaves behind, how they are written and read.

Standard library only.

    RUN/config.toml                  the resolved configuration; can be trained again as it is
    RUN/origin.json                  the configuration, with digests of the files that it names, and
                                     the number of processes; a checkpoint has a copy of its own
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
    RUN/adapter.json                 the iteration they are of, and the files' digests
    RUN/guard.json                   when and why the guard ended the run, and to which iteration it
                                     went back
    RUN/groups/                      small images of the latest iteration, with their rewards, and
                                     of the latest evaluation
    RUN/questions.jsonl, RUN/questions/, RUN/waiting.json, RUN/votes.jsonl, RUN/rounds.jsonl
                                     the pairs of images that people are asked about, and their
                                     answers, see `votes`
    RUN/trackers.json                the ids under which experiment trackers file the run
    RUN/samples/strength-000012-050.png  the sample grid after 12 iterations with the adapter at
                                     50 % of its strength, where somebody asked for it
    RUN/control.json                 what somebody asks of the training, see `run_control`; who
                                     writes or takes it holds RUN/control.lock
    RUN/lock                         the process that is writing here

Every file is written completely or not at all, see `files`; only the log, the questions and the
votes grow line by line.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from burnish.annotations import complaint
from burnish.errors import os_error_context
from burnish.files import (
    decode_row,
    dumps,
    flush,
    json_object,
    make_folder,
    raw_rows,
    sync_folder,
    write,
)
from burnish.run_files import LogRow

Record = dict[str, Any]
"""One line of log.jsonl."""

FILES = (
    r"config\.toml|origin\.json|log\.jsonl|evaluation\.json|guard\.json|report\.html|prompts\.json|"
    r"adapter\.json|trackers\.json|control\.json|waiting\.json|[0-9a-f]{16}\.png|"
    r"(identifiers-|strength-|evaluation-)?\d{6}(-\d{3})?(\.png|\.json)?"
)
OF_ITERATION = re.compile(r"(?:identifiers-)?(\d+)|strength-(\d+)-\d+", re.ASCII)
"""The name of a sample grid or an evaluation, without its ending: the iteration is a group."""

LEFTOVER = re.compile(rf"\.({FILES})(\.\d+){{0,2}}\.part|\.adapter-\w+")
"""What `files` calls a file or folder of a run before it is complete."""

LONGEST_WAIT = 10.0
"""Seconds for which another program may hold a file that several write."""

PAUSE = 0.01
"""Seconds between two tries to get hold of it."""


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
    groups = RunPath("groups")
    adapter = RunPath("adapter")
    guard = RunPath("guard.json")
    origin = RunPath("origin.json")
    trackers = RunPath("trackers.json")
    export = RunPath("adapter.json")
    control = RunPath("control.json")
    control_lock = RunPath("control.lock")
    questions = RunPath("questions.jsonl")
    question_images = RunPath("questions")
    waiting = RunPath("waiting.json")
    votes = RunPath("votes.jsonl")
    rounds = RunPath("rounds.jsonl")

    @staticmethod
    def create(folder: str | os.PathLike[str]) -> Run:
        """Return a new run in `folder`, which is a run once it has a config.toml.

        Raises:
            FileExistsError: anything is in the folder already, or it is a file.
        """
        run = Run(Path(folder))
        check_free(run.folder)
        make_folder(run.folder)
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
        """Return the records of the log, oldest first, without a last line that a crash cut off.

        Raises:
            ValueError: a row is no record; the message names it.
        """
        return [record for record, _ in _rows(self)]

    def append(self, record: Mapping[str, Any], *, amend: bool = False) -> None:
        """Add a line to the log, or put it in place of the last one; it is on the disk then."""
        if amend:
            lines = [line + b"\n" for _, line in _rows(self)[:-1]]
            write(self.log, b"".join(lines) + f"{dumps(record)}\n".encode())
            return

        is_new = not self.log.exists()
        with os_error_context(self.log), open(self.log, "a", encoding="utf-8") as file:
            file.write(dumps(record) + "\n")
            flush(file)
        if is_new:
            sync_folder(self.folder)

    def forget(self, iteration: int) -> None:
        """Remove what is of later iterations: they are made again.

        These are lines of the log, evaluations and sample grids.
        """
        lines = [line + b"\n" for record, line in _rows(self) if record["iteration"] <= iteration]
        # also when nothing is removed: a last line that was cut off must not run into the next one
        if self.log.exists():
            write(self.log, b"".join(lines))

        for folder in (self.samples, self.evaluation_file(0).parent):
            for path in folder.glob("*[0-9].*"):
                match = OF_ITERATION.fullmatch(path.stem)
                if match and int(match[1] or match[2]) > iteration:
                    path.unlink()

    @contextmanager
    def lock(self, is_new: bool = False) -> Iterator[None]:
        """Hold the directory, so that no other process writes into it.

        The system releases the lock when a process dies, so no lock is ever stale. The file only
        names the process.

        Args:
            is_new: the folder was made for this; it is removed again where what follows fails
                before anything but the lock is in it.

        Raises:
            RuntimeError: another process holds it.
        """
        make_folder(self.folder)
        with os_error_context(self.folder):
            file = open(self.folder / "lock", "a+", encoding="utf-8", errors="replace")  # noqa: SIM115

        with file:
            if not try_lock(file):
                file.seek(0)
                owner = file.read().strip() or "another process"
                raise RuntimeError(
                    f"{self.folder} is in use by {owner}; "
                    "wait for it to end or choose another --out"
                )

            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            try:
                yield
            except BaseException:
                if is_new:
                    _remove_if_empty(self.folder)
                raise


def check_free(folder: Path) -> None:
    """Refuse a folder for a new run; one that is missing or empty is fine.

    Raises:
        FileExistsError: anything is in the folder already, or it is a file.
    """
    run = Run(folder)
    if run.exists():
        logged = run.log.is_file() and run.log.stat().st_size > 0
        begun = logged or any(run.checkpoints.glob("[0-9]*"))
        free = "; nothing was trained there yet, so --resume accepts any change"
        raise FileExistsError(
            f"{run.folder} already holds a run; go on with it (--resume, in Python "
            f"resume=True) or choose another folder (--out){'' if begun else free}"
        )
    if run.folder.exists() and not run.folder.is_dir():
        raise FileExistsError(f"{run.folder} is a file; choose another --out")

    if run.folder.exists():
        # what a start leaves that was killed before there was a configuration
        ours = re.compile(rf"lock|{LEFTOVER.pattern}")
        others = [p.name for p in run.folder.iterdir() if not ours.fullmatch(p.name)]
        if others:
            raise FileExistsError(
                f"{run.folder} is not empty and not a run ({others[0]} is in it); "
                "choose another --out"
            )


def log_digest(run: Run, iteration: int) -> str:
    """Return the SHA-256 of the log's lines up to `iteration`, without how long all took."""
    digest = hashlib.sha256()
    for record in run.records():
        if record["iteration"] <= iteration:
            timeless = {k: v for k, v in record.items() if not k.startswith("seconds_")}
            digest.update(dumps(timeless).encode() + b"\n")

    return digest.hexdigest()


def clear(run: Run) -> None:
    """Remove everything that was made before anything was learned."""
    run.forget(-1)
    for path in (run.log, run.evaluation, run.guard, run.export):
        path.unlink(missing_ok=True)
    for folder in (run.adapter, run.groups):
        shutil.rmtree(folder, ignore_errors=True)


def tidy(run: Run) -> None:
    """Delete what a process that was killed left half written; only what has our names."""
    folders = [run.folder, run.samples, run.checkpoints, run.evaluation_file(0).parent, run.groups]
    folders += [
        run.question_images,
        run.adapter,
        *(path for path in run.adapter.glob("*") if path.is_dir()),
    ]

    for folder in folders:
        for path in [path for path in folder.glob(".*") if LEFTOVER.fullmatch(path.name)]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


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


def try_lock(file: IO[Any], shared: bool = False) -> bool:
    """Take the system's lock on an open file; return False if another process has it.

    Args:
        file: open for writing; for reading is enough where the lock is shared.
        shared: only ask whether somebody holds it: others who ask at the same time hear the same.
            Windows knows no such lock.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            # a byte nobody writes: the text before it must stay readable to others
            file.seek(1 << 30)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError:
        return False

    return True


@contextmanager
def locked(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that several programs write, and hold its lock.

    The system releases the lock when a process dies. A file that is missing is made.

    Raises:
        RuntimeError: another program held it for too long.
    """
    is_new = not path.exists()
    with os_error_context(path), open(path, "ab+") as file:
        ends = time.monotonic() + LONGEST_WAIT
        while not try_lock(file):
            if time.monotonic() > ends:
                raise RuntimeError(
                    f"{path} was held by another program for {LONGEST_WAIT:g} s; end that program"
                )
            time.sleep(PAUSE)
        yield file

    if is_new:
        sync_folder(path.parent)


def _rows(run: Run) -> list[tuple[Record, bytes]]:
    """Return the (record, line) of each row of the log but for a last one that was cut off."""
    if not run.log.exists():
        return []

    *complete, (last, unfinished) = raw_rows(run.log)
    rows = [(_record(run, row, line), line) for row, line in complete]

    with suppress(ValueError):  # whole, if an editor took away the last line's end
        rows.append((_record(run, last, unfinished), unfinished))
    return rows


def _record(run: Run, row: int, line: bytes) -> Record:
    place = f"{run.log}, row {row}"
    record = json_object(decode_row(run.log, row, line), place, "delete this line")
    if wrong := complaint(record, LogRow, ""):
        raise ValueError(f"{place}: {wrong}; delete this line")
    return record


def is_locked(run: Run) -> bool:
    """Return whether another process holds the run directory.

    The lock is taken for a moment in order to find out, and a process that begins just then is
    refused: look first whether its owner, whom the file names, can be alive at all.
    """
    path = run.folder / "lock"
    if not path.is_file():
        return False
    try:
        with open(path, "r+", encoding="utf-8", errors="replace") as file:
            return not try_lock(file, shared=True)
    except OSError:
        return False


def _remove_if_empty(folder: Path) -> None:
    """Remove a folder that holds nothing but the lock; where the system refuses, keep it."""
    with suppress(OSError):
        if [path.name for path in folder.iterdir()] == ["lock"]:
            (folder / "lock").unlink()
            folder.rmdir()
