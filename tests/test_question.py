"""The counting reward: shares of right replies, sources of questions, images with written text."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from burnish.prompts.sources import counted, counting
from burnish.rewards import vlm
from burnish.rewards.question import TEXT, question, questions
from burnish.types import Prompt

TWO_CATS = Prompt("two cats")


def replying(replies: dict[str, str | None], received: list[str] | None = None) -> vlm.Vlm:
    """Return a model with a reply to each question about images that are not black.

    Its reply to any other question is "no".
    """

    def answer(images: Tensor, questions: Sequence[str]) -> list[str | None]:
        if received is not None:
            received.extend(questions)

        return [
            replies.get(q, "no") if image.any() else "nothing"
            for image, q in zip(images, questions, strict=True)
        ]

    return answer


HOW_MANY = "How many cats are there in this image?"
WHICH_ANIMAL = "What animal is in this image?"
IMAGES = torch.stack([torch.ones(3, 8, 8), torch.zeros(3, 8, 8)])


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        ({HOW_MANY: "There are Two cats.", WHICH_ANIMAL: "a CAT"}, 1.0),
        ({HOW_MANY: "three", WHICH_ANIMAL: "cat"}, 0.5),
        ({HOW_MANY: "three", WHICH_ANIMAL: "dog"}, 0.0),
        ({HOW_MANY: "two", WHICH_ANIMAL: "cat", TEXT: "Yes, there is."}, 0.0),
    ],
)
def test_the_share_of_right_replies(
    monkeypatch: pytest.MonkeyPatch, replies: dict[str, str | None], expected: float
) -> None:
    received: list[str] = []
    monkeypatch.setattr(vlm, "load", lambda *_, **__: replying(replies, received))
    assert question("m")(IMAGES, [TWO_CATS, TWO_CATS]).tolist() == [expected, 0]
    assert received == [TEXT, HOW_MANY, WHICH_ANIMAL] * 2


def test_a_missing_reply_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        vlm, "load", lambda *_, **__: replying({HOW_MANY: None, WHICH_ANIMAL: "cat"})
    )
    values = question("m")(IMAGES, [TWO_CATS, TWO_CATS])
    assert values.isnan().tolist() == [True, False]
    with pytest.raises(ValueError, match="m has no reply about any of 1 images"):
        question("m")(IMAGES[:1], [TWO_CATS])


def test_written_answers_are_counted_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        vlm, "load", lambda *_, **__: replying({HOW_MANY: "two", WHICH_ANIMAL: "cat", TEXT: "yes"})
    )

    with caplog.at_level(logging.WARNING):
        assert question("m")(IMAGES, [TWO_CATS, TWO_CATS]).tolist() == [0, 0]
        assert question("m", writing="keep")(IMAGES, [TWO_CATS, TWO_CATS]).tolist() == [1, 0]

    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert all("1 of 2 images have text in them" in message for message in messages)


def test_questions_come_from_the_prompt_or_its_metadata() -> None:
    brought = {"questions": ["What colour is the dog?"], "answers": ["red"]}
    assert questions(Prompt("a dog", brought)) == [("What colour is the dog?", "red")]
    assert questions(TWO_CATS) == [(HOW_MANY, "two"), (WHICH_ANIMAL, "cat")]

    for prompt in counting():
        assert questions(prompt) == questions(Prompt(prompt.text)), (
            "read off the text they are the same"
        )


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt("a cat"), "prompt 'a cat' has no questions: give them in its metadata"),
        (Prompt("x", {"questions": ["Why?"]}), "prompt 'x': questions = .* and answers = None"),
        (Prompt("x", {"questions": ["Why?"], "answers": ["a", "b"]}), "one answer a question"),
        (Prompt("x", {"questions": "Why?", "answers": "a"}), "must be lists of texts"),
    ],
)
def test_a_prompt_without_questions(prompt: Prompt, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        questions(prompt)


def test_counting() -> None:
    prompts = counting(["two", "ten"], ["wolf", "mouse"])
    assert [prompt.text for prompt in prompts] == [
        "two wolves",
        "two mice",
        "ten wolves",
        "ten mice",
    ]
    assert prompts[0].metadata["answers"] == ["two", "wolf"] and len(counting()) == 7 * 45
    assert counted("a photo of Eight Horses on a hill")["answers"] == ["eight", "horse"]  # type: ignore[index]
    assert counted("one glass")["noun"] == "glass"  # type: ignore[index]
    assert counted("a cat") is None and counted("someone cats") is None

    with pytest.raises(ValueError, match=r"numbers = \['many'\] must be words from one to ten"):
        counting(["many"])
    with pytest.raises(ValueError, match=r"must contain \{nouns\}"):
        counting(text="{number} cats")
