"""Imports point downwards only: each wing may import only from the wings that its rule names."""

from __future__ import annotations

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "burnish"

GROUND = {
    "types",
    "annotations",
    "user_code",
    "checked",
    "objective_check",
    "images",
    "errors",
    "files",
    "redaction",
    "seeds",
    "terminal",
    "catalog",
    "references",
    "trust",
    "config",
    "run_files",
    "runs",
    "run_control",
    "votes",
    "tracking",
    "stages",
    "world",
    "pretrained",
    "noise",
    "prompt_warnings",
}
WINGS: dict[str, set[str]] = {
    "zoo": {"types", "errors"},
    "rl": {"types"},
    "qr": {"types", "errors", "images"},
    "report": {
        "annotations",
        "errors",
        "files",
        "redaction",
        "run_files",
        "runs",
        "stages",
        "terminal",
    },
    "diffusion": {
        "types",
        "annotations",
        "config",
        "errors",
        "files",
        "images",
        "pretrained",
        "prompt_warnings",
        "seeds",
        "stages",
        "zoo",
        "qr",
    },
    "prompts": {
        "types",
        "annotations",
        "errors",
        "files",
        "runs",
        "seeds",
        "stages",
        "catalog",
        "pretrained",
        "votes",
        "zoo",
        "diffusion",
    },
    "rewards": {
        "types",
        "annotations",
        "errors",
        "redaction",
        "user_code",
        "catalog",
        "images",
        "pretrained",
        "prompt_warnings",
        "seeds",
        "votes",
        "zoo",
        "qr",
        "prompts",
    },
    "evaluation": GROUND | {"diffusion", "prompts", "rewards"},
    "training": GROUND | {"zoo", "rl", "diffusion", "prompts", "rewards", "evaluation", "report"},
    "tools": GROUND
    | {"zoo", "rl", "qr", "diffusion", "prompts", "rewards", "evaluation", "training", "report"},
    "compat": GROUND | {"diffusion", "training"},
    "studio": {
        "annotations",
        "catalog",
        "config",
        "errors",
        "files",
        "redaction",
        "references",
        "report",
        "run_control",
        "run_files",
        "runs",
        "terminal",
        "votes",
    },
}
"""The modules that each wing may import from; the command line may import everything."""

FLOOR: dict[str, set[str]] = {
    "types": {"errors"},
    "images": {"errors"},
    "redaction": set(),
    "errors": {"redaction"},
    "files": {"errors"},
    "terminal": {"errors", "redaction"},
    "seeds": set(),
    "annotations": set(),
    "user_code": {"errors", "types"},
    "checked": {"annotations", "errors", "types", "user_code"},
    "objective_check": {"checked", "errors", "types"},
    "catalog": {"annotations", "errors", "types", "seeds", "user_code", "checked"},
    "references": {"annotations", "catalog"},
    "trust": {"annotations", "catalog", "references"},
    "config": {
        "annotations",
        "catalog",
        "errors",
        "files",
        "redaction",
        "references",
        "run_files",
        "trust",
        "types",
    },
    "run_files": {"annotations", "files"},
    "runs": {"annotations", "errors", "files", "run_files"},
    "run_control": {"annotations", "files", "runs"},
    "votes": {"annotations", "errors", "files", "runs"},
    "tracking": {"errors", "files", "images", "redaction", "runs"},
    "world": {"tracking"},
    "pretrained": {"errors", "redaction", "runs", "zoo"},
    "noise": set(),
    "prompt_warnings": set(),
    "stages": set(),
}
"""The same for the modules of the ground floor."""

WITHOUT_TORCH = (
    "annotations",
    "errors",
    "files",
    "redaction",
    "runs",
    "stages",
    "terminal",
    "catalog",
    "cli",
    "report",
    "run_control",
    "studio",
    "zoo/__init__",
)
STANDARD_LIBRARY_ONLY = (
    "annotations",
    "errors",
    "files",
    "noise",
    "redaction",
    "run_files",
    "run_control",
    "runs",
    "stages",
    "terminal",
    "votes",
    "report/charts",
    "report/groups",
    "report/markup",
    "report/results",
    "report/suspects",
    "zoo/__init__",
)
HEAVY = {"torch", "diffusers", "transformers", "peft", "accelerate", "numpy"}


def modules() -> dict[str, Path]:
    """Return the path of each module by its name without `burnish.`; a package's is its folder."""
    paths = {
        path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in PACKAGE.rglob("*.py")
    }
    return {
        name.removesuffix("/__init__"): path for name, path in paths.items() if name != "__init__"
    }


def imports(path: Path, *, at_top: bool = False) -> set[str]:
    """Return the full names that a file imports; with `at_top` only those outside functions."""
    tree = ast.parse(path.read_text())
    names: set[str] = set()

    for node in ast.iter_child_nodes(tree) if at_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write burnish.NAME"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}

    return names


def wing_of(name: str) -> str:
    """Return the wing, or the module of the ground floor, of a name such as `rl/pareto`."""
    return name.replace(".", "/").split("/")[0]


def used_wings(path: Path) -> set[str]:
    """Return the wings that a file imports from."""
    names = {name.removeprefix("burnish.") for name in imports(path) if name.startswith("burnish.")}
    return {wing_of(name) for name in names} - {"__version__"}


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_wing_imports_only_what_its_rule_names(name: str) -> None:
    wing = wing_of(name)
    if wing == "cli":
        return

    rules = WINGS | FLOOR
    assert wing in rules, (
        f"{name} belongs to no wing: give {wing} a rule here and in docs/design.md"
    )
    assert used_wings(modules()[name]) <= rules[wing] | {wing}


def test_the_rules_have_no_circle() -> None:
    order = list(TopologicalSorter(WINGS | FLOOR).static_order())
    assert set(order) == {*WINGS, *FLOOR}


def test_every_rule_has_its_wing() -> None:
    assert {wing_of(name) for name in modules()} == {*WINGS, *FLOOR, "cli"}


def below(name: str) -> list[Path]:
    """Return the files of a module, or of all modules of a wing."""
    file = PACKAGE / f"{name}.py"
    return [file] if file.is_file() else sorted((PACKAGE / name).rglob("*.py"))


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_modules_that_must_start_at_once_leave_torch_alone(name: str) -> None:
    for path in below(name):
        names = {
            module.split(".")[0] for module in imports(path, at_top=name in ("cli", "catalog"))
        }
        assert names.isdisjoint(HEAVY), path


@pytest.mark.parametrize("name", STANDARD_LIBRARY_ONLY)
def test_standard_library_only(name: str) -> None:
    for path in below(name):
        names = {module.split(".")[0] for module in imports(path)}
        assert names <= {*sys.stdlib_module_names, "burnish"}, path
