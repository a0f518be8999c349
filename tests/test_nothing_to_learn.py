"""A run from which nothing can be learned is refused, or ends after the first iterations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import burnish
from burnish import cli
from burnish.runs import Run

CODE = """
import torch
from burnish import Loss
def bright(images, prompts):
    return images.mean((1, 2, 3))
def by_prompt(images, prompts):
    return [float(len(prompt.text)) for prompt in prompts]
def by_prompt_and_more(images, prompts):
    return [len(prompt.text) + 0.1 for prompt in prompts]
calls = []
def late(images, prompts):
    calls.append(1)
    values = torch.tensor([float(len(prompt.text)) for prompt in prompts])
    return values if len(calls) < 3 else values + images.mean((1, 2, 3))
def one_a_prompt(images, prompts):
    seen = set()
    return [None if p.text in seen or seen.add(p.text) else float(len(p.text)) for p in prompts]
def still(replay, adv):
    return Loss(0 * (adv[:, None] * replay.logp).mean(), {})
def zero(scores, weights, group):
    return torch.zeros(len(group))
"""


@pytest.fixture
def recipe(write_recipe: Callable[..., Path]) -> Path:
    return write_recipe(
        CODE,
        iterations=6,
        sampler={"steps": 2},
        prompts={"use": "list", "texts": ["a cat", "a goose"]},
        rewards=[{"use": "HERE/reward.py:bright"}],
        batch={"prompts": 2, "images_per_prompt": 2, "minibatches": 1},
        evaluation={"images_per_prompt": 0},
        run={"sample_every": 0},
    )


def load(recipe: Path, *changes: str) -> burnish.Config:
    return burnish.load_config(
        recipe, [text.replace("HERE", str(recipe.parent)) for text in changes]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["batch.images_per_prompt=1"], "advantage 'group' compares the images of a prompt"),
        (["batch.images_per_prompt=1", "advantage.use=weighted"], "only one; raise batch.images_"),
        (["batch.images_per_prompt=1", "advantage.use=pareto"], "compares the images of a prompt"),
        (
            ["batch.images_per_prompt=1", "advantage.use=softmax", "objective.use=rwr"],
            "compares the images of a prompt",
        ),
        (
            ["batch.images_per_prompt=1", "batch.prompts=1", "advantage.use=batch"],
            "compares the images of an iteration, and there is only one",
        ),
        (
            ["advantage={use='top_fraction',fraction=1.0}", "objective.use=rwr"],
            r"advantage.fraction must lie in \(0, 1\), not 1.0",
        ),
        (
            ["advantage={use='top_fraction',fraction=0.8}", "objective.use=rwr"],
            "imitates all of the 2 images that it compares, .*; lower advantage.fraction",
        ),
        (
            ["advantage={use='top_fraction',fraction=0.9,within='batch'}", "objective.use=rwr"],
            "imitates all of the 4 images that it compares",
        ),
    ],
)
def test_what_the_configuration_shows_is_refused_when_it_is_read(
    recipe: Path, changes: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load(recipe, *changes)


@pytest.mark.parametrize(
    ("changes", "message", "finished"),
    [
        (["rewards.0.use=HERE/reward.py:by_prompt"], "'by_prompt' gave the same to all images", 2),
        (["rewards.0.use=HERE/reward.py:by_prompt_and_more"], "depend on the prompt alone", 2),
        (["rewards.0.use=HERE/reward.py:by_prompt", "iterations=2"], "first 2 iterations", 1),
        (["rewards.0.use=HERE/reward.py:by_prompt", "optimizer.lr=0.0"], "first 3 iterations", 2),
        (
            [
                "rewards.0.use=HERE/reward.py:by_prompt",
                "advantage.use=softmax",
                "objective.use=rwr",
            ],
            "'by_prompt' gave the same to all images",
            2,
        ),
        (["advantage={use='HERE/reward.py:zero'}"], "no image of the first 3 iterations has an", 2),
        (["objective={use='HERE/reward.py:still'}"], "gradient of the first 3 iterations is", 2),
        (
            ["rewards=[{use='HERE/reward.py:by_prompt'},{use='HERE/reward.py:bright',weight=0.0}]"],
            "reward 'by_prompt' gave the same to all images",
            2,
        ),
        (
            ["rewards.0.use=HERE/reward.py:one_a_prompt", "scoring.missing=mask"],
            r"nothing to learn from: 2 of 4 images lack a reward \(one_a_prompt: .*alone; fix the",
            2,
        ),
        (["rewards.0.weight=0"], "every reward has weight 0", 0),
    ],
)
def test_what_the_first_iterations_show_ends_the_run(
    recipe: Path, tmp_path: Path, changes: list[str], message: str, finished: int
) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        burnish.train(load(recipe, *changes), tmp_path / "run")
    assert len(Run(tmp_path / "run").records()) == finished


def test_the_command_says_so_in_one_sentence(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reward = f"rewards.0.use={tmp_path}/reward.py:by_prompt"
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", str(recipe), "--out", str(tmp_path / "out"), "--set", reward])
    assert ended.value.code == 2
    assert "burnish: reward 'by_prompt' gave the same" in capsys.readouterr().err


def test_a_resumed_run_counts_on(recipe: Path, tmp_path: Path) -> None:
    changes: list[Any] = ["rewards.0.use=HERE/reward.py:by_prompt", "run.checkpoint_every=1"]
    with pytest.warns(UserWarning, match="in the only iteration, so there is nothing to learn"):
        burnish.train(load(recipe, *changes, "iterations=1"), tmp_path / "run")
    with pytest.raises(ValueError, match="first 3 iterations"):
        burnish.train(load(recipe, *changes), tmp_path / "run", resume=True)
    assert len(Run(tmp_path / "run").records()) == 2


def test_a_reward_that_begins_to_differ_goes_on(recipe: Path, tmp_path: Path) -> None:
    run = burnish.train(load(recipe, "rewards.0.use=HERE/reward.py:late"), tmp_path / "run")
    assert [record["zero_advantage"] for record in Run(run).records()][:3] == [1, 1, 0]


def test_a_batch_that_only_prompts_tell_apart_is_said(recipe: Path, tmp_path: Path) -> None:
    changes = ["rewards.0.use=HERE/reward.py:by_prompt", "advantage.use=batch"]
    with pytest.warns(UserWarning, match="if it depends on the prompt alone"):
        burnish.train(load(recipe, *changes), tmp_path / "run")


def test_a_learning_rate_of_zero_is_a_control(recipe: Path, tmp_path: Path) -> None:
    run = burnish.train(load(recipe, "optimizer.lr=0.0", "iterations=4"), tmp_path / "run")
    assert len(Run(run).records()) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("batch.prompts=1000000000000", "2,000,000,000,000 images an iteration are too many"),
        ("batch.images_per_prompt=1000000000000", "images an iteration are too many"),
        ("evaluation.images_per_prompt=1000000000000", "evaluation.images_per_prompt = 10000"),
    ],
)
def test_counts_that_never_end_are_refused(recipe: Path, change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(recipe, change)
