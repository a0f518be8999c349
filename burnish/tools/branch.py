"""A run goes another way: from one of its checkpoints in a new folder, or back to one of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from burnish import config as configuration
from burnish import votes
from burnish.files import dumps, make_folder, replace, sync_folder, write
from burnish.runs import OF_ITERATION, Run
from burnish.training import checkpoint


def branch(run: Run, iteration: int, out: str | os.PathLike[str]) -> Run:
    """Return a new run in `out` that is what `run` was after an iteration.

    It has that checkpoint, and the log, grids and evaluations up to it. Trackers file it anew.

    Args:
        run: stays as it is, and may go on meanwhile.
        iteration: of one of its checkpoints.
        out: a new folder.

    Raises:
        FileExistsError: anything is in the folder.
        FileNotFoundError: there is no checkpoint of this iteration.
        ValueError: the checkpoint is damaged.
    """
    source = intact_checkpoint(run, iteration)
    config = configuration.load(run.config, purpose="compare")
    is_new = not Path(out).exists()
    new = Run.create(out)

    with new.lock(is_new):
        make_folder(new.checkpoints)
        copied = new.checkpoints / f".{source.name}.part"
        shutil.copytree(source, copied)
        replace(copied, new.checkpoints / source.name)

        for folder in (run.samples, run.evaluation_file(0).parent):
            copy_until(folder, new.folder / folder.name, iteration)
        votes.copy_until(run, new, iteration)
        if run.origin.is_file():
            shutil.copyfile(run.origin, new.origin)

        records = [record for record in run.records() if record["iteration"] <= iteration]
        write(new.log, "".join(f"{dumps(record)}\n" for record in records))
        # last: with it the folder is a run
        write(new.config, configuration.dump(config, new.folder))

    return new


def roll_back(run: Run, iteration: int) -> None:
    """Make the state after an iteration the newest of a run: what is later is deleted.

    The adapter is deleted too; going on with the run writes it anew, from the checkpoint.

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
        for path in (run.export, run.evaluation, run.guard):
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
