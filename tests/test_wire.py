"""JSON over HTTP against a real local server: retries, refusals that are final, messages."""

from __future__ import annotations

import base64
import io
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from burnish.rewards.wire import (
    LONGEST_RETRY_AFTER,
    NoAnswer,
    Wire,
    encode_image,
    parse_retry_after,
    redact_url,
)

if TYPE_CHECKING:
    from conftest import LocalServer


def scripted(*answers: tuple) -> Any:
    """Return one answer after the other, then the last one for ever."""
    remaining = list(answers)
    return lambda body: remaining.pop(0) if len(remaining) > 1 else remaining[0]


def test_a_body_goes_out_and_an_answer_comes_back(server: LocalServer) -> None:
    server.answer = lambda body: (200, {"twice": 2 * body["n"]})
    assert Wire(server.url + "/double").post({"n": 21}) == {"twice": 42}
    assert server.paths == ["/double"] and server.bodies == [{"n": 21}]


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_passing_failure_is_tried_again(server: LocalServer, status: int) -> None:
    server.answer = scripted((status, b"busy"), (status, b"busy"), (200, [1]))
    assert Wire(server.url, backoff=0.01).post({}) == [1]
    assert len(server.bodies) == 3


@pytest.mark.parametrize("status", [302, 400, 401, 404, 422])
def test_a_refusal_is_final(server: LocalServer, status: int) -> None:
    server.answer = lambda body: (
        status,
        b"not\n like this",
        {"Location": server.url + "/elsewhere"},
    )

    with pytest.raises(NoAnswer, match=f"{server.url} answered {status} .*: not like this"):
        Wire(server.url, backoff=0.01).post({})

    assert len(server.bodies) == 1


def test_tries_are_counted(server: LocalServer) -> None:
    server.answer = lambda body: (503, b"full")
    with pytest.raises(NoAnswer, match="answered 503 Service Unavailable: full"):
        Wire(server.url, retries=2, backoff=0.01).post({})
    assert len(server.bodies) == 3


def test_waits_double_and_retry_after_goes_before(server: LocalServer) -> None:
    server.answer = scripted((503, b""), (503, b""), (503, b""), (200, 1))
    started = time.perf_counter()
    Wire(server.url, backoff=0.05).post({})
    assert 0.05 + 0.1 + 0.2 <= time.perf_counter() - started < 1.5
    server.answer = scripted((429, b"", {"Retry-After": "0.2"}), (200, 1))
    started = time.perf_counter()
    Wire(server.url, backoff=10).post({})
    assert 0.2 <= time.perf_counter() - started < 5


def test_retry_after_is_a_number_or_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    assert parse_retry_after("3") == 3
    assert parse_retry_after("86400") == LONGEST_RETRY_AFTER
    assert parse_retry_after("-1") == 0
    assert 17 < (parse_retry_after(later) or 0) <= 20

    for header in (None, "soon", "nan"):
        assert parse_retry_after(header) is None


def test_silence_is_tried_again_and_reported(server: LocalServer) -> None:
    def slow_once(body: object) -> tuple:
        if len(server.bodies) == 1:
            time.sleep(0.4)
        return 200, "awake"

    server.answer = slow_once
    assert Wire(server.url, timeout=0.1, backoff=0.01).post({}) == "awake"
    server.bodies.clear()

    with pytest.raises(NoAnswer, match=r"did not answer within 0.1 s; .* Raise timeout"):
        Wire(server.url, timeout=0.1, retries=0).post({})


def test_a_server_that_is_down(closed_port: str) -> None:
    with pytest.raises(
        NoAnswer, match=rf"{closed_port} cannot be reached \(.*refused\); start the server"
    ):
        Wire(closed_port, retries=1, backoff=0.01).post({})


def test_an_answer_that_is_not_json_is_final(server: LocalServer) -> None:
    server.answer = lambda body: (200, b"<html>" + b"x" * 999)
    with pytest.raises(NoAnswer, match="answered something that is not JSON: <html>x+[.][.][.]$"):
        Wire(server.url).post({})
    assert len(server.bodies) == 1


def test_many_requests_are_under_way_at_once_and_keep_their_order(server: LocalServer) -> None:
    together = threading.Barrier(4, timeout=5)  # opens only if four requests are under way at once

    def answer(body: Any) -> tuple:
        together.wait()
        return (200, body["n"]) if body["n"] != 2 else (400, b"no two")

    server.answer = answer
    wire = Wire(server.url, workers=4)
    results = wire.map(lambda n: wire.post({"n": n}), range(8))
    answered = [result for result in results if not isinstance(result, NoAnswer)]
    assert answered == [0, 1, 3, 4, 5, 6, 7]
    assert isinstance(results[2], NoAnswer) and "no two" in str(results[2])
    assert wire.map(wire.post, []) == []


def test_not_every_item_is_sent_to_a_server_that_is_down(closed_port: str) -> None:
    wire = Wire(closed_port, retries=0, workers=2)
    requested = []

    def request(n: int) -> Any:
        requested.append(n)
        return wire.post({"n": n})

    results = wire.map(request, range(200))
    assert len(results) == 200 and all(isinstance(result, NoAnswer) for result in results)
    assert all("cannot be reached" in str(result) for result in results)
    assert len(requested) < 100


def test_one_silence_does_not_silence_the_rest(server: LocalServer) -> None:
    server.answer = lambda body: (200, body["n"])
    wire = Wire(server.url, workers=1)

    def request(n: int) -> Any:
        if n in (0, 2, 3, 4):
            raise NoAnswer("lost", silent=True)
        return wire.post({"n": n})

    results = wire.map(request, range(7))
    failed = [isinstance(result, NoAnswer) for result in results]
    assert failed == [True, False, True, True, True, False, False]


def test_another_error_ends_everything_at_once(server: LocalServer) -> None:
    """Also Ctrl+C: a request that waits between two tries stops waiting."""
    server.answer = lambda body: (503, b"", {"Retry-After": "60"})
    wire = Wire(server.url, workers=2)

    def request(n: int) -> Any:
        if n == 1:
            time.sleep(0.1)  # the other one waits for its second try by now
            raise KeyboardInterrupt
        return wire.post({})

    started = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        wire.map(request, range(50))

    assert time.perf_counter() - started < 5, "no request is waited for"
    for thread in threading.enumerate():
        if thread.name == "wire":
            assert thread.daemon, "nor at the end of the program"
            thread.join(5)
            assert not thread.is_alive()

    assert len(server.bodies) < 5, "of 50"
    server.answer = scripted((503, b"", {"Retry-After": "0.1"}), (200, "again"))
    assert wire.map(lambda n: wire.post({}), [0]) == ["again"]


def test_a_token_is_sent_and_never_shown(
    server: LocalServer, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    server.answer = lambda body: (401, b"the key secret-1 is wrong")
    wire = Wire(server.url, token="secret-1")

    with pytest.raises(NoAnswer) as caught:
        wire.post({})

    assert server.headers[0]["Authorization"] == "Bearer secret-1"
    assert "the key *** is wrong" in str(caught.value)
    assert "secret-1" not in f"{caught.value!r} {wire!r}"

    with pytest.raises(ValueError, match="the API key contains spaces") as refused:
        Wire(server.url, token="secret-1\nX: y")

    assert "secret-1" not in str(refused.value)


def test_urls_and_numbers_are_checked() -> None:
    assert redact_url("https://me:word@host:1/v1?key=1") == "https://host:1/v1"
    for url in ("host:8000", "ftp://host", "http://", ""):
        with pytest.raises(ValueError, match="is not a URL; write http://"):
            Wire(url)
    for name, value in (("timeout", 0), ("retries", -1), ("workers", 0)):
        with pytest.raises(ValueError, match=f"{name} = {value}"):
            Wire("http://host", **{name: value})  # type: ignore[arg-type]


def test_a_png_is_exact_and_a_jpeg_is_not() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    png, jpeg = (
        Image.open(io.BytesIO(base64.b64decode(encode_image(pixels, kind, 80), validate=True)))
        for kind in ("png", "jpeg")
    )
    assert (png.format, jpeg.format, png.size) == ("PNG", "JPEG", (40, 24))
    assert np.array_equal(np.asarray(png), pixels) and not np.array_equal(np.asarray(jpeg), pixels)
