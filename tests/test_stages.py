"""Stages and who shows them: lines without a terminal, a live view in one, honest seconds left."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from burnish import stages
from burnish.config import load
from burnish.report import progress as showing
from burnish.report.progress import Plan, Progress
from burnish.stages import Listener, Stage, advance, listening, stage, tell_record
from burnish.training import evaluations
from burnish.training.assembly import assemble
from burnish.training.loop import train


class Clock:
    """A clock that a test sets."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("time.monotonic", made.monotonic)
    return made


class Diary(Listener):
    """A listener that remembers what it was told."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int, bool]] = []

    def on_stage(self, stage: Stage) -> None:
        self.heard.append((stage.name, stage.done, stage.ended))


def test_a_stage_is_told_when_it_begins_advances_and_ends() -> None:
    advance()  # without a stage, and without anybody who listens
    diary = Diary()

    with listening(diary), stage("drawing", total=5):
        advance(3)
        with stage("saving"):
            advance()  # nothing is counted in it
        advance(3)

    with stage("unheard"):
        pass

    assert diary.heard == [
        ("drawing", 0, False),
        ("drawing", 3, False),
        ("saving", 0, False),
        ("saving", 0, True),
        ("drawing", 5, False),
        ("drawing", 5, True),
    ]


def test_a_stage_ends_with_an_error_too() -> None:
    diary = Diary()
    with pytest.raises(KeyError), listening(diary), stage("drawing"):
        raise KeyError
    assert diary.heard[-1] == ("drawing", 0, True)


def test_a_thread_tells_nobody() -> None:
    diary = Diary()
    with listening(diary), stage("drawing", total=2):
        thread = threading.Thread(target=advance)
        thread.start()
        thread.join()
    assert [done for _, done, _ in diary.heard] == [0, 0]


def test_the_seconds_left_of_a_stage(clock: Clock) -> None:
    begun = Stage("drawing", total=10)
    clock.now += 8
    assert begun.left is None, "nothing is known yet"
    begun.done = 4
    assert begun.left == pytest.approx(12)
    begun.done = 10
    assert begun.left is None


@pytest.mark.parametrize("every", [0, 1, 2, 3, 5, 7, 12, 100])
@pytest.mark.parametrize("iterations", [1, 5, 12])
def test_evaluations_to_come_by_counting(every: int, iterations: int) -> None:
    plan = Plan(Path(), iterations, True, every)
    due = {i for i in range(1, iterations + 1) if (every and i % every == 0) or i == iterations}

    for iteration in range(1, iterations + 1):
        assert plan.evaluations_from(iteration) == len([i for i in due if i >= iteration])
    assert Plan(Path(), iterations, False, every).evaluations_from(1) == 0


RECORD = {
    "iteration": 1,
    "images": 8,
    "rewards": {"jpeg": {"mean": -1.5, "std": 0.25, "gain": 0.125}},
    "seconds_sampling": 2.0,
    "seconds_scoring": 1.0,
    "seconds_training": 4.0,
}


def lines(shown: Progress) -> list[str]:
    """Return the lines that were printed."""
    text = shown.console.file.getvalue()  # type: ignore[attr-defined]
    return str(text).splitlines()


def to_a_file(plan: Plan | None = None, **options: Any) -> Progress:
    return Progress(plan, Console(file=io.StringIO()), **options)


def test_seconds_left_count_the_evaluations(clock: Clock, tmp_path: Path) -> None:
    shown = to_a_file(Plan(tmp_path, 4, True, 2))
    with listening(shown):
        with stage("evaluation before training", total=10):
            clock.now += 30
        clock.now += 7
        tell_record(RECORD)
        assert shown.left() == pytest.approx(3 * 7 + 2 * 30), "after iterations 2 and 4"

        clock.now += 9
        tell_record({**RECORD, "iteration": 2})
        assert shown.left() == pytest.approx(2 * 8 + 2 * 30), "the one after 2 is still to come"
        with stage("evaluation after iteration 2", total=10):
            clock.now += 30
        assert shown.left() == pytest.approx(2 * 8 + 30)

        for iteration in (3, 4):
            clock.now += 8
            tell_record({**RECORD, "iteration": iteration})
        assert shown.left() == pytest.approx(30), "not 0 while the last evaluation goes on"


def test_without_a_terminal_a_line_a_stage(clock: Clock) -> None:
    shown = to_a_file(Plan(Path("runs/a"), 2))
    with listening(shown):
        with stage("loading", "model zoo:emoji-sd"):
            clock.now += 5
        with stage("evaluation before training", "10 prompts x 10 = 100 images", 100):
            for _ in range(10):
                clock.now += 12
                advance(10)
        with stage("sampling", "8 images of iteration 2", 8, routine=True):
            clock.now += 1
            advance(4)
        tell_record(RECORD)

    assert lines(shown) == [
        "loading: model zoo:emoji-sd",
        "evaluation before training: 10 prompts x 10 = 100 images",
        "evaluation before training: 10 of 100, about 2 min left",
        "evaluation before training: 70 of 100, about 36 s left",
        "iteration 1/2  jpeg -1.5 ± 0.25, gain +0.125  "
        "sampling 2.0 s  scoring 1.0 s  training 4.0 s  left 2 min",
    ]


def test_a_long_routine_stage_is_not_silent(clock: Clock) -> None:
    shown = to_a_file(Plan(Path("runs/a"), 2))
    with listening(shown), stage("sampling", "8 images of iteration 2", 8, routine=True):
        for _ in range(4):
            clock.now += 50
            advance(2)
    assert lines(shown) == ["sampling: 4 of 8, about 2 min left"]


def test_quick_work_says_nothing_where_only_slow_work_is_told_of(clock: Clock) -> None:
    shown = to_a_file(slow_only=True)
    with listening(shown), stage("loading", "a model"):
        clock.now += 100
    with listening(shown), stage("drawing", "1 image", 1):
        clock.now += 100
        advance()
    assert lines(shown) == []

    with listening(shown), stage("drawing", "30 images", 30):
        clock.now += 100
        advance(15)
    assert lines(shown) == ["drawing: 15 of 30, about 2 min left"]


def test_a_terminal_shows_the_stage_and_no_markup() -> None:
    console = Console(force_terminal=True, width=160, record=True)
    plan = Plan(Path("runs/a"), 10)
    hostile = "[red]x[/red] [link=http://a]y[/link] \x1b]0;title\x07"

    with Progress(plan, console) as shown, listening(shown):
        with stage("evaluation before training", f"45 prompts {hostile}", 90):
            console.print(shown._view())
            advance(45)
            console.print(shown._view())
        tell_record({**RECORD, "rewards": {hostile: {"mean": 1.0, "std": 0.5}}})
        console.print(shown._view())

    text = console.export_text()
    assert "evaluation before training: 45 prompts" in text and "0/10" in text
    assert "evaluation before training: 45 of 90, about 0 s left" in text
    assert "[red]x[/red] [link=http://a]y[/link] \\x1b]0;title\\x07" in text
    assert "\x1b]" not in text


@pytest.fixture
def recipe(write_recipe: Callable[..., Path]) -> Path:
    return write_recipe(
        iterations=2,
        prompts={"use": "list", "texts": ["a cat", "a dog", "a bee"]},
        batch={"prompts": 2, "images_per_prompt": 2, "sample_batch": 4},
        evaluation={"images_per_prompt": 2},
        run={"sample_every": 2, "sample_prompts": 4},
    )


def test_training_in_python_says_what_it_does(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    train(load(recipe), folder)
    out = capsys.readouterr().out
    begun = [text.split(":")[0] for text in out.splitlines() if "left" not in text]
    assert out.startswith(f"run {folder}; burnish report {folder} makes a page of it")
    assert [name for name in begun if not name.startswith(("run ", "  ", "train "))] == [
        "loading",
        "loading",
        "evaluation before training",
        "sample grid",
        "sampling",
        "saving",
        "sample grid",
        "evaluation after iteration 2",
        "Done",
        "Next",
        "To train further",
    ]
    assert out.endswith(f"burnish train --resume --out {folder} --set iterations=4\n")
    assert "evaluation before training: 3 train prompts x 2 = 6 images\n" in out
    assert "evaluation before training: 4 of 6, about " in out
    assert "iteration 2/2  compressibility" in out and "paired gain" in out

    train(load(recipe), tmp_path / "silent", progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_stopped_run_says_how_to_go_on(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records: list[object] = []
    folder = tmp_path / "my run"
    train(load(recipe), folder, on_record=records.append, stop=lambda: bool(records))
    out = capsys.readouterr().out
    command = f"burnish train --resume --out '{folder}'"  # a shell takes it as it is printed
    assert f"Stopped after iteration 1. Go on with: {command}" in out
    assert f"burnish report '{folder}' makes a page" in out
    assert "Done" not in out


def test_a_pause_is_a_minute() -> None:
    assert showing.PAUSE == 60 and stages.Nobody().on_record({}) is None


def test_other_prompts_to_evaluate_are_noticed_before_training_goes_on(
    recipe: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\n")
    config = load(recipe, [f'prompts={{use="lines",path="{prompts}"}}', "iterations=1"])
    folder = train(config, tmp_path / "run", progress=False)
    prompts.write_text("a cat\na cow\n")

    with pytest.raises(ValueError, match=r"another prompts.path.*has changed"):
        train(config, folder, resume=True, progress=False)
    fewer = replace(config, evaluation=replace(config.evaluation, max_prompts=1))
    with pytest.raises(ValueError, match=r"another .*evaluation.max_prompts"):
        train(fewer, folder, resume=True, progress=False)


def test_an_evaluation_of_a_thinned_list_says_of_how_many(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    details: list[str] = []

    def noted(name: str, detail: str, total: int) -> AbstractContextManager[None]:
        details.append(detail)
        return nullcontext()

    parts = assemble(load(recipe, ["evaluation.max_prompts=2"]))
    monkeypatch.setattr(evaluations, "stage", noted)
    monkeypatch.setattr(evaluations, "evaluate", lambda *arguments, **options: None)
    evaluations.evaluate_all(parts, 2, 0, 2)
    assert details == ["2 of 3 train prompts x 2 = 4 images"]
