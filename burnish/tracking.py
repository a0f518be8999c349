"""Experiment trackers, by accelerate: what a run sends to TensorBoard, Weights & Biases and others.

They get the run's name and its configuration, the numbers of each iteration, the sample grids, each
evaluation as numbers and as a table, and the guard's verdict. RUN/trackers.json keeps the id under
which each tracker files the run, and nothing else, so that a resumed run goes on there.

A tracker that cannot be started ends the run before it begins. One that fails later is left out
from then on, with one warning: a curve is worth less than a run.
"""

from __future__ import annotations

import json
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from burnish.errors import first_line
from burnish.files import dumps, read_text, write
from burnish.images import eight_bit, open_image
from burnish.redaction import without_secret
from burnish.runs import Run, flat

COLUMNS = ("measure", "before", "after", "gain", "low", "high")
"""Columns of an evaluation's table; low and high are the gain's 95 % interval."""


@dataclass(frozen=True)
class Start:
    """A run as a tracker is to know it."""

    name: str
    id: str
    done: int  # iterations that earlier starts have finished
    resumed: bool  # the tracker knows the run already
    folder: Path  # for files
    shared_folder: bool  # where those of other runs lie too

    @property
    def unique_name(self) -> str:
        """The name, where two runs of one name would be taken for the same."""
        return f"{self.name}-{self.id[:8]}"


class Service:
    """The ways to name a run and to show it, of a tracker that has accelerate's interface only."""

    def project(self, project: str, start: Start) -> str:
        """Return the name under which runs are filed."""
        return project

    def arguments(self, start: Start) -> dict[str, Any]:
        """Return the arguments that name the run, and let it go on under its id."""
        return {}

    def own_id(self, tracker: Any, start: Start) -> str:
        """Return the id of the run once it has started."""
        return start.id

    def image(self, tracker: Any, key: str, path: Path, iteration: int) -> None:
        """Send an image file."""
        if hasattr(tracker, "log_images"):
            tracker.log_images({key: [_pixels(path)]}, step=iteration)

    def text(self, tracker: Any, key: str, text: str, path: Path, iteration: int) -> None:
        """Send a text, which the run has in a file too."""
        tracker.log({key: text}, step=iteration)

    def table(self, tracker: Any, rows: list[list[Any]], path: Path, iteration: int) -> None:
        """Send the table of an evaluation, as Markdown where there is nothing better."""
        self.text(tracker, "evaluation/table", markdown(rows), path, iteration)


class TensorBoard(Service):
    """Runs are folders, and go on in theirs."""

    def project(self, project: str, start: Start) -> str:
        """Return the folder, which is the run's own."""
        return f"{project}/{start.unique_name}" if start.shared_folder else project

    def arguments(self, start: Start) -> dict[str, Any]:
        """Let what was logged beyond the checkpoint be hidden, because it is made again."""
        return {"purge_step": start.done + 1} if start.resumed else {}

    def image(self, tracker: Any, key: str, path: Path, iteration: int) -> None:
        """Send an image file."""
        pixels = _pixels(path)[None]
        tracker.log_images({key: pixels}, step=iteration, dataformats="NHWC")


class WandB(Service):
    """Weights & Biases takes any id."""

    def arguments(self, start: Start) -> dict[str, Any]:
        """Return the name and the id."""
        return {
            "name": start.name,
            "id": start.id,
            "resume": "allow",
            "dir": str(start.folder),
        }

    def table(self, tracker: Any, rows: list[list[Any]], path: Path, iteration: int) -> None:
        """Send the table of an evaluation."""
        tracker.log_table("evaluation/table", list(COLUMNS), rows, step=iteration)


class Trackio(Service):
    """Trackio goes on with the run of the same name."""

    def arguments(self, start: Start) -> dict[str, Any]:
        """Return the name."""
        return {"name": start.unique_name, "resume": "allow"}

    def image(self, tracker: Any, key: str, path: Path, iteration: int) -> None:
        """Send an image file."""
        from trackio import Image

        tracker.log({key: Image(_pixels(path))}, step=iteration)


class MLflow(Service):
    """MLflow chooses the id; images and texts are artifacts."""

    def arguments(self, start: Start) -> dict[str, Any]:
        """Return the name of a new run, or the id of one that goes on."""
        return {"run_id": start.id} if start.resumed else {"run_name": start.name}

    def own_id(self, tracker: Any, start: Start) -> str:
        """Return the id that it chose."""
        return str(tracker.tracker.info.run_id)

    def image(self, tracker: Any, key: str, path: Path, iteration: int) -> None:
        """Send an image file."""
        tracker.log_artifact(str(path), key)

    def text(self, tracker: Any, key: str, text: str, path: Path, iteration: int) -> None:
        """Send the file."""
        tracker.log_artifact(str(path))


class Comet(Service):
    """Comet takes ids of 32 letters and digits."""

    def arguments(self, start: Start) -> dict[str, Any]:
        """Return the id."""
        return {"experiment_key": start.id, "mode": "get_or_create"}

    def own_id(self, tracker: Any, start: Start) -> str:
        """Name the run once it has started."""
        tracker.tracker.set_name(start.name)
        return start.id

    def image(self, tracker: Any, key: str, path: Path, iteration: int) -> None:
        """Send an image file."""
        tracker.tracker.log_image(str(path), name=key, step=iteration)


class SwanLab(Service):
    """SwanLab takes ids of 21 letters and digits."""

    def arguments(self, start: Start) -> dict[str, Any]:
        """Return the name and the id."""
        return {
            "experiment_name": start.name,
            "id": start.id[:21],
            "resume": "allow",
            "logdir": str(start.folder / "swanlab"),
        }


SERVICES: Mapping[str, Service] = {
    "tensorboard": TensorBoard(),
    "wandb": WandB(),
    "trackio": Trackio(),
    "mlflow": MLflow(),
    "comet_ml": Comet(),
    "swanlab": SwanLab(),
}
"""The trackers that a configuration may name; one registered with accelerate is a `Service`."""


@dataclass(frozen=True)
class Tracking:
    """The trackers of a run; none without an accelerator.

    Attributes:
        accelerator: of the main process; its list `trackers` has those that are open.
    """

    accelerator: Any = None

    @property
    def trackers(self) -> list[Any]:
        """The open trackers."""
        return [] if self.accelerator is None else list(self.accelerator.trackers)

    def start(self, run: Run, settings: Mapping[str, Any], done: int) -> None:
        """Open the trackers, if there are any.

        Args:
            run: the run directory, which keeps the trackers' ids of the run.
            settings: the configuration, nested.
            done: iterations that earlier starts have finished.

        Raises:
            RuntimeError: a tracker cannot be started.
        """
        names = [] if self.accelerator is None else [str(n) for n in self.accelerator.log_with]
        if not names:
            return

        ids = _stored_ids(run.trackers)
        opened: list[Any] = []

        for name in names:
            shared = settings["run"]["tracker_folder"]
            start = Start(
                name=run.folder.resolve().name,
                id=ids.get(name) or uuid.uuid4().hex,
                done=done,
                resumed=name in ids,
                folder=Path(shared) if shared else run.folder,
                shared_folder=bool(shared),
            )
            tracker, ids[name] = self._open(name, start, settings)
            opened.append(tracker)
            write(run.trackers, dumps(ids, indent=1))

        self.accelerator.log_with = names
        self.accelerator.trackers = opened

    def _open(self, name: str, start: Start, settings: Mapping[str, Any]) -> tuple[Any, str]:
        """Return a tracker, opened, and its id of the run; a new run's gets the configuration."""
        service = _service(name)
        project = service.project(settings["run"]["tracker_project"], start)
        options = settings["run"]["tracker_options"].get(name, {})
        if not isinstance(options, Mapping):
            raise ValueError(
                f"run.tracker_options.{name} = {options!r}; write a table of its arguments"
            )

        arguments = {name: {**service.arguments(start), **options}}
        config = None if start.resumed else settings_for_trackers(settings)

        self.accelerator.log_with = [name]
        self.accelerator.trackers = []
        try:
            start.folder.mkdir(parents=True, exist_ok=True)
            self.accelerator.init_trackers(project, config=config, init_kwargs=arguments)
            (tracker,) = self.accelerator.trackers
            return tracker, service.own_id(tracker, start)
        except Exception as error:
            raise RuntimeError(
                f"run.trackers: {name} cannot be started ({type(error).__name__}: "
                f"{first_line(error)}); fix that, or leave it out of run.trackers"
            ) from error

    def log(self, numbers: Mapping[str, Any], iteration: int) -> None:
        """Send the numbers of a nested mapping, by path."""
        self._send(lambda tracker, _: tracker.log(flat(numbers), step=iteration))

    def image(self, key: str, path: Path, iteration: int) -> None:
        """Send an image file."""
        self._send(lambda tracker, service: service.image(tracker, key, path, iteration))

    def text(self, key: str, text: str, path: Path, iteration: int) -> None:
        """Send a text, which the run has in the file `path` too."""
        self._send(lambda tracker, service: service.text(tracker, key, text, path, iteration))

    def evaluation(self, comparison: Mapping[str, Any], path: Path, iteration: int) -> None:
        """Send the contents of evaluation.json, as numbers and as a table."""
        rows = []
        numbers = flat(comparison)

        for measure, change in changes(comparison):
            low, high = change["ci95"]
            numbers |= {f"{measure}/low": low, f"{measure}/high": high}
            values = (change["before"], change["after"], change["paired_mean"], low, high)
            rows.append([measure, *values])

        self.log({f"evaluation/{name}": value for name, value in numbers.items()}, iteration)
        self._send(lambda tracker, service: service.table(tracker, rows, path, iteration))

    def end(self) -> None:
        """Close the trackers."""
        self._send(lambda tracker, _: tracker.finish())
        if self.accelerator is not None:
            self.accelerator.trackers = []

    def _send(self, send: Callable[[Any, Service], None]) -> None:
        """Call `send` with each open tracker; one that fails is left out from then on."""
        for tracker in self.trackers:
            try:
                send(tracker, _service(tracker.name))
            except Exception as error:
                self.accelerator.trackers.remove(tracker)
                warnings.warn(
                    f"tracker {tracker.name} failed ({type(error).__name__}: {first_line(error)}); "
                    "it gets nothing more from this start of the run, which goes on without it",
                    stacklevel=3,
                )


def settings_for_trackers(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration for trackers: one value a key, as `--set` names it, without secrets.

    Lists of values become JSON. The trackers' own options are left out, and so are passwords, keys,
    and what stands in a URL before its host or behind its path.

    >>> settings_for_trackers({"rewards": [{"url": "https://me:pw@host/score?key=1"}]})
    {'rewards.0.url': 'https://***@host/score?key=***'}
    """
    return dict(_settings(settings))


def _settings(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if name == "run.tracker_options":
        return

    tables = isinstance(value, list) and any(isinstance(item, Mapping) for item in value)
    if tables or isinstance(value, Mapping):
        items = enumerate(value) if tables else value.items()
        for key, item in items:
            yield from _settings(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        yield name, json.dumps([without_secret(name, item) for item in value], ensure_ascii=False)
    else:
        yield name, without_secret(name, value)


def changes(
    comparison: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the path and the numbers of each paired change in the contents of evaluation.json."""
    if "paired_mean" in comparison:
        yield path, comparison

    for key, value in comparison.items():
        if isinstance(value, Mapping):
            yield from changes(value, f"{path}/{key}" if path else key)


def markdown(rows: list[list[Any]]) -> str:
    """Return the rows of an evaluation as a table in Markdown."""
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    lines += [[name, *(f"{value:.4g}" for value in values)] for name, *values in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _service(name: str) -> Service:
    return SERVICES.get(name) or Service()


def _pixels(path: Path) -> np.ndarray:
    """Return an image file as bytes (H, W, 3)."""
    return eight_bit(open_image(path)[None])[0]


def _stored_ids(path: Path) -> dict[str, str]:
    """Return the ids of a run by tracker; {} at the first start.

    Raises:
        ValueError: the file is something else.
    """
    if not path.exists():
        return {}

    try:
        ids = json.loads(read_text(path))
    except (ValueError, RecursionError):
        ids = None

    if not isinstance(ids, dict) or not all(isinstance(value, str) for value in ids.values()):
        raise ValueError(
            f"{path}: not a table of the trackers' ids; delete it, and the trackers begin anew"
        )
    return ids
