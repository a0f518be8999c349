"""Headless Chromium by its DevTools protocol, over two pipes: no driver and no other package.

One JSON object a message, ended by a zero byte:

    {"id": 3, "method": "Page.navigate", "params": {...}, "sessionId": "..."}
    {"id": 3, "result": {...}}
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for path in map(shutil.which, NAMES) if path), "")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe")
PATIENCE = 300.0
"""Seconds to wait for anything: other work may go on."""


@contextmanager
def opened(profile: Path) -> Iterator[Page]:
    """Start a browser and yield its page; end it.

    Args:
        profile: a folder for its files.
    """
    to_browser, write_end = os.pipe()
    read_end, from_browser = os.pipe()
    # the browser wants them as 3 and 4
    script = f'exec "$@" 3</dev/fd/{to_browser} 4>/dev/fd/{from_browser}'
    command = [BROWSER, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(
        ["sh", "-c", script, "sh", *command],
        pass_fds=(to_browser, from_browser),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_browser)
    os.close(from_browser)

    with process:
        try:
            yield Page(write_end, read_end)
        finally:
            process.terminate()
            process.wait()
            os.close(write_end)
            os.close(read_end)


class Page:
    """The page of a browser."""

    def __init__(self, write_end: int, read_end: int) -> None:
        self._write_end = write_end
        self._read_end = read_end
        self._received = b""
        self._count = 0
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self.call("Page.enable")

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Return what the browser answers to a method of its protocol.

        Raises:
            RuntimeError: it refuses, or says nothing.
        """
        self._count += 1
        message = {"id": self._count, "method": method, "params": arguments}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write_end, json.dumps(message).encode() + b"\0")

        while True:
            answer = self._receive()
            if answer.get("id") != self._count:
                continue  # an event
            if "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']}")
            result: dict[str, Any] = answer["result"]
            return result

    def open(self, address: str) -> None:
        """Go to an address, and wait until the page is there."""
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def value(self, script: str) -> Any:
        """Return the value of an expression on the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{script}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait(self, script: str, seconds: float = PATIENCE) -> Any:
        """Wait until an expression on the page is true, and return its value.

        Raises:
            TimeoutError: it never was; the message has the page's text.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with suppress(RuntimeError):  # another page is on its way
                if found := self.value(f"(found => found ? [found] : null)({script})"):
                    return found[0]
            time.sleep(0.1)
        text = self.value("location.href + '\\n' + document.body?.innerText")
        raise TimeoutError(f"not true within {seconds:.0f} s: {script}\n{text}")

    def type(self, selector: str, text: str) -> None:
        """Write into a field as a keyboard does."""
        self.value(f"document.querySelector({json.dumps(selector)}).focus()")
        self.call("Input.insertText", text=text)

    def press(self, key: str, repeats: int = 0) -> None:
        """Press a key, such as "ArrowLeft", "u" or "Enter".

        Args:
            key: its name.
            repeats: how often the browser says so again, because it is held down.
        """
        text = "\r" if key == "Enter" else key if len(key) == 1 else ""
        code = 13 if key == "Enter" else 0
        for number in range(repeats + 2):
            up = number > repeats
            self.call(
                "Input.dispatchKeyEvent",
                type="keyUp" if up else "keyDown",
                key=key,
                text="" if up else text,
                windowsVirtualKeyCode=code,
                autoRepeat=0 < number <= repeats,
            )

    def set_window(self, width: int, height: int = 900, dark: bool = False) -> None:
        """Set the size of the window in pixels, and the reader's theme."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[theme])

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """Write a picture of the window as PNG; `whole` is the page, as long as it is."""
        taken = self.call("Page.captureScreenshot", captureBeyondViewport=whole, format="png")
        path.write_bytes(base64.b64decode(taken["data"]))

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._read_end], [], [], PATIENCE)
            received = os.read(self._read_end, 1 << 20) if ready else b""
            if not received:
                raise RuntimeError("the browser has ended, or says nothing")
            self._received += received

        message, _, self._received = self._received.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer
