"""AdamW in 32 and in 8 bits: what is asked for is made, and a resumed run goes on bit for bit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import generator
from torch import nn

from burnish import config as configuration
from burnish.config import OptimizerConfig
from burnish.tools.preflight import preflight
from burnish.training import checkpoint
from burnish.training.loop import train
from burnish.training.optimizer import adamw

SETTINGS = OptimizerConfig(lr=1e-2, betas=[0.8, 0.95], weight_decay=0.1, eps=1e-6)
EIGHT = OptimizerConfig(lr=1e-2, weight_decay=0.1, eight_bit=True)


def parameters() -> list[nn.Parameter]:
    """Large ones, one of them in another layout, and a small one."""
    convolution = torch.randn(32, 16, 3, 3, generator=generator()).to(
        memory_format=torch.channels_last
    )
    shapes = ((128, 64), (7,))
    return [
        nn.Parameter(convolution),
        *(nn.Parameter(torch.randn(shape, generator=generator())) for shape in shapes),
    ]


def steps(optimizer: torch.optim.Optimizer, own: list[nn.Parameter], seeds: range) -> None:
    for seed in seeds:
        for parameter in own:
            parameter.grad = torch.randn(parameter.shape, generator=generator(seed))
        optimizer.step()


def test_32_bits_are_torchs_with_every_setting() -> None:
    own = parameters()
    theirs = parameters()
    optimizer = adamw(SETTINGS)(own)
    stock = torch.optim.AdamW(theirs, lr=1e-2, betas=(0.8, 0.95), weight_decay=0.1, eps=1e-6)
    steps(optimizer, own, range(3))
    steps(stock, theirs, range(3))
    assert all(torch.equal(a, b) for a, b in zip(own, theirs, strict=True))


@pytest.fixture
def recipe(write_recipe: Callable[..., Path]) -> Callable[..., configuration.Config]:
    def load(*changes: str) -> configuration.Config:
        path = write_recipe(
            iterations=2,
            model={"train": "full"},
            sampler={"steps": 2, "guidance": {"use": "none"}},
            prompts={"use": "list", "texts": ["a cat"]},
            optimizer={"lr": 1e-3, "eight_bit": True},
            batch={"prompts": 1, "images_per_prompt": 4, "sample_batch": 4, "train_batch": 4},
            evaluation={"images_per_prompt": 0},
            run={"sample_every": 0},
        )
        return configuration.load(path, changes)

    return load


def test_without_the_library_it_is_told_before_the_model_is_loaded(
    recipe: Callable[..., configuration.Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bitsandbytes", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, name, None)

    config = recipe(f"model.id={tmp_path}/nowhere")
    for start in (preflight, partial(train, out=tmp_path / "run")):
        with pytest.raises(ValueError, match=r'pip install "burnish\[eight-bit\]"') as caught:
            start(config)  # type: ignore[operator]
        assert "\n" not in str(caught.value)


def test_8_bits_are_close_and_a_quarter_of_the_memory() -> None:
    pytest.importorskip("bitsandbytes")
    first = parameters()
    eight = parameters()
    whole = parameters()
    small = adamw(EIGHT)(eight)
    large = adamw(OptimizerConfig(lr=1e-2, weight_decay=0.1))(whole)
    steps(small, eight, range(5))
    steps(large, whole, range(5))

    for start, a, b in zip(first, eight, whole, strict=True):
        assert (a - b).norm() < 0.15 * (b - start).norm()

    bytes_of = [
        sum(t.nbytes for t in checkpoint.optimizer_tensors(one).values()) for one in (small, large)
    ]
    assert bytes_of[0] < 0.35 * bytes_of[1]  # with 4 kB of tables for each of the two large tensors


def test_an_8_bit_optimizer_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    own = parameters()
    other = parameters()
    one = adamw(EIGHT)(own)
    two = adamw(EIGHT)(other)
    steps(one, own, range(3))
    weights = {str(i): parameter.detach() for i, parameter in enumerate(own)}
    learner = {f"weights.{name}": tensor for name, tensor in weights.items()}
    memory = checkpoint.optimizer_tensors(one)
    learner |= {f"optimizer.{name}": tensor for name, tensor in memory.items()}
    checkpoint.save(tmp_path, checkpoint.State(1, {"generator": learner}))
    found = checkpoint.restore(tmp_path)
    assert found is not None
    restored = checkpoint.under("optimizer.", found.learners["generator"])
    assert {t.dtype for t in restored.values()} >= {
        torch.uint8,
        torch.float32,
    }

    with torch.no_grad():
        for i, parameter in enumerate(other):
            parameter.copy_(found.learners["generator"][f"weights.{i}"])

    checkpoint.load_optimizer(two, restored)
    steps(one, own, range(3, 5))
    steps(two, other, range(3, 5))
    assert all(torch.equal(a, b) for a, b in zip(own, other, strict=True))


def test_a_run_with_8_bits_resumes_bit_for_bit(
    recipe: Callable[..., configuration.Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optim = pytest.importorskip("bitsandbytes.optim")
    # the tiny network has no large
    monkeypatch.setattr(optim, "AdamW8bit", partial(optim.AdamW8bit, min_8bit_size=16))
    whole = tmp_path / "whole"
    parted = tmp_path / "parted"
    train(recipe("iterations=3"), whole)
    train(recipe("iterations=1"), parted)
    train(recipe("iterations=3"), parted, resume=True)
    place = "checkpoints/000003/tensors.safetensors"
    assert (whole / place).read_bytes() == (parted / place).read_bytes()
