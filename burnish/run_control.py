"""The control file of a run: what somebody asks of a training while it goes on.

    RUN/control.json    {"save": true, "sample": true, "evaluate": true, "strength": 0.5,
                         "stop": true}

Whoever watches a run writes it (`burnish studio`, or an editor). The main process of the training
takes it away after each iteration and does what it asks for. A stop is seen before each chunk of
images too; what else was asked for is done before the run ends. A file that is none of this is
ignored with a warning: it must not end a run that has trained for hours. Standard library only.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from burnish.annotations import Bounds, complaint
from burnish.files import dumps, read_text, write
from burnish.runs import Run, locked

LARGEST = 4096
"""Bytes: a control file is never larger."""

STRONGEST = 2.0
"""The largest adapter strength at which images are drawn; beyond it they fall apart."""


class ControlFile(TypedDict):
    """control.json."""

    stop: NotRequired[bool]
    save: NotRequired[bool]
    sample: NotRequired[bool]
    evaluate: NotRequired[bool]
    strength: NotRequired[Annotated[float, Bounds(0, STRONGEST)] | None]


@dataclass(frozen=True)
class Requests:
    """The requests to a training that have not been carried out."""

    stop: bool = False  # at the next safe point, then save
    save: bool = False  # a checkpoint
    sample: bool = False  # the sample grid
    evaluate: bool = False  # compare with the model before training
    strength: float | None = None  # draw the sample grid with the adapter at this strength

    def and_also(self, later: Requests) -> Requests:
        """Return these requests and later ones, of which the strength counts."""
        changed = {
            name: value for name, value in vars(later).items() if value != vars(NOTHING)[name]
        }
        return replace(self, **changed)


NOTHING = Requests()


def ask(run: Run, **requests: bool | float) -> None:
    """Add requests, fields of `Requests`, to those that the training has not taken yet.

    Raises:
        RuntimeError: another program holds the file.
    """
    with locked(run.control_lock):
        wanted = replace(pending(run), **requests)  # type: ignore[arg-type]
        write(run.control, dumps(asdict(wanted)))


def pending(run: Run) -> Requests:
    """Return what was asked for and not taken yet; nothing if the file cannot be used."""
    return _read(run.control)


def take(run: Run) -> Requests:
    """Return what was asked for, and take it away: a later request is a new file."""
    if not run.control.exists():
        return NOTHING

    taken = run.folder / ".control.json.part"
    try:
        with locked(run.control_lock):
            os.replace(run.control, taken)
    except (OSError, RuntimeError) as error:
        warnings.warn(f"{run.control}: {error}; it is ignored", stacklevel=2)
        return NOTHING

    requests = _read(taken, report=True)
    taken.unlink(missing_ok=True)
    return requests


def stop_requested(run: Run) -> bool:
    """Return whether a stop was asked for; this takes microseconds where nothing was."""
    return run.control.exists() and pending(run).stop


def strength_grid(run: Run, iteration: int, strength: float) -> Path:
    """Return the path of the sample grid with the adapter at a strength, named in percent."""
    return run.samples / f"strength-{iteration:06d}-{round(100 * strength):03d}.png"


def clear(run: Run) -> None:
    """Forget all requests: they were to an earlier start."""
    run.control.unlink(missing_ok=True)


def _read(path: Path, report: bool = False) -> Requests:
    try:
        return _requests(path)
    except (OSError, ValueError, RecursionError) as error:
        if report:
            warnings.warn(f"control.json is ignored: {error}", stacklevel=3)
        return NOTHING


def _requests(path: Path) -> Requests:
    if not path.is_file():
        return NOTHING
    if path.stat().st_size > LARGEST:
        raise ValueError(f"it has more than {LARGEST} bytes")

    content: Mapping[str, Any] = json.loads(read_text(path))
    if wrong := complaint(content, ControlFile, ""):
        raise ValueError(wrong)
    return Requests(**{name: content[name] for name in asdict(NOTHING) if name in content})
