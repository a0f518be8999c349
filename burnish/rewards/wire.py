"""JSON over HTTP for every reward that calls another process.

There are many requests at once, with retries and time-outs.

A request is tried again after 429, 5xx, a connection that fails and a time-out, and waits in
between

    min(backoff * 2^k, 30) + random(0, backoff) seconds before try k + 2, or what Retry-After says
    (60 at most)

any other 4xx is final. Redirects are not followed: they would turn a POST into a GET. Nothing is
pickled. An answer has a limit in seconds and in bytes (`bounded`); a server on this machine is
called without a proxy.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import socket
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from ipaddress import ip_address
from queue import Empty, SimpleQueue
from threading import Event, Thread, local
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

import numpy as np
import requests
import tenacity
from PIL import Image
from urllib3.exceptions import HTTPError, LocationParseError

from burnish.errors import first_line
from burnish.redaction import MASK, REFERENCE, excerpt, hide, one_line, redact, secret_in_url
from burnish.rewards.bounded import BoundedSession, Deadline, UnreadableAnswer, read_body

LONGEST_WAIT = 30.0  # seconds between two tries
LONGEST_RETRY_AFTER = 60.0  # seconds that a server's Retry-After is obeyed
OF_PROXY = (
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidURL,
    LocationParseError,
)
"""Errors about an address: of the proxy, where there is one, as the server's has been checked."""

T = TypeVar("T")
R = TypeVar("R")


class NoAnswer(OSError):
    """A request without a usable answer.

    The message is one sentence that names the URL. Every text that leaves the wire is one of these,
    so this is where keys are taken out of it.
    """

    def __init__(
        self, text: str, *, again: bool = False, silent: bool = False, wait: float | None = None
    ) -> None:
        super().__init__(one_line(redact(text)))
        self.again = again  # another try may help
        self.silent = silent  # not even an HTTP status came back
        self.wait = wait  # seconds that the server asks to wait


class Wire:
    """A URL that answers JSON with JSON."""

    def __init__(
        self,
        url: str,
        *,
        token: str = "",
        timeout: float = 60.0,
        retries: int = 3,
        workers: int = 8,
        backoff: float = 0.5,
    ) -> None:
        """Prepare requests to `url`; nothing is sent yet.

        Args:
            url: address for POST requests; http or https. `${NAME}` in it is the value of an
                environment variable.
            token: sent as `Authorization: Bearer ...` and never shown.
            timeout: seconds until the whole answer is there.
            retries: tries after the first one.
            workers: requests under way at once.
            backoff: seconds of the first wait.

        Raises:
            ValueError: an argument is out of range; the message names it.
        """
        self.redacted_url = redact_url(url)
        if secret_in_url(url):
            raise ValueError(
                f"url = '{self.redacted_url}' with a password or a key in it would be written to "
                "files; export it as an environment variable and write ${NAME} in its place"
            )

        self.url = _with_variables(url)

        if any(not "!" <= letter <= "~" for letter in token):
            raise ValueError(
                "the API key contains spaces or letters that a header cannot hold; copy it again"
            )

        for name, value, least in (
            ("timeout", timeout, 1e-3),
            ("retries", retries, 0),
            ("workers", workers, 1),
        ):
            if value < least:
                raise ValueError(f"{name} = {value}: give at least {least:g}")

        self.timeout = timeout
        self.retries = retries
        self.workers = workers
        self.backoff = backoff
        self._token = token
        hide(token, *_credentials(self.url))

        # .ended, in a thread of `map`: set when nobody waits for it any more
        self._thread = local()

        self._session = BoundedSession(workers)  # threads may share its connections

    def post(self, body: Mapping[str, Any]) -> Any:
        """Return the server's answer to `body`.

        Raises:
            NoAnswer: all tries are used up, or another try would not help.
        """
        ended = getattr(self._thread, "ended", None) or Event()
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(
                lambda error: isinstance(error, NoAnswer) and error.again
            ),
            stop=tenacity.stop_after_attempt(self.retries + 1)
            | tenacity.stop_when_event_set(ended),
            wait=self._wait,
            sleep=tenacity.sleep_using_event(ended),
            reraise=True,
        )
        return retrying(self._post, body)

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R | NoAnswer]:
        """Return `function(item)` for all items, `workers` at once.

        As long as no request was answered, as many silent ones as there are workers (at least two)
        are enough: the others are not sent, so a server that is down is found in the time of one
        request. Any exception of `function` other than NoAnswer ends all.

        Returns:
            One result an item; in place of a result the NoAnswer that `function` raised.
        """
        results: list[R | NoAnswer] = [NoAnswer(f"{self.redacted_url} was not called")] * len(items)
        waiting: SimpleQueue[int] = SimpleQueue()
        done: SimpleQueue[tuple[int, R | BaseException]] = SimpleQueue()
        ended = Event()

        def work() -> None:
            self._thread.ended = ended
            while not ended.is_set():
                try:
                    index = waiting.get_nowait()
                except Empty:
                    return

                done.put((index, _result_or_error(function, items[index])))

        for index in range(len(items)):
            waiting.put(index)

        # Daemons, unlike a pool's threads: a server that hangs must not keep the program from
        # ending.
        for _ in range(min(self.workers, len(items))):
            Thread(target=work, name="wire", daemon=True).start()

        silences = 0
        any_response = False

        try:
            for _ in items:
                index, result = done.get()
                if isinstance(result, BaseException) and not isinstance(result, NoAnswer):
                    raise result

                results[index] = result
                if isinstance(result, NoAnswer) and result.silent:
                    silences += 1
                else:
                    any_response = True

                if silences >= max(2, self.workers) and not any_response:
                    return [result] * len(items)

            return results
        finally:  # also after Ctrl+C: nobody waits for open requests, or for another try
            ended.set()

    def _post(self, body: Mapping[str, Any]) -> Any:
        """Send one request and return the JSON of its response."""
        data = json.dumps(body, allow_nan=False).encode()
        proxy = find_proxy(self.url)

        with Deadline(self.timeout) as deadline:
            answer = self._exchange(data, proxy)

        if deadline.passed or isinstance(answer, requests.Timeout):
            raise NoAnswer(
                f"{self._place(proxy)} did not answer within {self.timeout:g} s; is the server "
                "busy? Raise timeout",
                again=True,
                silent=True,
            )
        if isinstance(answer, Exception):
            raise self._failure(answer, proxy)

        # outside of `except`: no error of a library, which has the request in it, goes along
        return self._read(*answer, proxy)

    def _exchange(self, data: bytes, proxy: str) -> tuple[requests.Response, bytes] | Exception:
        """Return the response to a request with its content, or what went wrong."""
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        # none at all, unlike an empty table, is not completed from the environment
        proxies: dict[str, Any] = dict.fromkeys(("http", "https", "all"), proxy or None)

        try:
            # A signature in `auth` keeps a password of ~/.netrc from taking the token's place.
            with self._session.post(
                self.url,
                data=data,
                headers=headers,
                timeout=self.timeout,
                auth=self._sign if self._token else None,
                proxies=proxies,
                allow_redirects=False,
                stream=True,
            ) as response:
                return response, read_body(response)
        except (OSError, HTTPError, HTTPException, ValueError) as error:
            return error

    def _failure(self, error: Exception, proxy: str) -> NoAnswer:
        """Return what to say of a request that failed on its way."""
        place = self._place(proxy)
        reason = excerpt(_innermost(error))

        if isinstance(error, UnreadableAnswer):
            return NoAnswer(f"{place} answered {error}")

        if proxy and isinstance(error, OF_PROXY):
            remedy = f"correct the proxy in the environment, or {_without_proxy(self.url)}"
            if "SOCKS" in reason:
                remedy = f"pip install pysocks, or {_without_proxy(self.url)}"
            return NoAnswer(f"{place} cannot be called ({reason}); {remedy}", silent=True)

        lost = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError, HTTPError)
        if isinstance(error, lost):
            remedy = "start the server or correct the URL"
            if proxy:
                remedy = f"start the server, correct the URL, or {_without_proxy(self.url)}"
            text = f"{place} cannot be reached ({reason}); {remedy}"
            return NoAnswer(text, again=True, silent=True)

        return NoAnswer(f"{place} cannot be called: {reason}", silent=True)

    def _read(self, response: requests.Response, content: bytes, proxy: str) -> Any:
        """Return the JSON of a response; raise a NoAnswer if there is none."""
        status = response.status_code
        text = content.decode("utf-8", "replace")

        if not 200 <= status < 300:
            reason = f"{status} {excerpt(response.reason or '', 50)}".strip()
            hint = f" (or {_without_proxy(self.url)})" if proxy else ""
            raise NoAnswer(
                f"{self._place(proxy)} answered {reason}: {excerpt(text)}{hint}",
                again=status == 429 or status >= 500,
                wait=parse_retry_after(response.headers.get("Retry-After")),
            )

        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            failure = NoAnswer(
                f"{self._place(proxy)} answered something that is not JSON: {excerpt(text)}"
            )

        raise failure

    def _place(self, proxy: str) -> str:
        """Return the URL, with the proxy through which it is called, for messages."""
        return f"{self.redacted_url} through the proxy {proxy}" if proxy else self.redacted_url

    def _wait(self, state: tenacity.RetryCallState) -> float:
        """Return the seconds to wait before the next try."""
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, NoAnswer) and error.wait is not None:
            return error.wait

        growing = tenacity.wait_exponential(multiplier=self.backoff, max=LONGEST_WAIT)
        random = tenacity.wait_random(0, self.backoff)
        return (growing + random)(state)

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _result_or_error(function: Callable[[T], R], item: T) -> R | BaseException:
    try:
        return function(item)
    except BaseException as error:
        return error


def redact_url(url: str) -> str:
    """Return a URL without its password and query, for messages.

    Raises:
        ValueError: it is no http or https URL.
    """
    shown = url.partition("?")[0]
    if "@" in shown:
        shown = f"{shown.partition('://')[0]}://{MASK}@{shown.rpartition('@')[2]}"

    try:
        example = urlsplit(REFERENCE.sub("1", url))
        valid = example.scheme in ("http", "https") and bool(example.hostname)
        _ = example.port  # raises if it is no number
    except ValueError:
        valid = False

    if not valid:
        raise ValueError(f"url = '{shown}' is not a URL; write http://host:port/... or https://...")
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def find_proxy(url: str) -> str:
    """Return the proxy that the environment names for a URL; "" for none.

    A server on this machine has none, whatever the environment says.
    """
    if is_loopback(urlsplit(url).hostname or ""):
        return ""

    proxies = requests.utils.get_environ_proxies(url)
    proxy = requests.utils.select_proxy(url, proxies) or ""
    hide(*_credentials(proxy))
    return proxy


def is_loopback(host: str) -> bool:
    """Return whether a host's name or address means this machine."""
    name = host.rstrip(".").lower()
    if name in ("localhost", "localhost.localdomain", "ip6-localhost") or name.endswith(
        ".localhost"
    ):
        return True

    try:
        address = ip_address(name.removeprefix("::ffff:"))
    except ValueError:
        try:  # the system also takes an IPv4 address as 127.1, 2130706433 or 0x7f000001
            address = ip_address(socket.inet_aton(name))
        except (OSError, ValueError):
            return False

    return address.is_loopback or address.is_unspecified


def _without_proxy(url: str) -> str:
    return f"export NO_PROXY={urlsplit(url).hostname} to call it without the proxy"


def _with_variables(url: str) -> str:
    """Return a URL with the values of environment variables in place of ${NAME}."""

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if not found:
            raise ValueError(f"url: the environment variable {match[1]} is not set; export it")

        hide(found)
        # what stands before an @ or after a ? must be escaped; the rest may be a host or a path
        separate = "@" in url[match.end() :].partition("/")[0] or "?" in url[: match.start()]
        return quote(found, safe="") if separate else found

    return REFERENCE.sub(value, url)


def _credentials(url: str) -> list[str]:
    """Return what is secret when a URL is called: as given, unescaped, and as a header has it."""
    user, at, _ = urlsplit(url if "://" in url else f"//{url}").netloc.rpartition("@")
    _, colon, password = user.partition(":")
    secrets = [password, unquote(password), unquote(user)] if colon else [user, unquote(user)]

    if not at and (login := requests.utils.get_netrc_auth(url)):
        secrets = [login[1], ":".join(login)]

    return secrets


def encode_image(pixels: np.ndarray, kind: str = "png", quality: int = 80) -> str:
    """Return one image (H, W, 3) of bytes as a PNG (exact) or JPEG file in base64."""
    buffer = io.BytesIO()
    if kind == "png":
        # level 1 is as exact as the usual 6, in half the time
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    else:
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)

    return base64.b64encode(buffer.getvalue()).decode("ascii")


def report_failures(failures: Sequence[NoAnswer], count: int) -> None:
    """Warn of the images without an answer.

    Args:
        failures: one an image without an answer.
        count: number of all images.

    Raises:
        NoAnswer: no image got an answer; the message is the last reason.
    """
    if failures and len(failures) == count:
        raise NoAnswer(f"none of {count} images got an answer: {failures[-1]}")

    if failures:
        warnings.warn(
            f"{len(failures)} of {count} images got no answer; the last reason: {failures[-1]}",
            stacklevel=3,
        )


def read_api_key(variable: str, required: bool = True) -> str:
    """Return the API key in an environment variable; "" stands for no key.

    Raises:
        ValueError: the variable is not set but required, or its name is none.
    """
    if not variable:
        return ""

    # most likely it is the key itself, so the message does not repeat it
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
        raise ValueError(
            "key_variable names an environment variable such as OPENAI_API_KEY; "
            "it is not the key itself"
        )

    key = os.environ.get(variable, "").strip()
    if required and not key:
        raise ValueError(
            f"the environment variable {variable} is not set; export your API key in it"
        )

    return key


def parse_retry_after(header: str | None) -> float | None:
    """Return the seconds of a Retry-After header, a number or a date; None if it is neither."""
    if header is None:
        return None

    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):  # neither, or a date without a zone
            return None

    if seconds != seconds:  # NaN
        return None

    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)


def _innermost(error: BaseException) -> str:
    """Return the innermost reason: requests wraps urllib3, which wraps the system's error."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return first_line(error)
