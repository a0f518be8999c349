"""The studio in a real browser, headless Chromium."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("starlette", reason="needs the extra studio: pip install 'burnish[studio]'")

import uvicorn
from test_studio_safety import write_run

from burnish.images import image_grid
from burnish.runs import Run
from burnish.studio.app import application
from burnish.studio.folder import RunsFolder
from burnish.studio.safety import Access

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for path in map(shutil.which, NAMES) if path), "")

pytestmark = pytest.mark.skipif(not BROWSER, reason=f"no browser: none of {', '.join(NAMES)}")


@pytest.fixture
def visits() -> list[str]:
    """The paths that a browser has fetched so far."""
    return []


@pytest.fixture
def address(tmp_path: Path, visits: list[str]) -> Iterator[str]:
    """The address of a studio with one run of two grids."""
    folder = write_run(tmp_path / "runs", "one")
    png, _ = image_grid(torch.rand(1, 3, 8, 8))
    for name in ("000000.png", "000002.png"):
        (folder / "samples" / name).write_bytes(png)

    app = application(RunsFolder.open(tmp_path / "runs"), Access())

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        visits.append(scope.get("path", ""))
        await app(scope, receive, send)

    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(watched, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"

    server.should_exit = True
    thread.join()
    listening.close()


def wait_for(path: str, visits: list[str]) -> None:
    """Wait until the browser has fetched a path."""
    for _ in range(400):
        if path in visits:
            return
        time.sleep(0.1)
    raise AssertionError(f"the browser has not fetched {path}, but {visits}")


def test_a_page_fills_by_itself(address: str, visits: list[str], tmp_path: Path) -> None:
    run = Run(tmp_path / "runs" / "one")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"{address}/runs/one/images"]
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    with browser:
        try:
            wait_for("/events", visits)
            time.sleep(1)  # the stream has had its first look
            (run.samples / "000003.png").write_bytes((run.samples / "000002.png").read_bytes())
            # told of it by an event, htmx fetches the page and puts the new row into it
            wait_for("/files/one/samples/000003.png", visits)
        finally:
            browser.terminate()
