"""Everything that `make` installs is locked, but torch and what torch's own metadata pins."""

from __future__ import annotations

import re
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKS = Path(__file__).parent.parent / "requirements"
PINNED_BY_TORCH = re.compile("torch|triton|nvidia-.*|cuda-.*")


def locked(name: str) -> set[str]:
    """Return the lines `package==version`, with their markers."""
    lines = (LOCKS / name).read_text().splitlines()
    return {line.rstrip(" \\") for line in lines if "==" in line and line[0].isalnum()}


def required(extra: str) -> set[str]:
    """Return the packages that Burnish and torch need, but for those that torch pins itself."""
    requirements = [
        Requirement(line) for package in ("burnish", "torch") for line in requires(package) or ()
    ]
    names = {
        canonicalize_name(requirement.name)
        for requirement in requirements
        if not requirement.marker or requirement.marker.evaluate({"extra": extra})
    }
    return {name for name in names if not PINNED_BY_TORCH.fullmatch(name)}


@pytest.mark.parametrize(("lock", "extra"), [("run.txt", ""), ("dev.txt", "dev")])
def test_every_requirement_is_locked(lock: str, extra: str) -> None:
    assert required(extra) <= {line.split("==")[0] for line in locked(lock)}, (
        "make lock; torch's needs stand in torch.in"
    )
    assert not any(PINNED_BY_TORCH.fullmatch(line.split("==")[0]) for line in locked(lock))


def test_tests_run_with_the_versions_in_use_and_no_address_is_written_down() -> None:
    versions = [{line.split(" ;")[0] for line in locked(name)} for name in ("run.txt", "dev.txt")]
    assert versions[0] <= versions[1]
    assert not any("://" in lock.read_text() for lock in LOCKS.iterdir())
