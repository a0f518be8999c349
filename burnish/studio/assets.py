"""Images of runs, files of the studio's own, and the stream of events."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse

from burnish.studio import events
from burnish.studio.folder import is_name
from burnish.studio.studio import Studio

STATIC = {
    "report.css": "text/css",
    "studio.css": "text/css",
    "icon.svg": "image/svg+xml",
    "studio.js": "text/javascript",
    "htmx.min.js": "text/javascript",
}
IMAGES = ("samples", "groups", "questions")
"""The folders of a run whose images can be had."""

PNG_START = b"\x89PNG\r\n\x1a\n"


class Assets:
    """Answers that are no pages."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def image(self, request: Request) -> Response:
        """Return an image of a run; nothing else of it can be had."""
        name, folder, file = (request.path_params[key] for key in ("name", "folder", "file"))
        if folder not in IMAGES or not is_name(file) or not file.endswith(".png"):
            return PlainTextResponse("There is no such image.", 404)

        return self.png(lambda: self.studio.folder.find(name).folder / folder / file)

    def code(self, request: Request) -> Response:
        """Return the image of a try of a search for codes."""
        name, file = (request.path_params[key] for key in ("name", "file"))
        if not is_name(file) or not file.endswith(".png"):
            return PlainTextResponse("There is no such image.", 404)
        return self.png(lambda: self.studio.folder.search(name) / "tries" / file)

    def png(self, find: Callable[[], Path]) -> Response:
        """Return the PNG at the path that `find` returns, if it is one of the folder of runs."""
        try:
            path = find()
            self.studio.folder.check(path)
            with path.open("rb") as stream:
                is_image = stream.read(len(PNG_START)) == PNG_START
        except (ValueError, OSError):
            is_image = False

        if not is_image:
            return PlainTextResponse("There is no such image.", 404)
        return FileResponse(path, media_type="image/png", headers={"cache-control": "no-cache"})

    async def events(self, request: Request) -> Response:
        """Return a stream of events: something has changed."""
        name = request.query_params.get("run", "")
        if name and not is_name(name):
            return PlainTextResponse("There is no such run.", 404)

        since = request.query_params.get("since", "")
        version = partial(self.studio.version, name)
        stream = events.changes(version, since, request.is_disconnected)
        return StreamingResponse(stream, media_type="text/event-stream")

    def static(self, request: Request) -> Response:
        """Return a file of the studio's own."""
        file = request.path_params["file"]
        kind = STATIC.get(file)
        if kind is None:
            return PlainTextResponse("There is no such file.", 404)

        if file == "report.css":
            content = report_style().encode()
        else:
            content = (files("burnish.studio") / "static" / file).read_bytes()

        # asked for each time, for another version of Burnish has others; sent only if it is new
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        headers = {"cache-control": "no-cache", "etag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)


def report_style() -> str:
    """Return the style of the report's page: colours, charts and tables are the same here."""
    page = (files("burnish") / "data" / "report.html").read_text("utf-8")
    return page.partition("<style>")[2].partition("</style>")[0].replace("$images_css", "")
