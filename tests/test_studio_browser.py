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
from burnish.studio.processes import Processes
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
    samples = write_grids(root, 2)
    page.open(f"{address}/runs/one/images")
    page.value("window.sameness = 1")
    assert page.value("document.querySelectorAll('.images .cell').length") == 2

    # told of it by an event, htmx fetches the page and puts the new row into it
    shutil.copy(samples / "000001.png", samples / "000003.png")
    page.wait("document.querySelectorAll('.images .cell').length === 3")
    assert page.value("window.sameness") == 1, "the page was not loaded anew"


def test_what_was_scrolled_stays_there_while_pictures_arrive(
    address: str, page: Page, root: Path
) -> None:
    samples = write_grids(root, 1)
    page.open(f"{address}/runs/one/images")
    wide = "<style>.images { width: 4000px }</style>"
    page.value(f"document.head.insertAdjacentHTML('beforeend', '{wide}')")
    page.value("document.querySelector('#sheet').scrollLeft = 300")

    shutil.copy(samples / "000000.png", samples / "000001.png")
    page.wait("document.querySelectorAll('.images .cell').length === 2")
    assert page.value("document.querySelector('#sheet').scrollLeft") == 300


def write_grids(root: Path, count: int) -> Path:
    """Write a run with the grids of its first iterations; return their folder."""
    samples = write_run(root, "one") / "samples"
    png, _ = image_grid(torch.rand(1, 3, 8, 8))
    for number in range(count):
        (samples / f"{number:06d}.png").write_bytes(png)
    return samples


def test_the_sliders_stay_where_they_are_while_pictures_arrive(
    address: str, page: Page, root: Path
) -> None:
    samples = write_grids(root, 1)
    (samples.parent / "adapter").mkdir()
    page.open(f"{address}/runs/one/images")
    card = "document.querySelector('#cut').closest('.card')"
    assert page.value(f"getComputedStyle({card}).display") == "none", "nothing to compare yet"

    shutil.copy(samples / "000000.png", samples / "000001.png")
    page.wait(f"getComputedStyle({card}).display !== 'none'")
    slide = (
        "(id, value) => { const one = document.querySelector(id); one.value = value;"
        "one.dispatchEvent(new Event('input', {bubbles: true})) }"
    )
    page.value(f"({slide})('#cut', 20)")
    page.value(f"({slide})('#strength', 70)")

    shutil.copy(samples / "000000.png", samples / "000003.png")
    page.wait("document.querySelector('.compare .now').src.endsWith('/000003.png')")
    assert page.value("document.querySelector('#newest').innerText") == "after iteration 3"
    assert page.value("document.querySelector('#cut').value") == "20"
    clip = "getComputedStyle(document.querySelector('.compare .now')).clipPath"
    assert page.value(clip) == "inset(0px 0px 0px 20%)"
    assert page.value("document.querySelector('#strength').value") == "70"
    assert page.value("document.querySelector('#strength-value').value") == "70 %"


def test_a_page_that_nobody_looks_at_keeps_no_connection(
    address: str, page: Page, root: Path
) -> None:
    """Six are all that a browser has: a seventh page of the studio would wait for ever."""
    samples = write_grids(root, 1)
    page.open(f"{address}/runs/one/images")
    set_hidden = (
        "value => { Object.defineProperty(document, 'hidden', {value, configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange')) }"
    )
    assert page.value("source.readyState") < 2
    page.value(f"({set_hidden})(true)")
    assert page.value("source === null")

    shutil.copy(samples / "000000.png", samples / "000001.png")
    page.value(f"({set_hidden})(false)")
    page.wait("document.querySelectorAll('.images .cell').length === 2")


def test_an_answer_to_a_form_is_never_sent_again(
    address: str, page: Page, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    monkeypatch.setattr(
        Processes, "launch", lambda self, name, *others, **more: started.append(name)
    )
    config = write_grids(root, 1).parent / "config.toml"
    sound = config.read_text()
    page.open(f"{address}/runs/one/curves")
    page.value("document.querySelector('#ways').open = true")
    config.write_text("rewards = 1")
    click(page, "Resume")
    page.wait("location.pathname === '/runs/one/resume'")
    page.wait("document.querySelector('[role=alert]') && document.readyState === 'complete'")

    config.write_text(sound)
    arrive(page, "/runs/one/curves")
    assert started == []


def test_the_focus_stays_where_it_is_while_news_arrive(
    address: str, page: Page, questioned: Run
) -> None:
    focused = "document.activeElement.id"
    with questioned.lock():  # it trains
        (questioned.folder / "lock").write_text("process 99999999 on another machine")
        number = 1
        for tab, one in (("curves", "ask-save"), ("curves", "tab-health"), ("votes", "undo")):
            page.open(f"{address}/runs/one/{tab}")
            page.value("window.sameness = 1")
            page.value(f"document.getElementById('{one}').focus()")
            number += 1
            questioned.append({"iteration": number, "images": 4})
            page.wait(text_has(f"{number} of 4 iterations"))
            page.wait("!document.querySelector('.htmx-request')")
            assert page.value(focused) == one and page.value("window.sameness") == 1


def test_a_form_that_somebody_stopped_can_be_sent_again(
    address: str, page: Page, root: Path
) -> None:
    write_grids(root, 1)
    quick = "const later = setTimeout; window.setTimeout = (act, after) => later(act, after / 50);"
    page.call("Page.addScriptToEvaluateOnNewDocument", source=quick)
    page.open(f"{address}/runs/one/curves")
    sent = "document.querySelector('#ways form').dataset.sent"
    # nothing comes of it, as when the browser is told to stop
    page.value("addEventListener('submit', (event) => event.preventDefault())")
    page.value("document.querySelector('#ways form').requestSubmit()")
    assert page.value(sent) == "yes"
    page.wait(f"{sent} === undefined")


SEEN = (
    "document.querySelector('.vote').dataset.shown !== 'soon' && document.readyState === 'complete'"
)
"""True once a question may be answered: it has been on the screen for a moment."""


@pytest.fixture
def questioned(root: Path) -> Run:
    """A run that asks about three pairs."""
    write_grids(root, 1)
    run = Run(root / "one")
    pngs = [image_grid(torch.rand(1, 3, 8, 8))[0] for _ in range(6)]
    names = [votes.add_image(run, png) for png in pngs]
    pairs = zip(names[::2], names[1::2], strict=True)
    votes.ask(run, [votes.make_question(1, row, "a cat", *pair) for row, pair in enumerate(pairs)])
    return run


HOLD_BACK = """
const later = window.setTimeout;
window.heldBack = [];
window.setTimeout = (act, after) => after === 300 ? window.heldBack.push(act) : later(act, after);
"""
"""Keeps a question from being answered until `heldBack` is called, however slow the machine is."""


def test_a_vote_is_for_the_pair_that_was_seen(address: str, page: Page, questioned: Run) -> None:
    """Not for those that come while a key is held down, or pressed twice in a hurry."""
    first, second, _ = votes.questions(questioned)
    page.open(f"{address}/runs/one/votes")
    page.wait(SEEN)
    page.call("Page.addScriptToEvaluateOnNewDocument", source=HOLD_BACK)
    page.press("ArrowLeft", repeats=30)
    page.wait("document.body?.innerText.includes('2 left, 1 given')")
    page.wait("heldBack.length")
    page.press("ArrowLeft")  # the second press of a fast pair
    page.value("heldBack[0]()")
    page.wait(SEEN)
    assert [vote.question for vote in votes.votes(questioned)] == [first.id]

    # what the training writes meanwhile does not change the pair under the finger
    page.value("window.image = document.querySelector('.pair img')")
    questioned.append({"iteration": 2, "images": 4})
    page.wait("performance.getEntriesByType('resource').some(one => one.initiatorType === 'fetch')")
    page.wait("!document.querySelector('.htmx-request')")
    assert page.value("window.image.isConnected")

    page.press("ArrowRight")
    page.wait("document.body?.innerText.includes('1 left, 2 given')")
    assert [(vote.question, vote.answer) for vote in votes.votes(questioned)] == [
        (first.id, "left"),
        (second.id, "right"),
    ]


UNREADABLE = """(() => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => {
    const part = numbers(colour).slice(0, 3).map(value => value / 255)
      .map(value => value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4);
    return .2126 * part[0] + .7152 * part[1] + .0722 * part[2];
  };
  const ground = one => {
    for (; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (numbers(colour)[3] !== 0) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const words = one => [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim());
  const found = [];
  for (const one of document.querySelectorAll('body, body *')) {
    if (!words(one) || !one.checkVisibility()) continue;
    const [a, b] = [light(getComputedStyle(one).color), light(ground(one))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    const name = `${one.tagName}.${one.className}`;
    if (ratio < 4.5) found.push(`${name} ${one.innerText} ${ratio.toFixed(2)}`);
  }
  return found;
})()"""
"""Words whose colour is too near to their ground: WCAG 2.2 asks for a contrast of 4.5."""

PHONE = 360  # px
WIDER = f"""[...document.querySelectorAll('body *')]
  .filter(one => !one.closest('.sheet, .output, svg') && one.checkVisibility())
  .filter(one => one.getBoundingClientRect().right > {PHONE} + 1)
  .map(one => one.outerHTML.slice(0, 80))"""
"""Parts of a page that reach beyond the window, but for those that one can scroll."""


@pytest.mark.usefixtures("questioned")
def test_pages_fit_a_phone_and_can_be_read_in_both_themes(
    address: str, page: Page, root: Path
) -> None:
    write_run(root, "a" * 60)
    (root / "broken").mkdir()
    (root / "broken" / "config.toml").write_text("rewards = 1")
    tabs = ("curves", "images", "groups", "health", "suspects", "votes")
    runs = [f"/runs/{name}/{tab}" for name in ("one", "a" * 60) for tab in tabs]
    for path in ("/", "/new", "/codes", "/compare", "/process/one", "/runs/broken/curves", *runs):
        for dark in (False, True):
            page.set_window(PHONE, 740, dark)
            page.open(address + path)
            for button in ("summary", "details"):
                page.value(f"document.querySelectorAll('{button}').forEach(one => one.open = true)")
            width = page.value("document.documentElement.scrollWidth")
            assert width <= PHONE, (path, width, page.value(WIDER))
            assert page.value(UNREADABLE) == [], (path, dark)


def test_the_contrast_of_words_is_measured(page: Page) -> None:
    page.open("data:text/html,<p style='color:%23777'>grey</p><p style='color:%23767676'>fine</p>")
    (found,) = page.value(UNREADABLE)
    assert found == "P. grey 4.48"


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
    page.value("document.querySelector('#recipe').value = 'run:tiny'")
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
        page.wait(SEEN)
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
