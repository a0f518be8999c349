"""The pages: what a browser is shown. Nothing changes here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from burnish.errors import printable
from burnish.report.comparison import MOST as MOST_COMPARED
from burnish.run_control import STRONGEST
from burnish.studio import pages
from burnish.studio.events import signatures, version_of
from burnish.studio.folder import is_name
from burnish.studio.launches import CHECK, OF_RUN
from burnish.studio.studio import PAGES, Studio, redirect, sentence


class Views:
    """Answers to GET, made of the files of runs."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def list_runs(self, request: Request) -> Response:
        """Return the list of runs, those that were trained last first."""
        commands = self.studio.launches.processes.states()
        found = signatures(self.studio.folder)
        return self.studio.render(
            "runs.html",
            cards=self.studio.cards.of(self.studio.folder, found),
            since=version_of(found, commands),
            failures=self.studio.launches.failures(),
            root=self.studio.folder.root,
            is_name=is_name,
        )

    def new_run(self, request: Request) -> Response:
        """Return the form that starts a run."""
        given = request.query_params
        values = {key: given.get(key, "") for key in ("recipe", "name", "changes")}
        return self.form(values)

    def form(self, values: Mapping[str, str], error: str = "", status: int = 200) -> Response:
        """Return the form that starts a run, with what somebody has filled in."""
        from burnish.config import recipes

        runs = [name for name in self.studio.folder.names() if is_name(name)]
        return self.studio.render(
            "new.html",
            status,
            recipes=recipes(),
            runs=runs,
            of_run=OF_RUN,
            values=values,
            error=error,
        )

    def compare(self, request: Request) -> Response:
        """Return several runs beside each other."""
        chosen = list(dict.fromkeys(request.query_params.getlist("run")))
        names = [name for name in self.studio.folder.names() if is_name(name)]
        values: dict[str, Any] = {}
        error = ""

        if chosen:
            try:
                values = pages.compared([self.studio.folder.run(name) for name in chosen])
            except Exception as reason:  # runs of anybody
                error = sentence(reason)
        return self.studio.render(
            "compare.html", runs=names, chosen=chosen, error=error, most=MOST_COMPARED, **values
        )

    def process(self, request: Request) -> Response:
        """Return what the latest command about a run has printed."""
        name = request.path_params["name"]
        if not is_name(name):
            return self.studio.failed(
                ValueError(f"there is no run {printable(name)}"), "Not found", 404
            )

        processes = self.studio.launches.processes
        return self.studio.render(
            "process.html",
            since=self.studio.version(name),
            name=name,
            is_check=name == CHECK,
            output=processes.output(name),
            goes_on=processes.is_going_on(name),
            code=processes.exit_code(name),
            is_run=name in self.studio.folder.names(),
        )

    def open_run(self, request: Request) -> Response:
        """Return the way to the first page of a run."""
        return redirect(f"/runs/{quote(request.path_params['name'], safe='')}/curves")

    def show_run(self, request: Request, error: str = "", status: int = 200) -> Response:
        """Return a page of a run."""
        name = request.path_params["name"]
        page = request.path_params["page"]
        if page not in PAGES:
            return self.studio.failed(ValueError("there is no such page"), "Not found", 404)

        since = self.studio.version(name) if is_name(name) else ""
        try:
            run = self.studio.folder.run(name)
            top = pages.summary(run, self.studio.configs.of(run), self.studio.logs.of(run).records)
            shown = PAGES[page][1](run, top)
            processes = self.studio.launches.processes
            return self.studio.render(
                f"{page}.html",
                status,
                name=name,
                since=since,
                page=page,
                error=error,
                has_output=bool(processes.output(name)),
                works=processes.is_going_on(name),
                failed=bool(processes.exit_code(name)),
                strongest=round(100 * STRONGEST),
                **top,
                **shown,
            )
        except FileNotFoundError as reason:
            return self.missing(name, page, since, reason)
        except Exception as reason:  # a run of anybody: its card says so, and nothing else happens
            events = self.studio.events(name, since)
            here = f"/runs/{quote(name, safe='')}/{page}"
            return self.studio.failed(reason, printable(name), events=events, page=here)

    def missing(self, name: str, page: str, since: str, reason: FileNotFoundError) -> Response:
        """Return the page of a run that is not there, or not yet: then it comes by itself."""
        if not self.studio.launches.processes.is_going_on(name):
            return self.studio.failed(reason, "Not found", 404)
        begins = FileNotFoundError(f"run {printable(name)} begins; this page shows it in a moment")
        events = self.studio.events(name, since)
        here = f"/runs/{quote(name, safe='')}/{page}"
        return self.studio.failed(begins, printable(name), events=events, page=here)
