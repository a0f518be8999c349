"""One process is the identity; what is noticed of a launch; messages between processes.

Whole runs by two processes: test_processes.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from burnish.runs import flat
from burnish.world import World, gradient_of, join_world, share_weights


def test_alone_everything_is_the_identity() -> None:
    world = join_world()
    rows = torch.rand(3, 2)
    assert world == World() and world.main and world.device("auto") == "auto"
    assert world.gather(rows) is rows and world.gather_list([1, 2]) == [1, 2]
    assert world.any(True) and not world.any(False)
    world.average_gradients([])
    world.tracking.log({"iteration": 1}, 1)
    world.end()


def test_flat() -> None:
    assert flat({"a": {"b": {"c": 1}, "d": "text"}, "e": 2.5, "f": True}) == {"a/b/c": 1, "e": 2.5}


def launched(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    """Set environment variables as a launcher does."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_accelerate_that_starts_a_single_process_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The environment that `accelerate launch --num_processes 2` sets without GPUs."""
    launched(monkeypatch, ACCELERATE_MIXED_PRECISION="no", MASTER_ADDR="127.0.0.1")
    with pytest.warns(
        UserWarning, match="a single process.*--multi_gpu; or start them by torchrun"
    ):
        assert join_world() == World()

    monkeypatch.delenv("MASTER_ADDR")  # as with --num_processes 1
    assert join_world() == World()


def test_processes_that_do_not_see_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, WORLD_SIZE="2")
    alone = SimpleNamespace(num_processes=1, log_with=[])
    monkeypatch.setattr("accelerate.Accelerator", lambda **_: alone)
    with pytest.raises(ValueError, match="2 processes were launched, and accelerate sees 1"):
        join_world()


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, WORLD_SIZE="6", LOCAL_WORLD_SIZE="3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="3 processes.*this machine, which has 2 GPUs"):
        join_world()


def test_gradients_cross_in_few_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.world.BUCKET", 10)
    messages = []

    @dataclass(frozen=True)
    class Doubling(World):
        def mean(self, values: Tensor) -> Tensor:
            messages.append(len(values))
            return values * 2

    shapes = [(2, 3), (4,), (1,), (3, 4), (5,)]
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    parameters.append(nn.Parameter(torch.zeros(2, dtype=torch.bfloat16)))
    for number, parameter in enumerate(parameters[:-1]):
        parameter.grad = torch.full_like(parameter, number)
    parameters[1].grad = None  # this process has none, another may
    before = [gradient_of(parameter).clone() for parameter in parameters]

    Doubling(0, 2).average_gradients(iter(parameters))
    assert messages == [10, 1, 12, 5, 2]
    for parameter, gradient in zip(parameters, before, strict=True):
        assert parameter.grad is not None and parameter.grad.equal(2 * gradient)


def test_weights_of_the_main_process_cross_in_few_messages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("burnish.world.BUCKET", 10)

    @dataclass(frozen=True)
    class Second(World):
        def of_main(self, values: Tensor) -> Tensor:
            return values + 1

    shapes = [(2, 3), (4,), (1,), (3, 4)]
    parameters = [nn.Parameter(torch.rand(shape)) for shape in shapes]
    parameters.append(nn.Parameter(torch.ones(2, dtype=torch.bfloat16)))
    before = [parameter.detach().clone() for parameter in parameters]

    share_weights(World(), parameters)
    assert all(map(torch.equal, parameters, before))
    share_weights(Second(1, 2), iter(parameters))
    assert all(parameter.equal(old + 1) for parameter, old in zip(parameters, before, strict=True))


def test_a_missing_tracker_is_named_by_its_own_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.world.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="not installed; run: pip install tensorboard$"):
        join_world(["tensorboard"], None, "cpu")
