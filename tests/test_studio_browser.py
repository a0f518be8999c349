"""The studio in a real browser, headless Chromium."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("starlette", reason="needs the extra studio: pip install 'burnish[studio]'")

import uvicorn
from test_studio_safety import write_run

from benchmarks.chromium import BROWSER, NAMES, Page, opened
from burnish import votes
from burnish.images import image_grid
from burnish.runs import Run
from burnish.studio.app import application
from burnish.studio.folder import RunsFolder
from burnish.studio.reading import is_training
from burnish.studio.safety import Access

pytestmark = pytest.mark.skipif(not BROWSER, reason=f"no browser: none of {', '.join(NAMES)}")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def address(root: Path) -> Iterator[str]:
    """The address of a studio."""
    app = application(RunsFolder.open(root), Access())
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"

    started: Any = app.application
    for process in started.routes[0].endpoint.__self__.studio.launches.processes.started.values():
        process.terminate()
        process.wait()
    server.should_exit = True
    thread.join()
    listening.close()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with opened(tmp_path / "profile") as page:
        yield page


def text_has(words: str) -> str:
    """Return the expression that is true once a page shows these words."""
    return f"document.body.innerText.includes({json.dumps(words)})"


def arrive(page: Page, path: str) -> None:
    """Wait until the page at a path is there, with its scripts."""
    page.wait(f"location.pathname === '{path}' && document.readyState === 'complete'")


def click(page: Page, words: str) -> None:
    """Focus the button or link with these words, and press Enter."""
    find = "[...document.querySelectorAll('button, a, summary')]"
    chosen = f"one.innerText.trim() === {json.dumps(words)}"
    page.wait(f"{find}.some(one => {chosen})")
    page.value(f"{find}.find(one => {chosen}).focus()")
    page.press("Enter")


def test_a_page_fills_by_itself(address: str, page: Page, root: Path) -> None:
    samples = write_run(root, "one") / "samples"
    png, _ = image_grid(torch.rand(1, 3, 8, 8))
    for name in ("000000.png", "000002.png"):
        (samples / name).write_bytes(png)

    page.open(f"{address}/runs/one/images")
    page.value("window.sameness = 1")
    assert page.value("document.querySelectorAll('.images .cell').length") == 2

    # told of it by an event, htmx fetches the page and puts the new row into it
    shutil.copy(samples / "000002.png", samples / "000003.png")
    page.wait("document.querySelectorAll('.images .cell').length === 3")
    assert page.value("window.sameness") == 1, "the page was not loaded anew"


@pytest.fixture
def tiny(root: Path, write_recipe: Callable[..., Path]) -> None:
    """A folder that is a run before its first iteration: votes on tiny images."""
    (root / "tiny").mkdir(parents=True)
    recipe = write_recipe(
        iterations=9,
        prompts={"use": "list", "texts": ["a cat", "a dog"]},
        rewards=[{"use": "votes", "per_iteration": 10, "repeats": 0.0}],
        batch={"prompts": 2, "images_per_prompt": 6, "sample_batch": 12, "train_batch": 12},
        scoring={"missing": "mask"},
        evaluation={"images_per_prompt": 0},
        run={"sample_every": 1, "checkpoint_every": 1, "sample_prompts": 2},
    )
    shutil.copy(recipe, root / "tiny" / "config.toml")


@pytest.mark.usefixtures("tiny")
def test_start_vote_stop_resume_and_branch_by_keyboard(
    address: str, page: Page, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run = Run(root / "mine")

    # start
    page.open(f"{address}/new")
    page.value("document.querySelector('#recipe').value = 'tiny'")
    page.type("#name", "mine")
    page.type("#changes", "seed=3")
    click(page, "Start")
    arrive(page, "/process/mine")
    click(page, "Open the run")

    # pictures arrive
    arrive(page, "/runs/mine/curves")
    page.press("2")
    arrive(page, "/runs/mine/images")
    page.wait("document.querySelectorAll('.images .cell').length === 2")
    assert page.value("getComputedStyle(document.querySelector('.cell')).backgroundImage") != "none"

    # vote
    page.wait(text_has("10 pairs wait for your vote"))
    click(page, "10 pairs wait for your vote")
    arrive(page, "/runs/mine/votes")
    page.wait(text_has("10 left, 0 given"))
    answers = ["ArrowLeft", "ArrowRight", "ArrowDown", "s", "u", "s", *["ArrowLeft"] * 6]
    given = 0
    for key in answers:
        page.press(key)
        given += -1 if key == "u" else 1
        page.wait(text_has(f"left, {given} given"))
        page.wait("document.readyState === 'complete'")
        if given < 10:
            assert page.value("document.querySelector('.pair img').naturalWidth") > 0

    # the training goes on, and asks about the next ten
    page.wait(text_has("10 left, 10 given"))
    words = [vote.answer for vote in votes.votes(run)]
    assert words[:4] == ["left", "right", "both_bad", "skip"] and len(words) == 10
    page.press("2")
    page.wait("document.querySelectorAll('.images .cell').length >= 4")

    # stop
    click(page, "Stop and save")
    page.wait(text_has("stopped"))
    assert not is_training(run)
    assert [path.name for path in run.checkpoints.iterdir()] == ["000001"]

    # resume
    click(page, "Resume, branch, roll back")
    click(page, "Resume")
    arrive(page, "/process/mine")
    click(page, "Open the run")
    page.wait("document.querySelector('.badge.running')")
    click(page, "Stop and save")
    page.wait("document.querySelector('.badge.stopped')")

    # branch
    click(page, "Resume, branch, roll back")
    page.type("#branch-name", "other")
    click(page, "Branch")
    arrive(page, "/runs/other/curves")
    page.wait(text_has("1 of 9 iterations"))
    assert Run(root / "other").records() == run.records()
    assert page.value("document.querySelector('[role=alert]')") is None
