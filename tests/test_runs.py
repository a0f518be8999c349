"""The run directory: paths, log, lock, and files that are complete or absent."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from burnish import runs
from burnish.runs import Run, is_locked, try_lock


def test_create_then_open(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "a" / "b")
    with pytest.raises(FileNotFoundError, match="holds no run"):
        Run.open(run.folder)

    runs.write(run.config, "seed = 0\n")
    assert Run.open(run.folder) == run

    message = r"already holds a run; go on with it \(--resume, in Python resume=True\)"
    with pytest.raises(FileExistsError, match=f"{message}.* nothing was trained there yet"):
        Run.create(run.folder)

    run.log.write_text('{"iteration": 1}\n')
    with pytest.raises(FileExistsError, match=rf"{message} or choose .* \(--out\)$"):
        Run.create(run.folder)


def test_create_takes_no_folder_with_something_in_it(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match=r"not empty and not a run \(thesis.tex is in it\)"):
        Run.create(tmp_path)
    with pytest.raises(FileExistsError, match="is a file"):
        Run.create(tmp_path / "thesis.tex")


def test_the_log(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    assert run.records() == []

    for iteration in (1, 2, 3):
        run.append({"iteration": iteration, "kl": float("nan"), "x": (1, 2.5)})

    assert run.records()[2] == {"iteration": 3, "kl": None, "x": [1, 2.5]}
    with run.log.open("a") as file:
        file.write('{"iteration": 4, "k')  # a crash in the middle of a line

    assert [record["iteration"] for record in run.records()] == [1, 2, 3]
    run.forget(2)
    run.append({"iteration": 3})
    assert [record["iteration"] for record in run.records()] == [1, 2, 3]
    run.log.write_text('{"iteration": 1}\nnonsense\n{"iteration": 2}\n')

    with pytest.raises(ValueError, match=r"log.jsonl, row 2: not a JSON object; delete this line"):
        run.records()


def test_two_at_once(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    message = rf"in use by process {os.getpid()} on .*choose another --out"

    with run.lock(), pytest.raises(RuntimeError, match=message), run.lock():
        pass
    with run.lock():  # free again
        pass


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no lock that several can have")
def test_two_who_ask_whether_a_run_is_held_do_not_take_each_other_for_its_holder(
    tmp_path: Path,
) -> None:
    run = Run.create(tmp_path)
    with run.lock():
        assert is_locked(run)
    with (tmp_path / "lock").open("rb") as other:
        assert try_lock(other, shared=True)
        assert not is_locked(run)


@pytest.mark.parametrize("more", ["", "notes.txt"])
def test_a_new_folder_goes_where_nothing_began(tmp_path: Path, more: str) -> None:
    run = Run.create(tmp_path / "run")
    if more:
        (run.folder / more).touch()
    with pytest.raises(KeyboardInterrupt), run.lock(is_new=True):
        raise KeyboardInterrupt
    assert run.folder.exists() == bool(more)

    (tmp_path / "mine").mkdir()
    mine = Run.create(tmp_path / "mine")
    with pytest.raises(KeyboardInterrupt), mine.lock():
        raise KeyboardInterrupt
    assert mine.folder.exists()


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    code = f"""
import os, pathlib
from burnish.runs import Run
with Run(pathlib.Path({str(tmp_path)!r})).lock():
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert "process" in (tmp_path / "lock").read_text()

    with Run(tmp_path).lock():
        pass


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk is full; what was there before is kept"),
        (errno.EACCES, "no permission to write there"),
    ],
)
def test_a_write_that_fails_leaves_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    path = tmp_path / "evaluation.json"
    runs.write(path, "old")

    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=message):
        runs.write(path, "new")

    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["evaluation.json"]


def test_json_that_every_reader_accepts() -> None:
    text = runs.dumps({"a": [float("inf"), 1.5], "b": {"c": float("nan")}})
    assert json.loads(text) == {"a": [None, 1.5], "b": {"c": None}}
