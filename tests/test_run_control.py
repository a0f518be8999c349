"""The control file: what somebody asks of a training while it goes on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from burnish import run_control
from burnish.config import load
from burnish.run_control import NOTHING, Requests, ask, pending, stop_requested, strength_grid, take
from burnish.runs import LEFTOVER, Run
from burnish.tools.redraw import redraw
from burnish.training import record
from burnish.training.loop import train

BRIGHTNESS = """
def brightness(images, prompts):
    return images.mean((1, 2, 3))
"""
QUICK = ("evaluation.images_per_prompt=0", "run.sample_every=0", "run.checkpoint_every=100")


@pytest.fixture
def recipe(write_recipe: Callable[..., Path]) -> Path:
    return write_recipe(
        BRIGHTNESS,
        iterations=4,
        batch={"prompts": 2, "images_per_prompt": 2},
        rewards=[{"use": "HERE/reward.py:brightness"}],
    )


def trained(recipe: Path, folder: Path, at: int, *changes: str, **requests: bool | float) -> Run:
    """Return a run during whose iteration `at` somebody makes requests."""
    run = Run(folder)

    def on_record(row: dict[str, int]) -> None:
        if row["iteration"] == at:
            ask(run, **requests)

    train(load(recipe, [*QUICK, *changes]), folder, on_record=on_record, progress=False)
    return run


def test_requests_add_up_and_are_taken_once(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert take(run) == NOTHING

    ask(run, save=True)
    ask(run, strength=0.5)
    assert not stop_requested(run)
    ask(run, stop=True)

    assert pending(run) == Requests(stop=True, save=True, strength=0.5)
    assert stop_requested(run)
    assert take(run) == Requests(stop=True, save=True, strength=0.5)
    assert take(run) == NOTHING
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"stop": 1}', '{"strength": 9}', '{"strength": "1"}', "[" * 4000, " " * 5000],
)
def test_a_file_that_is_no_control_file_is_ignored_with_a_warning(
    tmp_path: Path, content: str
) -> None:
    run = Run(tmp_path)
    run.control.write_text(content)

    assert not stop_requested(run)
    with pytest.warns(UserWarning, match=r"control\.json is ignored"):
        assert take(run) == NOTHING
    assert not run.control.exists()


def test_what_a_crash_leaves_of_it_is_tidied_away() -> None:
    assert LEFTOVER.fullmatch(".control.json.part")
    assert LEFTOVER.fullmatch(".control.json.123.part")
    assert LEFTOVER.fullmatch(".strength-000012-050.png.123.part")


def test_a_stop_saves_and_a_new_start_forgets_it(recipe: Path, tmp_path: Path) -> None:
    run = trained(recipe, tmp_path / "run", 2, stop=True)
    assert [path.name for path in run.checkpoints.iterdir()] == ["000002"]
    assert len(run.records()) == 2
    assert not run.control.exists()

    ask(run, stop=True)  # to nobody: the run has ended
    train(load(recipe, QUICK), run.folder, resume=True, progress=False)
    assert len(run.records()) == 4


def test_a_checkpoint_and_a_grid_are_made_on_demand(recipe: Path, tmp_path: Path) -> None:
    run = trained(recipe, tmp_path / "run", 2, save=True, sample=True)

    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["000002", "000004"]
    assert [path.name for path in run.samples.glob("*.png")] == ["000002.png"]


def test_an_evaluation_is_made_on_demand(recipe: Path, tmp_path: Path) -> None:
    run = trained(recipe, tmp_path / "run", 2, "evaluation.images_per_prompt=1", evaluate=True)
    names = sorted(path.name for path in run.evaluation_file(0).parent.iterdir())
    assert names == ["000000.json", "000002.json", "000004.json"]


def test_the_strength_is_that_of_the_grid_and_training_goes_on_as_it_was(
    recipe: Path, tmp_path: Path
) -> None:
    changes = ("run.sample_every=1", "optimizer.lr=0.05")
    plain = trained(recipe, tmp_path / "plain", 9, *changes)
    none = trained(recipe, tmp_path / "none", 2, *changes, strength=0.0)
    whole = trained(recipe, tmp_path / "whole", 2, *changes, strength=1.0)

    def grid(path: Path) -> bytes:
        return Image.open(path).tobytes()

    untrained = grid(none.sample_grid(0))
    assert grid(strength_grid(none, 2, 0)) == untrained
    assert grid(strength_grid(whole, 2, 1)) == grid(whole.sample_grid(2)) != untrained

    # and after training it is drawn as the training draws it
    assert grid(redraw(whole.folder, 0)) == untrained
    assert redraw(none.folder, 1) == strength_grid(none, 4, 1)
    assert grid(strength_grid(none, 4, 1)) == grid(none.sample_grid(4))
    assert grid(none.sample_grid(4)) == grid(plain.sample_grid(4))


def test_going_back_removes_grids_of_later_iterations(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.samples.mkdir()
    for iteration in (2, 12):
        strength_grid(run, iteration, 0.5).touch()
        run.sample_grid(iteration).touch()

    run.forget(2)
    assert sorted(path.name for path in run.samples.iterdir()) == [
        "000002.png",
        "strength-000002-050.png",
    ]


def test_what_is_asked_for_too_late_is_forgotten(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run")
    monkeypatch.setattr(record, "draw_identifier_grid", lambda job, done: ask(run, save=True))
    train(load(recipe, QUICK), run.folder, progress=False)
    assert not run.control.exists()


def test_a_broken_file_does_not_end_a_training(recipe: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")

    def on_record(row: dict[str, int]) -> None:
        run.control.write_text("{")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(load(recipe, QUICK), run.folder, on_record=on_record, progress=False)

    assert len(run.records()) == 4
    assert run_control.pending(run) == NOTHING
