"""The folder of runs: nothing outside it is read, and no file of a run but plain, small ones.

A run may come from anybody: a name may be markup, a file may be a link to somewhere else, a pipe
that never ends, or gigabytes. So every path goes through here before it is opened.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from burnish.errors import os_error_context, printable
from burnish.runs import Run

MB = 1_000_000
LARGEST = {".toml": MB, ".jsonl": 200 * MB, ".json": 50 * MB, ".png": 50 * MB, "": 4096}
"""Bytes of the largest file that is opened, by the ending of its name."""

MOST = 10_000
"""Names of the folder of runs that are looked at."""

MOST_FILES = 200_000
"""Files of a folder of a run, all of which are looked at: one with more is not opened."""

CONFIG = "config.toml"
FILES = (
    CONFIG,
    "log.jsonl",
    "evaluation.json",
    "guard.json",
    "control.json",
    "control.lock",
    "lock",
    "questions.jsonl",
    "waiting.json",
    "votes.jsonl",
)
FOLDERS = ("samples", "evaluations", "groups", "questions")
"""Folders of a run whose files the studio opens."""

CLOSED = ("checkpoints", "adapter")
"""Folders of a run whose files only commands open."""

SEARCH = "search.json"
TRIES = "tries.jsonl"


@dataclass(frozen=True)
class RunsFolder:
    """A folder whose folders are runs.

    Args:
        root: the folder, with no links in its path.
    """

    root: Path

    @staticmethod
    def open(folder: str | os.PathLike[str]) -> RunsFolder:
        """Return the folder of runs, which is made where it is missing.

        Raises:
            ValueError: the folder is a run itself.
            OSError: it is a file, or cannot be made.
        """
        path = Path(folder)
        if path.is_file():
            raise FileExistsError(f"{path} is a file; give the folder that holds the runs")
        if Run(path).exists():
            raise ValueError(f"{path} is a run; give the folder around it, which holds the runs")

        with os_error_context(path):
            path.mkdir(parents=True, exist_ok=True)
        return RunsFolder(path.resolve())

    def names(self) -> list[str]:
        """Return the names of the folders that claim to be a run, sorted."""
        return _names_with(self.root, CONFIG)

    def searches(self) -> list[str]:
        """Return the names of the folders that claim to be a search for codes, sorted."""
        return _names_with(self.root, SEARCH)

    def run(self, name: str) -> Run:
        """Return a run by its name, after a look at every file that is opened to show it.

        Raises:
            FileNotFoundError: there is none of this name.
            ValueError: it has a file that is not opened; the message says which and why.
        """
        run = self.find(name)
        for file in FILES:
            self.check(run.folder / file)
        for folder in (*FOLDERS, *CLOSED):
            self.check_folder(run.folder / folder)
        for folder in FOLDERS:
            for path in _unusual_files(run.folder / folder):
                self.check(path)
        return run

    def own(self, name: str) -> Run:
        """Return a run that a command may read and change, after a look at all that is in it.

        Raises:
            FileNotFoundError: there is none of this name.
            ValueError: a file lies elsewhere or is no plain one; the message says which.
        """
        run = self.run(name)
        own = Path(os.path.realpath(run.folder))

        for folder, folders, names in os.walk(own):
            for path in (Path(folder, one) for one in (*folders, *names)):
                shown = printable(Path(name, path.relative_to(own)))
                if path.is_symlink() and not _is_inside(own, path):
                    raise ValueError(
                        f"{shown} is a link out of the run, so nothing is done with it here; put "
                        "what it leads to in its place, or use the command line"
                    )
                is_usual = path.is_dir() or path.is_file() or path.is_symlink()
                # a training may have deleted or renamed it since
                if not is_usual and os.path.lexists(path):
                    raise ValueError(f"{shown} is neither a file nor a folder; delete it")
        return run

    def find(self, name: str) -> Run:
        """Return a run by its name, without a look at its files.

        Raises:
            FileNotFoundError: there is none of this name in the folder itself.
        """
        return Run(_find(self.root, name, CONFIG, "run"))

    def search(self, name: str) -> Path:
        """Return the folder of a search for codes by its name, after a look at its files.

        Raises:
            FileNotFoundError: there is none of this name in the folder itself.
            ValueError: it has a file that is not opened; the message says which and why.
        """
        path = _find(self.root, name, SEARCH, "search for codes")
        for file in (SEARCH, TRIES):
            self.check(path / file)
        return path

    def new(self, name: str) -> Path:
        """Return the path of a new folder, which is not made.

        Raises:
            ValueError: its name is none, or is taken.
        """
        if not is_name(name):
            raise ValueError(
                f"{printable(name)} is no name for a folder; take letters, digits and -"
                if name
                else "a name is missing; give one"
            )
        path = self.root / name
        if os.path.lexists(path):
            raise ValueError(f"{printable(name)} is there already; choose another name")
        return path

    def check_folder(self, path: Path) -> None:
        """Refuse a folder that lies elsewhere; one that is missing is fine.

        Raises:
            ValueError: it is a link out of the folder of runs.
        """
        if not _is_inside(self.root, path):
            raise ValueError(
                f"{printable(path.relative_to(self.root))} is a link out of the folder of runs"
            )

    def check(self, path: Path) -> None:
        """Refuse a file that is not opened; one that is missing is fine.

        Raises:
            ValueError: it lies elsewhere, is no plain file, or is too large.
        """
        shown = printable(path.relative_to(self.root))
        if not _is_inside(self.root, path):
            raise ValueError(f"{shown} is a link out of the folder of runs, and is not opened")

        try:
            status = os.stat(path)
        except OSError:
            return
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{shown} is no plain file, and is not opened")

        largest = largest_of(path.name)
        if status.st_size > largest:
            raise ValueError(
                f"{shown} has {status.st_size / MB:,.0f} MB, and the studio opens "
                f"{largest / MB:,.0f} MB at most"
            )


def _names_with(root: Path, file: str) -> list[str]:
    """Return the names of the folders that have a file, sorted."""
    with os.scandir(root) as entries:
        names = [entry.name for entry in islice(entries, MOST)]
    return sorted(name for name in names if _claims(root, name, file))


def _claims(root: Path, name: str, file: str) -> bool:
    return not name.startswith(".") and os.path.lexists(root / name / file)


def _find(root: Path, name: str, file: str, kind: str) -> Path:
    """Return the folder of a name, which has a file.

    Raises:
        FileNotFoundError: there is none of this kind in the root itself.
    """
    if not is_name(name) or not _claims(root, name, file):
        raise FileNotFoundError(f"there is no {kind} {printable(name)}")

    path = root / name
    if not _is_inside(root, path):
        raise FileNotFoundError(f"{printable(name)} is a link out of the folder of runs")
    return path


def _is_inside(root: Path, path: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(root)


def _unusual_files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder that are links, no plain files, or too large.

    Raises:
        ValueError: it has more files than are looked at.
    """
    if not folder.is_dir():
        return

    with os.scandir(folder) as entries:
        for count, entry in enumerate(entries, 1):
            if count > MOST_FILES:
                raise ValueError(
                    f"{printable(folder)} has more than {MOST_FILES:,} files, and is not opened"
                )
            if not _is_plain(entry):
                yield Path(entry.path)


def _is_plain(entry: os.DirEntry[str]) -> bool:
    """Return whether a name of a folder is that of a file, no link, of a size that is opened."""
    try:
        is_file = entry.is_file(follow_symlinks=False)
        return is_file and entry.stat(follow_symlinks=False).st_size <= largest_of(entry.name)
    except OSError:
        return False


def largest_of(name: str) -> int:
    """Return the bytes of the largest file of a name that is opened."""
    return LARGEST.get(os.path.splitext(name)[1], LARGEST[".json"])


def is_name(name: str) -> bool:
    """Return whether a text is the name of one folder: no path, nothing hidden, and text."""
    if not name or name.startswith(".") or any(letter in name for letter in "/\\\0"):
        return False
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
