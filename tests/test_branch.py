"""A run that is branched goes on as it did, and one that is rolled back does too."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import log
from safetensors.torch import load_file

from burnish import votes
from burnish.cli import main
from burnish.config import load
from burnish.rewards.votes import SimulatedVoter, Votes
from burnish.runs import Run
from burnish.tools import branch as branching
from burnish.tools.branch import branch, roll_back
from burnish.training.assembly import Overrides
from burnish.training.export import exported_iteration
from burnish.training.loop import train


@pytest.fixture
def run(write_recipe: Callable[..., Path], tmp_path: Path) -> Run:
    """A finished run of four iterations with a checkpoint of each."""
    recipe = write_recipe(
        iterations=4,
        batch={"prompts": 2, "images_per_prompt": 2},
        evaluation={"images_per_prompt": 1, "every": 1},
        run={"sample_every": 1, "keep": 9},
        optimizer={"lr": 0.05},
    )
    return Run(train(load(recipe), tmp_path / "run", progress=False))


def tensors(run: Run) -> dict[str, list[float]]:
    path = run.checkpoints / "000004" / "tensors.safetensors"
    return {name: tensor.tolist() for name, tensor in load_file(path).items()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def go_on(run: Run) -> None:
    train(load(run.config), run.folder, resume=True, progress=False)


def test_a_branch_goes_on_bit_for_bit(run: Run, tmp_path: Path) -> None:
    before = names(run.folder)
    new = branch(run, 2, tmp_path / "elsewhere" / "branch")

    assert names(new.checkpoints) == ["000002"]
    assert names(new.samples) == ["000000.png", "000001.png", "000002.png", "prompts.json"]
    assert names(new.evaluation_file(0).parent) == ["000000.json", "000001.json", "000002.json"]
    assert log(new.folder) == log(run.folder)[:2]

    go_on(new)
    assert log(new.folder) == log(run.folder)
    assert tensors(new) == tensors(run)
    assert names(run.folder) == before


def test_a_run_that_is_rolled_back_goes_on_bit_for_bit(run: Run) -> None:
    expected = log(run.folder)
    weights = tensors(run)
    run.guard.write_text("{}")
    roll_back(run, 3)

    assert names(run.checkpoints) == ["000001", "000002", "000003"]
    assert names(run.samples)[-2:] == ["000003.png", "prompts.json"]
    assert log(run.folder) == expected[:3]
    left = names(run.folder)
    assert not {"adapter", "adapter.json", "evaluation.json", "guard.json"} & set(left)
    with pytest.raises(FileNotFoundError, match="after a rollback; write it by .*iterations=3"):
        exported_iteration(run)

    go_on(run)
    assert log(run.folder) == expected
    assert tensors(run) == weights
    assert json.loads(run.export.read_text())["iteration"] == 4


def voting_run(recipe: Path, folder: Path, wrong: float = 0.0) -> Run:
    """Return a finished run of four iterations whose reward is votes."""
    overrides = Overrides(rewards={"votes": voting(wrong)})
    return Run(train(load(recipe), folder, overrides=overrides, progress=False))


def voting(wrong: float = 0.0) -> Votes:
    voter = SimulatedVoter(lambda images: images[:, 0].mean((1, 2)), wrong)
    return Votes(None, per_iteration=2, repeats=0.5, voter=voter)


@pytest.fixture
def votes_recipe(write_recipe: Callable[..., Path]) -> Path:
    return write_recipe(
        iterations=4,
        objective={"use": "dpo"},
        scoring={"missing": "mask"},
        batch={"prompts": 2, "images_per_prompt": 3, "transitions": 1, "minibatches": 1},
        evaluation={"images_per_prompt": 0},
        run={"sample_every": 0, "keep": 9},
        optimizer={"lr": 0.05},
    )


def go_on_voting(run: Run, reward: Votes) -> None:
    overrides = Overrides(rewards={"votes": reward})
    train(load(run.config), run.folder, resume=True, overrides=overrides, progress=False)


def of_votes(run: Run) -> dict[str, bytes]:
    paths = (run.questions, run.waiting, run.votes, run.rounds, *run.question_images.iterdir())
    return {path.name: path.read_bytes() for path in paths}


def test_a_branch_of_a_run_with_votes_goes_on_bit_for_bit(
    votes_recipe: Path, tmp_path: Path
) -> None:
    run = voting_run(votes_recipe, tmp_path / "run")
    whole = of_votes(run)
    new = branch(run, 2, tmp_path / "branch")
    assert votes.questions(new) == votes.questions(run)[:4]
    assert votes.votes(new) == votes.votes(run)[:4]
    assert len(list(new.question_images.iterdir())) < len(list(run.question_images.iterdir()))
    assert not votes.pending(new)

    go_on_voting(new, voting())
    assert of_votes(new) == whole
    assert log(new.folder) == log(run.folder)
    assert tensors(new) == tensors(run)


def test_votes_stay_when_a_run_is_rolled_back_and_those_that_stand_count(
    votes_recipe: Path, tmp_path: Path
) -> None:
    run = voting_run(votes_recipe, tmp_path / "run")
    expected, weights, whole = log(run.folder), tensors(run), of_votes(run)
    roll_back(run, 3)
    go_on_voting(run, voting())
    assert (log(run.folder), tensors(run), of_votes(run)) == (expected, weights, whole)

    votes.undo(run)
    votes.undo(run)
    roll_back(run, 3)
    assert not run.waiting.exists()
    go_on_voting(run, voting(wrong=1.0))
    assert tensors(run) != weights
    contrary = branch(run, 3, tmp_path / "contrary")
    go_on_voting(contrary, voting(wrong=1.0))
    assert tensors(contrary) == tensors(run)


def test_what_a_killed_branch_leaves_is_in_nobodys_way(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    code = f"""
import os, pathlib
from burnish.runs import Run
from burnish.tools import branch
branch.flush_folder = lambda folder: os._exit(9)
branch.branch(Run(pathlib.Path({str(run.folder)!r})), 2, {str(folder / "new")!r})
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert names(folder) == [".new.part"]
    (folder / ".new.part" / "votes.jsonl").write_text("{")

    with Run(folder / ".new.part").lock(), pytest.raises(RuntimeError, match="in use"):
        branch(run, 2, folder / "new")
    (folder / "new").mkdir()
    (folder / "new" / "lock").touch()  # of a start that was killed
    new = branch(run, 3, folder / "new")
    assert names(folder) == ["new"]
    assert names(new.checkpoints) == ["000003"]
    assert not new.votes.exists()
    with new.lock():
        pass


def test_a_branch_that_fails_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runs"

    def begins(source: Path) -> None:  # somebody else, meanwhile
        (folder / "new").mkdir()
        (folder / "new" / "config.toml").touch()

    with monkeypatch.context() as patch:
        patch.setattr(branching, "flush_folder", begins)
        with pytest.raises(FileExistsError):
            branch(run, 2, folder / "new")
    assert not (folder / ".new.part").exists()

    def fails(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(branching, "flush_folder", fails)
    with pytest.raises(KeyboardInterrupt):
        branch(run, 2, folder / "other")
    assert names(folder) == ["new"]


def test_a_mistake_is_one_sentence_and_leaves_all_as_it_was(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = names(run.folder)
    new = tmp_path / "new"

    with pytest.raises(SystemExit):
        main(["branch", str(run.folder), "9", "--out", str(new)])
    assert "no checkpoint of iteration 9; it has 1, 2, 3, 4" in capsys.readouterr().err
    assert not new.exists()

    with pytest.raises(SystemExit):
        main(["branch", str(run.folder), "2", "--out", str(run.folder)])
    assert "already holds a run" in capsys.readouterr().err

    with run.lock(), pytest.raises(RuntimeError, match="in use"):
        roll_back(run, 2)

    (run.checkpoints / "000002" / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="000002"):
        roll_back(run, 2)
    assert names(run.folder) == before
