"""The paper's prompt sets, sources from files, and the errors about bad files."""

from __future__ import annotations

import gzip
import json
import os
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from burnish.config import dump, load, packaged_recipe
from burnish.prompts import codes
from burnish.prompts import sources as prompts
from burnish.prompts.codes import qr
from burnish.prompts.datasets import dataset
from burnish.types import Prompt


def texts(source: list) -> list[str]:
    return [prompt.text for prompt in source]


def test_paths_in_a_jsonl_file_are_relative_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    (folder / "photos").mkdir(parents=True)
    (folder / "photos" / "1.PNG").write_bytes(b"")
    (folder / "menu.png").write_bytes(b"")
    entry = {
        "prompt": "a cat",
        "control": "maps/1.png",
        "base": "../bases/1",
        "photo": "photos/1.PNG",
        "payload": "menu.png",
        "caption": "there is no none.png",
        "long": "x" * 1000 + ".png",
        "number": 1,
        "none": None,
        "list": ["menu.png"],
    }
    (folder / "prompts.jsonl").write_text(json.dumps(entry))
    expected = {
        **{name: value for name, value in entry.items() if name != "prompt"},
        "control": "maps/1.png",
        "base": "../bases/1",
        "photo": "photos/1.PNG",
    }

    for where, path in (
        (tmp_path, "data/prompts.jsonl"),
        (tmp_path, str(folder / "prompts.jsonl")),
    ):
        monkeypatch.chdir(where)
        metadata = prompts.jsonl(path)[0].metadata
        start = path.removesuffix("prompts.jsonl")
        located = {name: start + str(expected[name]) for name in ("control", "base", "photo")}
        assert metadata == {**expected, **located}

    monkeypatch.chdir(folder)
    assert prompts.jsonl("prompts.jsonl")[0].metadata["control"] == "maps/1.png"
    (folder / "prompts.jsonl").write_text('{"prompt": "a cat", "control": "/maps/1.png"}')
    assert prompts.jsonl("prompts.jsonl")[0].metadata["control"] == "/maps/1.png"


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


OTHER_FILES = {
    "table": (b'prompt,label\n"a cat, asleep",animal\na dog,animal\n', "row 1.*header of a table"),
    "one column": (b'caption\n"a cat, asleep"\n', "row 1.*header|row 2.*in quotes"),
    "semicolons": (b"id;prompt\n1;a cat\n", "row 1.*header of a table"),
    "tabs": (b"a cat\tanimal\na dog\tanimal\n", "row 1.*a row of a table"),
    "quoted cells": (b'"a cat","animal"\n"a dog","animal"\n', "row 1.*a row of a table"),
    "quoted lines": (b'a dog\n"a cat, ""asleep"""\n', "row 2.*in quotes"),
    "json lines": (b'{"prompt": "a cat"}\n{"prompt": "a dog"}\n', 'row 1.*use = "jsonl"'),
    "json": (b'[\n  "a cat",\n  "a dog"\n]\n', "row 1.*JSON"),
    "json in a line": (b'["a cat", "a dog"]', "row 1.*JSON"),
    "json object": (b'{\n  "prompts": ["a cat"]\n}\n', "row 1.*JSON"),
    "python": (b"'a cat',\n'a dog',\n", "row 1.*entry of a list"),
    "toml": (b'[prompts]\ntexts = ["a cat"]\n', "TOML"),
    "toml keys": (b'use = "list"\n', "TOML"),
    "yaml": (b"prompts:\n  - a cat\n  - a dog\n", "row 1.*YAML"),
    "bullets": (b"- a cat\n- a dog\n", "row 1.*entry of a list"),
    "numbers": (b"1. a cat\n2. a dog\n", "row 1.*entry of a list"),
    "unknown columns": (b"index,animal\n0,cat\n1,dog\n", "row 1.*header of a table"),
    "unknown last column": (b"animal;weight\ncat;0.5\ndog;2\n", "row 1.*header of a table"),
    "unknown columns, a row": (b"id;title\n1;a cat\n", "row 1.*header of a table"),
    "columns of two words": (b"Prompt Text,Seed\na cat,x1\n", "row 1.*header of a table"),
    "column of two words": (b"Image Caption\na cat\n", "row 1.*header of a table"),
    "empty cells": (b"text,\na cat,\na dog,\n", "row 1.*row of a table, as all lines"),
    "empty cells, no header": (b"a cat;\na dog;\n", "row 1.*row of a table, as all lines"),
    "weights": (b"a cat,0.5\na dog, asleep,1\n", "row 1.*row of a table, as all lines"),
    "row numbers": (b"\n0,a cat\n1,a dog\n", "row 2.*row of a table, as all lines"),
    "prompt:": (b"prompt: a cat\nPrompt 2: a dog\n", "row 1.*entry of a list"),
    "curly quotes": ("“a cat”\n“a dog”\n".encode(), "row 1.*entry of a list"),
    "German quotes": ("„a cat“,\n„a dog“\n".encode(), "row 1.*entry of a list"),
    "counted": (b"1 a cat\n2 a dog\n3 birds\n", "row 1.*entry of a list"),
    "counted with zeros": (b"00 a cat\n01 a dog\n", "row 1.*entry of a list"),
    "html": (b"<!DOCTYPE html>\n<html><body>a cat</body></html>", "row 1.*web page"),
    "xml": (b'<?xml version="1.0"?>\n<p>a cat</p>', "row 1.*web page"),
    "comment": (b"# animals\na cat\n", "row 1.*a comment"),
    "later comment": (b"a cat\n// dogs\na dog\n", "row 2.*a comment"),
    "UTF-16": ("a cat\na dog\n".encode("utf-16"), "UTF-16.*save the file as UTF-8"),
    "UTF-16 without a mark": ("a cat\na dog\n".encode("utf-16-le"), "UTF-16"),
    "Latin-1": ("a dög\n".encode("latin-1"), "row 1: not UTF-8"),
    "gzip": (gzip.compress(b"a cat\n"), "gzip file; unpack it"),
    "zip": (b"PK\x03\x04rest", "zip file"),
    "image": (b"\x89PNG\r\n\x1a\n", "PNG image"),
    "pdf": (b"%PDF-1.7\n", "PDF"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
@pytest.mark.parametrize("reader", ["lines", "template"])
def test_a_file_of_another_kind_is_no_list_of_prompts(
    tmp_path: Path, name: str, reader: str
) -> None:
    content, message = OTHER_FILES[name]
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    read = {"lines": prompts.lines, "template": partial(prompts.template, "a {noun}")}[reader]
    argument = {"lines": "path", "template": "noun"}[reader]
    with pytest.raises(ValueError, match=rf"prompts\.txt.*({message})"):
        read(**{argument: str(path)})


@pytest.mark.parametrize(
    "line",
    [
        "a cat, 4k, detailed",
        'a sign that says "STOP"',
        '"A" and "B", side by side',
        "#cyberpunk cat",
        "[cat:dog:0.5] on a hill",
        "{red|blue} house",
        "<reward 1> a cat",
        "a cat <3",
        "1. FC Köln, a crest",
        "time: noon",
        "text, white on black",
        "an apple | a pear",
        "c'est la vie",
        "- a cat",
    ],
)
def test_what_people_write_is_a_prompt(tmp_path: Path, line: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text(f"{line}\na dog \t\r\n  a bird\n", "utf-8")
    assert texts(prompts.lines(str(path))) == [line, "a dog", "a bird"]


@pytest.mark.parametrize(
    "content",
    [
        "1 cat\n2 cats\n3 cats\n",
        "2 a side, playing\n4 a side\n",
        "4,000 cats\n2,000 dogs\n",
        "a hill with 4,000 cats\na sky of 1,000\na crowd of 3,000\n",
        "a street, 1984\na car, 2020\n",
        "cat,dog\nbird,fish\n",
        "a cat,\na dog\n",
        "neon sign\ntext logo\n",
        "black cat,dark\n3 dogs,bright\n",
        "“A” and “B”\n“C” and “D”\n",
        "prompt: a cat\na dog\n",
        "prompt delivery\nprompt service\n",
        "3d cat\n2d dog\n",
        "8k, a cat\n4k, a dog\n",
        "1970s car\n1980s car\n",
        "text, neon sign\ncaption, old book\n",
        "cats\n3;dogs\n",
    ],
)
def test_lines_that_are_alike_are_prompts(tmp_path: Path, content: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text(content, "utf-8")
    assert texts(prompts.lines(str(path))) == content.splitlines()


def test_line_ends_and_marks_of_every_system(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa cat\ra dog\r\n\ufeffa bird  \n\n".encode())
    assert texts(prompts.lines(str(path))) == ["a cat", "a dog", "a bird"]
    path.write_text('{"prompt": " a cat "}\n')
    assert texts(prompts.jsonl(str(path))) == ["a cat"]


def test_a_table_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("a cat,animal\na car,thing\n")
    with pytest.raises(ValueError, match=r"prompts.csv: a table"):
        prompts.lines(str(path))


def test_too_many_combinations_are_refused_at_once(tmp_path: Path) -> None:
    words = [f"w{number}" for number in range(1000)]
    text = "{a} {b} {c} {d}"
    with pytest.raises(ValueError, match=r"1,000 a x .* are 1,000,000,000,000 combinations"):
        prompts.template(text, a=words, b=words, c=words, d=words)

    with pytest.raises(ValueError, match=r"1,000,000,000,000 payloads"):
        qr(["a cat"], random=10**12)
    with pytest.raises(ValueError, match=r"length = 1,000,000,000"):
        qr(["a cat"], random=5, length=10**9)
    with pytest.raises(ValueError, match=r"2,000 texts x 2,000 payloads are 4,000,000"):
        qr(words * 2, payloads=words * 2, combine="all")

    path = tmp_path / "nouns.txt"
    path.write_text("\n".join(f"n{number}" for number in range(200_000)))
    with pytest.raises(ValueError, match=r"7 numbers x 200,000 nouns are 1,400,000"):
        prompts.counting(nouns=str(path))


def test_a_file_of_payloads_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "payloads.txt"
    path.write_text('# 5\n{"a": 1}\n"X"\n')
    assert [prompt.metadata["payload"] for prompt in qr(["a cat"], payloads=str(path))] == [
        "# 5",
        '{"a": 1}',
        '"X"',
    ]


@pytest.mark.parametrize(
    "content",
    [
        "A1,x\nB2,y\n",
        '["A1"]\n["B2"]\n',
        "[1, 2]\n",
        '["A1", 2]\n',
        "url\n",
        "https://example.org/?a=1,2\nURL:x\n",
        '"A" and "B"\n"C" and "D"\n',
        "[\nA\n",
    ],
)
def test_unusual_payloads_are_taken(content: str, tmp_path: Path) -> None:
    path = tmp_path / "payloads.txt"
    path.write_text(content)
    found = [prompt.metadata["payload"] for prompt in qr(["a cat"], payloads=str(path))]
    assert found == content.splitlines()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", "url,name\nA1,x\n", ": a csv file;"),
        ("p.TSV", "A1\tx\n", ": a TSV file;"),
        ("p.jsonl", '{"payload": "A1"}\n', ": a jsonl file;"),
        ("p.txt", '["A1", "B2"]\n', ", row 1: .* begins a list in JSON;"),
        ("p.txt", '\n[\n  "A1",\n  "B2"\n]\n', ", row 2: .* begins a list in JSON;"),
        ("p.txt", '[{"payload": "A1"},\n{"payload": "B2"}]\n', ", row 1: .* list in JSON;"),
        ("p.txt", "Payload\nA1\n", ", row 1: 'Payload' is the header of a table;"),
        ("p.txt", '"url"\n"A1"\n', ", row 1: '\"url\"' is the header of a table;"),
        ("p.txt", '"A1"\n"B ""2"""\n', ", row 1: '\"A1\"' is in quotes, as all lines are;"),
        ("p.txt", '"A1",\n"B2"\n', ", row 1: .* is in quotes, as all lines are;"),
    ],
)
def test_a_table_or_list_is_no_file_of_payloads(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"/{name}{message} write one payload a line, as it is"):
        qr(["a cat"], payloads=str(tmp_path / name))


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
    (tmp_path / "config.toml").write_text(dump(config, tmp_path))
    assert load(tmp_path / "config.toml") == config


def test_a_key_of_prompts_in_short_may_be_changed(tmp_path: Path) -> None:
    recipe = packaged_recipe("demo").read_text("utf-8")
    head, _, tail = recipe.partition("[prompts]")
    tail = tail.partition("\n[")[2]
    (tmp_path / "mine.toml").write_text(f'prompts = "mine.txt"\n{head}[{tail}', "utf-8")

    config = load(tmp_path / "mine.toml", ["prompts.text=a photo of {noun}"])
    path = os.path.relpath(tmp_path / "mine.txt")  # beside the recipe
    assert config.prompts == {"use": "lines", "path": path, "text": "a photo of {noun}"}
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


@pytest.mark.parametrize("key", ["control", "base"])
@pytest.mark.parametrize("value", ['["sub/t.png"]', "3", "false", '{"path": "t.png"}'])
def test_an_image_of_a_row_is_one_path(key: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(f'{{"prompt": "a cat", "{key}": null}}\n{{"prompt": "a", "{key}": {value}}}\n')
    with pytest.raises(ValueError, match=rf'mine\.jsonl, row 2: "{key}" is .*; give the path of'):
        prompts.jsonl(str(path))


def test_a_csv_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text('\ufeffprompt,base\n"a cat, asleep",cat.png\n\n"a ""big"" dog",\n', "utf-8")
    found = prompts.csv_table(str(path))
    assert [one.text for one in found] == ["a cat, asleep", 'a "big" dog']
    assert found[0].metadata == {"base": str(tmp_path / "cat.png")}

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


def test_csv_cells_of_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes(
        '\ufeffprompt, note,payload\r\n"two \r\n\r\n lines", "x, y","A\r\nB "\r\n  \r\n'
        ' a dog ,  z ,C \r\n"a bird",,\r\n'.encode()
    )
    found = prompts.csv_table(str(path))
    assert [one.text for one in found] == ["two lines", "a dog", "a bird"]
    assert [list(one.metadata.values()) for one in found] == [
        ["x, y", "A\nB "],
        ["z ", "C"],
        ["", ""],
    ]

    path.write_text("\tprompt\n\ta cat\n1\ta dog\n")  # a first cell that is empty
    assert [one.metadata for one in prompts.csv_table(str(path))] == [{"": ""}, {"": "1"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('prompt,n\n"two\nlines",2\n\na dog,1,2\n', "row 5: 3 cells under 2 columns"),
        ('prompt,n\n"two\nlines",2,3\n', "row 2: 3 cells under 2 columns"),
        ('prompt,n\na cat,1\n"a dog,2\na bird,3\n', "row 3: no row of a table .*twice"),
        ("prompt,prompt\na cat,a dog\n", 'row 1: several columns are named "prompt"; rename'),
        ("\nprompt,x,x\na cat,1,2\n", 'row 2: several columns are named "x"; rename'),
    ],
)
def test_a_csv_file_that_does_not_fit(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"mine\.csv, {message}"):
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


class Table:
    """A stand-in for a data set of the library `datasets`."""

    def __init__(self, rows: list[dict[str, Any]], kinds: dict[str, str]) -> None:
        self.rows = rows
        self.column_names = list(kinds)
        self.features = {name: type(kind, (), {})() for name, kind in kinds.items()}

    def __len__(self) -> int:
        return len(self.rows)

    def select_columns(self, names: list[str]) -> Table:
        table = Table([], {})
        table.rows = [{name: row[name] for name in names} for row in self.rows]
        return table

    def __iter__(self) -> Any:
        return iter(self.rows)


def stand_in(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]]) -> list[Any]:
    """Put a library `datasets` in place that has one data set; return its requests."""
    requests: list[Any] = []

    def load_dataset(*arguments: Any, **settings: Any) -> Table:
        requests.append((arguments, settings))
        if settings["split"] == "nothing":
            raise ValueError('Unknown split "nothing".\nMore')
        return Table(rows, {"caption": "Value", "image": "Image", "likes": "Value"})

    module = ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return requests


def test_prompts_of_a_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"caption": " a cat\n asleep", "image": object(), "likes": 3},
        {"caption": "a dog", "image": object(), "likes": 1},
    ]
    requests = stand_in(monkeypatch, rows)

    found = dataset("me/captions", "caption", "train[:2]", revision="v1")
    assert found == [Prompt("a cat asleep", {"likes": 3}), Prompt("a dog", {"likes": 1})]
    assert requests == [(("me/captions", None), {"split": "train[:2]", "revision": "v1"})]

    table = {"use": "dataset", "id": "me/captions", "key": "caption"}
    assert load("demo", [f"prompts={json.dumps(table).replace(':', '=')}"]).prompts["id"]


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([{"caption": " "}], {"key": "caption"}, 'row 0 of train: no text under "caption"'),
        ([{"caption": "a"}], {}, 'has no column "prompt", but caption, image, likes'),
        ([], {"key": "caption"}, "has 0 rows in train"),
        ([{"caption": "a"}], {"split": "nothing"}, "cannot be read: Unknown split"),
    ],
)
def test_a_data_set_that_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
    rows: list[dict[str, Any]],
    settings: dict[str, Any],
    message: str,
) -> None:
    stand_in(monkeypatch, [{"image": None, "likes": 0, **row} for row in rows])
    with pytest.raises(ValueError, match=message) as error:
        dataset("me/captions", **settings)
    assert "\n" not in str(error.value)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RuntimeError, match=r"run: pip install 'burnish\[datasets\]'"):
        dataset("me/captions")
