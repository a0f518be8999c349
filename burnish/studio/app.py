"""The web application: addresses, and what answers them.

    /                        the runs            /new           start a run, or check one
    /runs/NAME/PAGE          a page of a run     /compare       several runs
    /process/NAME            what a command prints
    /codes                   look for codes         /codes/NAME    the tries of a search
    /files/NAME/FOLDER/FILE  an image of a run   /events        something has changed
    POST /runs/NAME/ACTION   ask, resume, branch, rollback, vote

Answers are made in threads, since they read files. Whatever is wrong with a run is an error card.
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from burnish.studio.actions import Actions
from burnish.studio.assets import Assets
from burnish.studio.codes import Codes
from burnish.studio.folder import RunsFolder
from burnish.studio.safety import Access, Guard
from burnish.studio.studio import Studio
from burnish.studio.views import Views


def application(folder: RunsFolder, access: Access, allow_code: bool = False) -> Guard:
    """Return the web application of a folder of runs, behind its guard."""
    studio = Studio(folder, access, allow_code)

    def not_found(request: Request, error: Exception) -> Response:
        return studio.failed(ValueError("there is nothing at this address"), "Not found", 404)

    return Guard(Starlette(routes=routes(studio), exception_handlers={404: not_found}), access)


def routes(studio: Studio) -> list[Route]:
    """Return the addresses of the application."""
    views = Views(studio)
    actions = Actions(studio, views)
    assets = Assets(studio)
    codes = Codes(studio)
    return [
        Route("/", views.list_runs),
        Route("/new", views.new_run),
        Route("/new", actions.start, methods=["POST"]),
        Route("/compare", views.compare),
        Route("/process/{name}", views.process),
        Route("/codes", codes.new),
        Route("/codes", codes.start, methods=["POST"]),
        Route("/codes/{name}", codes.show),
        Route("/codes/{name}/stop", codes.stop, methods=["POST"]),
        Route("/codes/{name}/{file}", assets.code),
        Route("/runs/{name}", views.open_run),
        Route("/runs/{name}/{page}", views.show_run),
        Route("/runs/{name}/{action}", actions.act, methods=["POST"]),
        Route("/files/{name}/{folder}/{file}", assets.image),
        Route("/events", assets.events),
        Route("/static/{file}", assets.static),
    ]
