"""The reward `remote` against local servers, well-behaved and not, and the example of a server."""

from __future__ import annotations

import ast
import json
import runpy
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from burnish import catalog
from burnish.rewards import check_reward
from burnish.rewards.compressibility import compressibility
from burnish.rewards.remote import remote
from burnish.rewards.wire import NoAnswer
from burnish.types import Prompt

if TYPE_CHECKING:
    from conftest import LocalServer

EXAMPLE = Path(__file__).parent.parent / "examples" / "reward_server.py"
IMAGES = torch.rand(5, 3, 12, 16, generator=torch.Generator().manual_seed(0))
PROMPTS = [Prompt(f"prompt {n}", {"n": n, "list": (1, 2)}) for n in range(5)]


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    """Return the names of the example."""
    return runpy.run_path(str(EXAMPLE))


@pytest.fixture
def served(example: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve compressibility by the example's server; return its URL."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    http = example["serve"](example["load"]("compressibility", {}), port=0)
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()


def numbered(body: Any) -> tuple:
    return 200, {"scores": [metadata["n"] + 0.5 for metadata in body["metadata"]]}


def test_the_scores_are_the_servers(server: LocalServer) -> None:
    server.answer = numbered
    scores = remote(server.url, batch=2)(IMAGES, PROMPTS)
    assert scores.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5] and scores.dtype == torch.float64
    assert sorted(len(body["images"]) for body in server.bodies) == [1, 2, 2]
    first = next(body for body in server.bodies if body["prompts"][0] == "prompt 0")
    assert first["version"] == 1
    assert set(first) == {"version", "images", "prompts", "metadata"}
    assert first["prompts"] == ["prompt 0", "prompt 1"]
    assert first["metadata"][1] == {"n": 1, "list": [1, 2]}


def test_over_the_wire_a_reward_is_the_same(served: str) -> None:
    reward = catalog.build("reward", {"use": "remote", "url": served, "batch": 3})
    assert reward(IMAGES, PROMPTS).tolist() == compressibility()(IMAGES, PROMPTS).tolist()
    assert check_reward(reward, size=24) == []


def test_a_missing_score_is_nan_and_reported(server: LocalServer) -> None:
    server.answer = lambda body: (
        200,
        {"scores": [None if n["n"] == 3 else 1 for n in body["metadata"]]},
    )

    with pytest.warns(
        UserWarning, match=f"1 of 5 images got no answer; the last reason: {server.url} gave null"
    ):
        scores = remote(server.url)(IMAGES, PROMPTS)

    assert scores.isnan().tolist() == [False, False, False, True, False]
    server.answer = lambda body: (200, {"scores": [None] * len(body["images"])})

    with pytest.raises(NoAnswer, match="none of 5 images got an answer: .* gave null"):
        remote(server.url)(IMAGES, PROMPTS)


def test_a_request_that_fails_for_good_costs_its_images_only(server: LocalServer) -> None:
    server.answer = lambda body: (
        (413, b"too large") if "prompt 2" in body["prompts"] else numbered(body)
    )

    with pytest.warns(UserWarning, match="2 of 5 images .* answered 413 .*: too large"):
        scores = remote(server.url, batch=2)(IMAGES, PROMPTS)

    assert scores[[0, 1, 4]].tolist() == [0.5, 1.5, 4.5] and scores[2:4].isnan().all()


def test_a_failure_that_passes_has_no_effect(server: LocalServer) -> None:
    server.answer = lambda body: (500, b"loading") if len(server.bodies) < 3 else numbered(body)
    assert remote(server.url, backoff=0.01)(IMAGES, PROMPTS).tolist() == [0.5, 1.5, 2.5, 3.5, 4.5]


def test_without_any_answer_it_raises(server: LocalServer, closed_port: str) -> None:
    with pytest.raises(
        NoAnswer, match=f"none of 5 images got an answer: {closed_port} cannot be reached"
    ):
        remote(closed_port, retries=1, backoff=0.01)(IMAGES, PROMPTS)

    server.answer = lambda body: time.sleep(0.3) or numbered(body)  # type: ignore[func-returns-value]
    with pytest.raises(
        NoAnswer, match=r"none of 5 images got an answer: .* did not answer within 0.05 s"
    ):
        remote(server.url, timeout=0.05, retries=0)(IMAGES, PROMPTS)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([1, 2, 3, 4, 5], 'answered without a list "scores"'),
        ({"score": [1]}, 'answered without a list "scores"'),
        ({"scores": 5}, 'answered without a list "scores"'),
        ({"scores": [1, 2, 3, 4]}, "gave 4 scores for 5 images"),
        ({"scores": [1, 2, 3, 4, 5, 6]}, "gave 6 scores for 5 images"),
        ({"scores": [1, 2, "3", 4, 5]}, "gave '3' as the score of image 2"),
        ({"scores": [1, True, 3, 4, 5]}, "gave True as the score of image 1"),
        ({"scores": [1, 2, 3, [4], 5]}, r"gave \[4\] as the score of image 3"),
        ({"scores": [1, 2, 3, 4, float("nan")]}, "gave nan as the score of image 4"),
        ({"scores": [float("-inf"), 2, 3, 4, 5]}, "gave -inf as the score of image 0"),
        ({"scores": [10**400, 2, 3, 4, 5]}, r"gave 10+ as the score of image 0"),
        (
            {"scores": [1, 2, 3, 4, 5], "version": 2},
            "answers in version 2 of the protocol; this is version 1",
        ),
    ],
)
def test_an_answer_that_breaks_the_protocol_is_an_error(
    server: LocalServer, answer: Any, words: str
) -> None:
    server.answer = lambda body: (200, answer)
    with pytest.raises(ValueError, match=f"^{server.url} {words}"):
        remote(server.url)(IMAGES, PROMPTS)


def test_the_row_in_an_error_is_that_of_the_full_batch(server: LocalServer) -> None:
    server.answer = lambda body: (
        200,
        {"scores": ["x" if n["n"] == 3 else 1 for n in body["metadata"]]},
    )

    with pytest.raises(ValueError, match="'x' as the score of image 3"):
        remote(server.url, batch=2)(IMAGES, PROMPTS)


def test_an_answer_that_is_not_json_is_no_answer(server: LocalServer) -> None:
    server.answer = lambda body: (200, b"<html>hello")
    with pytest.raises(NoAnswer, match="none of 5 .* something that is not JSON: <html>hello"):
        remote(server.url)(IMAGES, PROMPTS)


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), torch.ones(1)])
def test_metadata_that_is_no_json_is_named(server: LocalServer, value: object) -> None:
    prompts = [*PROMPTS[:2], Prompt("odd", {"value": value})]
    with pytest.raises(ValueError, match=r"metadata of prompt 2 \('odd'\) cannot be sent as JSON"):
        remote(server.url)(IMAGES[:3], prompts)
    assert not server.bodies


def test_the_key_is_sent(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret-1")
    server.answer = numbered
    remote(server.url, key_variable="MY_KEY")(IMAGES, PROMPTS)
    assert server.headers[0]["Authorization"] == "Bearer secret-1"

    with pytest.raises(ValueError, match="variable NO_KEY is not set"):
        remote(server.url, key_variable="NO_KEY")


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="batch = 0"):
        remote("http://localhost", batch=0)
    with pytest.raises(ValueError, match=r"rewards\.0: url = 'localhost:8000' is not a URL"):
        catalog.build("reward", {"use": "remote", "url": "localhost:8000"}, "rewards.0")


def test_the_example_says_what_is_wrong(
    example: dict[str, Any], served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("burnish.rewards.remote.VERSION", 2)
    with pytest.raises(
        NoAnswer, match="answered 400 .*: ValueError: this server speaks version 1, not 2"
    ):
        remote(served)(IMAGES, PROMPTS)


def test_the_example_works_without_burnish(
    example: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the environment of a reward whose dependencies do not go with ours."""
    top = [
        node
        for node in ast.parse(EXAMPLE.read_text()).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    assert not [node for node in top if "burnish" in ast.unparse(node)]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "mine.py").write_text(
        "def bright(images, prompts):\n"
        "    return images.mean((1, 2, 3)) + prompts[0].metadata['n']\n"
    )
    http = example["serve"](example["load"](f"{tmp_path}/mine.py:bright", {}), port=0)
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    scores = remote(f"http://127.0.0.1:{http.server_port}", batch=1)(IMAGES, PROMPTS)
    http.shutdown()
    http.server_close()
    expected = (IMAGES * 255).round().div(255).mean((1, 2, 3)) + torch.arange(5)
    assert scores.tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_the_protocol_in_the_docs_is_the_one_that_is_sent(server: LocalServer) -> None:
    """docs/rewards.md shows a request and a response as JSON; both must work."""
    text = (Path(__file__).parent.parent / "docs" / "rewards.md").read_text("utf-8")
    request, response = (
        json.loads(block.split("```")[0]) for block in text.split("```json\n")[1:3]
    )
    server.answer = lambda body: (200, response)
    prompts = [
        Prompt(text, data)
        for text, data in zip(request["prompts"], request["metadata"], strict=True)
    ]

    with pytest.warns(UserWarning, match="1 of 2"):
        scores = remote(server.url)(IMAGES[: len(prompts)], prompts)

    assert [None if score != score else score for score in scores.tolist()] == response["scores"]
    sent = server.bodies[0]
    types = {key: type(value) for key, value in request.items()}
    assert {key: type(value) for key, value in sent.items()} == types
    assert sent["prompts"] == request["prompts"]
    assert sent["metadata"] == request["metadata"]
