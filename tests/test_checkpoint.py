"""Checkpoints: round trip, damage, foreign folders, a full disk. No earlier checkpoint is lost."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from burnish.training import checkpoint
from burnish.training.checkpoint import State


def state(iteration: int) -> State:
    parameter = torch.nn.Parameter(torch.full((2, 3), float(iteration)))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    (parameter * 0.1).sum().backward()
    optimizer.step()
    advantage = {"seen": {"3": [[0.1], [1 / 3]]}}
    tensors = {"weights.layer.weight": parameter.detach()}
    memory = checkpoint.optimizer_tensors(optimizer)
    tensors |= {f"optimizer.{name}": tensor for name, tensor in memory.items()}
    return State(iteration, {"generator": tensors}, {"advantage": advantage})


def test_round_trip_is_exact(tmp_path: Path) -> None:
    saved = state(7)
    assert checkpoint.save(tmp_path, saved).name == "000007"
    restored = checkpoint.restore(tmp_path)
    assert restored is not None and restored.iteration == 7 and restored.memory == saved.memory
    old = saved.learners["generator"]
    new = restored.learners["generator"]
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_an_optimizer_continues_exactly(tmp_path: Path) -> None:
    def make() -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        parameter = torch.nn.Parameter(torch.ones(3))
        return parameter, torch.optim.AdamW([parameter], lr=0.1)

    def step(parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        (parameter**3).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    a, first = make()
    b, second = make()
    step(a, first)
    b.data.copy_(a.data)
    checkpoint.load_optimizer(second, checkpoint.optimizer_tensors(first))
    step(a, first)
    step(b, second)
    assert torch.equal(a, b)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for iteration in (1, 2, 3):
        checkpoint.save(tmp_path, state(iteration), keep=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["000002", "000003"]


def test_an_empty_folder_restores_nothing(tmp_path: Path) -> None:
    assert checkpoint.restore(tmp_path / "none") is None


@pytest.mark.parametrize(
    "damage", ["truncated", "changed", "no state", "torn state", "foreign", "newer", "empty"]
)
def test_a_damaged_or_foreign_checkpoint_is_skipped(tmp_path: Path, damage: str) -> None:
    checkpoint.save(tmp_path, state(1))
    newest = checkpoint.save(tmp_path, state(2))
    tensors = newest / "tensors.safetensors"
    about = newest / "state.json"

    if damage == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-7])
    elif damage == "changed":
        tensors.write_bytes(tensors.read_bytes()[:-1] + b"\x01")
    elif damage == "no state":
        about.unlink()
    elif damage == "torn state":
        about.write_text(about.read_text()[:20])
    elif damage == "foreign":
        about.write_text('["something", "else"]')
    elif damage == "newer":
        about.write_text(about.read_text().replace('"format": 2', '"format": 99'))
    elif damage == "empty":
        tensors.write_bytes(b"")

    with pytest.warns(UserWarning, match=r"000002: .*; it is skipped"):
        restored = checkpoint.restore(tmp_path)

    assert restored is not None and restored.iteration == 1
    checkpoint.save(tmp_path, state(2), keep=1)
    replaced = checkpoint.restore(tmp_path)
    assert replaced is not None and replaced.iteration == 2, "the damaged one is replaced"


def test_a_damaged_later_checkpoint_does_not_replace_an_intact_one(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state(9))
    (tmp_path / "000009" / "state.json").unlink()
    checkpoint.save(tmp_path, state(3), keep=1)

    with pytest.warns(UserWarning, match="000009"):
        restored = checkpoint.restore(tmp_path)

    assert restored is not None and restored.iteration == 3


def test_all_damaged_is_an_error(tmp_path: Path) -> None:
    (checkpoint.save(tmp_path, state(1)) / "state.json").unlink()

    with (
        pytest.warns(UserWarning, match="000001"),
        pytest.raises(
            ValueError,
            match=r"none of its 1 checkpoints is intact \(.*train again with another --out",
        ),
    ):
        checkpoint.restore(tmp_path)


@pytest.mark.parametrize(
    "full",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_keeps_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: Exception
) -> None:
    checkpoint.save(tmp_path, state(1))

    def half(tensors: dict, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise full

    monkeypatch.setattr(checkpoint, "save_file", half)
    with pytest.raises(
        OSError, match=r"000002 could not be written: the disk is full; .*free some space"
    ):
        checkpoint.save(tmp_path, state(2), keep=1)

    assert [path.name for path in tmp_path.iterdir()] == ["000001"]
    restored = checkpoint.restore(tmp_path)
    assert restored is not None and restored.iteration == 1
