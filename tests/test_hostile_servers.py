"""Servers that never end, send too much, or stand behind a proxy: every answer has limits."""

from __future__ import annotations

import gzip
import re
import socket
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
import requests
import torch

from burnish.rewards.endpoint import Endpoint
from burnish.rewards.remote import remote
from burnish.rewards.wire import NoAnswer, Wire, find_proxy, is_loopback
from burnish.types import Prompt

HEAD = b"HTTP/1.1 200 OK\r\n"
ZEROS = 100 << 20  # bytes that a few hundred kilobytes expand to


def is_whole(request: bytes) -> bool:
    """Return whether the body is there too: closing before it is read resets the connection."""
    head, end, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return bool(end) and len(body) >= int(length[1] if length else 0)


class RawServer:
    """Reads a request on each connection, then does what a test wants with the socket."""

    def __init__(self) -> None:
        self.behave: Callable[[socket.socket], None] = lambda connection: None
        self.sent = 0
        self.requests: list[bytes] = []
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listening.accept()
                threading.Thread(target=self.answer, args=(connection,), daemon=True).start()

    def answer(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            request = b""
            while not is_whole(request):
                request += connection.recv(65536)
            self.requests.append(request)
            self.behave(connection)

    def send(self, connection: socket.socket, data: bytes) -> None:
        connection.sendall(data)
        self.sent += len(data)

    def for_ever(
        self, start: bytes, block: bytes, pause: float = 0.0
    ) -> Callable[[socket.socket], None]:
        """Return a behaviour that sends `start`, then `block` again and again."""

        def behave(connection: socket.socket) -> None:
            self.send(connection, start)
            while True:
                self.send(connection, block)
                time.sleep(pause)

        return behave


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def raw() -> Iterator[RawServer]:
    """A server below HTTP."""
    server = RawServer()
    yield server
    server.listening.close()


SLOW = {
    "content": (HEAD + b"Content-Length: 100\r\n\r\n", b"1", 0.05),
    "content without an end": (HEAD + b"\r\n", b" ", 0.05),
    "chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n1\r\n", 0.05),
    "a chunk's size": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"0", 0.05),
    "status line": (b"HTTP/1.1 200 ", b"O", 0.05),
    "header": (HEAD + b"X: ", b"y", 0.05),
    "headers": (HEAD, b"X: y\r\n", 0.05),
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.0),
    "trailer": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n", b"X: y\r\n", 0.0),
}


@pytest.mark.parametrize("where", SLOW)
def test_a_server_that_never_ends_holds_nobody(raw: RawServer, where: str) -> None:
    raw.behave = raw.for_ever(*SLOW[where])
    started = time.monotonic()
    with pytest.raises(NoAnswer, match="did not answer within 0.4 s; .*Raise timeout") as caught:
        Wire(raw.url, timeout=0.4, retries=0).post({})
    assert time.monotonic() - started < 2
    assert caught.value.again and caught.value.silent
    names = {thread.name for thread in threading.enumerate() if thread.is_alive()}
    assert not any("Timer" in name for name in names), "no timer is left"


def test_the_limit_is_one_of_each_try_and_a_later_one_may_succeed(raw: RawServer) -> None:
    endless = raw.for_ever(*SLOW["content"])

    def behave(connection: socket.socket) -> None:
        if len(raw.requests) == 1:
            endless(connection)
        connection.sendall(HEAD + b"Content-Length: 1\r\n\r\n7")

    raw.behave = behave
    assert Wire(raw.url, timeout=0.3, backoff=0.01).post({}) == 7


@pytest.mark.parametrize("start", [b"", b"Content-Length: 1000000000\r\n", b"chunked"])
@pytest.mark.parametrize("status", [b"200 OK", b"302 Found", b"500 Broken"])
def test_a_large_answer_is_not_read_to_its_end(raw: RawServer, start: bytes, status: bytes) -> None:
    block = b"x" * (1 << 20)
    head = b"HTTP/1.1 " + status + b"\r\nLocation: /elsewhere\r\n"
    if start == b"chunked":
        start = b"Transfer-Encoding: chunked\r\n"
        block = b"100000\r\n" + block + b"\r\n"
    raw.behave = raw.for_ever(head + start + b"\r\n", block)

    words = "more than 4 MiB" if status == b"200 OK" else status.decode() + ": x+"
    with pytest.raises(NoAnswer, match=f"{raw.url} answered {words}"):
        Wire(raw.url, timeout=20, retries=0).post({})

    assert raw.sent < 64 << 20


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "deflate ": raw_deflate,
}


@pytest.mark.parametrize("encoding", COMPRESS)
def test_a_small_file_does_not_expand_without_limit(raw: RawServer, encoding: str) -> None:
    def reply(content: bytes) -> None:
        head = f"Content-Encoding: {encoding}\r\nContent-Length: {len(content)}\r\n\r\n"
        raw.behave = lambda connection: connection.sendall(HEAD + head.encode() + content)

    wire = Wire(raw.url, retries=0)
    reply(COMPRESS[encoding](b'{"scores": [1]}'))
    assert wire.post({}) == {"scores": [1]}, "an honest one is read"
    assert b"Accept-Encoding: identity" in raw.requests[0]

    reply(COMPRESS[encoding](bytes(ZEROS)))
    tracemalloc.start()
    with pytest.raises(NoAnswer, match="answered more than 4 MiB"):
        wire.post({})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20

    reply(b"not compressed")
    with pytest.raises(NoAnswer, match="answered something that cannot be decompressed"):
        wire.post({})


@pytest.mark.parametrize(
    "encoding", ["br", "zstd", "compress", "gzip, gzip", "br, gzip", "\x1b[2J"]
)
def test_other_compressions_are_refused(raw: RawServer, encoding: str) -> None:
    content = gzip.compress(gzip.compress(bytes(1 << 20)))
    head = f"Content-Encoding: {encoding}\r\nContent-Length: {len(content)}\r\n\r\n"
    raw.behave = lambda connection: connection.sendall(HEAD + head.encode() + content)
    with pytest.raises(NoAnswer, match="which was not requested; switch compression off") as error:
        Wire(raw.url, retries=0).post({})
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (HEAD + b"X: y\r\n" * 200 + b"\r\n", "cannot be reached .*100 headers"),
        (HEAD + b"X: " + b"y" * 100_000 + b"\r\n\r\n", "cannot be reached .*"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "cannot be reached .*SSH"),
        (HEAD + b"Content-Length: 50\r\n\r\n{}", "cannot be reached"),
        (HEAD + b"\r\n" + b"[" * 100_000, r"something that is not JSON: \[+\.\.\.$"),
        (HEAD + b"\r\n" + b"9" * 10_000, "something that is not JSON: 9+"),
        (HEAD + b"\r\n\xff\xfe\x00", "something that is not JSON"),
        (HEAD + b"\r\n", "something that is not JSON"),
        (b"HTTP/1.1 503 Busy\r\nRetry-After: 1e999\r\n\r\nlater", "answered 503 Busy: later"),
        (b"HTTP/1.1 400 " + b"z" * 5000 + b"\r\n\r\nno", r"answered 400 z+\.\.\.: no"),
    ],
)
def test_nonsense_is_one_short_sentence(raw: RawServer, answer: bytes, words: str) -> None:
    raw.behave = lambda connection: connection.sendall(answer)
    with pytest.raises(NoAnswer, match=words) as caught:
        Wire(raw.url, retries=0).post({})
    assert len(str(caught.value)) < 500 and str(caught.value).isprintable()


# Proxies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_this_machine_is_called_without_a_proxy(
    raw: RawServer, closed_port: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv(name, closed_port)
    raw.behave = lambda connection: connection.sendall(HEAD + b"Content-Length: 1\r\n\r\n1")
    for host in ("127.0.0.1", "localhost", "0.0.0.0"):
        assert Wire(f"http://{host}:{raw.port}", retries=0).post({}) == 1


def test_names_of_this_machine() -> None:
    for host in (
        "LOCALHOST",
        "localhost.",
        "a.localhost",
        "127.9.9.9",
        "::1",
        "::",
        "::ffff:127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
    ):
        assert is_loopback(host), host
    for host in (
        "localhost.example.org",
        "128.0.0.1",
        "192.168.0.1",
        "::2",
        "",
        "gpu",
        "128.1",
        "17",
    ):
        assert not is_loopback(host), host


@pytest.mark.parametrize(
    ("variable", "proxy", "remedy"),
    [
        ("HTTP_PROXY", "http://127.0.0.1:notaport", "correct the proxy in the environment"),
        ("ALL_PROXY", "socks5://127.0.0.1:1080", "pip install pysocks"),
    ],
)
def test_proxies_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, variable: str, proxy: str, remedy: str
) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr("requests.adapters.SOCKSProxyManager", missing_socks)
    monkeypatch.setenv(variable, proxy)
    with pytest.raises(NoAnswer, match=rf"; {remedy}, or export NO_PROXY=gpu\b") as caught:
        Wire("http://gpu:8000", retries=0).post({})
    assert str(caught.value).count(proxy) == 1


def missing_socks(*arguments: object, **options: object) -> None:
    """Raise what requests raises where PySocks is not installed."""
    raise requests.exceptions.InvalidSchema("Missing dependencies for SOCKS support.")


def test_no_proxy_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "gpu,.example.org,10.0.0.0/8")
    for url in ("http://gpu:8000", "http://a.example.org", "http://10.2.3.4"):
        assert find_proxy(url) == ""
    assert find_proxy("http://elsewhere:8000") == "http://proxy:3128"
    monkeypatch.setenv("NO_PROXY", "*")
    assert find_proxy("http://elsewhere:8000") == ""


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("variable", ["{}_PROXY", "ALL_PROXY"])
def test_an_unreachable_proxy_is_named_without_its_password(
    closed_port: str, monkeypatch: pytest.MonkeyPatch, scheme: str, variable: str
) -> None:
    monkeypatch.delenv("NO_PROXY")
    proxy = closed_port.replace("://", "://me:p%40ssw0rd-7@")
    monkeypatch.setenv(variable.format(scheme.upper()), proxy)
    url = f"{scheme}://gpu.invalid:8000/score"
    images = torch.rand(2, 3, 8, 8)

    for call in (
        lambda: Wire(url, retries=0).post({}),
        lambda: remote(url, retries=0)(images, [Prompt("a")] * 2),
        lambda: Endpoint(url, "m", retries=0)(images, ["what?"] * 2),
    ):
        with pytest.raises(NoAnswer) as caught:
            call()
        text = str(caught.value)
        shown = closed_port.replace("://", "://***@")
        assert f"through the proxy {shown}" in text
        assert "export NO_PROXY=gpu.invalid" in text
        assert "ssw0rd" not in text


def test_a_proxy_that_answers_for_the_server_is_named(
    raw: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", raw.url)
    raw.behave = lambda connection: connection.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\npolicy")
    words = f"gpu:8000 through the proxy {raw.url} answered 403 Forbidden: policy .*NO_PROXY=gpu"
    with pytest.raises(NoAnswer, match=words):
        Wire("http://gpu:8000", retries=0).post({})
