"""Files and lines: any text survives them, any terminal shows them, and errors name the file."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from burnish import config as configuration
from burnish import files
from burnish.cli import main
from burnish.config import Config
from burnish.evaluation.paired import Evaluation, load_evaluation, save_evaluation
from burnish.prompts.sources import lines
from burnish.report.progress import line
from burnish.runs import Run, tidy
from burnish.terminal import say
from burnish.tools import gallery
from burnish.training.loop import train
from burnish.types import Prompt

BREAKERS = "\x0b\x0c\x1c\x1d\x1e\x1f\x85\u2028\u2029\x07\x08\x1b\x7f\x9b\r\n\t"
DIRECTIONS = "\u200e\u200f\u202a\u202e\u2066\u2069"
NASTY = f"a{BREAKERS}{DIRECTIONS}\x1b[31m\x1b]0;title\x07é漢😀\"'\\{{}}[/red]"


def texts(count: int, seed: int = 0) -> list[str]:
    """Return texts of any characters that a file can hold, with many of those that break lines."""
    draw = random.Random(seed)

    def character() -> str:
        if draw.random() < 0.4:
            return draw.choice(NASTY)
        code = draw.choice([draw.randrange(1, 0x100), draw.randrange(1, 0xD800), 0x1F600])
        return chr(code)

    return [f"a{''.join(character() for _ in range(draw.randrange(20)))}z" for _ in range(count)]


HALVES = ["\ud800", "a\udfffb", "\udc80name"]


def test_every_text_survives_the_log(tmp_path: Path) -> None:
    run = Run(tmp_path)
    records = [
        {"iteration": number, text: {"problems": [text]}}
        for number, text in enumerate([*texts(300), "a\x00b", *HALVES], 1)
    ]
    for record in records:
        run.append(record)

    assert run.records() == records
    content = run.log.read_bytes().decode("utf-8")
    assert len(content.splitlines()) == content.count("\n") == len(records)
    run.forget(7)
    assert run.records() == records[:7]
    run.log.write_bytes(b"\xef\xbb\xbf" + run.log.read_bytes().replace(b"\n", b"\r\n"))
    assert run.records() == records[:7], "as an editor of Windows saves it"


def test_every_text_survives_an_evaluation_and_a_configuration(tmp_path: Path) -> None:
    some = texts(100, 1)
    parts: list[list[float | None]] = [[0.5]] * len(some)
    panel = {some[0]: [1.0] * len(some)}
    evaluation = Evaluation(some, 1, 0, 8, [some[1]], parts, None, panel)
    save_evaluation(tmp_path / "e.json", {"train": evaluation})
    assert load_evaluation(tmp_path / "e.json") == {"train": evaluation}

    prompts = {"use": "list", "texts": some}
    tree = {"model": {"id": "zoo:emoji-sd"}, "prompts": prompts}
    config = configuration.parse({**tree, "rewards": [{"use": "compressibility", "name": some[2]}]})
    text = configuration.dump(config)
    for content in (text, "\ufeff" + text, "\ufeff" + text.replace("\n", "\r\n")):
        files.write(tmp_path / "c.toml", content)
        assert configuration.load(tmp_path / "c.toml") == config


def test_two_threads_may_write_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2, timeout=10)
    replaced = files.replace

    def together(source: Path, target: Path) -> None:
        both.wait()
        replaced(source, target)

    monkeypatch.setattr(files, "replace", together)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(files.write, [tmp_path / "a"] * 2, ["one", "two"]))
    assert (tmp_path / "a").read_text() in ("one", "two")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_rows_of_a_prompt_file_end_at_line_feeds_only(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    odd = "a\u2028b\u2029c\x85d"
    path.write_bytes(f"\ufeff{odd}\r\na dog\n\nan ox".encode())
    assert [prompt.text for prompt in lines(str(path))] == [odd, "a dog", "an ox"]

    path.write_bytes(b"a cat\n\xff\n")
    with pytest.raises(ValueError, match=r"prompts.txt, row 2: not UTF-8 text"):
        lines(str(path))


def test_half_of_a_character_is_refused_where_no_file_can_hold_it() -> None:
    with pytest.raises(ValueError, match="half of a character"):
        Prompt("a \ud83d cat")

    config = Config(prompts={"use": "list", "texts": ["\ud83d"]})
    with pytest.raises(ValueError, match="half of a character"):
        configuration.dump(config)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "cp437", "utf-8"])
def test_any_terminal_shows_any_text_on_one_line(encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding, newline="\n")
    some = [*texts(200, 2), *HALVES, NASTY, "a ± b − c"]

    for text in some:
        say(text, stream)

    shown = raw.getvalue().decode(encoding)
    assert len(shown.splitlines()) == len(some)
    assert not set(shown.replace("\n", "")) & set(BREAKERS + DIRECTIONS) - {"a"}
    record: Any = {"iteration": 1, "rewards": {NASTY: {"mean": 1.0, "std": 0.5}}}
    say(line(record, 3, None), stream)
    assert raw.getvalue().decode(encoding).count("\n") == len(some) + 1


def test_ascii_shows_our_own_characters_plainly() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "ascii")
    say("1 ± 2 − 3 é", stream)
    assert raw.getvalue() == b"1 +- 2 - 3 \\xe9\n"


@pytest.fixture
def recipe(write_recipe: Callable[..., Path]) -> Path:
    return write_recipe(
        iterations=1,
        sampler={"steps": 2},
        prompts={"use": "list", "texts": [f"a{BREAKERS}b", "naïve \x1b[31m\u2028[/red] 漢"]},
        rewards=[{"use": "compressibility", "name": "size [/red]\u2028\x1b[2J漢"}],
        batch={"prompts": 2, "images_per_prompt": 2, "minibatches": 1},
        evaluation={"images_per_prompt": 1},
        run={"sample_prompts": 2},
    )


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_no_command_fails_on_a_terminal_without_utf_8(
    encoding: str, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(tmp_path / "rün\u2028\x1b[31m")
    grid = str(tmp_path / "grid 漢\x9b.png")
    commands = [
        ["train", str(recipe), "--out", run],
        ["evaluate", run],
        ["report", run],
        ["sample", run, "--prompt", "naïve\x1b[31m\u2028漢", "--n", "1", "--out", grid],
        ["train", "--resume", "--out", run, "--set", "seed=3"],
        ["train", "--out", run, "dm\x1b[2Jo\u2028"],
        ["list"],
        ["--help"],
        ["train", "--help"],
        ["nonsense \x1b[2J"],
    ]

    for command in commands:
        streams = [io.TextIOWrapper(io.BytesIO(), encoding, newline="\n") for _ in range(2)]
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        with pytest.raises(SystemExit) as ended:
            main(command)

        for stream in streams:
            stream.flush()
        out, err = (stream.buffer.getvalue() for stream in streams)  # type: ignore[attr-defined]
        wrong = "seed=3" in command or "--out" in command[1:2] or "nonsense" in command[0]
        assert int(ended.value.code or 0) == (2 if wrong else 0), (command, err)
        assert b"\x1b" not in out + err and b"Traceback" not in err, (command, out, err)
        if wrong and "Usage" not in err.decode(encoding):
            assert len(err.decode(encoding).splitlines()) == 1, err


# What is left, and what is missing ---------------------------------------------------------------


def test_only_leftovers_of_ours_are_removed(tmp_path: Path) -> None:
    ours = [
        ".config.toml.123.part",
        "samples/.000001.png.7.part",
        "questions/.0123456789abcdef.png.7.12.part",
        "checkpoints/.000003.part/tensors.safetensors",
        "evaluations/.000002.json.9.part",
        "adapter/.adapter-ab12_x/pytorch_lora_weights.safetensors",
        "adapter/expander/.adapter-00000000/adapter_model.safetensors",
    ]
    theirs = [
        "notes.part",
        ".env",
        ".mine.part",
        "adapter/README.md",
        "samples/.adapter",
        "log.txt",
    ]
    for name in [*ours, *theirs]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")

    tidy(Run(tmp_path))
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == set(theirs)
    assert not list(tmp_path.rglob(".adapter-*")) and not list(tmp_path.rglob("*0*.part"))


def test_a_kill_while_the_configuration_is_written_leaves_a_folder_to_start_in(
    tmp_path: Path,
) -> None:
    (tmp_path / ".config.toml.4711.part").write_text("seed = ")
    (tmp_path / "lock").write_text("")
    assert Run.create(tmp_path).folder == tmp_path
    (tmp_path / ".mine.part").write_text("")
    with pytest.raises(FileExistsError, match=r"\.mine\.part is in it"):
        Run.create(tmp_path)


def test_folders_are_flushed_after_a_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    sync = os.fsync

    def watched(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        flushed.append(os.readlink(f"/proc/self/fd/{descriptor}") if is_folder else "file")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    files.write(tmp_path / "new" / "a.json", "1")
    assert flushed == [str(tmp_path), "file", str(tmp_path / "new")]

    flushed.clear()
    with files.publishing(tmp_path / "adapter") as made:
        (made / "weights").write_text("1")
    assert flushed[-2:] == ["file", str(tmp_path / "adapter")]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("name", ["grid.png", "folder"])
def test_errors_of_sampled_images_name_the_file(
    number: int, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match=rf"{name}.* could not be written: .*"):
        gallery.save(torch.zeros(1, 3, 4, 4), ["a cat"], 1, tmp_path / name)
    assert not list(tmp_path.rglob("*.png")), "nothing half written is left"


def test_a_place_that_cannot_hold_images_is_refused_before_any_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "open_source", lambda *_, **__: pytest.fail("it was loaded"))
    (tmp_path / "a.png").mkdir()
    (tmp_path / "file").write_text("")

    for out in ("a.png", "file"):
        with pytest.raises(SystemExit):
            main(["sample", "zoo:emoji-sd", "-p", "a cat", "--out", str(tmp_path / out)])
        assert str(tmp_path / out) in capsys.readouterr().err

    with pytest.raises(OSError, match=r"file could not be written: a file is in the way"):
        gallery.save(torch.zeros(1, 3, 4, 4), ["a"], 1, tmp_path / "file" / "b.png")


# Adapters ----------------------------------------------------------------------------------------


@pytest.fixture
def trained(recipe: Path, tmp_path: Path) -> Run:
    return Run(train(configuration.load(recipe, ["iterations=2"]), tmp_path / "run"))


def sample(run: Run, capsys: pytest.CaptureFixture[str]) -> Iterator[str]:
    """Yield what `burnish sample` prints on stderr."""
    with pytest.raises(SystemExit) as ended:
        main(["sample", str(run.folder), "-p", "a", "-n", "1", "--out", str(run.folder / "g.png")])
    yield str(ended.value.code or 0)
    yield capsys.readouterr().err


def test_an_adapter_says_of_which_iteration_it_is(
    trained: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    code, err = sample(trained, capsys)
    assert code == "0" and err == f"{trained.folder} after iteration 2\n"
    about = json.loads(trained.export.read_text("utf-8"))
    assert about["iteration"] == 2 and list(about["files"]) == ["pytorch_lora_weights.safetensors"]

    trained.export.write_text(json.dumps({**about, "iteration": 1}))
    code, err = sample(trained, capsys)
    assert code == "2" and "adapter is of iteration 1, and the newest checkpoint of 2" in err
    assert f"burnish train --resume --out {trained.folder} writes it anew" in err

    weights = trained.adapter / "pytorch_lora_weights.safetensors"
    intact = weights.read_bytes()
    weights.write_bytes(intact[:-4] + b"1234")
    assert "is not complete" in list(sample(trained, capsys))[1]
    trained.export.unlink()
    assert "is not complete" in list(sample(trained, capsys))[1]

    train(configuration.load(trained.config), trained.folder, resume=True)
    assert weights.read_bytes() == intact and next(sample(trained, capsys)) == "0"


def test_a_resume_of_a_finished_run_writes_a_lost_adapter_and_evaluation(trained: Run) -> None:
    lost = [*trained.adapter.iterdir(), trained.evaluation, trained.sample_grid(2)]
    contents = {path: path.read_bytes() for path in lost}
    for path in lost:
        path.unlink()

    train(configuration.load(trained.config), trained.folder, resume=True)
    assert {path: path.read_bytes() for path in lost} == contents


def test_adapter_files_are_the_same_in_every_process(tiny_pipeline: Path, tmp_path: Path) -> None:
    code = """
import sys
from burnish.diffusion.policy import Policy
policy = Policy.load(sys.argv[1], targets=["to_q", "to_k", "to_v", "to_out.0"], device="cpu")
policy.save_adapter(sys.argv[2])
"""
    written = set()
    for seed in "12":
        out = tmp_path / seed
        arguments = [sys.executable, "-c", code, str(tiny_pipeline), str(out)]
        subprocess.run(arguments, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
        written.add((out / "pytorch_lora_weights.safetensors").read_bytes())

    (content,) = written
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(header["__metadata__"]) == sorted(header["__metadata__"])
