"""The paper's prompt sets, sources from files, and the errors about bad files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from burnish.prompts import sources as prompts
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
