"""The paper's prompt sets, sources from files, and the errors about bad files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from burnish.config import dump, load, packaged_recipe
from burnish.prompts import codes
from burnish.prompts import sources as prompts
from burnish.types import Prompt


def texts(source: list) -> list[str]:
    return [prompt.text for prompt in source]


def test_the_papers_sets() -> None:
    assert len(set(texts(prompts.animals()))) == 45
    assert texts(prompts.animals())[:2] == ["cat", "dog"]
    assert prompts.animals("a {noun}")[20].text == "an ant"
    assert prompts.animals()[20].metadata == {"noun": "ant"}
    imagenet = texts(prompts.imagenet_animals())
    # "crane" is in the 1000 classes twice, but only once among these
    assert len(imagenet) == len(set(imagenet)) == 398
    assert imagenet[0] == "tench, Tinca tinca"
    assert imagenet[397] == "puffer, pufferfish, blowfish, globefish"
    # the dogs, as the specification says
    assert imagenet[151] == "Chihuahua" and imagenet[268] == "Mexican hairless"
    assert imagenet[207] == "golden retriever"
    assert imagenet[291] == "lion, king of beasts, Panthera leo"
    acting = texts(prompts.activities())
    assert len(set(acting)) == 135
    assert "an ant playing chess" in acting
    assert "a cat washing the dishes" in acting


def test_zoo_nouns() -> None:
    animals = prompts.zoo_nouns("animals")
    objects = prompts.zoo_nouns("objects")
    assert len(animals) == 45
    assert len(objects) >= 40
    assert prompts.zoo_nouns("all") == animals + objects

    with pytest.raises(
        ValueError, match=r"split = 'plants' is unknown; use one of animals, objects, all"
    ):
        prompts.zoo_nouns("plants")


@pytest.mark.parametrize(
    ("noun", "article"),
    [
        ("cat", "a"),
        ("ant", "an"),
        ("unicorn", "a"),
        ("umbrella", "an"),
        ("hour", "an"),
        ("ewe", "a"),
        ("Owl", "an"),
    ],
)
def test_article(noun: str, article: str) -> None:
    assert prompts.article(noun) == article


def test_template_is_a_product() -> None:
    made = prompts.template(
        "a {colour} {noun} and an {other}", colour=["red", "orange"], noun=["ox"], other=["cat"]
    )
    assert texts(made) == ["a red ox and a cat", "an orange ox and a cat"]
    assert made[1].metadata == {"colour": "orange", "noun": "ox", "other": "cat"}
    assert len(prompts.template(noun="animals")) == 45

    with pytest.raises(ValueError, match=r"needs a value for \{noun\}"):
        prompts.template("a {noun}")
    with pytest.raises(ValueError, match="colour is not used"):
        prompts.template("a {noun}", noun=["cat"], colour=["red"])
    with pytest.raises(ValueError, match="noun must be a list of texts"):
        prompts.template("a {noun}", noun=[1])


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa cat\r\n\n  a dög \n".encode())
    assert texts(prompts.lines(str(path))) == ["a cat", "a dög"]
    assert texts(prompts.lines(str(path), "a photo of {noun}"))[0] == "a photo of a cat"
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a cat", "url": "x"}\n\n{"prompt": "a dog"}\n')
    assert prompts.jsonl(str(path))[0].metadata == {"url": "x"}
    assert len(prompts.jsonl(str(path))) == 2
    path.write_text('{"prompt": "a cat"}\n{"text": "a dog"}\n')

    with pytest.raises(ValueError, match=r'prompts.jsonl, row 2: no text under "prompt"'):
        prompts.jsonl(str(path))

    path.write_text('{"prompt": "a cat"}\n{"prompt": \n')
    with pytest.raises(ValueError, match=r"prompts.jsonl, row 2: not a JSON object"):
        prompts.jsonl(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no prompts in it; write one prompt a line"),
        (b"\n \n", "no prompts in it"),
        (b"a cat\n\xff\xfe\x00", "row 2: not UTF-8 text"),
        (b"a cat\n\x00\x01", "row 2: a binary file"),
        (
            b"a cat\n" + b"x" * 10_000,
            "row 2: 10000 characters in one line; keep a prompt under 2000",
        ),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)

    for source in (prompts.lines, prompts.jsonl):
        if source is prompts.lines or message != "row 2":
            with pytest.raises(ValueError, match="prompts.txt"):
                source(str(path))

    with pytest.raises(ValueError, match=message):
        prompts.lines(str(path))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such prompt file"):
        prompts.lines(str(tmp_path / "missing.txt"))
    with pytest.raises(ValueError, match="a folder, not a prompt file"):
        prompts.lines(str(tmp_path))
    with pytest.raises(ValueError, match="texts is empty"):
        prompts.listed([])
    with pytest.raises(ValueError, match="text 2 is 3"):
        prompts.listed(["a cat", 3])


def test_an_empty_prompt_is_its_own_original() -> None:
    assert Prompt("").unexpanded() == Prompt("")
    with pytest.raises(ValueError, match="give a text that is not empty"):
        Prompt("a cat", {"original": " "}).unexpanded()


# In short ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("short", "table"),
    [
        ("mine.txt", {"use": "lines", "path": "mine.txt"}),
        ("a folder/Mine.TXT", {"use": "lines", "path": "a folder/Mine.TXT"}),
        ("mine.csv", {"use": "csv", "path": "mine.csv"}),
        ("mine.jsonl", {"use": "jsonl", "path": "mine.jsonl"}),
        ("mine.json", {"use": "jsonl", "path": "mine.json"}),
        ("animals", {"use": "animals"}),
        (["a cat", "a dog"], {"use": "list", "texts": ["a cat", "a dog"]}),
    ],
)
@pytest.mark.parametrize("key", ["prompts", "evaluation.prompts", "evaluation.unseen"])
def test_prompts_in_short(short: Any, table: dict[str, Any], key: str, tmp_path: Path) -> None:
    config = load("demo", [f"{key}={json.dumps(short)}"])
    section = config.evaluation if "." in key else config
    assert getattr(section, key.rpartition(".")[2]) == table

    # what a run directory holds is the table, and means the same
    (tmp_path / "config.toml").write_text(dump(config))
    assert load(tmp_path / "config.toml") == config


def test_a_key_of_prompts_in_short_may_be_changed(tmp_path: Path) -> None:
    recipe = packaged_recipe("demo").read_text("utf-8")
    head, _, tail = recipe.partition("[prompts]")
    tail = tail.partition("\n[")[2]
    (tmp_path / "mine.toml").write_text(f'prompts = "mine.txt"\n{head}[{tail}', "utf-8")

    config = load(tmp_path / "mine.toml", ["prompts.text=a photo of {noun}"])
    assert config.prompts == {"use": "lines", "path": "mine.txt", "text": "a photo of {noun}"}
    changes = ["prompts=mine.csv", "prompts.key=caption"]
    assert load("demo", changes).prompts == {"use": "csv", "path": "mine.csv", "key": "caption"}


@pytest.mark.parametrize(
    ("short", "message"),
    [
        ('"animal"', 'did you mean "animals"'),
        ('"prompts.md"', r"or a file \(.txt, .csv, .json, .jsonl\)"),
        ('"a cat"', "is unknown"),
        ('"nowhere.py:mine"', "nowhere.py: no such file"),
        ("3", "prompts = 3 is of the wrong type"),
        ("true", "prompts = True is of the wrong type"),
    ],
)
def test_prompts_in_short_that_are_none(short: str, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load("demo", [f"prompts={short}"])


def test_codes_take_texts_in_short(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a cat\na dog\n")
    mine = [prompt.text for prompt in codes.qr(str(tmp_path / "mine.txt"), ["HELLO"])]
    assert mine == ["a cat", "a dog"]
    assert len(codes.qr("zoo_nouns", ["HELLO"])) == 45


def test_a_csv_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text('\ufeffprompt,base\n"a cat, asleep",cat.png\n\n"a ""big"" dog",\n', "utf-8")
    found = prompts.csv_table(str(path))
    assert [one.text for one in found] == ["a cat, asleep", 'a "big" dog']
    assert found[0].metadata == {"base": "cat.png"}

    path.write_text("text;n\na cat;1\n")
    assert prompts.csv_table(str(path), "text")[0].metadata == {"n": "1"}
    with pytest.raises(ValueError, match=r'no column "prompt", but text, n; set prompts.key'):
        prompts.csv_table(str(path))

    for content, message in (
        ("prompt\n", "no prompts below the first row"),
        ("prompt\na cat, asleep\n", "row 2: 2 cells under 1 columns"),
        ("prompt,base\n\n,cat.png\n", 'row 3: no text under "prompt"'),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            prompts.csv_table(str(path))


def test_a_json_list(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('[\n "a cat",\n {"prompt": "a dog", "n": 2}\n]')
    found = prompts.jsonl(str(path))
    assert [one.text for one in found] == ["a cat", "a dog"] and found[1].metadata == {"n": 2}

    for content, message in (
        ('["a cat"', "mine.json: not a JSON list"),
        ("[]", "mine.json: no prompts in it"),
        ('["a cat", 3]', "mine.json, entry 2: no text"),
        ('["a cat", ""]', "mine.json, entry 2: no text"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            prompts.jsonl(str(path))
