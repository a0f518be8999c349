"""The actions: what a form does, before it shows a page. All of them are a POST."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from burnish import votes
from burnish.run_control import STRONGEST, ask
from burnish.studio.launches import CHECK, Plan
from burnish.studio.pages import summary
from burnish.studio.reading import is_training
from burnish.studio.studio import PAGES, Studio, redirect, sentence
from burnish.studio.views import Views

LONGEST_LOOK = 86_400
"""Seconds after which the time of a vote says nothing: the page was left open."""


class Actions:
    """Answers to POST; `views` shows what came of it."""

    def __init__(self, studio: Studio, views: Views) -> None:
        self.studio = studio
        self.views = views

    async def start(self, request: Request) -> Response:
        """Start what the form says, or check it."""
        form = request.state.form
        values = {key: form.get(key, "").strip() for key in ("recipe", "name", "changes")}
        plan = Plan(values["recipe"], values["name"], lines(values["changes"]))
        checks = form.get("do") == "check"
        begin = self.studio.launches.check if checks else self.studio.launches.start

        try:
            await run_in_threadpool(begin, plan)
        except (ValueError, OSError, RuntimeError) as error:
            return await run_in_threadpool(self.views.form, values, sentence(error), 400)
        return redirect(f"/process/{CHECK if checks else quote(plan.name)}")

    async def act(self, request: Request) -> Response:
        """Do something with a run, and show it."""
        name = request.path_params["name"]
        actions: dict[str, Callable[[str, Mapping[str, str]], str]] = {
            "ask": self.ask,
            "resume": self.resume,
            "branch": self.branch,
            "rollback": self.roll_back,
            "vote": self.vote,
        }
        action = actions.get(request.path_params["action"])
        if action is None:
            return PlainTextResponse("There is no such action.", 404)

        form = request.state.form
        try:
            return redirect(await run_in_threadpool(action, name, form))
        except FileNotFoundError as error:
            return self.studio.failed(error, "Not found", 404)
        except (ValueError, OSError, RuntimeError) as error:
            back = form.get("page", "")
            request.path_params["page"] = back if back in PAGES else "curves"
            return await run_in_threadpool(self.views.show_run, request, sentence(error), 400)

    def ask(self, name: str, form: Mapping[str, str]) -> str:
        """Ask the training of a run for something; return where to go."""
        run = self.studio.folder.run(name)
        what = form.get("what", "")
        goes_on = is_training(run)
        if not goes_on and what != "strength":
            raise ValueError(f"{name} is not running, so there is nobody to ask; resume it first")

        if what == "strength":
            strength = percentage(form.get("strength", ""))
            if goes_on:
                ask(run, strength=strength)
            else:
                self.studio.launches.draw(name, strength)
        elif what in ("stop", "save", "sample", "evaluate"):
            ask(run, **{what: True})
        else:
            raise ValueError("there is nothing of this name to ask for")

        page = form.get("page", "")
        return f"/runs/{quote(name, safe='')}/{page if page in PAGES else 'curves'}"

    def resume(self, name: str, form: Mapping[str, str]) -> str:
        """Go on with a run; return where to go."""
        run = self.studio.folder.run(name)
        if is_training(run):
            raise ValueError(f"{name} is running already")
        changed = lines(form.get("changes", ""))
        top = summary(run, self.studio.configs.of(run), self.studio.logs.of(run).records)
        if top["state"] == "finished" and run.export.is_file() and not changed:
            raise ValueError(
                f"all {top['iterations']} iterations are done; to go on, give more as a changed "
                f"key, such as iterations={2 * top['iterations']}"
            )

        self.studio.launches.resume(name, changed, form.get("accept") == "yes")
        return f"/process/{quote(name, safe='')}"

    def branch(self, name: str, form: Mapping[str, str]) -> str:
        """Branch from an iteration of a run; return where to go."""
        new = form.get("name", "").strip()
        is_done = self.studio.launches.branch(name, whole_number(form.get("iteration", "")), new)
        return changed_run(new, is_done)

    def roll_back(self, name: str, form: Mapping[str, str]) -> str:
        """Take a run back; return where to go."""
        if form.get("sure") != "yes":
            raise ValueError("what is later would be deleted: tick that you are sure")
        if is_training(self.studio.folder.run(name)):
            raise ValueError(f"{name} is running; stop it first, then roll it back")

        is_done = self.studio.launches.roll_back(name, whole_number(form.get("iteration", "")))
        return changed_run(name, is_done)

    def vote(self, name: str, form: Mapping[str, str]) -> str:
        """Take a vote, or take the latest one back; return where to go."""
        run = self.studio.folder.own(name)
        choice = form.get("answer", "")
        if choice == "undo":
            votes.undo(run)
        elif choice in votes.CHOICES:
            votes.answer(run, form.get("question", ""), choice, seconds_since(form.get("now", "")))
        else:
            raise ValueError("choose left, right, both bad or skip")
        return f"/runs/{quote(name, safe='')}/votes#vote"


def changed_run(name: str, is_done: bool) -> str:
    """Return where a run is shown after a command; while that goes on, what the command prints."""
    return f"/runs/{quote(name, safe='')}/curves" if is_done else f"/process/{quote(name, safe='')}"


def seconds_since(text: str) -> float:
    """Return the seconds since a page was made; 0 if what it says of that is no time."""
    try:
        passed = time.time() - float(text)
    except ValueError:
        return 0.0
    return round(passed, 1) if 0 <= passed < LONGEST_LOOK else 0.0


def lines(text: str) -> tuple[str, ...]:
    """Return the lines of a field that are not empty."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def whole_number(text: str) -> int:
    """Return a number of an iteration.

    Raises:
        ValueError: it is none.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError("choose an iteration")
    return int(text)


def percentage(text: str) -> float:
    """Return a strength that was given in percent.

    Raises:
        ValueError: it is none.
    """
    value = whole_number(text) / 100
    if value > STRONGEST:
        raise ValueError(f"a strength is from 0 to {STRONGEST:.0%}")
    return value
