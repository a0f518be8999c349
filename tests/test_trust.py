"""Code that a file names runs after consent only, and what a command does not need never runs."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from burnish import cli, trust
from burnish import config as configuration
from burnish.runs import Run
from burnish.tools.evaluate_run import evaluate_run
from burnish.tools.gallery import open_source
from burnish.training.loop import train
from burnish.trust import UntrustedCodeError

pytestmark = pytest.mark.untrusted

REWARD = """
import pathlib
pathlib.Path(__file__).with_suffix(".ran").touch()
def bright(images, prompts, strength=1.0):
    return strength * images.mean((1, 2, 3))
def red(images, prompts):
    return images[:, 0].mean((1, 2))
"""
TINY: dict[str, Any] = {
    "iterations": 1,
    "sampler": {"steps": 2},
    "batch": {"prompts": 2, "images_per_prompt": 2, "minibatches": 1},
    "evaluation": {"images_per_prompt": 1},
    "run": {"sample_every": 0},
}


@pytest.fixture
def recipe(write_recipe: Callable[..., Path]) -> Path:
    """A recipe that names code in a file beside it, by a relative path."""
    return write_recipe(REWARD, **TINY, rewards=[{"use": "reward.py:bright"}])


@pytest.fixture
def ran(recipe: Path) -> Path:
    """The file that the code of the recipe leaves when it is imported."""
    return recipe.with_name("reward.ran")


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Return exit code and stderr of a command."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    return int(ended.value.code or 0), capsys.readouterr().err


@pytest.fixture
def hostile(recipe: Path, tmp_path: Path) -> Callable[[str, dict], Path]:
    """A function that makes a run from elsewhere, with another table in its config.toml."""
    plain = {"rewards": [{"use": "compressibility"}]}
    tree = {**configuration.comparable(configuration.load(recipe, trust=True)), **plain}
    finished = train(configuration.parse(tree), tmp_path / "finished")

    def make(where: str, table: Any) -> Path:
        copy = tmp_path / f"hostile-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(finished, copy)
        import tomllib

        import tomli_w

        tree = tomllib.loads((copy / "config.toml").read_text())
        *sections, key = where.split(".")
        node = tree
        for section in sections:
            node = node[section]
        node[key] = table
        (copy / "config.toml").write_text(tomli_w.dumps(tree))
        return copy

    return make


def test_training_from_a_recipe_with_code_is_refused_and_says_how(
    recipe: Path, ran: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["train", recipe, "--out", tmp_path / "run"], ["check", recipe]):
        code, err = command(capsys, *arguments)
        assert code == 2 and err.count("\n") == 1
        assert "rewards.0 = " in err and "reward.py:bright" in err and "--trust" in err
        assert not ran.exists() and not (tmp_path / "run").exists()

    code, err = command(capsys, "train", recipe, "--out", tmp_path / "run", "--trust")
    assert code == 0 and ran.exists(), err


def test_consent_is_remembered_until_the_file_changes(recipe: Path, tmp_path: Path) -> None:
    configuration.load(recipe, trust=True)
    configuration.load(recipe)
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("reward.py", "tiny.toml"):
        shutil.copy(tmp_path / name, moved / name)
    configuration.load(moved / "tiny.toml")
    configuration.load(recipe, ["rewards.0.strength=2.0"])

    text = recipe.read_text()
    recipe.write_text(text.replace("reward.py:bright", "reward.py:red"))
    with pytest.raises(UntrustedCodeError, match=r"reward\.py:red"):
        configuration.load(recipe)

    recipe.write_text(text)
    (tmp_path / "reward.py").write_text(REWARD + "\n")
    with pytest.raises(UntrustedCodeError, match="trust=True"):
        configuration.load(recipe)


def test_the_memory_lies_in_the_configuration_folder(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration.load(recipe, trust=True)
    (note,) = (tmp_path / ".config" / "burnish" / "trusted").iterdir()
    assert "reward.py:bright" in note.read_text()

    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    assert trust.folder() == Path.home() / ".config" / "burnish" / "trusted"
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(blocked))
    configuration.load(recipe, trust=True)
    with pytest.raises(UntrustedCodeError):
        configuration.load(recipe)


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("yes\n", 0), ("n\n", 2), ("", 2)])
def test_on_a_terminal_there_is_a_question(
    recipe: Path,
    ran: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    code: int,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    ended, err = command(capsys, "train", recipe, "--out", tmp_path / "run")
    assert ended == code and "reward.py:bright" in err and "[y/N]" in err
    assert ran.exists() == (code == 0)


def test_what_is_typed_is_consent(
    recipe: Path, ran: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe.write_text(recipe.read_text().replace("reward.py:bright", "compressibility"))
    typed = f"rewards.0.use={tmp_path}/reward.py:bright"
    code, err = command(capsys, "train", recipe, "--set", typed, "--out", tmp_path / "run")
    assert code == 0 and ran.exists(), err

    # and for going on with that run, which is what its last line proposes
    configuration.load(tmp_path / "run" / "config.toml")


def test_typing_one_name_is_no_consent_to_another(recipe: Path, ran: Path, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text("def f(scores, weights, group): return scores.parts[:, 0]\n")
    with pytest.raises(UntrustedCodeError, match=r"rewards\.0"):
        configuration.load(recipe, [f"advantage.use={tmp_path}/other.py:f"])
    assert not ran.exists()


PWNED = "touch PWNED"
PLACES = [
    ("advantage", {"use": "subprocess:getoutput", "cmd": PWNED}),
    ("objective", {"use": "os:system", "command": PWNED}),
    ("curriculum", {"use": "os:system", "command": PWNED}),
    ("rewards", [{"use": "subprocess:getoutput", "cmd": PWNED}]),
    ("prompts", {"use": "subprocess:getoutput", "cmd": PWNED}),
    ("prompts", {"use": "qr", "random": 3, "texts": {"use": "os:system", "command": PWNED}}),
    ("prompts", {"use": "qr", "random": 3, "texts": "evil.py:f"}),
    ("prompts", {"use": "qr", "random": 3, "texts": {"use": "qr", "texts": "evil.py:f"}}),
    ("prompts", {"use": "burnish.prompts.codes:qr", "random": 3, "texts": "evil.py:f"}),
    ("prompts", {"use": "burnish.prompts.codes:qr", "random": 3, "texts": {"use": "evil.py:f"}}),
    ("prompts", "evil.py:f"),
    ("evaluation.unseen", "evil.py:f"),
    ("evaluation.unseen", {"use": "subprocess:getoutput", "cmd": PWNED}),
    ("guard.panel", [{"use": "subprocess:getoutput", "cmd": PWNED}]),
    ("sampler.kernel", {"use": "subprocess:getoutput", "cmd": PWNED}),
    ("sampler.guidance", {"use": "os:system", "command": PWNED}),
    ("advantage", {"use": "evil.py:f"}),
    ("rewards", [{"use": "evil_package.inner:f"}]),
    ("advantage", {"use": "burnish.runs:write", "path": "PWNED", "content": "x"}),
    ("advantage", {"use": "builtins:eval"}),
]


@pytest.mark.parametrize("place", range(len(PLACES)))
def test_no_command_runs_what_a_foreign_run_names(
    hostile: Callable[[str, Any], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: int,
) -> None:
    where, table = PLACES[place]
    run = hostile(where, table)
    code = "import pathlib; pathlib.Path('PWNED').touch()\ndef f(): pass\n"
    (run / "evil.py").write_text(code)
    package = tmp_path / "modules" / "evil_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(code)
    (package / "inner.py").write_text(code)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.chdir(tmp_path)

    in_the_sampler = where.startswith("sampler")
    in_the_evaluation = in_the_sampler or where.startswith(("rewards", "prompts", "evaluation"))
    for arguments, refused in (
        (["report", run], False),
        (["sample", run, "-p", "a cat", "-n", "1", "--out", "a.png"], in_the_sampler),
        (["evaluate", run], in_the_evaluation),
        (["train", "--resume", "--out", run], True),
        (["check", run / "config.toml"], True),
    ):
        ended, err = command(capsys, *arguments)
        assert not (tmp_path / "PWNED").exists(), arguments
        assert "evil_package" not in sys.modules
        assert ended == (2 if refused else 0), (arguments, err)
        assert not refused or ("--trust" in err and err.count("\n") == 1), err


def test_arguments_of_an_installed_module_are_part_of_the_consent(recipe: Path) -> None:
    def advantage(command: str) -> Path:
        path = recipe.with_name("module.toml")
        table = f'advantage = {{ use = "subprocess:getoutput", cmd = "{command}" }}\n'
        path.write_text(table + recipe.read_text().replace("reward.py:bright", "compressibility"))
        return path

    with pytest.raises(ValueError, match="advantage"):  # trusted, but no advantage
        configuration.load(advantage("true"), trust=True)
    with pytest.raises(UntrustedCodeError, match="'rm -rf"):
        configuration.load(advantage("rm -rf /tmp/nothing"))


def test_nothing_is_hidden_in_the_question(recipe: Path) -> None:
    shown: list[str] = []
    table = 'advantage = { use = "os:system\\u001b[2K", a = "\\u202e\\u001b[1A" }\n'
    recipe.write_text(table + recipe.read_text())
    with pytest.raises(UntrustedCodeError):
        configuration.load(recipe, trust=lambda question: bool(shown.append(question)))

    (question,) = shown
    assert "\x1b" not in question and "\u202e" not in question and "os:system" in question


def test_python_needs_no_consent_for_what_a_program_says(recipe: Path, tmp_path: Path) -> None:
    tree = configuration.comparable(configuration.load(recipe, trust=True))
    shutil.rmtree(tmp_path / ".config")
    config = configuration.parse(tree)
    run = Run(train(config, tmp_path / "run"))

    shutil.rmtree(tmp_path / ".config", ignore_errors=True)
    with pytest.raises(UntrustedCodeError):
        evaluate_run(run)
    assert open_source(str(run.folder))[1].steps == 2
    assert evaluate_run(run, trust=True)["train"]


def test_a_run_is_judged_by_others_without_the_code_of_its_rewards(
    recipe: Path, ran: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(train(configuration.load(recipe, trust=True), tmp_path / "run"))
    shutil.rmtree(tmp_path / ".config")
    ran.unlink()

    judged = ("evaluate", run.folder, "--reward", "compressibility")
    assert command(capsys, *judged)[0] == 0 and not ran.exists()
    with pytest.raises(UntrustedCodeError):
        evaluate_run(run)
    recipe.with_name("reward.py").unlink()
    assert command(capsys, *judged)[0] == 0


def test_a_module_is_found_without_importing_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "unimported" / "deep"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "part.py").write_text("def f(): pass")
    monkeypatch.syspath_prepend(str(tmp_path))

    code = trust.Code("advantage", "unimported.deep.part:f", {})
    assert [file.name for file in code.files()] == ["__init__.py", "__init__.py", "part.py"]
    before = code.digest()
    (package / "__init__.py").write_text("")
    assert code.digest() != before
    assert "unimported" not in sys.modules


def test_a_missing_file_is_said_to_be_missing(recipe: Path) -> None:
    recipe.with_name("reward.py").unlink()
    with pytest.raises(FileNotFoundError, match=r"rewards\.0: .*reward\.py: no such file"):
        configuration.load(recipe)


def test_without_a_home_folder_nothing_is_remembered(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr(Path, "home", none)
    configuration.load(recipe, trust=True)
    with pytest.raises(UntrustedCodeError):
        configuration.load(recipe)


def test_a_program_that_ends_itself_is_one_sentence(recipe: Path) -> None:
    recipe.with_name("reward.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(ValueError, match=r"reward\.py fails when it is read: SystemExit"):
        configuration.load(recipe, trust=True)


def test_of_several_processes_none_asks_but_the_first(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert cli.consent() is False


def test_a_pipe_is_no_terminal(recipe: Path, ran: Path, tmp_path: Path) -> None:
    script = [sys.executable, "-m", "burnish.cli", "check", str(recipe)]
    process = subprocess.run(script, input=b"y\n", capture_output=True, env=dict(os.environ))
    assert process.returncode == 2 and b"--trust" in process.stderr and not ran.exists()
