"""The content of each page of a run, as plain values for its template."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from burnish import runs, votes
from burnish.report import comparison
from burnish.report.groups import latest_groups
from burnish.report.markup import Html, join
from burnish.report.page import (
    crop,
    diagnostic_charts,
    evaluation_table,
    further_charts,
    panel_table,
    reward_charts,
    spread,
    subtitle,
)
from burnish.report.results import stored
from burnish.report.suspects import Suspect, latest_suspects
from burnish.run_control import pending
from burnish.run_files import (
    EvaluationFile,
    GridFile,
    GuardFile,
    numbered,
)
from burnish.runs import Record, Run, guard_verdict
from burnish.studio.health import Light, lights
from burnish.studio.reading import Settings, is_training, seconds_left, state_of

ROWS = 16
"""Sample grids that are rows of the table of images."""

COLUMNS = 12
"""Prompts that are its columns."""

DRAWN = 250
"""Points of a curve: a chart is drawn anew after each iteration, and is not much wider."""

MOST_GROUPS = 64

STRENGTH = re.compile(r"strength-[0-9]{6}-[0-9]{3}\.png")
"""The name of a grid with the adapter at a strength; see `burnish.run_control.strength_grid`."""


@dataclass(frozen=True)
class Cell:
    """One image of a grid: where the grid is, and the CSS that shows this image of it."""

    grid: str  # the path below the run
    style: str
    label: str


@dataclass(frozen=True)
class Shown:
    """A suspect with its image, if there is a small copy of it."""

    suspect: Suspect
    cell: Cell | None


def markup(html: Html) -> Markup:
    """Return markup of the report as markup of a template: the only place that says so."""
    return Markup(html)


def summary(run: Run, settings: Settings, records: Sequence[Record]) -> dict[str, Any]:
    """Return what stands at the top of every page of a run."""
    iterations = int(settings.number("iterations", 100))
    done = records[-1]["iteration"] if records else 0
    state = state_of(run, done, iterations, is_training(run))
    guard = stored(run.guard, GuardFile)
    return {
        "about": subtitle(settings.tree),
        "settings": settings,
        "records": records,
        "done": done,
        "iterations": iterations,
        "state": state,
        "left": seconds_left(records, iterations) if state == "running" else None,
        "requested": request_words(run) if state in ("running", "stopping") else "",
        "checkpoints": checkpoints(run),
        "verdict": guard_verdict(guard) if guard else "",
        "has_votes": run.questions.is_file(),
        "unanswered": len(votes.pending(run)) if run.questions.is_file() else 0,
        "has_evaluation": settings.number("evaluation.images_per_prompt", 4) > 0,
        "has_strength": settings.tree.get("model", {}).get("train", "lora") == "lora",
    }


def request_words(run: Run) -> str:
    """Return what the training was asked for and has not done yet, in words."""
    requests = pending(run)
    words = [
        word
        for word, wanted in (
            ("stop", requests.stop),
            ("save", requests.save),
            ("draw the samples", requests.sample),
            ("evaluate", requests.evaluate),
        )
        if wanted
    ]
    if requests.strength is not None:
        words.append(f"draw with the adapter at {requests.strength:.0%}")
    return ", ".join(words)


def checkpoints(run: Run) -> list[int]:
    """Return the iterations of the checkpoints, from the newest."""
    if not run.checkpoints.is_dir():
        return []
    names = [path.name for path in run.checkpoints.iterdir()]
    return sorted((int(name) for name in names if name.isascii() and name.isdigit()), reverse=True)


def curves(run: Run, top: Mapping[str, Any]) -> dict[str, Any]:
    """Return the charts of a run and its evaluation."""
    records = thinned(top["records"])
    objective = str(top["settings"].tree.get("objective", {}).get("use", ""))
    evaluation = stored(run.evaluation, EvaluationFile)
    charts = join(
        [
            reward_charts(records),
            evaluation_table(evaluation),
            panel_table(evaluation),
            diagnostic_charts(records, objective),
            further_charts(records),
        ]
    )
    return {"charts": markup(charts), "drawn": len(records)}


def thinned(records: Sequence[Record]) -> Sequence[Record]:
    """Return at most `DRAWN` records at even distances, the last one among them."""
    step = math.ceil(len(records) / DRAWN)
    return records[::-1][::step][::-1] if step > 1 else records


def compared(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the curves of several runs in one chart, and what differs.

    Raises:
        ValueError: they cannot be compared.
    """
    found = comparison.compare([run.folder for run in runs])
    return {
        "names": [one.name for one in found],
        "charts": markup(comparison.reward_curves(found)),
        "differences": comparison.differences(found),
        "outcomes": comparison.outcomes(found),
        "verdicts": comparison.verdicts(found),
    }


def images(run: Run, top: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same prompts and noise over time: rows are iterations, columns are prompts."""
    path = run.samples / "prompts.json"
    layout = stored(path, GridFile)
    texts = layout.get("texts", [])
    grids = list(numbered(run.samples, ".png"))
    chosen = spread(range(len(texts)), COLUMNS)
    newest = grids[-1] if grids else 0

    def row(iteration: int) -> list[Cell]:
        grid = f"samples/{iteration:06d}.png"
        return [
            cell(grid, index, len(texts), layout["columns"], f"{texts[index]}, {_after(iteration)}")
            for index in chosen
        ]

    return {
        "texts": [texts[index] for index in chosen],
        "hidden_prompts": len(texts) - len(chosen),
        "rows": [(iteration, row(iteration)) for iteration in reversed(spread(grids, ROWS))],
        "grids": grids,
        "newest": newest,
        "can_draw": run.adapter.is_dir(),
        **drawn_strengths(run),
    }


def drawn_strengths(run: Run) -> dict[str, Any]:
    """Return the latest grids with the adapter at other strengths, by percent."""
    paths = [path for path in run.samples.glob("strength-*.png") if STRENGTH.fullmatch(path.name)]
    latest = max((path.name[:15] for path in paths), default="")
    found = sorted(path.name for path in paths if path.name.startswith(latest))
    return {
        "strengths": {int(name[16:19]): f"samples/{name}" for name in found},
        "drawn_of": int(latest[9:] or 0),
    }


def groups(run: Run, top: Mapping[str, Any]) -> dict[str, Any]:
    """Return the groups of the latest iteration with their rewards."""
    found = latest_groups(run, top["settings"].rewards)
    if found is None:
        return {"groups": []}

    grid = f"groups/{found.grid.name}"
    return {
        "groups": found.groups[:MOST_GROUPS],
        "hidden_groups": max(0, len(found.groups) - MOST_GROUPS),
        "flat": found.flat,
        "iteration": found.iteration,
        "rewards": found.rewards,
        "cell_of": lambda one: cell(grid, one.place, found.count, found.columns, one.label),
    }


def health(run: Run, top: Mapping[str, Any]) -> dict[str, Any]:
    """Return the lights of a run."""
    evaluation = stored(run.evaluation, EvaluationFile)
    guard = stored(run.guard, GuardFile)
    found: list[Light] = lights(top["records"], evaluation, guard, top["settings"].tree)
    return {"lights": found}


def suspicious(run: Run, top: Mapping[str, Any]) -> dict[str, Any]:
    """Return the images of the latest evaluation that the reward likes and nothing else does."""
    found = latest_suspects(run, top["settings"].rewards)
    if found is None:
        return {"suspects": [], "iteration": None, "measures": []}

    grid = f"groups/{found.grid.name}"

    def small(one: Suspect) -> Cell | None:
        if one.number >= found.count:
            return None
        return cell(grid, one.number, found.count, found.columns, one.prompt)

    return {
        "suspects": [Shown(one, small(one)) for one in found.suspects],
        "iteration": found.iteration,
        "measures": found.measures,
    }


def voting(run: Run, top: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pair of images that somebody is asked about now, and what became of the votes."""
    waiting = votes.pending(run)
    given = votes.votes(run)
    alike, repeated = votes.consistency(votes.questions(run), given)
    records = top["records"]
    return {
        "question": waiting[0] if waiting else None,
        "waiting": len(waiting),
        "given": len(given),
        "alike": alike,
        "repeated": repeated,
        "effects": vote_effects(records[-1]) if records else [],
        "now": time.time(),
    }


def vote_effects(record: Mapping[str, Any]) -> list[str]:
    """Return sentences on what the votes of a run have changed, by its latest record."""
    numbers = runs.flat(record)
    effects = []

    accuracy = numbers.get("votes/accuracy")
    if accuracy is not None:
        effects.append(
            f"A head fitted to your votes foretells {accuracy:.0%} of those that it was not fitted "
            "to; chance is 50%."
        )

    for path, gain in numbers.items():
        kind, _, name = path.partition("/")
        if kind == "rewards" and name.endswith("/gain"):
            name = name.removesuffix("/gain")
            effects.append(
                f"{name} of the latest images: {gain:+.3g} compared with images of their prompts "
                "before training."
            )

    return effects


def cell(grid: str, index: int, count: int, columns: int, label: str) -> Cell:
    """Return one image of a grid of `count` images."""
    return Cell(grid, crop(index, count, columns), label)


def _after(iteration: int) -> str:
    return f"after iteration {iteration}" if iteration else "before training"
