"""Relative paths count from the file they stand in, so recipes and runs can be moved."""

from __future__ import annotations

import inspect
import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from burnish import catalog, cli, references
from burnish import config as configuration
from burnish.annotations import IsPath, marks
from burnish.runs import Run
from burnish.training.loop import train

REWARD = "def bright(images, prompts):\n    return images.mean((1, 2, 3))\n"


@pytest.fixture
def project(
    write_recipe: Callable[..., Path], tiny_pipeline: Path, tmp_path: Path
) -> Callable[..., Path]:
    """A function that makes a folder with a recipe, all that it names by relative paths, and data.

    It returns the recipe.
    """

    def make(**tables: Any) -> Path:
        folder = tmp_path / "home" / "project"
        (folder / "data").mkdir(parents=True)
        (folder / "data" / "reward.py").write_text(REWARD)
        (folder / "data" / "prompts.txt").write_text("a cat\na dog\nan ox\n")
        shutil.copytree(tiny_pipeline, folder / "models" / "tiny")
        defaults: dict[str, Any] = {
            "iterations": 1,
            "model": {"id": "models/tiny"},
            "sampler": {"steps": 2},
            "prompts": {"use": "lines", "path": "data/prompts.txt"},
            "rewards": [{"use": "data/reward.py:bright"}],
            "batch": {"prompts": 2, "images_per_prompt": 2, "minibatches": 1},
            "evaluation": {"images_per_prompt": 1},
            "run": {"sample_every": 0},
        }
        written = write_recipe(**{**defaults, **tables})
        return written.rename(folder / "recipe.toml")

    return make


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    return int(ended.value.code or 0), capsys.readouterr().err


def test_a_project_is_trained_from_anywhere_and_moved_with_its_runs(
    project: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = project()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run = recipe.parent / "runs" / "first"
    code, err = command(capsys, "train", recipe, "--out", run)
    assert code == 0, err

    written = tomllib.loads((run / "config.toml").read_text())
    assert written["model"]["id"] == "../../models/tiny"
    assert written["prompts"]["path"] == "../../data/prompts.txt"
    assert written["rewards"][0]["use"] == "../../data/reward.py:bright"

    moved = tmp_path / "other" / "place" / "project"
    moved.parent.mkdir(parents=True)
    recipe.parent.rename(moved)
    monkeypatch.chdir("/")
    run = moved / "runs" / "first"
    image = tmp_path / "image.png"
    for arguments in (
        ("sample", run, "-p", "a cat", "-n", "1", "--out", image),
        ("evaluate", run),
        ("train", "--resume", "--out", run),
        ("train", moved / "recipe.toml", "--resume", "--out", run, "--set", "iterations=2"),
        ("train", run / "config.toml", "--out", tmp_path / "again"),
    ):
        code, err = command(capsys, *arguments)
        assert code == 0, (arguments, err)
    assert [record["iteration"] for record in Run(run).records()] == [1, 2]


def test_a_run_alone_is_sampled_without_what_sampling_does_not_need(
    project: Callable[..., Path],
    tiny_pipeline: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = project(model={"id": str(tiny_pipeline)})
    train(configuration.load(recipe), recipe.parent / "runs" / "first")
    run = tmp_path / "run"
    (recipe.parent / "runs" / "first").rename(run)
    shutil.rmtree(recipe.parent)

    monkeypatch.chdir("/")
    image = tmp_path / "image.png"
    code, err = command(capsys, "sample", run, "-p", "a cat", "-n", "1", "--out", image)
    assert code == 0 and image.is_file(), err
    code, err = command(capsys, "report", run)
    assert code == 0, err

    code, err = command(capsys, "train", "--resume", "--out", run)
    assert code == 2 and "data/reward.py: no such file" in err and err.count("\n") == 1


def test_a_run_moved_alone_says_where_it_looked_and_how_to_go_on(
    project: Callable[..., Path],
    tiny_pipeline: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = project(model={"id": str(tiny_pipeline)})
    train(configuration.load(recipe), recipe.parent / "runs" / "first")
    run = tmp_path / "deep" / "run"
    shutil.copytree(recipe.parent / "runs" / "first", run)
    monkeypatch.chdir("/")
    resume = ["train", "--resume", "--out", run]

    for file, setting in (
        ("reward.py", "rewards.0.use=FOLDER/reward.py:bright"),
        ("prompts.txt", "prompts.path=FOLDER/prompts.txt"),
    ):
        code, err = command(capsys, *resume)
        assert code == 2 and err.count("\n") == 1
        assert f"was looked for as {tmp_path / 'data' / file}" in err
        assert f"give its place by --set {setting}" in err
        resume += ["--set", setting.replace("FOLDER", str(recipe.parent / "data"))]

    code, err = command(capsys, *resume, "--set", "iterations=2")
    assert code == 0, err
    assert [record["iteration"] for record in Run(run).records()] == [1, 2]


def test_what_is_typed_counts_from_the_current_folder(
    project: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = project()
    here = tmp_path / "here"
    here.mkdir()
    (here / "mine.txt").write_text("a fox\n")
    (here / "mine.py").write_text(REWARD)
    monkeypatch.chdir(here)

    changes = ['prompts={use="lines", path="mine.txt"}', "rewards.0.use=mine.py:bright"]
    config = configuration.load(recipe, changes)
    assert config.prompts["path"] == "mine.txt" and config.rewards[0]["use"] == "mine.py:bright"
    assert config.model.id == "../home/project/models/tiny"

    written = tomllib.loads(configuration.dump(config, tmp_path / "runs" / "a"))
    assert written["prompts"]["path"] == "../../here/mine.txt"
    assert written["rewards"][0]["use"] == "../../here/mine.py:bright"
    assert written["model"]["id"] == "../../home/project/models/tiny"


def test_resume_compares_files_and_not_spellings(
    project: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = project()
    monkeypatch.chdir(recipe.parent)
    run = train(configuration.load("recipe.toml"), "runs/first")
    monkeypatch.chdir("/")
    text = recipe.read_text()
    recipe.write_text(text.replace('"data/', f'"{recipe.parent}/data/'))
    train(configuration.load(recipe, ["iterations=2"]), recipe.parent / run, resume=True)

    (recipe.parent / "data" / "other.txt").write_text("a cat\na dog\n")
    recipe.write_text(text.replace("prompts.txt", "other.txt"))
    with pytest.raises(ValueError, match="another prompts"):
        train(configuration.load(recipe), recipe.parent / run, resume=True)


@pytest.mark.parametrize(
    ("path", "hub", "moved"),
    [
        ("a.txt", False, "../old/a.txt"),
        ("../a.txt", False, "../a.txt"),
        ("", False, ""),
        ("/data/a.txt", False, "/data/a.txt"),
        ("~/a.txt", False, "{home}/a.txt"),
        ("zoo:emoji-sd", True, "zoo:emoji-sd"),
        ("owner/name", True, "owner/name"),
        ("there", True, "../old/there"),
        ("./owner/name", True, "../old/owner/name"),
        ("a/b/c", True, "a/b/c"),  # OWNER/NAME/FILE of the hub
        ("there/b/c", True, "../old/there/b/c"),
        ("http://127.0.0.1:8000/v1", True, "http://127.0.0.1:8000/v1"),
        ("bases/{noun}.png", False, "../old/bases/{noun}.png"),
    ],
)
def test_rebased(path: str, hub: bool, moved: str, tmp_path: Path) -> None:
    for name in ("old/there", "new"):
        (tmp_path / name).mkdir(parents=True)
    result = references.rebased(path, tmp_path / "old", tmp_path / "new", hub=hub)
    assert result == moved.format(home=Path.home(), noun="{noun}")


def test_through_a_link_to_the_folder(project: Callable[..., Path], tmp_path: Path) -> None:
    recipe = project()
    (tmp_path / "link").symlink_to(recipe.parent)
    config = configuration.load(tmp_path / "link" / "recipe.toml")
    assert Path(config.prompts["path"]).is_file()
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "runs").symlink_to(recipe.parent)
    written = tomllib.loads(configuration.dump(config, tmp_path / "far" / "runs"))
    assert written["prompts"]["path"] == "data/prompts.txt"


PLACES = ("path", "file", "folder", "hub id")
# the last is a file in short: the configuration makes a table of it
NO_PATHS = {
    ("reward", "aesthetic", "file"),
    ("prompts", "jsonl", "key"),
    ("prompts", "qr", "texts"),
}


@pytest.mark.parametrize("kind", catalog.BUILTIN)
def test_every_argument_that_names_a_file_is_marked(kind: str) -> None:
    """By its documentation: a new argument that takes a path must not be forgotten."""
    for name in catalog.BUILTIN[kind]:
        part = catalog.resolve(kind, name)
        hints = catalog.argument_hints(part)
        lines = (inspect.getdoc(part) or "").partition("Args:")[2].partition("Raises:")[0]
        arguments: dict[str, str] = {}
        for line in lines.splitlines():
            indent = len(line) - len(line.lstrip())
            if indent == 4 and ":" in line:
                argument, _, text = line.strip().partition(":")
                arguments[argument] = text
            elif arguments:
                arguments[list(arguments)[-1]] += line

        for argument, text in arguments.items():
            if (kind, name, argument) in NO_PATHS or not any(word in text for word in PLACES):
                continue
            hint = hints.get(argument, hints.get(catalog.OTHER_KEYS))
            assert marks(hint, IsPath) or argument in ("quality", "key"), (name, argument, text)


def test_payloads_nested_texts_and_panels_are_moved(tmp_path: Path) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    tree = {
        "model": {"id": "zoo:emoji-sd", "adapter": "./adapter", "controlnet": "zoo:emoji-qr"},
        "expander": {"start": "pairs.jsonl"},
        "prompts": {
            "use": "qr",
            "texts": {"use": "lines", "path": "texts.txt"},
            "payloads": "payloads.txt",
            "base": "bases/{text}.png",
        },
        "evaluation": {
            "unseen": {"use": "template", "text": "{a} {b}", "a": "a.txt", "b": "animals"}
        },
        "guard": {
            "panel": [{"use": "panel.py:f"}, {"use": "aesthetic", "head": "./head.safetensors"}]
        },
        "rewards": [{"use": "clip_similarity", "model": "./clip"}],
    }
    references.rebase(tree, configuration.Config, folder, tmp_path)
    text = json.dumps(tree)
    for name in ("adapter", "clip", "head.safetensors"):
        assert f'"./recipes/{name}"' in text, text
    for name in ("pairs.jsonl", "texts.txt", "payloads.txt", "bases/{text}.png", "a.txt"):
        assert f'"recipes/{name}"' in text, text
    assert '"recipes/panel.py:f"' in text and '"b": "animals"' in text and "zoo:emoji-qr" in text


def test_a_missing_prompt_file_is_named_by_its_key(
    project: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = project()
    (recipe.parent / "data" / "prompts.txt").unlink()
    monkeypatch.chdir("/")
    code, err = command(capsys, "train", recipe, "--out", recipe.parent / "run")
    place = recipe.parent / "data" / "prompts.txt"
    assert code == 2 and err.count("\n") == 1
    assert f"no such prompt file; it was looked for as {place} (" in err and "prompts: " in err
    assert "give its place by --set prompts.path=FOLDER/prompts.txt\n" in err
