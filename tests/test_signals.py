"""A reward that hangs or ends the program: one signal is enough, and what is done is saved."""

from __future__ import annotations

import logging
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from burnish.cli import main
from burnish.rewards import Tolerance, score, tolerance
from burnish.runs import Run
from burnish.training.loop import train
from burnish.types import Prompt

if TYPE_CHECKING:
    from conftest import LocalServer

# The first iteration is scored; then the reward hangs until the file `go` is there.
HANGS = """
import pathlib, time

HERE = pathlib.Path(__file__).parent
calls = [0]

def brightness(images, prompts):
    calls[0] += 1
    if calls[0] == CALL and not (HERE / "go").exists():
        (HERE / "hangs").touch()
        HANG
    return images.mean((1, 2, 3))
"""
BUSY = "while True: pass"
SLEEPS = "time.sleep(10_000)"


@pytest.fixture(autouse=True)
def signals_of_children() -> Iterator[None]:
    """Give the programs that tests start every signal, also where this one ignores some.

    A program inherits what is ignored (under nohup, or behind `&` in a script), but no handler.
    """
    numbers = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
    ignored = [number for number in numbers if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, lambda *_: None)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


def hanging_recipe(
    write_recipe: Callable[..., Path], hang: str, call: int, **tables: object
) -> Path:
    code = HANGS.replace("HANG\n", hang + "\n").replace("CALL", str(call))
    defaults = {
        "iterations": 3,
        "batch": {"prompts": 2, "images_per_prompt": 2},
        "evaluation": {"images_per_prompt": 0},
        "run": {"sample_every": 0},
        "rewards": [{"use": "HERE/reward.py:brightness"}],
    }
    return write_recipe(code, **{**defaults, **tables})


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    started = time.monotonic()
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - started < 120
        time.sleep(0.05)


def start(recipe: Path, out: Path) -> subprocess.Popen[bytes]:
    arguments = ["train", str(recipe), "--out", str(out), "--trust"]
    command = [sys.executable, "-m", "burnish.cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )


EVALUATED = {"evaluation": {"images_per_prompt": 1, "every": 1}}


@pytest.mark.parametrize(
    ("hang", "call", "number", "tables"),
    [
        (BUSY, 2, signal.SIGINT, {}),
        (SLEEPS, 2, signal.SIGHUP, {}),
        (SLEEPS, 3, signal.SIGTERM, EVALUATED),  # in the evaluation after iteration 1
    ],
)
def test_one_signal_saves_and_ends_a_run_whose_reward_hangs(
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    hang: str,
    call: int,
    number: signal.Signals,
    tables: dict[str, object],
) -> None:
    recipe = hanging_recipe(write_recipe, hang, call, **tables)
    run = Run(tmp_path / "run")
    process = start(recipe, run.folder)
    wait_for(tmp_path / "hangs", process)
    time.sleep(0.3)
    started = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)

    assert process.returncode == 128 + number, (out, err)
    assert time.monotonic() - started < 30
    assert b"Stopped after iteration 1. Go on with: burnish train --resume" in out
    assert b"Traceback" not in err
    assert (run.checkpoints / "000001").is_dir() and run.adapter.is_dir()
    assert [record["iteration"] for record in run.records()] == [1]

    (tmp_path / "go").touch()
    main_returns(["train", "--resume", "--out", str(run.folder)])
    assert [record["iteration"] for record in run.records()] == [1, 2, 3]


def main_returns(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert not end.value.code


def test_a_server_that_hangs_does_not_keep_the_run_from_ending(
    write_recipe: Callable[..., Path], tmp_path: Path, server: LocalServer
) -> None:
    def answer(body: dict[str, list[str]]) -> tuple[int, object]:
        if len(server.bodies) > 1:
            (tmp_path / "hangs").touch()
            time.sleep(20)
        return 200, {"scores": [float(len(image)) for image in body["images"]]}

    server.answer = answer
    remote = {"use": "remote", "url": server.url, "timeout": 500.0}
    recipe = hanging_recipe(write_recipe, BUSY, 9, rewards=[remote])
    process = start(recipe, tmp_path / "run")
    wait_for(tmp_path / "hangs", process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=15)
    assert process.returncode == 130, (out, err)
    assert (tmp_path / "run" / "checkpoints" / "000001").is_dir()


def test_a_closed_terminal_saves(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = hanging_recipe(write_recipe, SLEEPS, 2)
    child, terminal = pty.fork()
    if child == 0:
        command = [sys.executable, "-m", "burnish.cli", "train", str(recipe), "--trust"]
        os.execv(sys.executable, [*command, "--out", str(tmp_path / "run")])

    started = time.monotonic()
    while not (tmp_path / "hangs").exists():
        assert time.monotonic() - started < 120
        time.sleep(0.05)

    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert (tmp_path / "run" / "checkpoints" / "000001").is_dir()
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP


def test_under_nohup_a_closed_terminal_changes_nothing() -> None:
    from burnish.cli import stopping

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


ENDS = ["sys.exit(0)", "sys.exit()", "raise KeyboardInterrupt", "raise GeneratorExit", "exit(0)"]


@pytest.mark.parametrize("timeout", [0.0, 60.0])
@pytest.mark.parametrize("end", ENDS)
def test_a_reward_that_ends_the_program_is_an_error_and_the_run_is_saved(
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    end: str,
    timeout: float,
) -> None:
    scoring = {"timeout": timeout, "missing": "mask"}
    recipe = hanging_recipe(write_recipe, f"import sys; {end}", 2, scoring=scoring)
    with pytest.raises(SystemExit) as caught:
        main(["train", str(recipe), "--out", str(tmp_path / "run")])

    assert caught.value.code == 2
    assert "reward 'brightness' raised " in capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoints" / "000001").is_dir()


@pytest.mark.parametrize("where", ["at import", "when it is made"])
def test_a_reward_file_that_ends_the_program_is_an_error(
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    where: str,
) -> None:
    code = "import sys\ndef brightness():\n    sys.exit(0)\n"
    if where == "at import":
        code += "sys.exit(0)\n"
    recipe = write_recipe(code, rewards=[{"use": "HERE/reward.py:brightness"}])
    with pytest.raises(SystemExit) as caught:
        main(["train", str(recipe), "--out", str(tmp_path / "run")])
    assert caught.value.code == 2
    assert "reward.py" in capsys.readouterr().err


def test_other_code_that_ends_the_program_is_an_error_too(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    from burnish.config import load

    config = load(hanging_recipe(write_recipe, "pass", 99))
    run = Run(tmp_path / "run")

    def on_images(images: object) -> None:
        if run.records():
            sys.exit(0)

    with pytest.raises(RuntimeError, match="SystemExit: 0 was raised in iteration 2"):
        train(config, run.folder, on_images=on_images)
    assert (run.checkpoints / "000001").is_dir()


def test_ctrl_c_in_a_program_saves_what_is_done(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    from burnish.config import load

    config = load(hanging_recipe(write_recipe, "pass", 99))
    run = Run(tmp_path / "run")

    def on_images(images: object) -> None:
        if run.records():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, run.folder, on_images=on_images)
    assert (run.checkpoints / "000001").is_dir()


IMAGES = torch.zeros(2, 3, 8, 8)
PROMPTS = [Prompt("a"), Prompt("b")]


def slow(seconds: float) -> Callable[..., Tensor]:
    def reward(images: Tensor, prompts: object) -> Tensor:
        time.sleep(seconds)
        return torch.ones(len(images))

    return reward


@pytest.mark.parametrize(
    ("timeout", "words"), [(0.0, "SECONDS sets a limit"), (9.0, "= 9 gives up")]
)
def test_after_a_minute_a_line_names_the_reward(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, timeout: float, words: str
) -> None:
    monkeypatch.setattr(tolerance, "SILENCE", 0.2)
    limits = Tolerance(timeout=timeout)
    rewards = {"quick": slow(0), "slow": slow(0.5)}

    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            score(rewards, IMAGES, PROMPTS, limits)

    (record,) = caplog.records  # a reward that is always slow is not reported again
    text = record.getMessage()
    assert "reward 'slow' has not answered for 0 s" in text
    assert "scoring.timeout" in text and words in text


def test_a_stop_ends_the_wait_for_a_reward_and_between_tries() -> None:
    class Enough(Exception):
        """Ends the wait."""

    def stop() -> None:
        raise Enough

    def fails(images: Tensor, prompts: object) -> Tensor:
        raise ConnectionError("gone")

    for reward in (slow(20), fails):
        started = time.monotonic()
        with pytest.raises(Enough):
            score({"r": reward}, IMAGES, PROMPTS, Tolerance(retries=9, pause=20, poll=stop))
        assert time.monotonic() - started < 5
