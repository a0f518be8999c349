"""A run goes another way: from one of its checkpoints in a new folder, or back to one of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from burnish import config as configuration
from burnish import votes
from burnish.files import dumps, flush_folder, make_folder, replace, sync_folder, write
from burnish.runs import OF_ITERATION, Run, check_free
from burnish.training import checkpoint


def branch(run: Run, iteration: int, out: str | os.PathLike[str]) -> Run:
    """Return a new run in `out` that is what `run` was after an iteration.

    It has that checkpoint, and the log, grids, evaluations, questions and votes up to it. Trackers
    file it anew. It is made in a hidden folder beside `out`, and is there as a whole or not at all.

    Args:
        run: stays as it is, and may go on meanwhile.
        iteration: of one of its checkpoints.
        out: a new folder.

    Raises:
        FileExistsError: anything is in the folder.
        FileNotFoundError: there is no checkpoint of this iteration.
        RuntimeError: another process is making a branch of this name.
        ValueError: the checkpoint is damaged.
    """
    source = intact_checkpoint(run, iteration)
    config = configuration.load(run.config, purpose="compare")
    check_free(Path(out))
    target = Path(os.path.realpath(out))
    hidden = Run(target.with_name(f".{target.name}.part"))

    with hidden.lock():
        try:
            empty(hidden.folder)  # of what a branch has left that was killed
            shutil.copytree(source, hidden.checkpoints / source.name)
            copy_files(run, hidden, iteration)
            write(hidden.config, configuration.dump(config, Path(out)))
            flush_folder(hidden.folder)
            publish(hidden.folder, target)
        except BaseException:
            shutil.rmtree(hidden.folder, ignore_errors=True)
            raise

    return Run(Path(out))


def copy_files(run: Run, new: Run, iteration: int) -> None:
    """Copy what a run has recorded up to an iteration."""
    for folder in (run.samples, run.evaluation_file(0).parent):
        copy_until(folder, new.folder / folder.name, iteration)
    votes.copy_until(run, new, iteration)
    if run.origin.is_file():
        shutil.copyfile(run.origin, new.origin)

    records = [record for record in run.records() if record["iteration"] <= iteration]
    write(new.log, "".join(f"{dumps(record)}\n" for record in records))


def empty(folder: Path) -> None:
    """Delete all that is in a folder but the lock."""
    for path in folder.iterdir():
        if path.name == "lock":
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def publish(source: Path, target: Path) -> None:
    """Move a folder to its place, where there is nothing, or a folder without a run.

    Raises:
        FileExistsError: a run was begun there meanwhile.
        RuntimeError: a process is about to begin one.
    """
    if target.exists():
        with Run(target).lock():
            check_free(target)
            shutil.rmtree(target)
    replace(source, target)


def roll_back(run: Run, iteration: int) -> None:
    """Make the state after an iteration the newest of a run: what is later is deleted.

    The adapter is deleted too; going on with the run writes it anew, from the checkpoint. Questions
    and votes stay: where the run comes to the same images, they are not asked for again.

    Args:
        run: that no process is training.
        iteration: of one of its checkpoints.

    Raises:
        FileNotFoundError: there is no checkpoint of this iteration.
        RuntimeError: the run is in use.
        ValueError: the checkpoint is damaged.
    """
    with run.lock():
        intact_checkpoint(run, iteration)

        # first what speaks of the newest state, so that a crash leaves nothing that is wrong
        for path in (run.export, run.evaluation, run.guard, run.waiting):
            path.unlink(missing_ok=True)
        for folder in (run.adapter, run.groups):
            shutil.rmtree(folder, ignore_errors=True)
        checkpoint.forget(run.checkpoints, iteration)
        run.forget(iteration)
        sync_folder(run.folder)


def intact_checkpoint(run: Run, iteration: int) -> Path:
    """Return the folder of a run's checkpoint after an iteration.

    Raises:
        FileNotFoundError: there is none; the message lists those that there are.
        ValueError: it is damaged.
    """
    path = run.checkpoints / f"{iteration:06d}"
    if not path.is_dir():
        names = sorted(one.name for one in run.checkpoints.glob("[0-9]*") if one.name.isdigit())
        found = ", ".join(str(int(name)) for name in names) or "none"
        raise FileNotFoundError(
            f"{run.folder} has no checkpoint of iteration {iteration}; it has {found} "
            "(run.keep says how many a training keeps)"
        )

    checkpoint.read(path)
    return path


def copy_until(source: Path, target: Path, iteration: int) -> None:
    """Copy the files of a folder but those of later iterations."""
    for path in sorted(source.glob("*")):
        match = OF_ITERATION.fullmatch(path.stem)
        if path.name.startswith(".") or (match and int(match[1] or match[2]) > iteration):
            continue
        make_folder(target)
        shutil.copyfile(path, target / path.name)
