"""The JSON files of a run: what stands in each, and one way to read them.

A run may come from elsewhere, or have been edited or cut off, so nothing in a file is used before
it has been compared with the layout below. Keys that no layout has are ignored: another version may
have written them. Standard library only.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from burnish.annotations import Count, CountOrZero, complaint
from burnish.files import read_text

Number = float | None
"""What is written for a number that is not finite is null."""


class LogRow(TypedDict):
    """A line of log.jsonl."""

    iteration: CountOrZero
    images: NotRequired[CountOrZero]
    rewards: NotRequired[dict[str, dict[str, Number]]]
    votes: NotRequired[dict[str, Number]]
    missing: NotRequired[dict[str, CountOrZero]]
    problems: NotRequired[list[str]]
    expander_texts: NotRequired[list[tuple[str, str]]]
    control_scale: NotRequired[Number]
    pareto_front: NotRequired[Number]
    ratio_deviation: NotRequired[Number]
    clip_fraction: NotRequired[Number]
    approx_kl: NotRequired[Number]
    kl: NotRequired[Number]
    explained_variance: NotRequired[Number]
    expander_logp: NotRequired[Number]
    expander_kl: NotRequired[Number]
    expander_length: NotRequired[Number]
    expander_truncated: NotRequired[Number]
    grad_norm: NotRequired[Number]
    lr: NotRequired[Number]
    seconds_sampling: NotRequired[Number]
    seconds_scoring: NotRequired[Number]
    seconds_training: NotRequired[Number]
    seconds_waiting: NotRequired[Number]


class Change(TypedDict):
    """The paired change of a measure."""

    before: float
    after: float
    paired_mean: float
    ci95: tuple[float, float]


class RewardChange(Change):
    """The paired change of one reward."""

    weight: NotRequired[float]


class Comparison(Change):
    """The comparison of one set of prompts in evaluation.json."""

    prompts: NotRequired[CountOrZero]
    images: NotRequired[CountOrZero]
    rewards: NotRequired[dict[str, RewardChange]]
    judge_before: NotRequired[Number]
    judge_after: NotRequired[Number]
    panel: NotRequired[dict[str, Change] | None]


class EvaluationTable(TypedDict):
    """Each image's rewards on one set of prompts, in evaluations/000012.json."""

    prompts: list[str]
    images_per_prompt: Count
    rewards: list[str]
    parts: list[list[Number]]
    seed: NotRequired[int]
    chunk: NotRequired[Count]
    judged: NotRequired[list[bool] | None]
    panel: NotRequired[dict[str, list[Number]]]


class GuardFile(TypedDict):
    """guard.json."""

    iteration: CountOrZero
    best: CountOrZero
    action: str
    reasons: list[str]


class GridFile(TypedDict):
    """samples/prompts.json, and with `rewards` the layout of a grid of identifiers."""

    texts: list[str]
    columns: Count
    rewards: NotRequired[list[str]]


class GroupsFile(TypedDict):
    """groups/000012.json: what each image of the latest iteration got."""

    iteration: CountOrZero
    columns: Count
    texts: list[str]
    group: list[int]
    rewards: list[str]
    parts: list[list[Number]]


class ThumbnailsFile(TypedDict):
    """groups/evaluation-000012.json: the layout of the grid beside it."""

    columns: Count
    count: Count


class SearchFile(TypedDict):
    """search.json of a folder of codes: what is looked for."""

    payload: str
    prompt: str
    model: str
    code: str
    size: Count
    count: Count
    tries: Count


class TryRow(TypedDict):
    """A line of tries.jsonl in a folder of codes: how well a sampled image is read."""

    attempt: Count
    scale: float
    strict: bool
    accepted: bool
    conditions: Count
    read: dict[str, CountOrZero]
    plain: dict[str, bool | None]
    module_errors: float


class StateFile(TypedDict):
    """checkpoints/000012/state.json."""

    format: int
    iteration: Count
    sha256: str
    learners: list[str]
    memory: dict[str, dict[str, Any]]


class Named(TypedDict):
    """A table with `use`, as far as a report reads it."""

    use: str
    name: NotRequired[str]
    weight: NotRequired[float]


class Model(TypedDict, total=False):
    """The model's section, as far as a report reads it."""

    id: str
    train: str
    rank: int


class ConfigFile(TypedDict, total=False):
    """config.toml, as far as a report reads it; `config.load` reads the whole."""

    rewards: list[Named]
    model: Model
    objective: dict[str, Any]
    advantage: dict[str, Any]


EvaluationFile = dict[str, Comparison | None]
"""evaluation.json: by set of prompts, "train" and "unseen"."""


def read_json(path: Path, layout: Any, remedy: str) -> Any:
    """Return what a JSON file holds.

    Args:
        path: of the file.
        layout: the annotation that it must fit, such as `GuardFile`.
        remedy: the end of the message otherwise.

    Raises:
        ValueError: the file holds something else; the message says what.
    """
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON object as Burnish writes it; {remedy}") from error

    if wrong := complaint(value, layout, ""):
        raise ValueError(f"{path}: {wrong}; {remedy}")
    return value


def read_evaluation(path: Path) -> dict[str, EvaluationTable]:
    """Return the evaluations in a file, by set of prompts.

    Raises:
        ValueError: the file holds something else, or its lists do not fit each other.
    """
    remedy = "not an evaluation of this version of Burnish; delete it and go on"
    tables: dict[str, EvaluationTable] = read_json(path, dict[str, EvaluationTable], remedy)

    if "train" not in tables:
        raise ValueError(f"{path}: it has no train; {remedy}")
    for name, table in tables.items():
        images = len(table["prompts"]) * table["images_per_prompt"]
        columns: list[list[Any]] = [table["parts"], *table.get("panel", {}).values()]
        columns += [judged] if (judged := table.get("judged")) is not None else []
        widths = {len(row) for row in table["parts"]} - {len(table["rewards"])}
        if not images or widths or any(len(column) != images for column in columns):
            raise ValueError(
                f"{path}: {name} has lists that do not fit its {images} images and "
                f"{len(table['rewards'])} rewards; {remedy}"
            )

    return tables


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Raises:
        ValueError: it is something else.
    """
    try:
        return tomllib.loads(read_text(path))
    except RecursionError as error:
        raise ValueError(f"{path}: tables or lists are nested too deeply; fix the file") from error
    except ValueError as error:  # not TOML, not UTF-8, or a number of 5,000 digits
        raise ValueError(f"{path}: not TOML: {error}; fix the file") from error


def numbered(folder: Path, suffix: str) -> dict[int, Path]:
    """Return the files whose names are a number before `suffix`, by number from the lowest."""
    found = {
        int(path.stem): path
        for path in folder.glob(f"*{suffix}")
        if path.stem.isascii() and path.stem.isdigit()
    }
    return dict(sorted(found.items()))
