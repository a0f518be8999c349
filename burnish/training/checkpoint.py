"""Checkpoints: everything needed to go on as if a run had never stopped. No pickle.

    checkpoints/000012/tensors.safetensors    each learner's weights, average and optimizer
    checkpoints/000012/state.json             the iteration, what the parts remember, where the run
                                              comes from, and the SHA-256 of the tensors

A checkpoint is written into a temporary folder, flushed to the disk and renamed, so one that can be
seen is intact; digests of both files show when it was damaged or edited later. Nothing random is
stored: every iteration derives its random numbers from (seed, iteration), see `seeds`.
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from burnish.annotations import complaint
from burnish.diffusion.sharding import gathered, part_of
from burnish.errors import os_error_context, type_and_message
from burnish.files import (
    dumps,
    flush,
    json_object,
    make_folder,
    read_text,
    remove_folder,
    replace,
    sha256,
    sync_folder,
    write,
)
from burnish.run_files import StateFile

FORMAT = 2


class OtherVersionError(ValueError):
    """A checkpoint that another version of Burnish wrote."""


@dataclass(frozen=True)
class State:
    """A run between two iterations."""

    iteration: int  # iterations that are done
    learners: dict[str, dict[str, Tensor]]  # by name, what `Learner.state` returned
    memory: dict[str, Any] = field(default_factory=dict)  # by part, JSON: advantage, curriculum
    origin: dict[str, Any] = field(default_factory=dict)  # see `training.origin`; {}: not known


def save(folder: Path, state: State, keep: int = 2, spared: int = 0) -> Path:
    """Write `state` as `folder/<iteration>` and delete older checkpoints.

    Args:
        folder: of all checkpoints.
        state: to write.
        keep: how many of the newest stay.
        spared: the iteration of one more that stays.

    Returns:
        The new checkpoint's folder.

    Raises:
        OSError: the disk is full; the checkpoints that were there stay.
    """
    final = folder / f"{state.iteration:06d}"
    temporary = folder / f".{final.name}.part"

    try:
        with tensor_error_context(final):
            shutil.rmtree(temporary, ignore_errors=True)
            make_folder(temporary)
            about = {
                "format": FORMAT,
                "iteration": state.iteration,
                "sha256": _write_tensors(temporary / "tensors.safetensors", state),
                "learners": list(state.learners),
                "memory": state.memory,
                "origin": state.origin,
                "torch": str(torch.__version__),
            }
            digest = {"digest": _text_digest(about)}
            write(temporary / "state.json", dumps(about | digest, indent=1))
            sync_folder(temporary)
            # only a damaged one can be there: it was not resumed from
            shutil.rmtree(final, ignore_errors=True)
            replace(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

    prune(folder, state.iteration, keep, spared)
    return final


def prune(folder: Path, iteration: int, keep: int, spared: int = 0) -> None:
    """Delete the checkpoints before the `keep` newest up to `iteration`, but for `spared`."""
    # One with a higher number is damaged, or it would have been resumed from: it must not push out
    # an intact one.
    older = [path for path in _numbered(folder) if int(path.name) <= iteration]
    for path in older[:-keep]:
        if int(path.name) != spared:
            remove_folder(path)


def forget(folder: Path, iteration: int) -> None:
    """Delete the checkpoints after `iteration`, the newest first."""
    for path in reversed(_numbered(folder)):
        if int(path.name) > iteration:
            remove_folder(path)


def newest(folder: Path) -> dict[str, Any]:
    """Return the state.json of the newest checkpoint that has one; {} if there is none.

    Its tensors are not read.
    """
    for path in reversed(_numbered(folder)):
        with suppress(ValueError, OSError):
            return _read_state(path)
    return {}


def restore(folder: Path) -> State | None:
    """Return the newest intact checkpoint, or None if there are no checkpoints.

    A damaged or foreign one is skipped with a warning.

    Raises:
        ValueError: there are checkpoints, but none is intact.
    """
    checkpoints = _numbered(folder)
    other_versions = 0
    faults: list[str] = []

    for path in reversed(checkpoints):
        try:
            return read(path)
        except (ValueError, OSError) as error:
            other_versions += isinstance(error, OtherVersionError)
            faults.append(str(error))
            warnings.warn(f"{error}; it is skipped", stacklevel=2)

    if checkpoints and other_versions == len(checkpoints):
        raise ValueError(
            f"{folder}: another version of Burnish wrote these checkpoints; start a new --out from "
            f'what was learned, with model.adapter = "{folder.parent / "adapter"}"'
        )
    if checkpoints:
        raise ValueError(
            f"{folder}: none of its {len(checkpoints)} checkpoints is intact ({faults[0]}); train "
            "again with another --out"
        )
    return None


def read(path: Path) -> State:
    """Return the checkpoint in one folder.

    Raises:
        ValueError: it is damaged or something else.
    """
    try:
        about = _read_state(path)
        if wrong := complaint(about, StateFile, ""):
            raise ValueError(f"{path}: not an intact checkpoint: in state.json {wrong}")
        if sha256(path / "tensors.safetensors") != about["sha256"]:
            raise ValueError(f"{path}: damaged: its tensors are not what was written")

        tensors = load_file(path / "tensors.safetensors")
        return State(
            iteration=about["iteration"],
            learners={name: under(f"{name}/", tensors) for name in about["learners"]},
            memory=dict(about["memory"]),
            origin=dict(about.get("origin", {})),
        )
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        reason = type_and_message(error)
        raise ValueError(f"{path}: not an intact checkpoint ({reason})") from error


def _read_state(path: Path) -> dict[str, Any]:
    """Return the state.json in a checkpoint's folder, as it was written.

    Raises:
        ValueError: it is of another version, or was changed since.
    """
    text = read_text(path / "state.json")
    about = json_object(text, f"{path}: its state.json", "it is damaged")
    if about.get("format") != FORMAT:
        raise OtherVersionError(f"{path}: not a checkpoint of this version of Burnish")

    digest = about.pop("digest", None)
    if digest is not None and digest != _text_digest(about):
        raise ValueError(f"{path}: damaged: its state.json is not what was written")

    iteration = about.get("iteration")
    if type(iteration) is not int or iteration != int(path.name):
        raise ValueError(f"{path}: damaged: its state.json is of iteration {iteration}")
    return about


def is_intact(path: Path) -> bool:
    """Return whether the checkpoint in one folder is there and undamaged."""
    try:
        read(path)
    except ValueError:
        return False
    return True


@contextmanager
def tensor_error_context(path: Path) -> Iterator[None]:
    """Extend `os_error_context` to safetensors, which wraps the system's error in a text."""
    with os_error_context(path):
        try:
            yield
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's memory as "index.key" -> tensor, on the CPU.

    An 8-bit one wraps some of it in a table of its own, which is laid flat too: it takes it back
    either way. That of a sharded network is brought together, see `gathered`.
    """
    tensors: dict[str, Tensor] = {}

    for index, entries in optimizer.state_dict()["state"].items():
        flat = dict(entries)
        for key in [key for key, value in entries.items() if isinstance(value, dict)]:
            flat |= flat.pop(key)

        tensors |= {
            f"{index}.{key}": gathered(torch.as_tensor(value)).clone()
            for key, value in flat.items()
        }

    return tensors


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore what `optimizer_tensors` returned; the optimizer's settings stay its own."""
    memory: dict[int, dict[str, Any]] = {}
    parameters = [one for group in optimizer.param_groups for one in group["params"]]

    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        counter = not tensor.dim() and tensor.dtype == torch.int64  # was a plain number
        of_weights = tensor.dim() > 0 and int(index) < len(parameters)
        value = part_of(tensor, parameters[int(index)]) if of_weights else tensor
        memory.setdefault(int(index), {})[key] = int(tensor) if counter else value

    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": memory, "param_groups": groups})


def prefixed(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with `name` and a point before their names."""
    return {f"{name}.{key}": tensor for key, tensor in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, by the rest of their names."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _write_tensors(path: Path, state: State) -> str:
    tensors = {
        f"{learner}/{name}": tensor.detach().cpu().contiguous()
        for learner, named in state.learners.items()
        for name, tensor in named.items()
    }
    save_file(tensors, path)
    with open(path, "rb+") as file:
        flush(file)
    return sha256(path)


def _text_digest(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(dumps(about).encode()).hexdigest()


def _numbered(folder: Path) -> list[Path]:
    """Return the checkpoints by rising iteration."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_dir() and path.name.isascii() and path.name.isdigit()
    )
