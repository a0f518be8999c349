"""RUN/adapter says of which iteration it is, and is read only if that is the run's newest state."""

from __future__ import annotations

from shlex import quote
from typing import Any

from burnish.files import dumps, sha256, write
from burnish.run_files import read_json
from burnish.runs import Run
from burnish.training import checkpoint


def write_export(run: Run, iteration: int) -> None:
    """Write of which iteration the files in RUN/adapter are, with a digest of each."""
    files = sorted(path for path in run.adapter.rglob("*") if path.is_file())
    digests = {path.relative_to(run.adapter).as_posix(): sha256(path) for path in files}
    write(run.export, dumps({"iteration": iteration, "files": digests}, indent=1))


def exported_iteration(run: Run) -> int | None:
    """Return the iteration that RUN/adapter is of; None where an older version wrote it.

    Raises:
        FileNotFoundError: there is no adapter.
        ValueError: its files are not those of the run's newest checkpoint.
    """
    if not run.adapter.is_dir():
        done = checkpoint.newest(run.checkpoints).get("iteration", 0)
        resume = f"burnish train --resume --out {quote(str(run.folder))} --set iterations={done}"
        raise FileNotFoundError(
            f"{run.adapter} is missing, as in every branch and after a rollback; write it by "
            f"{resume}, or train further"
            if done
            else f"{run.adapter} is missing: train {run.folder} first, or draw with --before"
        )

    newest = checkpoint.newest(run.checkpoints)
    if not run.export.is_file() and not newest.get("origin"):
        return None

    remedy = f"burnish train --resume --out {quote(str(run.folder))} writes it anew"
    about = read_json(run.export, dict[str, Any], remedy) if run.export.is_file() else {}
    files = about.get("files")
    iteration = about.get("iteration")
    done = newest.get("iteration", 0)

    if not isinstance(files, dict) or type(iteration) is not int or not _are_intact(run, files):
        raise ValueError(f"{run.adapter} is not complete: its writing was interrupted; {remedy}")
    if iteration < done:
        raise ValueError(
            f"{run.adapter} is of iteration {iteration}, and the newest checkpoint of {done}: the "
            f"run was interrupted in between; {remedy}"
        )
    return iteration


def _are_intact(run: Run, files: dict[str, str]) -> bool:
    paths = {run.adapter / name: digest for name, digest in files.items()}
    return all(path.is_file() and sha256(path) == digest for path, digest in paths.items())
