"""Apple GPUs have no float64 and are not called CUDA; none was at hand when this was written.

A device without numbers (meta) stands for one: whatever would make a float64 there fails.
"""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_memory_prediction import recipe, reduced
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import burnish
from burnish.diffusion import schedule, shapes
from burnish.tools.memory import predict
from burnish.types import Replay
from burnish.user_code import to_column
from burnish.world import World

META = torch.device("meta")


class AppleGPU(TorchDispatchMode):
    """Fails where an operation gives float64 on the meta device, or is to on the way from it."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call an operation of torch."""
        result = func(*args, **(kwargs or {}))
        copies = func is torch.ops.aten._to_copy.default and args[0].device == META
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (copies or tensor.device == META):
                assert tensor.dtype != torch.float64, f"{func} gives float64"
        return result


@pytest.fixture(autouse=True)
def without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "WITHOUT_FLOAT64", ("meta",))


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("sd15", ["objective={use='clipped',kl=0.1}"]),
        ("sd15", ["objective={use='dppo'}", "batch.minibatches=2"]),
        ("zimage", ["objective={use='nft'}"]),
    ],
    ids=["diffusion", "old predictions", "flow"],
)
def test_an_iteration_makes_no_float64(
    model: str, changes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(shapes.KNOWN, f"reduced/{model}", reduced(model))
    with AppleGPU():
        assert predict(recipe(model, *changes)).peak > 0


def test_the_stand_in_notices_float64() -> None:
    with AppleGPU(), pytest.raises(AssertionError, match="gives float64"):
        torch.zeros(2, device=META).double()


def objectives() -> dict[str, Any]:
    """Return an objective of each name with its defaults."""
    from burnish.catalog import BUILTIN, resolve

    return {name: resolve("objective", name)() for name in BUILTIN["objective"]}


@pytest.mark.parametrize("name", objectives())
def test_objectives_make_no_float64(name: str) -> None:
    pairs = torch.rand(4, 1, device=META, requires_grad=True)
    replay = Replay(
        logp=-pairs,
        logp_old=pairs.detach(),
        dims=8,
        logp_ref=pairs.detach(),
        kl=pairs,
        kl_old=pairs,
        mixture_errors=torch.rand(4, 2, device=META),
    )
    with Numbers(), AppleGPU():
        objectives()[name](replay, torch.rand(4)).value.backward()
    assert pairs.grad is not None


class Numbers(TorchDispatchMode):
    """Takes 1 for every number that is read from the meta device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call an operation of torch."""
        aten = torch.ops.aten
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default and args[0].device == META:
            return 1
        if func is aten._to_copy.default and args[0].device == META:
            device = kwargs.get("device")
            if device is not None and torch.device(device).type == "cpu":
                return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        return func(*args, **kwargs)


def test_a_reward_s_numbers_are_exact_after_they_have_come_to_the_cpu() -> None:
    with Numbers(), AppleGPU():
        column = to_column(torch.zeros(2, device=META), 2)
    assert column.dtype == torch.float64 and column.device.type == "cpu"


def test_several_processes_are_refused_on_the_one_apple_gpu() -> None:
    accelerator = SimpleNamespace(device=torch.device("cpu"))
    with pytest.raises(ValueError, match="2 processes cannot share the one Apple GPU"):
        World(0, 2, accelerator).device("mps")
    assert World(0, 2, accelerator).device("auto") == "cpu"
    assert World().device("mps") == "mps"


CUDA_ONLY = {
    "annotations",  # the names that a device may have
    "compat/trl/trainer",  # TRL's mixed precision
    "diffusion/frozen_linear",  # locks main memory, from which CUDA copies faster
    "diffusion/loading",  # which devices there are
    "diffusion/prompt_encoder",  # empties the allocator's cache, beside Apple's
    "rewards/vlm",  # in which precision to load
    "tools/preflight",  # measures time and memory, beside Apple's
    "world",  # several GPUs are CUDA's or AMD's
}
"""Modules that may name CUDA; ROCm has the same names in torch."""


def test_no_other_module_depends_on_cuda() -> None:
    package = Path(burnish.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            named = isinstance(node, ast.Attribute) and node.attr == "cuda"
            if named or (isinstance(node, ast.Constant) and node.value == "cuda"):
                found.add(path.relative_to(package).with_suffix("").as_posix())
    assert found <= CUDA_ONLY
