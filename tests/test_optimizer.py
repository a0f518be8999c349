"""AdamW in 32 and in 8 bits: its settings are used, and a resumed run goes on bit for bit."""

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
    """Return two large parameters, one of them in another layout, and a small one."""
    convolution = torch.randn(32, 16, 3, 3, generator=generator()).to(
        memory_format=torch.channels_last
    )
    shapes = ((128, 64), (7,))
    return [
        nn.Parameter(convolution),
        *(nn.Parameter(torch.randn(shape, generator=generator())) for shape in shapes),
    ]


def take_steps(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], seeds: range) -> None:
    for seed in seeds:
        for parameter in weights:
            parameter.grad = torch.randn(parameter.shape, generator=generator(seed))
        optimizer.step()


def test_32_bits_are_torchs_with_every_setting() -> None:
    weights = parameters()
    expected = parameters()
    optimizer = adamw(SETTINGS)(weights)
    stock = torch.optim.AdamW(expected, lr=1e-2, betas=(0.8, 0.95), weight_decay=0.1, eps=1e-6)
    take_steps(optimizer, weights, range(3))
    take_steps(stock, expected, range(3))
    assert all(torch.equal(a, b) for a, b in zip(weights, expected, strict=True))


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


def test_a_missing_library_is_an_error_before_the_model_is_loaded(
    recipe: Callable[..., configuration.Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bitsandbytes", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, name, None)

    config = recipe(f"model.id={tmp_path}/nowhere")
    for start in (preflight, partial(train, out=tmp_path / "run")):
        with pytest.raises(ValueError, match="pip install bitsandbytes, or set") as caught:
            start(config)  # type: ignore[operator]
        assert "\n" not in str(caught.value)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    return sum(tensor.nbytes for tensor in checkpoint.optimizer_tensors(optimizer).values())


def test_8_bits_are_close_and_a_quarter_of_the_memory() -> None:
    pytest.importorskip("bitsandbytes")
    first = parameters()
    weights_8 = parameters()
    weights_32 = parameters()
    optimizer_8 = adamw(EIGHT)(weights_8)
    optimizer_32 = adamw(OptimizerConfig(lr=1e-2, weight_decay=0.1))(weights_32)
    take_steps(optimizer_8, weights_8, range(5))
    take_steps(optimizer_32, weights_32, range(5))

    for start, a, b in zip(first, weights_8, weights_32, strict=True):
        assert (a - b).norm() < 0.15 * (b - start).norm()

    # with 4 kB of tables for each of the two large tensors
    assert state_bytes(optimizer_8) < 0.35 * state_bytes(optimizer_32)


def test_a_restored_8_bit_optimizer_takes_the_same_steps(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    weights = parameters()
    optimizer = adamw(EIGHT)(weights)
    take_steps(optimizer, weights, range(3))
    learner = {f"weights.{i}": parameter.detach() for i, parameter in enumerate(weights)}
    memory = checkpoint.optimizer_tensors(optimizer)
    learner |= {f"optimizer.{name}": tensor for name, tensor in memory.items()}
    checkpoint.save(tmp_path, checkpoint.State(1, {"generator": learner}))

    state = checkpoint.restore(tmp_path)
    assert state is not None
    saved = state.learners["generator"]
    moments = checkpoint.under("optimizer.", saved)
    assert {tensor.dtype for tensor in moments.values()} >= {torch.uint8, torch.float32}

    restored_weights = parameters()
    restored = adamw(EIGHT)(restored_weights)
    with torch.no_grad():
        for i, parameter in enumerate(restored_weights):
            parameter.copy_(saved[f"weights.{i}"])

    checkpoint.load_optimizer(restored, moments)
    take_steps(optimizer, weights, range(3, 5))
    take_steps(restored, restored_weights, range(3, 5))
    assert all(torch.equal(a, b) for a, b in zip(weights, restored_weights, strict=True))


def test_a_run_with_8_bits_resumes_bit_for_bit(
    recipe: Callable[..., configuration.Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optim = pytest.importorskip("bitsandbytes.optim")
    # the tiny network has no tensor that is large enough for 8 bits by default
    monkeypatch.setattr(optim, "AdamW8bit", partial(optim.AdamW8bit, min_8bit_size=16))
    uninterrupted = tmp_path / "uninterrupted"
    resumed = tmp_path / "resumed"
    train(recipe("iterations=3"), uninterrupted)
    train(recipe("iterations=1"), resumed)
    train(recipe("iterations=3"), resumed, resume=True)
    file = "checkpoints/000003/tensors.safetensors"
    assert (uninterrupted / file).read_bytes() == (resumed / file).read_bytes()
