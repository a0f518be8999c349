"""The public names: each one is listed, found and documented; importing the package is fast."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import burnish

PUBLIC = """
Advantage Config Credit Curriculum Gaussian Guidance Kernel Learner Level Loss Objective Overrides
Policy Prompt Replay RolloutBatch Run Sampler Scores Trajectory
check_objective check_reward differentiable frame load_config score train
""".split()


def test_public_names_are_these() -> None:
    assert burnish.__all__ == sorted(PUBLIC)
    assert set(PUBLIC) <= set(dir(burnish))
    assert re.fullmatch(r"\d+\.\d+\.\d+", burnish.__version__)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_exists_and_is_documented(name: str) -> None:
    assert getattr(burnish, name).__doc__


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = burnish.trian


@pytest.mark.parametrize(
    "statement", ["import burnish", "import burnish.cli", "import burnish.report"]
)
def test_import_is_light(statement: str) -> None:
    heavy = ("torch", "diffusers", "numpy")
    code = f"{statement}; import sys; print([name for name in {heavy} if name in sys.modules])"
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"
