"""The commands end to end on a tiny random pipeline: output, files, errors, signals."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from burnish.cli import app, main, stopping
from burnish.report.charts import duration
from burnish.report.progress import Plan, Progress, line

RECORD = {
    "iteration": 3,
    "images": 8,
    "rewards": {"jpeg": {"mean": -1.5, "std": 0.25}},
    "ratio_deviation": 1.2e-7,
    "clip_fraction": 0.125,
    "approx_kl": 0.004,
    "seconds_sampling": 2.0,
    "seconds_scoring": 0.1,
    "seconds_training": 4.0,
}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of a command."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture
def recipe(write_recipe: Callable[..., Path]) -> Path:
    return write_recipe(
        iterations=2,
        sampler={"guidance": {"use": "cfg", "weight": 5.0}},
        prompts={"use": "list", "texts": ["a cat", "a dog"]},
        batch={"prompts": 2, "images_per_prompt": 2},
        evaluation={"images_per_prompt": 1},
        run={"sample_every": 1, "sample_prompts": 4},
    )


def test_help_is_instant_and_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0 and "burnish train demo" in out

    code = """import sys
from burnish.cli import main
try:
    main(["--help"])
finally:
    assert "torch" not in sys.modules, "the help imports torch"
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

    for command in ("train", "sample", "evaluate", "report", "check"):
        _, out, _ = run(capsys, command, "--help")
        assert f"burnish {command} " in out


@pytest.mark.parametrize("command", app.registered_commands, ids=lambda one: one.callback.__name__)
def test_help_fits_80_columns(command: Any) -> None:
    _, *lines = inspect.cleandoc(command.callback.__doc__).split("\n")
    assert [line for line in lines if len(line) > 78] == []


def test_other_libraries_print_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "burnish.cli", "sample", "zoo:emoji-lcm", "--prompt", "a fox"]
    finished = subprocess.run(
        [*command, "--n", "1", "--steps", "1", "--out", str(tmp_path / "fox.png")],
        check=True,
        capture_output=True,
        text=True,
    )
    assert (finished.stdout, finished.stderr) == (f"{tmp_path / 'fox.png'}\n", "")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version")[1].strip().count(".") == 2


def test_list_names_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    from burnish.catalog import BUILTIN
    from burnish.config import recipes

    code, out, _ = run(capsys, "list")
    assert code == 0
    assert all(f"  {name} " in out for table in BUILTIN.values() for name in table)
    assert all(f"  {name} " in out for name in recipes())
    assert "RLCM on LCM Dreamshaper v7, LAION's aesthetic score" in out
    assert "fifty, and none for guidance\n" in out, "a sentence to its end"


def test_from_a_recipe_to_a_report(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "run")
    code, out, err = run(capsys, "train", str(recipe), "--set", "seed=3", "--out", folder)
    assert code == 0, err
    assert "iteration 2/2  compressibility" in out and "paired gain" in out
    assert f"burnish report {folder}" in out

    code, out, _ = run(capsys, "report", folder)
    assert code == 0 and "<svg" in Path(out.strip()).read_text()

    code, out, _ = run(capsys, "evaluate", folder, "--images", "2")
    assert code == 0 and "95 % interval" in out
    assert len(json.loads((tmp_path / "run" / "evaluation.json").read_text())["train"]["ci95"]) == 2

    code, out, _ = run(capsys, "evaluate", folder, "--reward", "{use='compressibility', name='x'}")
    assert code == 0 and " x " in out

    grid = tmp_path / "grid.png"
    options = ["-p", "a cat", "-p", "a dog", "-n", "3", "--out", str(grid)]
    assert run(capsys, "sample", folder, *options)[0] == 0
    with Image.open(grid) as image:
        assert image.size == (3 * 32, 2 * 32)

    single = tmp_path / "single"
    options = ["-p", "a cat", "-n", "1", "--before", "--out", str(single)]
    assert run(capsys, "sample", folder, *options)[0] == 0
    assert [path.name for path in single.iterdir()] == ["00-a-cat-00.png"]

    code, out, err = run(capsys, "train", str(recipe), "--out", folder)
    assert code == 2 and "already holds a run" in err and err.count("\n") == 1


def test_only_the_first_of_several_processes_prints(
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "1")
    options = ["--set", "iterations=1", "--out", str(tmp_path / "run")]
    code, out, _ = run(capsys, "train", str(recipe), *options)
    assert code == 0 and out == ""


def test_sample_from_a_model_is_seeded(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = []

    for name, seed in (("a.png", "1"), ("b.png", "1"), ("c.png", "2")):
        path = tmp_path / name
        options = ["-p", "a cat", "--steps", "2", "--seed", seed, "--out", str(path)]
        run(capsys, "sample", str(tiny_pipeline), *options)
        images.append(path.read_bytes())

    assert images[0] == images[1] != images[2]


def test_sigterm_saves_and_prints_how_to_resume(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reward = tmp_path / "reward.py"
    reward.write_text(
        "import os, signal, pathlib\n"
        "flag = pathlib.Path(__file__).with_suffix('.done')\n"
        "calls = [0]\n"
        "def brightness(images, prompts):\n"
        "    calls[0] += 1\n"
        # 1: evaluation; 2, 3: the first two iterations
        "    if calls[0] == 3 and not flag.exists():\n"
        "        flag.touch()\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return images.mean((1, 2, 3))\n"
    )
    folder = tmp_path / "run"
    more = ["--set", f"rewards.0.use={reward}:brightness", "--set", "iterations=4"]
    code, out, err = run(capsys, "train", str(recipe), *more, "--out", str(folder))
    assert code == 128 + signal.SIGTERM, err
    assert "Stopping at the next safe point" in err
    assert f"burnish train --resume --out {folder}" in out

    code, out, err = run(capsys, "train", "--resume", "--out", str(folder))
    assert code == 0, err
    iterations = [
        json.loads(text)["iteration"] for text in (folder / "log.jsonl").read_text().splitlines()
    ]
    assert iterations == [1, 2, 3, 4]


def test_a_second_signal_ends_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)

    with stopping() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)

    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "train needs a RECIPE"),
        (["train", "dmo"], 'did you mean "demo"'),
        (["train", "demo", "--set", "sampler.stps=3"], 'did you mean "steps"'),
        (["train", "demo", "--set", "sampler.steps=0"], "sampler.steps = 0"),
        (["train", "--resume", "--out", "nowhere"], "nowhere"),
        (["report", "nowhere"], "nowhere holds no run"),
        (["evaluate", "nowhere"], "nowhere holds no run"),
        (["sample", "zoo:emoji-sdd", "-p", "a cat"], "did you mean zoo:emoji-sd?"),
        (["sample", "./nowhere", "-p", "a cat"], "nowhere does not exist"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == ""
    assert err.startswith("burnish: ") and message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_plain_line_has_all_numbers() -> None:
    assert line(RECORD, 10, 125) == (
        "iteration 3/10  jpeg -1.5 ± 0.25  ratio-1 1.2e-07  clipped 0.125  KL 0.004  "
        "sampling 2.0 s  scoring 0.1 s  training 4.0 s  left 2 min"
    )
    assert "KL 0.5" in line({**RECORD, "kl": 0.5}, 10, None)


MANY = {
    **RECORD,
    "rewards": {
        "jpeg": {"mean": -1.5, "std": 0.25, "within": 0.125},
        "red": {"mean": 0.5, "std": 2, "within": 1},
    },
    "pareto_front": 0.375,
}


def test_plain_line_of_several_rewards() -> None:
    assert (
        "  jpeg -1.5 ± 0.25 (0.125 within a prompt)  red 0.5 ± 2 (1 within a prompt)"
        "  Pareto front 0.375  ratio-1"
    ) in line(MANY, 10, None)


def test_live_table_of_several_rewards() -> None:
    console = Console(force_terminal=True, width=160, record=True)
    with Progress(Plan(Path("runs/a"), 10, False), console) as progress:
        progress.on_record(MANY)
        console.print(progress._view())

    text = console.export_text()
    assert all(word in text for word in ("jpeg", "red", "0.5 ± 2", "front", "0.375"))


def test_prefer_chooses_the_identifiers_of_a_run(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "run")
    rewards = 'rewards=[{use="compressibility"},{use="incompressibility"}]'
    changes = ["iterations=1", "sampler.identifiers=tokens", "batch.images_per_prompt=4", rewards]
    options = [part for change in changes for part in ("--set", change)]
    code, out, err = run(capsys, "train", str(recipe), *options, "--out", folder)
    assert code == 0 and "within a prompt" in out and "Pareto front" in out, err

    assert run(capsys, "evaluate", folder)[0] == 0
    both = "compressibility,incompressibility"
    images = []

    for number, names in enumerate(("", "compressibility", "incompressibility", both)):
        grid = tmp_path / f"{number}.png"
        options = ["-p", "a cat", "-n", "1", "--out", str(grid)]
        prefer = ["--prefer", names] if names else []
        assert run(capsys, "sample", folder, *options, *prefer)[0] == 0
        images.append(grid.read_bytes())

    assert images[0] == images[3] and len(set(images)) == 3
    code, _, err = run(capsys, "sample", folder, "-p", "a cat", "--prefer", "beauty")
    assert code == 2 and 'has no reward "beauty"' in err
    assert "--prefer" in run(capsys, "sample", "--help")[1]


def test_live_table_in_a_terminal() -> None:
    console = Console(force_terminal=True, width=120, record=True)
    with Progress(Plan(Path("runs/a"), 10, False), console) as progress:
        progress.on_record(RECORD)
        assert progress.left() == pytest.approx(7 * 6.1)
        console.print(progress._view())

    text = console.export_text()
    assert all(word in text for word in ("jpeg", "-1.5 ± 0.25", "3/10", "left"))


def test_duration() -> None:
    assert [duration(seconds) for seconds in (4.2, 89, 150, 7500)] == [
        "4 s",
        "89 s",
        "2 min",
        "2 h 05 min",
    ]


def test_a_misspelt_run_beside_runs_is_named_and_no_hub_is_asked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/jpeg").mkdir(parents=True)
    Path("runs/jpeg/config.toml").write_text("")

    code, _, err = run(capsys, "sample", "runs/jepg", "--prompt", "a cat")
    assert (code, err) == (2, "burnish: runs/jepg is missing; runs has jpeg\n")


@pytest.mark.parametrize(
    "command",
    [
        ("sample", "zoo:emoji-lcm", "--prompt", "a cat", "--guidance"),
        ("sample", "runs/none", "--prompt", "a cat", "--strength"),
        ("qr", "HELLO", "--prompt", "a cat", "--scale"),
    ],
    ids=lambda command: command[-1],
)
def test_a_number_that_is_none_is_refused(
    capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    code, _, err = run(capsys, *command, "nan")
    assert code == 2 and "nan is no finite number" in err
