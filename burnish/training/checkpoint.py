"""Checkpoints: everything needed to go on with a run as if it had never stopped. Safetensors and
JSON, never pickle.

    checkpoints/000012/tensors.safetensors    what was learned, its average if any, and the optimizers' moments
    checkpoints/000012/state.json             the iteration, what the parts remember, and the SHA-256 of the tensors

A checkpoint is written into a temporary folder, flushed to the disk and renamed, so one that can be
seen is whole; the digest tells when it was damaged later. Nothing random is stored: every iteration
derives its random numbers from (seed, iteration), see `trainer`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from burnish.errors import os_error_context
from burnish.runs import dumps, write

FORMAT = 1


@dataclass(frozen=True)
class State:
    """A run between two iterations."""

    iteration: int  # iterations that are done
    weights: dict[str, Tensor]  # trained tensors by name
    # "index.key": the optimizer's memory of the parameter of that place
    optimizer: dict[str, Tensor]
    advantage: dict[str, Any] = field(default_factory=dict)  # JSON-able
    curriculum: dict[str, Any] = field(default_factory=dict)  # JSON-able
    scaler: dict[str, Any] = field(default_factory=dict)  # loss scaling in float16; JSON-able
    # a moving average of the weights, if there is one
    average: dict[str, Tensor] = field(default_factory=dict)
    averaged: int = 0  # optimizer steps in it
    # what the prompt expander learned, by name
    expander: dict[str, Tensor] = field(default_factory=dict)
    wordsmith: dict[str, Tensor] = field(default_factory=dict)  # its optimizer's memory


def save(folder: Path, state: State, keep: int = 2, spared: int = 0) -> Path:
    """Write `state` as `folder/<iteration>`, then delete all but the `keep` newest checkpoints and
    the `spared` one.

    Raises OSError with one sentence when the disk is full; the checkpoints that were there stay.
    """
    final = folder / f"{state.iteration:06d}"
    temporary = folder / f".{final.name}.part"

    try:
        with saving(final):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            digest = _write_tensors(temporary / "tensors.safetensors", state)
            about = {
                "format": FORMAT,
                "iteration": state.iteration,
                "sha256": digest,
                "advantage": state.advantage,
                "curriculum": state.curriculum,
                "scaler": state.scaler,
                "averaged": state.averaged,
                "torch": str(torch.__version__),
            }
            write(temporary / "state.json", dumps(about, indent=1))
            # only a damaged one can be there: it was not resumed from
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

    # One with a higher number is damaged, or it would have been resumed from: it must not push out
    # a whole one.
    for old in [path for path in _numbered(folder) if int(path.name) <= state.iteration][:-keep]:
        if int(old.name) != spared:
            shutil.rmtree(old, ignore_errors=True)

    return final


def forget(folder: Path, iteration: int) -> None:
    """Delete the checkpoints after `iteration`."""
    for path in _numbered(folder):
        if int(path.name) > iteration:
            shutil.rmtree(path)


def restore(folder: Path) -> State | None:
    """The newest checkpoint that is whole; None if there is none at all.

    A damaged or foreign one is skipped with a warning. Raises ValueError if there are checkpoints
    but none is whole.
    """
    found = _numbered(folder)
    for path in reversed(found):
        try:
            return read(path)
        except (ValueError, OSError) as error:
            warnings.warn(f"{error}; it is skipped", stacklevel=2)

    if found:
        raise ValueError(
            f"{folder}: none of its {len(found)} checkpoints is whole; train again with another --out"
        )

    return None


def read(path: Path) -> State:
    """The checkpoint in one folder; ValueError if it is damaged or something else."""
    try:
        about = json.loads((path / "state.json").read_text("utf-8"))
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise ValueError(f"{path}: not a checkpoint of this version of Burnish")
        if _digest(path / "tensors.safetensors") != about["sha256"]:
            raise ValueError(f"{path}: damaged: its tensors are not what was written")

        tensors = load_file(path / "tensors.safetensors")
        return State(
            iteration=int(about["iteration"]),
            weights=_under("weights.", tensors),
            optimizer=_under("optimizer.", tensors),
            advantage=about["advantage"],
            curriculum=about.get("curriculum", {}),
            scaler=about["scaler"],
            average=_under("average.", tensors),
            averaged=int(about.get("averaged", 0)),
            expander=_under("expander.", tensors),
            wordsmith=_under("wordsmith.", tensors),
        )
    except (
        OSError,
        SafetensorError,
        json.JSONDecodeError,
        UnicodeDecodeError,
        KeyError,
        TypeError,
    ) as error:
        raise ValueError(
            f"{path}: not a whole checkpoint ({type(error).__name__}: {error})"
        ) from error


def whole(path: Path) -> bool:
    """Whether the checkpoint in one folder is there and undamaged."""
    try:
        read(path)
    except ValueError:
        return False

    return True


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """`os_error_context`, also for tensors: their library wraps the system's error in a text."""
    with os_error_context(path):
        try:
            yield
        except SafetensorError as error:
            full = "os error 28" in str(error) or "No space" in str(error)
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimizer remembers, flat: "index.key" -> tensor, on the CPU.

    An 8-bit one wraps some of it in a table of its own, which is laid flat too: it takes it back
    either way.
    """
    tensors: dict[str, Tensor] = {}

    for index, entries in optimizer.state_dict()["state"].items():
        flat = dict(entries)
        for key in [key for key, value in entries.items() if isinstance(value, dict)]:
            flat |= flat.pop(key)

        tensors |= {
            f"{index}.{key}": torch.as_tensor(value).detach().cpu().clone()
            for key, value in flat.items()
        }

    return tensors


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give the optimizer back what `optimizer_tensors` took from it; its settings stay its own."""
    memory: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        counter = not tensor.dim() and tensor.dtype == torch.int64  # was a plain number
        memory.setdefault(int(index), {})[key] = int(tensor) if counter else tensor

    optimizer.load_state_dict(
        {"state": memory, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def _write_tensors(path: Path, state: State) -> str:
    tensors = {
        f"weights.{name}": tensor.detach().cpu().contiguous()
        for name, tensor in state.weights.items()
    }
    tensors |= {
        f"average.{name}": tensor.detach().cpu().contiguous()
        for name, tensor in state.average.items()
    }
    tensors |= {
        f"optimizer.{name}": tensor.contiguous() for name, tensor in state.optimizer.items()
    }
    tensors |= {f"expander.{name}": tensor.contiguous() for name, tensor in state.expander.items()}
    tensors |= {
        f"wordsmith.{name}": tensor.contiguous() for name, tensor in state.wordsmith.items()
    }
    save_file(tensors, path)

    with open(path, "rb+") as file:
        os.fsync(file.fileno())

    return _digest(path)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)

    return digest.hexdigest()


def _numbered(folder: Path) -> list[Path]:
    """The checkpoints by rising iteration."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name.isdigit())


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
