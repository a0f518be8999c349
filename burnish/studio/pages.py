"""The content of each page of a run, as plain values for its template."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from burnish import runs, votes
from burnish.report import comparison
from burnish.report.markup import Html, join
from burnish.report.page import (
    crop,
    diagnostic_charts,
    evaluation_table,
    further_charts,
    panel_table,
    report_config,
    reward_charts,
    spread,
    subtitle,
)
from burnish.report.results import stored
from burnish.run_control import pending, strength_grid
from burnish.run_files import (
    EvaluationFile,
    GridFile,
    GroupsFile,
    GuardFile,
    ThumbnailsFile,
    numbered,
    read_evaluation,
    read_json,
)
from burnish.runs import Record, Run, guard_verdict
from burnish.studio.health import Light, lights
from burnish.studio.reading import Settings, seconds_left, state_of
from burnish.studio.suspects import Suspect, suspects

ROWS = 16
"""Sample grids that are rows of the table of images."""

COLUMNS = 12
"""Prompts that are its columns."""

SPREADLESS = 1e-9
"""Rewards of a group that differ by less than this share are equal."""

MOST_GROUPS = 64


@dataclass(frozen=True)
class Cell:
    """One image of a grid: where the grid is, and the CSS that shows this image of it."""

    grid: str  # the path below the run
    style: str
    label: str


@dataclass(frozen=True)
class Member:
    """An image of a group with its reward."""

    cell: Cell
    reward: float | None
    mark: str = ""  # best, worst


@dataclass(frozen=True)
class Group:
    """The images of one prompt in the latest iteration."""

    prompt: str
    members: list[Member]
    flat: bool  # all rewards are equal, so that nothing is learned from it


@dataclass(frozen=True)
class Shown:
    """A suspect with its image, if there is a small copy of it."""

    suspect: Suspect
    cell: Cell | None


def markup(html: Html) -> Markup:
    """Return markup of the report as markup of a template: the only place that says so."""
    return Markup(html)


def summary(run: Run, records: Sequence[Record]) -> dict[str, Any]:
    """Return what stands at the top of every page of a run, from its files and its records."""
    config = report_config(run)
    settings = Settings(config)
    iterations = int(settings.number("iterations", 100))
    done = records[-1]["iteration"] if records else 0
    state = state_of(run, done, iterations)
    guard = stored(run.guard, GuardFile)
    return {
        "about": subtitle(config),
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
        "has_evaluation": settings.number("evaluation.images_per_prompt", 4) > 0,
        "has_strength": report_config(run).get("model", {}).get("train", "lora") == "lora",
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
    records = top["records"]
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
    return {"charts": markup(charts)}


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

    strengths = {
        percent: f"samples/{path.name}"
        for percent in range(0, 201)
        if (path := strength_grid(run, newest, percent / 100)).is_file()
    }
    return {
        "texts": [texts[index] for index in chosen],
        "hidden_prompts": len(texts) - len(chosen),
        "rows": [(iteration, row(iteration)) for iteration in reversed(spread(grids, ROWS))],
        "grids": grids,
        "newest": newest,
        "strengths": strengths,
    }


def groups(run: Run, top: Mapping[str, Any]) -> dict[str, Any]:
    """Return the groups of the latest iteration with their rewards."""
    newest = max(numbered(run.groups, ".json"), default=None)
    if newest is None:
        return {"groups": [], "iteration": None, "rewards": []}

    layout = read_json(run.groups / f"{newest:06d}.json", GroupsFile, "delete it")
    count = len(layout["texts"])
    if any(len(layout[key]) != count for key in ("group", "parts")):
        raise ValueError(f"groups/{newest:06d}.json has lists of different lengths; delete it")

    weights = top["settings"].rewards
    factors = [weights.get(name, 1.0) for name in layout["rewards"]]
    places: dict[int, list[int]] = {}
    for place, number in enumerate(layout["group"]):
        places.setdefault(number, []).append(place)

    found = [group(layout, members, factors) for members in places.values()]
    return {
        "groups": found[:MOST_GROUPS],
        "hidden_groups": max(0, len(found) - MOST_GROUPS),
        "flat": sum(one.flat for one in found),
        "iteration": layout["iteration"],
        "rewards": layout["rewards"],
    }


def group(layout: Mapping[str, Any], places: Sequence[int], factors: Sequence[float]) -> Group:
    """Return the images of a prompt, with the best and the worst marked."""
    totals = [weighted(layout["parts"][place], factors) for place in places]
    known = [total for total in totals if total is not None]
    high = max(known, default=0.0)
    low = min(known, default=0.0)
    flat = high - low <= SPREADLESS * max(abs(high), abs(low))
    grid = f"groups/{layout['iteration']:06d}.png"

    members = []
    for place, total in zip(places, totals, strict=True):
        mark = ""
        if not flat and total is not None:
            mark = "best" if total == high else "worst" if total == low else ""
        label = f"image {place + 1} of {layout['texts'][place]}"
        shown = cell(grid, place, len(layout["texts"]), layout["columns"], label)
        members.append(Member(shown, total, mark))

    return Group(layout["texts"][places[0]], members, flat)


def weighted(row: Sequence[float | None], factors: Sequence[float]) -> float | None:
    """Return the weighted sum of an image's rewards; None if one is missing."""
    total = 0.0
    for value, factor in zip(row, factors, strict=True):
        if value is None or not math.isfinite(value):
            return None
        total += value * factor
    return total


def health(run: Run, top: Mapping[str, Any]) -> dict[str, Any]:
    """Return the lights of a run."""
    evaluation = stored(run.evaluation, EvaluationFile)
    guard = stored(run.guard, GuardFile)
    found: list[Light] = lights(top["records"], evaluation, guard, top["settings"].tree)
    return {"lights": found}


def suspicious(run: Run, top: Mapping[str, Any]) -> dict[str, Any]:
    """Return the images of the latest evaluation that the reward likes and nothing else does."""
    evaluations = numbered(run.evaluation_file(0).parent, ".json")
    newest = max(evaluations, default=0)
    if not newest:
        return {"suspects": [], "iteration": None, "measures": []}

    table = read_evaluation(evaluations[newest])["train"]
    measures = (["judged right"] if table.get("judged") else []) + list(table.get("panel") or {})
    grid = f"groups/evaluation-{newest:06d}"
    layout = stored(run.folder / f"{grid}.json", ThumbnailsFile)
    count = layout.get("count", 0)

    found = []
    for one in suspects(table, top["settings"].rewards):
        small = None
        if one.number < count:
            small = cell(f"{grid}.png", one.number, count, layout["columns"], one.prompt)
        found.append(Shown(one, small))
    return {"suspects": found, "iteration": newest, "measures": measures}


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
        "learned": runs.flat(records[-1].get("votes", {})) if records else {},
        "now": time.time(),
    }


def cell(grid: str, index: int, count: int, columns: int, label: str) -> Cell:
    """Return one image of a grid of `count` images."""
    return Cell(grid, crop(index, count, columns), label)


def _after(iteration: int) -> str:
    return f"after iteration {iteration}" if iteration else "before training"
