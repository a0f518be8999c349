"""Codes: `burnish qr` as a form, and its tries as they are read.

    RUNS/NAME    the --out of a search, with search.json, tries.jsonl and tries/

A search is `burnish qr`, as somebody would type it, so its checks and sentences are the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from burnish.annotations import complaint
from burnish.errors import printable
from burnish.files import decode_row, json_object, raw_rows
from burnish.run_files import SearchFile, TryRow, read_json
from burnish.studio.folder import SEARCH, TRIES, RunsFolder, is_name
from burnish.studio.launches import check_configuration
from burnish.studio.studio import Studio, redirect, sentence

MOST = 240
"""Tries that are shown, the latest ones."""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)

OPTIONS = ("prompt", "controlnet", "n", "tries", "size", "scale", "seed", "guidance", "steps")
"""Fields of the form that are options of the command by the same name."""

READERS = {"opencv": "OpenCV", "pyzbar": "ZBar"}
"""Readers that may have to read the code too, beside zxing."""

FIELDS = ("name", "payload", "model", *OPTIONS, *READERS)


@dataclass(frozen=True)
class Search:
    """A search for codes: what is looked for, and its tries from the latest."""

    name: str
    wanted: SearchFile
    tries: list[TryRow]
    done: int
    accepted: int


class Codes:
    """Answers about codes."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def new(self, request: Request) -> Response:
        """Return the form that starts a search, and the searches so far."""
        return self.form({field: request.query_params.get(field, "") for field in FIELDS})

    def form(self, values: Mapping[str, str], error: str = "", status: int = 200) -> Response:
        """Return the form with what somebody has filled in."""
        runs = [name for name in self.studio.folder.names() if is_name(name)]
        return self.studio.render(
            "codes.html",
            status,
            values=values,
            error=error,
            runs=runs,
            searches=[name for name in self.studio.folder.searches() if is_name(name)],
            readers=READERS,
        )

    async def start(self, request: Request) -> Response:
        """Start a search, and show it."""
        form = request.state.form
        values = {field: form.get(field, "").strip() for field in FIELDS}
        try:
            await run_in_threadpool(self.begin, values)
        except (ValueError, OSError, RuntimeError) as error:
            return await run_in_threadpool(self.form, values, sentence(error), 400)
        return redirect(f"/codes/{quote(values['name'])}")

    def begin(self, values: Mapping[str, str]) -> None:
        """Start a search.

        Raises:
            ValueError, OSError: what is wrong with the form.
        """
        launches = self.studio.launches
        given = arguments(self.studio.folder, values, launches.allow_code)
        launches.search(values["name"], given)

    async def stop(self, request: Request) -> Response:
        """End a search, and show it."""
        name = request.path_params["name"]
        try:
            self.studio.launches.processes.end(name)
        except (ValueError, OSError) as error:
            return self.studio.failed(error, "Codes", 400)
        return redirect(f"/codes/{quote(name)}")

    def show(self, request: Request) -> Response:
        """Return the tries of a search."""
        name = request.path_params["name"]
        launches = self.studio.launches
        found = None
        since = self.studio.version(name) if is_name(name) else ""

        try:
            if name in self.studio.folder.searches():
                found = read_search(self.studio.folder, name)
            elif name not in launches.searches and not launches.processes.is_going_on(name):
                raise FileNotFoundError(f"there is no search for codes {printable(name)}")
        except FileNotFoundError as error:
            return self.studio.failed(error, "Not found", 404)
        except Exception as error:  # a folder of anybody
            events = self.studio.events(name, since)
            here = f"/codes/{quote(name, safe='')}"
            return self.studio.failed(error, printable(name), events=events, page=here)

        output = launches.processes.output(name)
        return self.studio.render(
            "search.html",
            name=name,
            since=since,
            found=found,
            output=output,
            last=output.splitlines()[-1].removeprefix("burnish: ") if output else "",
            goes_on=launches.processes.is_going_on(name),
            code=launches.processes.exit_code(name),
            folder=self.studio.folder.root / name,
            readers={"zxing": "ZXing", **READERS},
        )


def arguments(folder: RunsFolder, values: Mapping[str, str], allow_code: bool) -> list[str]:
    """Return the form as arguments of the command; a field that is empty keeps its default.

    Args:
        folder: of the runs, of which one may be the model.
        values: of the form, by field.
        allow_code: whether a run may name Python code.

    Raises:
        ValueError, OSError: the model is none of those that the studio opens.
    """
    model = model_of(folder, values["model"], allow_code)
    given = {**values, "controlnet": hub_or_zoo(values["controlnet"])}
    options = [f"--model={model}"] if model else []
    options += [f"--{name}={given[name]}" for name in OPTIONS if given[name]]
    others = [name for name in READERS if values[name] == "yes"]
    options += [f"--decoder={name}" for name in (("zxing", *others) if others else ())]
    return [*options, "--", values["payload"]]


def model_of(folder: RunsFolder, model: str, allow_code: bool) -> str:
    """Return a model as the command names it; "" for its default.

    Raises:
        ValueError, OSError: it is no run, nothing of the zoo and no hub id, or the run names code.
    """
    if model in folder.names():
        run = folder.own(model)
        check_configuration(run.config, (), allow_code, purpose="sample")
        return str(run.folder)
    return hub_or_zoo(model)


def hub_or_zoo(model: str) -> str:
    """Return a model that is no path; "" stays.

    Raises:
        ValueError: it is something else.
    """
    is_hub_id = HUB_ID.fullmatch(model) and ".." not in model and not os.path.exists(model)
    if model and not model.startswith("zoo:") and not is_hub_id:
        raise ValueError(
            f"{printable(model)} is no model that the studio opens: take a run of this folder, "
            "zoo:NAME or a hub id (OWNER/NAME)"
        )
    return model


def read_search(folder: RunsFolder, name: str) -> Search:
    """Return a search for codes.

    Raises:
        FileNotFoundError: there is none of this name.
        ValueError: its files are something else; the message says what.
    """
    path = folder.search(name)
    wanted: SearchFile = read_json(path / SEARCH, SearchFile, "delete the folder")
    rows = tries(path / TRIES) if (path / TRIES).is_file() else []
    shown: list[Any] = rows[: -MOST - 1 : -1]
    return Search(name, wanted, shown, len(rows), sum(row["accepted"] for row in rows))


def tries(path: Path) -> list[TryRow]:
    """Return the rows of tries.jsonl.

    Raises:
        ValueError: a row is no try.
    """
    found: list[Any] = []
    for number, line in raw_rows(path):
        if not line:
            continue
        place = f"{path.name}, row {number}"
        row = json_object(decode_row(path, number, line), place, "delete this line")
        if wrong := complaint(row, TryRow, ""):
            raise ValueError(f"{place}: {wrong}; delete this line")
        found.append(row)
    return found
