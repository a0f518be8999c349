"""An HTTP answer within limits: a time for the whole of it, and a size after decompression.

The time-outs of HTTP libraries begin anew with every byte, so a server that sends one byte now and
then holds them for ever. Here a timer ends the connection itself, whatever is being waited for:
TLS, a proxy, headers or the content.
"""

from __future__ import annotations

import socket
import zlib
from collections.abc import Callable
from contextlib import suppress
from threading import Lock, Timer, local
from types import TracebackType
from typing import Any

import requests

from burnish.redaction import excerpt

LARGEST_ANSWER = 4 << 20  # bytes
BLOCK = 1 << 16
MOST_CONNECTIONS = 64  # that are kept open: a pool is made with all its places

_thread = local()  # .deadline: of the request that this thread has under way


class UnreadableAnswer(ValueError):
    """An answer that is too large or compressed in an unknown way; the message says which."""


class Deadline:
    """A context in which this thread's connections end after so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self._connection: socket.socket | None = None
        self._closed: list[socket.socket] = []  # handles that nobody needs after this
        self._lock = Lock()
        self._timer = Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> Deadline:
        _thread.deadline = self
        self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        _thread.deadline = None
        for handle in self._closed:
            handle.close()

    def watch(self, connection: socket.socket) -> None:
        """End this connection when the time is over."""
        with self._lock:
            self._connection = connection
            if self.passed:
                _shut(connection)

    def close_later(self, handle: socket.socket) -> None:
        """Close a handle at the end: the content is read after its connection was closed."""
        self._closed.append(handle)

    def _end(self) -> None:
        with self._lock:
            self.passed = True
            if self._connection is not None:
                _shut(self._connection)


class _Watched:
    """Mixed into urllib3's connections: a deadline can end them at any time."""

    # A second handle of the system's connection: TLS takes the first one out of reach.
    handle: socket.socket | None = None

    def _new_conn(self) -> socket.socket:
        connection: socket.socket = super()._new_conn()  # type: ignore[misc]
        self.handle = connection.dup()
        self._watch()
        return connection

    def request(self, *arguments: Any, **options: Any) -> None:
        self._watch()  # an older connection may be used again
        super().request(*arguments, **options)  # type: ignore[misc]

    def close(self) -> None:
        super().close()  # type: ignore[misc]
        handle, self.handle = self.handle, None
        deadline = _current_deadline()

        if handle is not None and deadline is not None:
            deadline.close_later(handle)
        elif handle is not None:
            handle.close()

    def _watch(self) -> None:
        deadline = _current_deadline()
        if deadline is not None and self.handle is not None:
            deadline.watch(self.handle)


class BoundedAdapter(requests.adapters.HTTPAdapter):
    """Opens connections that a `Deadline` can end."""

    def get_connection_with_tls_context(self, *arguments: Any, **options: Any) -> Any:
        """Return the pool of a request's connections."""
        pool = super().get_connection_with_tls_context(*arguments, **options)
        if not issubclass(pool.ConnectionCls, _Watched):
            pool.ConnectionCls = type("Watched", (_Watched, pool.ConnectionCls), {})
        return pool


class BoundedSession(requests.Session):
    """Calls servers without following redirects, whose content requests reads without a limit."""

    def __init__(self, connections: int) -> None:
        super().__init__()
        for scheme in ("http://", "https://"):
            self.mount(scheme, BoundedAdapter(pool_maxsize=min(connections, MOST_CONNECTIONS)))

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return no address, whatever the response says."""
        return None


def read_body(response: requests.Response) -> bytes:
    """Return the content of a streamed response, decompressed.

    Of an answer other than 2xx the first part is enough: its text is only shown.

    Raises:
        UnreadableAnswer: it is too large, or compressed in a way that was not requested.
    """
    content = b""
    received = 0
    decompress: Callable[[bytes, int], bytes] | None = None

    while block := response.raw.read(BLOCK, decode_content=False):
        if not received:
            decompress = _decompressor(response.headers.get("Content-Encoding", ""), block)

        received += len(block)
        try:
            content += decompress(block, LARGEST_ANSWER + 1) if decompress else block
        except zlib.error as error:
            raise UnreadableAnswer(
                f"something that cannot be decompressed ({excerpt(str(error))})"
            ) from None

        if max(received, len(content)) > LARGEST_ANSWER:
            if not 200 <= response.status_code < 300:
                break
            raise UnreadableAnswer(
                f"more than {LARGEST_ANSWER >> 20} MiB; answer with the scores or a text alone"
            )

    return content[:LARGEST_ANSWER]


def _decompressor(encoding: str, start: bytes) -> Callable[[bytes, int], bytes] | None:
    """Return what decompresses an answer that begins with `start`; None if it is as it is."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return None
    if encoding in ("gzip", "x-gzip"):
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress
    if encoding == "deflate":  # some servers leave out the header of zlib
        has_header = start[0] & 0x0F == 8
        return zlib.decompressobj(zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS).decompress

    raise UnreadableAnswer(
        f"in the encoding {excerpt(encoding, 50)}, which was not requested; "
        "switch compression off at the server"
    )


def _current_deadline() -> Deadline | None:
    return getattr(_thread, "deadline", None)


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):  # it has ended by itself
        connection.shutdown(socket.SHUT_RDWR)
