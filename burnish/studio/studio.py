"""A studio: its folder of runs, its commands, and how a page is made of values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse, RedirectResponse, Response

from burnish.errors import printable
from burnish.redaction import redact
from burnish.report.charts import duration, number
from burnish.studio import pages
from burnish.studio.cards import Cards
from burnish.studio.events import signatures, version_of
from burnish.studio.folder import RunsFolder
from burnish.studio.launches import Launches
from burnish.studio.reading import log_cache, settings_cache
from burnish.studio.safety import Access

PAGES: Mapping[str, tuple[str, Callable[..., dict[str, Any]]]] = {
    "curves": ("Curves", pages.curves),
    "images": ("Images", pages.images),
    "groups": ("Groups", pages.groups),
    "health": ("Health", pages.health),
    "suspects": ("Suspects", pages.suspicious),
    "votes": ("Votes", pages.voting),
}
"""The pages of a run by address: the word on its tab, and what it shows."""

STATES = {
    "running": "running",
    "stopping": "stopping",
    "finished": "finished",
    "stopped": "stopped",
    "guarded": "ended by the guard",
}


class Studio:
    """The parts that all answers share.

    Args:
        folder: of the runs.
        access: who may ask.
        allow_code: whether configurations may name Python code.
    """

    def __init__(self, folder: RunsFolder, access: Access, allow_code: bool = False) -> None:
        self.folder = folder
        self.launches = Launches(folder, allow_code)
        self.configs = settings_cache()
        self.cards = Cards(self.configs)
        self.logs = log_cache()
        self.templates = Environment(
            loader=PackageLoader("burnish.studio"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.templates.filters |= {
            "number": number,
            "duration": duration,
            "address": lambda name: quote(name, safe=""),
            "shown": printable,
        }
        self.templates.globals |= {
            "states": STATES,
            "tabs": PAGES,
            "token": access.token,
            "events_of": self.events,
        }

    def render(self, template: str, status: int = 200, **values: Any) -> Response:
        """Return a page."""
        text = self.templates.get_template(template).render(values)
        return HTMLResponse(text.encode("utf-8", "replace"), status)

    def failed(
        self,
        error: BaseException,
        title: str,
        status: int = 200,
        events: str = "",
        page: str = "",
    ) -> Response:
        """Return a page with an error card.

        Args:
            error: whose message it shows.
            title: of the page.
            status: of the answer.
            events: the address of the events after which it may be another page; "": none.
            page: the address that is opened then: the error may be the answer to a form.
        """
        return self.render(
            "error.html", status, title=title, error=sentence(error), events=events, page=page
        )

    def version(self, name: str = "") -> str:
        """Return the version of a run's pages, or of the list's; see `events.version_of`."""
        found = signatures(self.folder, name)
        return version_of(found, self.launches.processes.states(name))

    def events(self, name: str, since: str) -> str:
        """Return the address of the events of a page.

        Args:
            name: of the run that it shows; "": all of them.
            since: the version of the page.
        """
        return f"/events?{urlencode({'run': name, 'since': since})}"


def sentence(error: BaseException) -> str:
    """Return the message of an error, without keys; its type where it has none."""
    return redact(str(error)) or type(error).__name__


def redirect(address: str) -> Response:
    """Return an answer that sends a browser on to another page."""
    return RedirectResponse(address, 303)
