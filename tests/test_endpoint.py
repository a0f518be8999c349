"""A vision-language model behind a local server that speaks OpenAI's protocol and reads images."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from burnish.rewards.endpoint import Endpoint, completions
from burnish.rewards.wire import NoAnswer

if TYPE_CHECKING:
    from conftest import LocalServer

IMAGES = torch.stack([torch.full((3, 8, 12), value) for value in (0.1, 0.5, 0.9)])


def reply(text: str | None) -> tuple:
    return 200, {
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]
    }


def question_of(body: Any) -> str:
    return body["messages"][0]["content"][1]["text"]


def image_of(body: Any) -> np.ndarray:
    kind, _, file = body["messages"][0]["content"][0]["image_url"]["url"].partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(file)))
    assert kind == f"data:image/{(image.format or '').lower()}"
    return np.asarray(image)


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def test_each_image_gets_the_answer_to_its_question(server: LocalServer) -> None:
    server.answer = lambda body: reply(f" {question_of(body)} {image_of(body).mean():.0f}\n")
    answers = Endpoint(server.url, "tiny")(IMAGES, ["how grey?", "grey?", "how grey?"])
    # 25.5 and 127.5 are rounded, not cut off
    assert answers == ["how grey? 26", "grey? 128", "how grey? 230"]
    assert set(server.paths) == {"/v1/chat/completions"}
    sent = server.bodies[0]
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("tiny", 0, 64)
    assert image_of(sent).shape == (8, 12, 3)
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize(
    "url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/chat/completions"]
)
def test_the_address_is_completed(url: str) -> None:
    assert completions(url) == "http://h:1/v1/chat/completions"


def test_other_paths_stay_unchanged() -> None:
    assert completions("https://h/v1beta/openai/") == "https://h/v1beta/openai/chat/completions"
    assert completions("https://h/a/chat/completions?v=2") == "https://h/a/chat/completions?v=2"
    with pytest.raises(ValueError, match="is not a URL"):
        completions("localhost:8000")


def test_jpeg_on_request(server: LocalServer) -> None:
    server.answer = lambda body: reply(str(image_of(body).shape))
    assert Endpoint(server.url, "tiny", image="jpeg")(IMAGES[:1], ["?"]) == ["(8, 12, 3)"]
    assert "image/jpeg" in str(server.bodies[0])


@pytest.mark.parametrize(
    "answer",
    [
        reply(""),
        reply(" \n"),
        reply(None),
        (200, {"choices": []}),
        (200, ["?"]),
        (200, b"garbage"),
        (400, b"filtered"),
    ],
)
def test_an_image_without_an_answer_is_none(server: LocalServer, answer: tuple) -> None:
    server.answer = lambda body: answer if question_of(body) == "b" else reply("fine")
    with pytest.warns(
        UserWarning, match=f"^1 of 3 images got no answer; the last reason: {server.url}"
    ):
        assert Endpoint(server.url, "tiny")(IMAGES, ["a", "b", "c"]) == ["fine", None, "fine"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (reply(""), "answered with an empty text .finish_reason stop."),
        ((200, {"error": "no"}), "is it an OpenAI-compatible server"),
        ((404, b"no such model"), "answered 404 Not Found: no such model"),
    ],
)
def test_no_answer_for_any_image_raises(server: LocalServer, answer: tuple, words: str) -> None:
    server.answer = lambda body: answer
    with pytest.raises(
        NoAnswer,
        match=f"none of 3 images got an answer: {server.url}/v1/chat/completions .*{words}",
    ):
        Endpoint(server.url, "tiny")(IMAGES, ["a", "b", "c"])


def test_a_server_that_is_down_raises(closed_port: str) -> None:
    with pytest.raises(NoAnswer, match="none of 3 images got an answer: .* cannot be reached"):
        Endpoint(closed_port, "tiny", retries=1, backoff=0.01)(IMAGES, ["a", "b", "c"])


def test_a_failed_try_is_repeated(server: LocalServer) -> None:
    server.answer = lambda body: (500, b"") if len(server.bodies) == 1 else reply("fine")
    assert Endpoint(server.url, "tiny", backoff=0.01)(IMAGES[:1], ["a"]) == ["fine"]
    assert len(server.bodies) == 2


def test_cached_answers_are_not_requested_again(server: LocalServer) -> None:
    server.answer = lambda body: reply(question_of(body))
    endpoint = Endpoint(server.url, "tiny", cache=2)
    same = IMAGES[:1].expand(3, -1, -1, -1)
    assert endpoint(same, ["a", "a", "b"]) == ["a", "a", "b"]
    assert len(server.bodies) == 2  # equal questions within a call are sent once
    assert endpoint(same, ["a", "b", "b"]) == ["a", "b", "b"]
    assert len(server.bodies) == 2
    endpoint(IMAGES[1:2], ["a"])  # a third answer: the longest unused one goes, ("a", first image)
    endpoint(IMAGES[:1], ["b"])
    assert len(server.bodies) == 3
    endpoint(IMAGES[:1], ["a"])
    assert len(server.bodies) == 4
    turned = IMAGES[:1].reshape(1, 3, 12, 8)  # the same bytes in another shape
    endpoint(turned, ["a"])
    assert len(server.bodies) == 5


def test_nothing_is_cached_without_a_cache_and_no_failure_ever(server: LocalServer) -> None:
    server.answer = lambda body: reply("fine")
    endpoint = Endpoint(server.url, "tiny", cache=0)
    assert endpoint(IMAGES[:1], ["a"]) == endpoint(IMAGES[:1], ["a"])
    assert len(server.bodies) == 2
    endpoint = Endpoint(server.url, "tiny")
    server.answer = lambda body: reply("" if question_of(body) == "a" else "fine")

    with pytest.warns(UserWarning, match="1 of 2"):
        assert endpoint(IMAGES[:2], ["a", "b"]) == [None, "fine"]

    server.answer = lambda body: reply("now")
    assert endpoint(IMAGES[:2], ["a", "b"]) == ["now", "fine"]


def test_the_key_comes_from_the_environment(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-1\n")
    monkeypatch.setenv("OTHER_KEY", "secret-2")
    server.answer = lambda body: reply("fine")

    for variable in ("OPENAI_API_KEY", "OTHER_KEY", ""):
        Endpoint(server.url, "tiny", key_variable=variable)(IMAGES[:1], ["a"])

    assert [headers.get("Authorization") for headers in server.headers] == [
        "Bearer secret-1",
        "Bearer secret-2",
        None,
    ]

    with pytest.raises(ValueError, match="variable MISSING_KEY is not set"):
        Endpoint(server.url, "tiny", key_variable="MISSING_KEY")
    with pytest.raises(ValueError, match="it is not the key itself") as caught:
        Endpoint(server.url, "tiny", key_variable="sk-abc")

    assert "sk-abc" not in str(caught.value)


def test_arguments_are_checked(server: LocalServer) -> None:
    with pytest.raises(ValueError, match="3 images but 1 questions"):
        Endpoint(server.url, "tiny")(IMAGES, ["a"])

    for wrong, words in (
        ({"image": "gif"}, 'image = "gif"'),
        ({"quality": 0}, "quality = 0"),
        ({"cache": -1}, "cache"),
    ):
        with pytest.raises(ValueError, match=words):
            Endpoint(server.url, "tiny", **wrong)  # type: ignore[arg-type]
