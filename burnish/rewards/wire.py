"""JSON over HTTP, as every reward needs it that asks another process: many requests at once, tried
again, timed.

A request is tried again after 429, 5xx, a connection that fails and a time-out, and waits in
between

    min(backoff * 2^k, 30) + random(0, backoff) seconds before try k + 2, or what Retry-After says
    (60 at most)

any other 4xx is final. Redirects are not followed: they would turn a POST into a GET. Nothing is
pickled.
"""

from __future__ import annotations

import base64
import io
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from queue import Empty, SimpleQueue
from threading import Event, Thread, local
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import requests
import tenacity
from PIL import Image

LONGEST_WAIT = 30.0  # seconds between two tries
LONGEST_ASKED = 60.0  # seconds that a server's Retry-After is obeyed
T = TypeVar("T")
R = TypeVar("R")


class NoAnswer(OSError):
    """A request without a usable answer; the message is one sentence that names the URL."""

    def __init__(
        self, text: str, *, again: bool = False, silent: bool = False, wait: float | None = None
    ) -> None:
        super().__init__(text)
        self.again = again  # another try may help
        self.silent = silent  # not even an HTTP status came back
        self.wait = wait  # seconds that the server asks for


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
        """
        Args:
            url: where to POST; http or https.
            token: sent as `Authorization: Bearer ...` and shown nowhere.
            timeout: seconds until the connection stands, and the longest silence after that.
            retries: tries after the first one.
            workers: requests under way at once.
            backoff: seconds of the first wait.

        Raises:
            ValueError: an argument is out of range; the message names it.
        """
        self.url = url
        self.shown = redact_url(url)

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
        # .ended, in a thread of `each`: set when nobody waits for it any more
        self._thread = local()
        self._session = requests.Session()  # its pool of connections may be shared by threads
        pool = requests.adapters.HTTPAdapter(pool_maxsize=workers)
        self._session.mount("http://", pool)
        self._session.mount("https://", pool)

    def post(self, body: Mapping[str, Any]) -> Any:
        """What the server answers to `body`; a NoAnswer when all tries are used up or another would
        not help.
        """
        ended = getattr(self._thread, "ended", None) or Event()
        again = tenacity.Retrying(
            retry=tenacity.retry_if_exception(
                lambda error: isinstance(error, NoAnswer) and error.again
            ),
            stop=tenacity.stop_after_attempt(self.retries + 1)
            | tenacity.stop_when_event_set(ended),
            wait=self._wait,
            sleep=tenacity.sleep_using_event(ended),
            reraise=True,
        )
        return again(self._post, body)

    def each(self, ask: Callable[[T], R], items: Sequence[T]) -> list[R | NoAnswer]:
        """`ask(item)` for all items, `workers` at once; in place of a result the NoAnswer that
        `ask` raised.

        As long as nobody has answered, as many silences as there are workers (at least two) are
        enough: the rest is not sent, so a server that is down is found in the time of one request.
        Any other exception of `ask` ends all.
        """
        results: list[R | NoAnswer] = [NoAnswer(f"{self.shown} was not asked")] * len(items)
        left: SimpleQueue[int] = SimpleQueue()
        done: SimpleQueue[tuple[int, R | BaseException]] = SimpleQueue()
        ended = Event()

        def work() -> None:
            self._thread.ended = ended

            while not ended.is_set():
                try:
                    row = left.get_nowait()
                except Empty:
                    return

                try:
                    done.put((row, ask(items[row])))
                except BaseException as error:
                    done.put((row, error))

        for row in range(len(items)):
            left.put(row)
        # Daemons, unlike a pool's threads: a server that hangs must not keep the program from
        # ending.
        for _ in range(min(self.workers, len(items))):
            Thread(target=work, name="wire", daemon=True).start()

        silences = 0
        heard = False

        try:
            for _ in items:
                row, result = done.get()
                if isinstance(result, BaseException) and not isinstance(result, NoAnswer):
                    raise result

                results[row] = result
                silent = isinstance(result, NoAnswer) and result.silent
                silences = silences + silent
                heard = heard or not silent

                if silences >= max(2, self.workers) and not heard:
                    return [result] * len(items)

            return results
        finally:  # also after Ctrl+C: nobody waits for what is still asked, or for another try
            ended.set()

    def _post(self, body: Mapping[str, Any]) -> Any:
        try:
            # A signature in `auth` keeps a password of ~/.netrc from taking the token's place.
            signed = self._sign if self._token else None
            answer = self._session.post(
                self.url, json=body, timeout=self.timeout, auth=signed, allow_redirects=False
            )
        except requests.Timeout:
            reason = f"{self.shown} did not answer within {self.timeout:g} s; is the server busy? Raise timeout"
            raise NoAnswer(reason, again=True, silent=True) from None
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            reason = f"{self.shown} cannot be reached ({_cause(error)}); start the server or correct the URL"
            raise NoAnswer(reason, again=True, silent=True) from None
        except requests.exceptions.InvalidJSONError:
            raise
        except requests.RequestException as error:
            raise NoAnswer(f"{self.shown} cannot be asked: {_cause(error)}", silent=True) from None

        if not 200 <= answer.status_code < 300:
            again = answer.status_code == 429 or answer.status_code >= 500
            reason = f"{self.shown} answered {answer.status_code} {answer.reason}: {self._hide(_said(answer))}"
            raise NoAnswer(reason, again=again, wait=_asked(answer.headers.get("Retry-After")))

        try:
            return answer.json()
        except ValueError:
            reason = (
                f"{self.shown} answered something that is not JSON: {self._hide(_said(answer))}"
            )
            raise NoAnswer(reason) from None

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.wait if isinstance(error, NoAnswer) else None
        growing = tenacity.wait_exponential(multiplier=self.backoff, max=LONGEST_WAIT)
        usual = growing + tenacity.wait_random(0, self.backoff)
        return usual(state) if asked is None else asked

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request

    def _hide(self, text: str) -> str:
        return text.replace(self._token, "***") if self._token else text


def redact_url(url: str) -> str:
    """The URL without a password, for messages; a ValueError if it is none."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"url = '{url}' is not a URL; write http://host:port/... or https://...")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def encode(pixels: np.ndarray, kind: str = "png", quality: int = 80) -> str:
    """One image (H, W, 3) of bytes as a PNG (exact) or JPEG file in base64."""
    buffer = io.BytesIO()
    if kind == "png":
        # as exact as 6 in half the time
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    else:
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)

    return base64.b64encode(buffer.getvalue()).decode("ascii")


def report_failures(failures: Sequence[NoAnswer], count: int) -> None:
    """What becomes of `failures` among `count` images: a warning; where there was no answer at all,
    a NoAnswer.
    """
    if failures and len(failures) == count:
        raise NoAnswer(f"none of {count} images got an answer: {failures[-1]}")

    if failures:
        warnings.warn(
            f"{len(failures)} of {count} images got no answer; the last reason: {failures[-1]}",
            stacklevel=3,
        )


def token(variable: str, needed: bool = True) -> str:
    """The API key in an environment variable; a ValueError if it is not set but needed. "" stands
    for no key.
    """
    if not variable:
        return ""
    # most likely the key itself: it is not repeated here
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
        raise ValueError(
            "key_variable names an environment variable such as OPENAI_API_KEY; it is not the key itself"
        )

    found = os.environ.get(variable, "").strip()
    if needed and not found:
        raise ValueError(
            f"the environment variable {variable} is not set; export your API key in it"
        )

    return found


def _asked(header: str | None) -> float | None:
    """Seconds that a Retry-After, a number or a date, asks for."""
    if header is None:
        return None

    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(header) - datetime.now(timezone.utc)).total_seconds()
        except (ValueError, TypeError):  # neither, or a date without a zone
            return None

    return min(max(seconds, 0.0), LONGEST_ASKED) if seconds == seconds else None


def _cause(error: BaseException) -> str:
    """The innermost reason: requests wraps urllib3, which wraps the system's error."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _said(answer: requests.Response) -> str:
    """The first words of a body, on one line."""
    words = " ".join(answer.text[:1000].split())
    return words if len(words) <= 200 else words[:197] + "..."
