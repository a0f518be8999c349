"""Imports point downwards only (docs/design.md): a module may import from lower layers, and from what is listed."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "burnish"
LAYERS: tuple[tuple[str, ...], ...] = (
    ("types", "runs", "seeds", "charts", "progress", "zoo", "cpu", "trunk"),
    ("kernels", "schedule", "guidance", "advantages", "objectives", "curriculum"),
    ("qr", "prompts", "rewards.tolerance", "adapter", "world", "zoo.scenes", "pareto", "identifiers", "fronts"),
    ("control",),
    ("rewards",),
    (
        "rewards.pixels",
        "rewards.clip",
        "rewards.decoders",
        "rewards.conditions",
        "families",
        "zoo.judge",
        "zoo.taste",
        "zoo.questions",
    ),
    ("rewards.aesthetic", "rewards.preference", "rewards.sentiment", "rewards.wire"),
    ("rewards.endpoint", "rewards.remote", "rewards.qr"),
    ("rewards.vlm", "rewards.picture", "verify"),
    ("rewards.caption", "rewards.question"),
    ("policy", "expander"),
    ("imitation",),
    ("rollout",),
    ("process", "panel"),
    ("catalog", "checkpoint"),
    ("config", "payloads"),
    ("parts", "optimizer"),
    ("evaluate",),
    ("guard",),
    ("journal",),
    ("updates", "wording"),
    ("trainer",),
    ("preflight", "gallery", "report", "compat.trl.options", "compat.trl.pipeline", "compat.trl.calls"),
    ("art", "zoo.steering"),
    ("zoo.check",),
    ("cli", "compat.trl.trainer"),
    ("compat", "compat.trl"),
)
LAYER = {name: depth for depth, names in enumerate(LAYERS) for name in names}
# Modules that see less than their layer: the ideas stay pure, rewards never see a policy, a report needs no torch.
ONLY = {
    "types": set(),
    "runs": set(),
    "charts": set(),
    "progress": set(),
    "seeds": set(),
    "catalog": set(),
    "zoo": set(),
    **{
        idea: {"types"}
        for idea in ("kernels", "guidance", "curriculum", "advantages", "objectives", "prompts", "rewards.tolerance")
    },
    "control": {"types", "qr"},
    "pareto": {"types", "advantages"},
    "identifiers": {"types", "seeds"},
    "rewards": {"types", "rewards.tolerance"},
    "schedule": {"types"},
    "rewards.pixels": {"types"},
    "rewards.clip": {"types", "zoo"},
    "rewards.aesthetic": {"types", "zoo", "rewards.clip"},
    "rewards.preference": {"types", "rewards.clip"},
    "rewards.sentiment": {"types", "rewards.clip"},
    "rewards.conditions": set(),
    "rewards.decoders": set(),
    "rewards.qr": {"types", "qr", "rewards.pixels", "rewards.conditions", "rewards.decoders"},
    "rewards.picture": {"types", "qr", "rewards.clip", "rewards.pixels", "rewards.qr"},
    "qr": {"types"},
    "payloads": {"types", "prompts", "catalog"},
    "rewards.wire": set(),
    "rewards.endpoint": {"rewards.pixels", "rewards.wire"},
    "rewards.remote": {"types", "rewards.pixels", "rewards.wire"},
    "rewards.vlm": {"rewards.endpoint", "rewards.pixels", "zoo"},
    "rewards.caption": {"types", "rewards.vlm", "zoo"},
    "rewards.question": {"types", "rewards.vlm", "prompts"},
    "fronts": {"charts"},
    "report": {"runs", "charts", "fronts"},
    "expander": {"types", "zoo", "adapter"},
    "imitation": {"expander", "prompts", "seeds"},
}
NEVER_TORCH = ("runs", "charts", "fronts", "progress", "report", "zoo", "catalog", "cli")
STANDARD_LIBRARY_ONLY = ("runs", "charts", "zoo")


def modules() -> dict[str, Path]:
    """Every module of the package by name, without `burnish.`."""
    paths = {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in PACKAGE.rglob("*.py")}
    return {n.removesuffix("/__init__").replace("/", "."): path for n, path in paths.items() if n != "__init__"}


def imports(path: Path, *, at_top: bool = False) -> set[str]:
    """Full names of what a file imports; only what runs on import if `at_top`."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(ast.parse(path.read_text())) if at_top else ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write burnish.NAME"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def internal(path: Path) -> set[str]:
    """Modules of the package that a file imports, without `burnish.`."""
    names = {name.removeprefix("burnish.") for name in imports(path) if name.startswith("burnish.")}
    return {max((m for m in LAYER if f"{name}.".startswith(f"{m}.")), key=len, default=name) for name in names}


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_point_downwards(name: str) -> None:
    assert name in LAYER, f"{name} has no layer: give it one here and in docs/design.md"
    used = internal(modules()[name]) - {"__version__"}
    assert {other for other in used if LAYER[other] >= LAYER[name]} == set()
    assert used <= ONLY.get(name, used), f"{name} may import {ONLY[name]} only"


@pytest.mark.parametrize("name", NEVER_TORCH)
def test_what_must_start_at_once_leaves_torch_alone(name: str) -> None:
    heavy = ("torch", "diffusers", "transformers", "peft", "accelerate", "numpy")
    found = {module.split(".")[0] for module in imports(modules()[name], at_top=name == "cli")}
    assert found.isdisjoint(heavy)


@pytest.mark.parametrize("name", STANDARD_LIBRARY_ONLY)
def test_standard_library_only(name: str) -> None:
    import sys

    assert {module.split(".")[0] for module in imports(modules()[name])} <= sys.stdlib_module_names
