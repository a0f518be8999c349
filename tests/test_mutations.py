"""Mutated configurations, run files and model folders: accepted, or one sentence; no traceback."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from burnish import config as configuration
from burnish.diffusion.loading import load_pipeline
from burnish.evaluation.paired import compare, load_evaluation
from burnish.report import results
from burnish.report.page import page
from burnish.runs import Run
from burnish.training import resume
from burnish.training.job import Job, prepare
from burnish.training.loop import train
from burnish.world import World
from tests import mutations

pytestmark = pytest.mark.untrusted

JSON_VALUES: tuple[Any, ...] = tuple(
    value for value in (*mutations.VALUES, None) if not hasattr(value, "isoformat")
)


@pytest.mark.parametrize("part", range(5))
def test_mutated_configurations(part: int, tmp_path: Path) -> None:
    trees = mutations.configurations()
    outcomes = {
        mutations.try_configuration(trees, random.Random(seed), tmp_path)
        for seed in range(60 * part, 60 * (part + 1))
    }
    assert outcomes == {"accepted", "refused"}


@pytest.fixture(scope="module")
def trained(
    make_pipeline: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Job]:
    """A run with every JSON file, and the job that goes on with it."""
    folder = tmp_path_factory.mktemp("mutated")
    two = [{"use": "compressibility"}, {"use": "incompressibility"}]
    tree = {
        "iterations": 1,
        "model": {"id": str(make_pipeline()), "device": "cpu"},
        "sampler": {"steps": 2, "guidance": {"use": "none"}, "identifiers": "words"},
        "prompts": {"use": "list", "texts": ["a cat", "a dog"]},
        "rewards": two,
        "advantage": {"use": "tracker", "min_count": 1},
        "batch": {"prompts": 2, "images_per_prompt": 2, "minibatches": 1},
        "evaluation": {"images_per_prompt": 1, "every": 1},
        "guard": {"action": "stop", "panel": [{"use": "compressibility", "name": "size"}]},
        "run": {"sample_every": 1, "sample_prompts": 2},
    }
    config = configuration.parse(tree)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no image of the only iteration has an advantage")
        run = Run(train(config, folder / "run"))

    guard = {"iteration": 1, "best": 0, "action": "stop", "reasons": ["size fell"]}
    run.guard.write_text(json.dumps(guard))
    return run, prepare(config, run, World())


@contextmanager
def spoiled(path: Path, content: bytes) -> Iterator[None]:
    """Put other content into a file for a while."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        path.write_bytes(before)


def readers(run: Run, job: Job) -> list[Callable[[], object]]:
    """Return all that reads a run's files, without loading its model anew."""

    def compared() -> None:
        before = load_evaluation(run.evaluation_file(0))
        after = load_evaluation(run.evaluation_file(1))
        compare(before or {}, after or {}, job.parts.weights)

    return [
        lambda: page(run),
        run.records,
        lambda: list(results.summary(run, 1)),
        lambda: resume.check_not_guarded(run),
        lambda: resume.check_unchanged(job.config, run, job.world),
        lambda: resume.restore(job),
        lambda: resume.best_iteration(job, 1),
        compared,
    ]


FILES = (
    "log.jsonl",
    "evaluation.json",
    "evaluations/000000.json",
    "evaluations/000001.json",
    "guard.json",
    "samples/prompts.json",
    "samples/identifiers-000001.json",
    "checkpoints/000001/state.json",
    "config.toml",
)


@pytest.mark.parametrize("name", FILES)
def test_mutated_files_of_a_run(trained: tuple[Run, Job], name: str) -> None:
    run, job = trained
    path = run.folder / name
    content = path.read_bytes()
    for attempt in readers(run, job)[:1] + readers(run, job)[4:]:
        assert mutations.outcome(attempt) == "accepted"

    for seed in range(40):
        source = random.Random(f"{name} {seed}")
        if name == "config.toml" or source.random() < 0.2:
            other = mutations.cut(content, source)
        else:
            tree = json.loads(content)
            other = json.dumps(mutations.mutated(tree, source, JSON_VALUES)).encode()

        with spoiled(path, other):
            for attempt in readers(run, job):
                mutations.outcome(attempt)


@pytest.mark.parametrize("value", ["[]", "null", "3", '"x"', "{}", "", "[" * 5000, "\xff"])
def test_files_that_hold_something_else(trained: tuple[Run, Job], value: str) -> None:
    run, job = trained
    for name in FILES:
        with spoiled(run.folder / name, value.encode("latin-1")):
            outcomes = [mutations.outcome(attempt) for attempt in readers(run, job)]
            assert "refused" in outcomes or name in ("log.jsonl", "config.toml")


def test_an_error_names_the_file_and_the_key(trained: tuple[Run, Job]) -> None:
    run, _ = trained
    table = json.loads(run.evaluation.read_text())
    table["train"]["ci95"] = [1, "2"]
    with (
        spoiled(run.evaluation, json.dumps(table).encode()),
        pytest.raises(ValueError, match=r"evaluation\.json: train\.ci95 = \[1, '2'\] is of the wr"),
    ):
        page(run)

    with (
        spoiled(run.log, b'{"iteration": 1, "rewards": {"a": {"mean": "high"}}}\n'),
        pytest.raises(ValueError, match=r"log\.jsonl, row 1: rewards\.a\.mean = 'high' is of the"),
    ):
        run.records()


MODEL_FILES = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
)


@pytest.mark.parametrize("name", MODEL_FILES)
def test_model_folders_that_hold_something_else(
    tiny_pipeline: Path, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_pipeline, folder)
    for value in ("[]", "null", "3", '"x"', "{", "\xff"):
        with spoiled(folder / name, value.encode("latin-1")):
            assert mutations.outcome(lambda: load_pipeline(folder)) == "refused", value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("unet", ["subprocess", "Popen"]),
        ("unet", ["my_unet", "UNet"]),
        ("scheduler", ["diffusers"]),
        ("vae", [1, 2]),
        ("_class_name", ["my_pipeline", "Pipeline"]),
        ("_class_name", None),
    ],
)
def test_a_model_names_no_code(tiny_pipeline: Path, tmp_path: Path, key: str, value: Any) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_pipeline, folder)
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w')\nclass UNet: pass\nclass Pipeline: pass\n"
    (folder / "my_pipeline.py").write_text(code)
    (folder / "unet" / "my_unet.py").write_text(code)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, key: value}))

    with pytest.raises(ValueError, match=r"model_index\.json"):
        load_pipeline(folder)
    assert not ran.exists()
