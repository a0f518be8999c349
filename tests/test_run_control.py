"""The control file: what somebody asks of a training while it goes on."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from burnish import run_control, runs
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
    assert [path.name for path in tmp_path.iterdir()] == ["control.lock"]


def test_requests_add_up_although_they_come_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    read = run_control._read

    def slowly(path: Path, report: bool = False) -> Requests:
        found = read(path, report)
        time.sleep(0.05)
        return found

    monkeypatch.setattr(run_control, "_read", slowly)
    with ThreadPoolExecutor(4) as threads:
        for name in ("stop", "save", "sample", "evaluate"):
            threads.submit(ask, run, **{name: True})
    assert pending(run) == Requests(stop=True, save=True, sample=True, evaluate=True)


def test_later_requests_are_added_to_earlier_ones() -> None:
    first = Requests(save=True, strength=0.5)
    assert first.and_also(NOTHING) == first
    assert first.and_also(Requests(strength=0.0)) == Requests(save=True, strength=0.0)


def test_a_control_file_that_is_held_does_not_end_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    ask(run, save=True)
    monkeypatch.setattr(runs, "LONGEST_WAIT", 0.0)
    with runs.locked(run.control_lock):
        with pytest.warns(UserWarning, match="held by another program"):
            assert take(run) == NOTHING
        with pytest.raises(RuntimeError, match="held by another program"):
            ask(run, stop=True)
    assert take(run) == Requests(save=True)


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


@pytest.mark.parametrize("by", ["the same file", "a later file", "a call", "a file meanwhile"])
def test_a_stop_does_first_what_else_was_asked_for(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    run = Run(tmp_path / "run")
    calls = 0

    def on_record(row: dict[str, int]) -> None:
        if row["iteration"] == 2:
            ask(run, sample=True, evaluate=True, strength=0.5, stop=by == "the same file")

    def on_images(sampled: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            ask(run, stop=True)

    if by == "a later file":  # requests and the stop come while iteration 3 is sampled
        monkeypatch.setattr(record, "take_shared", after_iterations(2, record.take_shared))
    if by == "a file meanwhile":  # the evaluation has begun
        evaluate_now = record.evaluate_now

        def stop_first(*arguments: object) -> object:
            monkeypatch.setattr(record, "evaluate_now", evaluate_now)
            ask(run, stop=True)
            return evaluate_now(*arguments)

        monkeypatch.setattr(record, "evaluate_now", stop_first)
    train(
        load(recipe, [*QUICK, "evaluation.images_per_prompt=1"]),
        run.folder,
        on_record=on_record,
        on_images=on_images if by == "a later file" else None,
        stop=lambda: by == "a call" and len(run.records()) == 2,
        progress=False,
    )

    assert len(run.records()) == 2
    assert [path.name for path in run.checkpoints.iterdir()] == ["000002"]
    assert run.sample_grid(2).exists() and strength_grid(run, 2, 0.5).exists()
    # Ctrl+C is in a hurry: it is seen before each chunk of an evaluation
    assert run.evaluation_file(2).exists() == (by != "a call")
    assert not run.control.exists()


def after_iterations(count: int, function: Callable[..., Requests]) -> Callable[..., Requests]:
    """Return a function that takes nothing at its first calls."""
    calls = 0

    def wrapped(*arguments: object) -> Requests:
        nonlocal calls
        calls += 1
        return NOTHING if calls <= count else function(*arguments)

    return wrapped


def test_what_is_asked_for_at_the_end_is_done(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run")
    monkeypatch.setattr(record, "draw_identifier_grid", lambda job, done: ask(run, strength=0.5))
    train(load(recipe, QUICK), run.folder, progress=False)
    assert strength_grid(run, 4, 0.5).exists()
    assert not run.control.exists()


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
