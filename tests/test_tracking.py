"""Trackers get the run, its numbers, images, evaluations and the guard's verdict, and go on."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from accelerate import tracking as theirs
from accelerate.utils import LoggerType
from conftest import log

from burnish import world as worlds
from burnish.config import Config, dump, load
from burnish.runs import Run
from burnish.tracking import Start, Tracking, changes, markdown, settings_for_trackers
from burnish.training.loop import train
from burnish.world import World

NAMES = ("tensorboard", "wandb", "trackio", "mlflow", "comet_ml", "swanlab")
STARTED: list[FakeTracker] = []
"""The trackers that a test has started, in their order."""


class FakeTracker(theirs.GeneralTracker):
    """A tracker that keeps what it is sent, and fails at a call of a test's choice."""

    name = "fake"
    requires_logging_directory = False
    fails_at: tuple[str, int] = ("", 0)

    def __init__(self, project: str, *folder: str, **arguments: Any) -> None:
        super().__init__()
        self.project = project
        self.folder = folder
        self.arguments = arguments
        self.config: dict[str, Any] | None = None
        self.sent: list[tuple[str, Any, int | None]] = []
        self.named = ""

    @property
    def tracker(self) -> Any:
        """The service's own run."""
        run = SimpleNamespace(info=SimpleNamespace(run_id=self.arguments.get("run_id", "theirs")))
        run.set_name = lambda name: setattr(self, "named", name)
        run.log_image = lambda path, name, step: self.keep("image", {name: path}, step)
        return run

    def keep(self, kind: str, content: Any, step: int | None) -> None:
        self.sent.append((kind, content, step))
        if (kind, step) == self.fails_at:
            raise ConnectionError("the service is gone\nand more")

    def start(self) -> None:
        STARTED.append(self)
        self.keep("start", None, None)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.keep("log", values, step)

    def log_images(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.keep("image", values, step)

    def log_table(self, name: str, columns: Any, data: Any, step: int | None = None) -> None:
        self.keep("table", (name, columns, data), step)

    def log_artifact(self, path: str, folder: str = "") -> None:
        self.keep("artifact", (folder, Path(path).name), None)

    def finish(self) -> None:
        self.keep("finish", None, None)

    def of(self, kind: str) -> list[tuple[Any, int | None]]:
        """Return what was sent of a kind, and at which iteration."""
        return [(content, step) for one, content, step in self.sent if one == kind]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeTracker]:
    """The class of a tracker that stands in for all, and is registered as "fake" too."""
    STARTED.clear()
    monkeypatch.setattr(FakeTracker, "fails_at", ("", 0))
    monkeypatch.setitem(theirs.LOGGER_TYPE_TO_CLASS, "fake", FakeTracker)
    monkeypatch.setattr(theirs, "_available_trackers", [LoggerType(name) for name in NAMES])
    monkeypatch.setattr(worlds, "find_spec", lambda name: name)

    for name in NAMES:
        folder = name == "tensorboard"
        kind = type(name, (FakeTracker,), {"name": name, "requires_logging_directory": folder})
        monkeypatch.setitem(theirs.LOGGER_TYPE_TO_CLASS, name, kind)

    trackio = ModuleType("trackio")
    trackio.Image = lambda pixels: pixels  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    return FakeTracker


@pytest.fixture
def configured(write_recipe: Callable[..., Path]) -> Callable[..., Config]:
    """A function that returns the configuration of a small run with these trackers."""

    def make(*trackers: str, **run: Any) -> Config:
        settings = {"sample_every": 2, "sample_prompts": 4, "trackers": list(trackers), **run}
        recipe = write_recipe(
            "def bright(images, prompts, url=''):\n    return images.mean((1, 2, 3))\n",
            iterations=4,
            rewards=[
                {"use": "compressibility"},
                {"use": "HERE/reward.py:bright", "url": "http://me:${PW}@host/score"},
            ],
            batch={"prompts": 2, "images_per_prompt": 2},
            evaluation={"images_per_prompt": 1, "every": 2},
            run=settings,
        )
        return load(recipe)

    return make


def test_each_tracker_is_sent_the_whole_run(
    fake: type[FakeTracker], configured: Callable[..., Config], tmp_path: Path
) -> None:
    run = Run(train(configured("fake", *NAMES), tmp_path / "mine"))
    assert [tracker.name for tracker in STARTED] == ["fake", *NAMES]
    comparison = json.loads(run.evaluation.read_text())["train"]

    for tracker in STARTED:
        assert tracker.project == "burnish" and tracker.sent[-1][0] == "finish"
        assert tracker.config is not None
        assert tracker.config["rewards.1.url"] == "http://***@host/score"
        assert tracker.config["optimizer.lr"] == 3e-4 and tracker.config["model.train"] == "lora"
        assert all(isinstance(value, (str, int, float)) for value in tracker.config.values())
        assert "PW" not in json.dumps(tracker.config) + run.trackers.read_text()

        logged = [(values, step) for values, step in tracker.of("log") if "iteration" in values]
        assert [step for _, step in logged] == [1, 2, 3, 4]
        first = run.records()[0]["rewards"]["bright"]["mean"]
        assert logged[0][0]["rewards/bright/mean"] == first

        evaluations = [v for v, _ in tracker.of("log") if "evaluation/train/paired_mean" in v]
        assert len(evaluations) == 2
        assert evaluations[-1]["evaluation/train/paired_mean"] == comparison["paired_mean"]
        assert evaluations[-1]["evaluation/train/low"] == comparison["ci95"][0]

    by_name = {tracker.name: tracker for tracker in STARTED}
    for name in ("fake", "tensorboard", "wandb", "swanlab", "comet_ml"):
        images = by_name[name].of("image")
        assert [(list(content), step) for content, step in images] == [
            (["samples"], step) for step in (0, 2, 4)
        ]
    assert [step for v, step in by_name["trackio"].of("log") if "samples" in v] == [0, 2, 4]

    for name in ("fake", "tensorboard", "trackio", "swanlab", "comet_ml"):
        logged = by_name[name].of("log")
        tables = [v["evaluation/table"] for v, _ in logged if "evaluation/table" in v]
        assert len(tables) == 2 and tables[0].startswith("| measure | before |")

    ((title, columns, rows), step) = by_name["wandb"].of("table")[-1]
    assert title == "evaluation/table" and step == 4 and len(columns) == len(rows[0])
    artifacts = [content for content, _ in by_name["mlflow"].of("artifact")]
    assert [name for folder, name in artifacts if folder == "samples"] == [
        "000000.png",
        "000002.png",
        "000004.png",
    ]
    assert artifacts.count(("", "evaluation.json")) == 2


def test_the_grid_is_the_one_in_the_run_directory(
    fake: type[FakeTracker], configured: Callable[..., Config], tmp_path: Path
) -> None:
    from PIL import Image

    run = Run(train(configured("wandb", "tensorboard"), tmp_path / "mine"))
    with Image.open(run.sample_grid(4)) as image:
        pixels = np.asarray(image)

    wandb, tensorboard = STARTED
    assert np.array_equal(wandb.of("image")[-1][0]["samples"][0], pixels)
    assert np.array_equal(tensorboard.of("image")[-1][0]["samples"], pixels[None])


def test_a_resumed_run_goes_on_in_each_tracker(
    fake: type[FakeTracker], configured: Callable[..., Config], tmp_path: Path
) -> None:
    config = configured(*NAMES)
    done: list[Any] = []
    train(config, tmp_path / "mine", on_record=done.append, stop=lambda: len(done) == 2)
    run = Run(train(config, tmp_path / "mine", resume=True))
    ids = json.loads(run.trackers.read_text())
    first = {tracker.name: tracker for tracker in STARTED[: len(NAMES)]}
    second = {tracker.name: tracker for tracker in STARTED[len(NAMES) :]}
    assert set(ids) == set(first) == set(second) == set(NAMES)

    for name in NAMES:
        assert first[name].project == second[name].project
        assert first[name].config and second[name].config is None, "the configuration is sent once"

    same = {
        "wandb": {"name": "mine", "id": ids["wandb"], "dir": str(run.folder)},
        "trackio": {"name": f"mine-{ids['trackio'][:8]}", "resume": "allow"},
        "comet_ml": {"experiment_key": ids["comet_ml"], "mode": "get_or_create"},
        "swanlab": {"experiment_name": "mine", "id": ids["swanlab"][:21]},
    }
    for name, arguments in same.items():
        assert first[name].arguments == second[name].arguments
        assert arguments.items() <= first[name].arguments.items()
        assert name == "comet_ml" or first[name].arguments["resume"] == "allow"

    assert first["comet_ml"].named == "mine" and len(ids["comet_ml"]) == 32
    assert first["mlflow"].arguments == {"run_name": "mine"}
    assert second["mlflow"].arguments == {"run_id": ids["mlflow"]} == {"run_id": "theirs"}

    assert first["tensorboard"].arguments == {}
    assert second["tensorboard"].arguments == {"purge_step": 3}
    assert first["tensorboard"].folder == second["tensorboard"].folder == (str(run.folder),)


def test_two_runs_of_one_name_have_ids_of_their_own(
    fake: type[FakeTracker], configured: Callable[..., Config], tmp_path: Path
) -> None:
    config = configured("wandb", "tensorboard", tracker_folder=str(tmp_path / "curves"))
    for parent in "ab":
        train(config, tmp_path / parent / "mine")
    wandb = [tracker for tracker in STARTED if tracker.name == "wandb"]
    assert wandb[0].arguments["id"] != wandb[1].arguments["id"]

    boards = [tracker for tracker in STARTED if tracker.name == "tensorboard"]
    assert boards[0].folder == boards[1].folder and boards[0].project != boards[1].project
    assert all(board.project.startswith("burnish/mine-") for board in boards)


def test_options_of_the_user_win(
    fake: type[FakeTracker], configured: Callable[..., Config], tmp_path: Path
) -> None:
    options = {"wandb": {"id": "abc", "entity": "me"}}
    config = configured("wandb", tracker_options=options, tracker_project="cats")
    train(config, tmp_path / "mine")
    (tracker,) = STARTED
    assert tracker.project == "cats" and tracker.arguments["id"] == "abc"
    assert tracker.arguments["entity"] == "me" and tracker.arguments["name"] == "mine"

    config = configured("wandb", tracker_options={"wandb": 3})
    with pytest.raises(ValueError, match=r"run.tracker_options.wandb = 3; write a table"):
        train(config, tmp_path / "other")


@pytest.mark.parametrize(
    "fails_at", [("log", 1), ("log", 2), ("image", 0), ("image", 2), ("table", 2), ("finish", None)]
)
def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(
    fails_at: tuple[str, int],
    fake: type[FakeTracker],
    configured: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(theirs.LOGGER_TYPE_TO_CLASS["wandb"], "fails_at", fails_at)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = Run(train(configured("wandb", "fake"), tmp_path / "mine"))

    messages = [str(one.message) for one in caught if "tracker" in str(one.message)]
    assert messages == [
        "tracker wandb failed (ConnectionError: the service is gone); it gets nothing more from "
        "this start of the run, which goes on without it"
    ]
    wandb, other = STARTED
    assert (wandb.sent[-1][0], wandb.sent[-1][2]) == fails_at
    assert len(run.records()) == 4 and run.evaluation.is_file() and run.sample_grid(4).is_file()
    assert len(other.of("image")) == 3 and other.sent[-1][0] == "finish"


def test_a_tracker_that_cannot_start_is_one_sentence(
    fake: type[FakeTracker],
    configured: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FakeTracker, "fails_at", ("start", None))
    message = (
        r"run.trackers: wandb cannot be started \(ConnectionError: the service is gone\); fix "
        r"that, or leave it out of run.trackers"
    )
    with pytest.raises(RuntimeError, match=message):
        train(configured("wandb"), tmp_path / "mine")
    assert not Run(tmp_path / "mine").records()


def test_the_guards_verdict_is_sent(
    fake: type[FakeTracker], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    for action in ("stop", "warn"):
        recipe = write_recipe(
            iterations=2,
            rewards=[{"use": "compressibility"}],
            optimizer={"lr": 0.05},
            batch={"prompts": 2, "images_per_prompt": 4},
            evaluation={"images_per_prompt": 2, "every": 1},
            guard={"action": action, "kl": 1e-9},
            run={"sample_every": 0, "trackers": ["fake"]},
        )
        STARTED.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = Run(train(load(recipe), tmp_path / action))
        verdicts = [v["guard"] for v, _ in STARTED[0].of("log") if "guard" in v]
        assert "over the budget" in verdicts[0]
        assert run.guard.is_file() == (action == "stop")


def test_a_broken_file_of_ids_is_named(
    fake: type[FakeTracker], configured: Callable[..., Config], tmp_path: Path
) -> None:
    config = configured("wandb")
    done: list[Any] = []
    train(config, tmp_path / "mine", on_record=done.append, stop=lambda: len(done) == 1)

    for content in ("", "[]", '{"wandb": 3}', "\x00"):
        Run(tmp_path / "mine").trackers.write_text(content)
        with pytest.raises(ValueError, match=r"trackers.json: not a table of the trackers' ids"):
            train(config, tmp_path / "mine", resume=True)


def test_trackers_change_nothing_in_the_run(
    fake: type[FakeTracker], configured: Callable[..., Config], tmp_path: Path
) -> None:
    train(configured(), tmp_path / "without")
    train(configured("wandb", "mlflow"), tmp_path / "with")
    assert log(tmp_path / "without") == log(tmp_path / "with")


def test_only_the_main_process_has_trackers() -> None:
    accelerator = SimpleNamespace(trackers=["open"])
    assert World(accelerator=accelerator).tracking.trackers == ["open"]
    assert World(rank=1, accelerator=accelerator).tracking.trackers == []
    assert Tracking().trackers == []


def test_settings_without_secrets() -> None:
    settings = {
        "model": {"id": "https://user:pw@hub/model#token", "targets": ["to_q", "to_k"]},
        "rewards": [{"use": "remote", "key_variable": "MY_KEY"}, {"api_key": "hush", "n": 2}],
        "prompts": {"texts": ["a cat"], "urls": ["ftp://me@host/a"]},
        "evaluation": {},
        "run": {"tracker_options": {"wandb": {"key": "hush"}}, "keep": 2},
    }
    assert settings_for_trackers(settings) == {
        "model.id": "https://***@hub/model#token",
        "model.targets": '["to_q", "to_k"]',
        "rewards.0.use": "remote",
        "rewards.0.key_variable": "MY_KEY",
        "rewards.1.api_key": "***",
        "rewards.1.n": 2,
        "prompts.texts": '["a cat"]',
        "prompts.urls": '["ftp://***@host/a"]',
        "run.keep": 2,
    }


def test_the_table_has_every_change() -> None:
    change = {"before": 1.0, "after": 2.5, "paired_mean": 1.5, "ci95": [1.0, 2.0]}
    nested = {"train": {**change, "rewards": {"red": change}, "panel": {"sharp": change}}}
    names = [name for name, _ in changes({**nested, "unseen": None})]
    assert names == ["train", "train/rewards/red", "train/panel/sharp"]
    assert markdown([["red", 1.0, 2.5, 1.5, 1.0, 2.0]]).splitlines()[2] == (
        "| red | 1 | 2.5 | 1.5 | 1 | 2 |"
    )


def test_a_real_tensorboard(configured: Callable[..., Config], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = configured("tensorboard")
    done: list[Any] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(config, tmp_path / "mine", on_record=done.append, stop=lambda: len(done) == 2)
        train(config, tmp_path / "mine", resume=True)

    events = EventAccumulator(str(tmp_path / "mine" / "burnish")).Reload()
    assert [event.step for event in events.Scalars("rewards/bright/mean")] == [1, 2, 3, 4]
    assert [event.step for event in events.Images("samples")] == [0, 2, 4]


def test_the_configuration_of_a_run_is_dumped_with_its_trackers(
    fake: type[FakeTracker], configured: Callable[..., Config], tmp_path: Path
) -> None:
    config = configured("mlflow")
    path = tmp_path / "config.toml"
    path.write_text(dump(config))
    assert load(path).run.trackers == ["mlflow"]
    assert Start("mine", "0" * 32, 0, False, tmp_path, False).unique_name == "mine-00000000"
