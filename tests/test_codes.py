"""The prompt source for images with codes: pairs of text and payload, and the two parts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from burnish import catalog
from burnish.prompts.codes import CAPITALS, is_unseen, qr


def pairs(prompts: list) -> list[tuple[str, str]]:
    return [(prompt.text, prompt.metadata["payload"]) for prompt in prompts]


def test_few_pairs_all_meet_and_many_take_turns() -> None:
    assert pairs(qr(["a", "b"], ["X", "Y"])) == [("a", "X"), ("a", "Y"), ("b", "X"), ("b", "Y")]
    longer = pairs(qr(["a", "b"], ["X", "Y", "Z"], combine="turns"))
    assert longer == [("a", "X"), ("b", "Y"), ("a", "Z")]
    shorter = pairs(qr(["a", "b", "c"], ["X"], combine="turns"))
    assert shorter == [("a", "X"), ("b", "X"), ("c", "X")]
    texts = [f"text {i}" for i in range(30)]
    many = qr(texts, random=20)
    assert len(many) == 30 and {prompt.text for prompt in many} == set(texts)
    assert len({prompt.metadata["payload"] for prompt in many}) == 20
    assert len(qr(texts, random=20, combine="all")) == 600


def test_each_text_meets_each_pattern() -> None:
    """Also where both take turns of an even number."""
    for count in (3, 4):
        texts = [f"text {i}" for i in range(count)]
        made = pairs(qr(texts, random=300, pattern=["A{}", "B{}"], combine="turns"))
        assert len({(text, payload[0]) for text, payload in made}) == 2 * count


def test_texts_of_another_source_keep_their_metadata() -> None:
    made = catalog.build(
        "prompts",
        {
            "use": "qr",
            "texts": {"use": "zoo_nouns", "split": "animals"},
            "payloads": ["HELLO"],
            "base": "bases/{noun}-{payload}.png",
            "code": {"error": "M"},
        },
    )
    assert len(made) == 45 and made[0].text == "a cat"
    assert made[0].metadata == {
        "noun": "cat",
        "payload": "HELLO",
        "base": "bases/cat-HELLO.png",
        "qr": {"error": "M"},
    }
    assert qr(["a cat"], ["X"], base="{text}.png")[0].metadata["base"] == "a cat.png"
    assert qr(["a cat"], ["X"])[0].metadata == {"payload": "X"}


def test_payloads_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "payloads.txt"
    path.write_text("HTTPS://A.B\n\n{braces}\n")
    assert [payload for _, payload in pairs(qr(["a"], str(path)))] == ["HTTPS://A.B", "{braces}"]
    with pytest.raises(FileNotFoundError, match="no such prompt file"):
        qr(["a"], str(tmp_path / "none.txt"))


def drawn(**arguments: Any) -> list[str]:
    return [payload for _, payload in pairs(qr(["a"], **arguments))]


def test_random_payloads_are_seeded_and_different() -> None:
    first = drawn(random=200)
    assert first == drawn(random=200) != drawn(random=200, seed=1)
    assert first[:50] == drawn(random=50), "more of them are the same and more"
    assert len(set(first)) == 200
    assert all(len(payload) == 5 and set(payload) <= set(CAPITALS) for payload in first)
    assert set("".join(drawn(random=10, length=3, alphabet="102"))) <= set("012")


def test_a_pattern_surrounds_the_random_characters_by_turns() -> None:
    patterns = ["https://example.org/{}", "HTTP://{}.DE"]
    links = drawn(random=9, pattern=patterns, length=4)
    assert links == drawn(random=20, pattern=patterns, length=4)[:9]
    assert [link.startswith("https://example.org/") for link in links] == [True, False] * 4 + [True]
    assert all(re.fullmatch(r"https://example\.org/[A-Z0-9]{4}", link) for link in links[::2])
    assert all(re.fullmatch(r"HTTP://[A-Z0-9]{4}\.DE", link) for link in links[1::2])

    unseen = drawn(random=9, pattern=patterns, part="unseen")
    assert all(map(is_unseen, unseen)) and not any(map(is_unseen, links))
    assert drawn(random=5, pattern="{}") == drawn(random=5)


def test_training_payloads_are_never_unseen() -> None:
    """With so few payloads that two random sets of them would overlap."""
    trained = {seed: set(drawn(random=400, seed=seed, length=2)) for seed in range(3)}
    held_out = {
        seed: set(drawn(random=150, seed=seed, length=2, part="unseen")) for seed in range(3)
    }
    assert all(a.isdisjoint(b) for a in trained.values() for b in held_out.values())
    assert trained[0] & trained[1], "seeds alone do not separate them"
    share = sum(map(is_unseen, drawn(random=2000) + drawn(random=600, part="unseen")))
    assert share == 600


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either payloads"),
        ({"payloads": ["X"], "random": 3}, "not both"),
        ({"payloads": []}, "payloads is empty"),
        ({"payloads": ["X", ""]}, "payload 2 is ''"),
        ({"payloads": ["X"], "combine": "some"}, 'combine = \'some\': take "all" or "turns"'),
        (
            {"payloads": ["X"], "base": "{noun}.png"},
            r"there is no \{noun\}; take one of text, payload",
        ),
        ({"random": 3, "part": "test"}, 'part = \'test\': take "train" or "unseen"'),
        ({"random": 3, "pattern": "https://example.org"}, r"pattern = .*: write \{\} once"),
        ({"random": 3, "pattern": ["{}", "{}/{}"]}, r"pattern = .*: write \{\} once"),
        ({"random": 3, "pattern": []}, r"pattern = \[\]: write \{\} once"),
        ({"random": -1}, "take at least one payload"),
        ({"random": 3, "alphabet": "AAB"}, "different characters"),
        (
            {"random": 30, "length": 1, "alphabet": "AB"},
            "random = 30 .* too many: only .* make length larger",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        qr(["a"], **arguments)
    with pytest.raises(ValueError, match="texts is empty"):
        qr([], ["X"])
