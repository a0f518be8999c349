"""The examples run: each trains for one iteration, on one thread in a few seconds."""

from __future__ import annotations

import ast
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from burnish import config as configuration
from burnish.runs import Run
from burnish.training.loop import train
from burnish.types import Replay

EXAMPLES = Path(__file__).parent.parent / "examples"

SMALL = [
    "iterations=1",
    "sampler.steps=2",
    "batch.prompts=2",
    "batch.images_per_prompt=4",
    "batch.transitions=1",
    "evaluation.images_per_prompt=1",
    "evaluation.judge=",
    'evaluation.prompts={use="list",texts=["cat"]}',
    'evaluation.unseen={use="list",texts=["dog"]}',
    "run.sample_prompts=2",
]
"""A training of a second, with everything in it."""


def test_a_reward_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It trains, prints a line for the iteration and one for the evaluation, and leaves a LoRA."""
    out = str(tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["custom_reward.py", "--out", out, "--set", *SMALL])
    runpy.run_path(str(EXAMPLES / "custom_reward.py"), run_name="__main__")
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("iteration 1: ")
    assert last.startswith("paired gain: ")

    run = Run(Path(out))
    assert set(run.records()[0]["rewards"]) == {"redness"}
    assert any(run.adapter.iterdir())


def test_an_objective_of_ones_own(tmp_path: Path) -> None:
    """Through `use = "file.py:Name"`: its metrics are in the log, its arguments are checked."""
    use = f"{EXAMPLES}/custom_objective.py:ClipHigher"
    objective = f'objective={{use="{use}", high=3.0}}'
    config = configuration.load("emoji-lcm-compressibility", [*SMALL, objective])
    record = Run(train(config, tmp_path / "run")).records()[0]
    assert record["ratio_deviation"] < 1e-3
    assert 0 <= record["clip_fraction"] <= 1

    with pytest.raises(ValueError, match="does not take"):
        configuration.load("demo", [f'objective={{use="{use}", hihg=3.0}}'])


def test_the_two_ranges_of_the_objective() -> None:
    """With equal ranges it is the built-in objective; beyond a range there is no gradient."""
    from burnish import catalog
    from burnish.rl.objectives import Clipped

    make = catalog.resolve("objective", f"{EXAMPLES}/custom_objective.py:ClipHigher")
    logp = torch.tensor([[0.0], [0.02], [0.04], [-0.02]], requires_grad=True)
    replay = Replay(logp, torch.zeros(4, 1), dims=100)
    adv = torch.tensor([1.0, 1.0, 1.0, -1.0])
    same = make(low=1.64, high=1.64)(replay, adv)
    assert torch.equal(same.value, Clipped(1.64)(replay, adv).value)

    make(low=1.0, high=3.0)(replay, adv).value.backward()
    assert (logp.grad != 0).flatten().tolist() == [True, True, False, False]


def test_two_rewards_in_a_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code cells run one after another, without Jupyter; what each ends with can be shown."""
    monkeypatch.setenv("BURNISH_OUT", str(tmp_path / "run"))
    monkeypatch.setenv("BURNISH_SET", " ".join(SMALL))
    notebook = json.loads((EXAMPLES / "two_rewards.ipynb").read_text("utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells), "store the notebook without its outputs"

    names: dict[str, Any] = {}
    shown = 0

    for cell in cells:
        *before, last = "".join(cell["source"]).rstrip().split("\n\n\n")
        exec(compile("\n\n\n".join(before), "two_rewards.ipynb", "exec"), names)
        shown += show_last(last, names)

    assert names["names"] == ["aesthetic", "incompressibility"]
    assert len(names["records"]) == 1
    assert shown == 5, "two curves, a scatter plot, two grids"


def show_last(source: str, names: dict[str, Any]) -> bool:
    """Run source as a notebook would; return if its last expression draws something."""
    tree = ast.parse(source)
    *rest, last = tree.body
    exec(compile(ast.Module(rest, []), "two_rewards.ipynb", "exec"), names)

    if not isinstance(last, ast.Expr):
        exec(compile(ast.Module([last], []), "two_rewards.ipynb", "exec"), names)
        return False

    value = eval(compile(ast.Expression(last.value), "two_rewards.ipynb", "eval"), names)
    for method in ("_repr_html_", "_repr_png_"):
        if hasattr(value, method):
            return bool(getattr(value, method)())

    return False
