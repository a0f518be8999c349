"""Parts given as Python objects: a run uses them as they are and records that."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import log
from torch import Tensor

from burnish import catalog
from burnish import config as configuration
from burnish.config import Config, load, recipes
from burnish.diffusion.policy import Policy
from burnish.runs import Run
from burnish.training.assembly import (
    IN_MEMORY,
    Overrides,
    assemble,
    load_evaluation_prompts,
    load_prompts,
    thinned,
)
from burnish.training.checkpoint import restore
from burnish.training.collect import SampledImages
from burnish.training.loop import train
from burnish.training.requirements import check_minibatches
from burnish.types import Prompt
from burnish.world import World


def brightness(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    return images.mean((1, 2, 3))


def draw(count: int) -> list[Prompt]:
    return [
        Prompt(random.choice(["a cat", "a dog", "an ox"]), {"index": index})
        for index in range(count)
    ]


@pytest.fixture
def config(write_recipe: Callable[..., Path]) -> Config:
    path = write_recipe(
        "def brightness(images, prompts):\n    return images.mean((1, 2, 3))\n",
        iterations=2,
        rewards=[{"use": "HERE/reward.py:brightness"}],
        advantage={"use": "tracker", "buffer": 8, "min_count": 2},
        batch={"prompts": 6, "images_per_prompt": 1, "sample_batch": 4, "minibatches": 2},
        evaluation={"images_per_prompt": 0},
        run={"sample_every": 0},
    )
    return configuration.load(path)


def test_objects_equal_the_parts_of_their_names(config: Config, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(config.model.id)
    train(config, tmp_path / "named")
    given = Overrides(policy=Policy.load(pipe, device="cpu"), rewards={"brightness": brightness})
    train(config, tmp_path / "given", overrides=given)
    assert log(tmp_path / "given") == log(tmp_path / "named")
    assert pipe.unet is given.policy.pipe.unet, "the given pipeline was trained"
    assert any(p.abs().sum() > 0 for name, p in pipe.unet.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize(
    "advantage",
    [
        {"use": "group"},
        {"use": "normalised"},
        {"use": "weighted"},
        {"use": "pareto"},
        {"use": "pareto", "standardise": False},
        {"use": "softmax"},
        {"use": "top_fraction"},
    ],
    ids=str,
)
def test_one_image_alone_cannot_be_compared(
    config: Config, tmp_path: Path, advantage: dict[str, Any]
) -> None:
    imitates = advantage["use"] in ("softmax", "top_fraction")
    objective = {"use": "rwr"} if imitates else config.objective
    wrong = replace(config, advantage=advantage, objective=objective)

    with pytest.raises(ValueError, match=r"only one; raise batch.images_per_prompt"):
        train(wrong, tmp_path / "run")

    if imitates:
        wider = replace(wrong, advantage={**advantage, "within": "batch"}, iterations=1)
        train(wider, tmp_path / "batch")


@pytest.mark.parametrize(("objective", "allowed"), [("clipped", 12), ("rebel", 3)])
def test_each_process_needs_something_for_every_minibatch(
    config: Config, objective: str, allowed: int
) -> None:
    part = catalog.build("objective", {"use": objective})
    for minibatches, processes in ((allowed, 2), (2 * allowed, 1)):
        check_minibatches(with_minibatches(config, minibatches), part, processes)

    with pytest.raises(ValueError, match=f"each of 2 processes has only {allowed} "):
        check_minibatches(with_minibatches(config, allowed + 1), part, 2)


def with_minibatches(config: Config, count: int) -> Config:
    return replace(config, batch=replace(config.batch, images_per_prompt=4, minibatches=count))


def test_the_curriculum_of_a_reward_that_is_replaced_is_refused(
    config: Config, tmp_path: Path
) -> None:
    gated = replace(
        config,
        curriculum={"use": "gated", "reward": "brightness", "first": 1.0, "last": 0.5},
        model=replace(config.model, controlnet="none-such"),
    )
    mine = Overrides(rewards={"mine": brightness})
    with pytest.raises(ValueError, match='curriculum.reward = "brightness" is none of the rewards'):
        train(gated, tmp_path / "run", overrides=mine)


def test_prompts_drawn_by_a_function(config: Config, tmp_path: Path) -> None:
    batches: list[SampledImages] = []
    train(config, tmp_path / "run", overrides=Overrides(source=draw), on_images=batches.append)
    records = Run(tmp_path / "run").records()
    assert [batch.iteration for batch in batches] == [1, 2]

    for batch, record in zip(batches, records, strict=True):
        indices = [prompt.metadata["index"] for prompt in batch.prompts]
        assert indices == list(range(6)), "in the order they were drawn"
        assert batch.images.shape == (6, 3, 32, 32)
        assert batch.trackers == []
        torch.testing.assert_close(batch.scores.parts[:, 0], batch.images.mean((1, 2, 3)).double())
        mean = float(batch.scores.parts.mean())
        assert record["rewards"]["brightness"]["mean"] == pytest.approx(mean)

    texts = [prompt.text for batch in batches for prompt in batch.prompts]
    assert len(set(texts)) == 3
    assert texts[:6] != texts[6:]


def test_the_tracker_knows_a_drawn_prompt_by_its_text(config: Config, tmp_path: Path) -> None:
    train(config, tmp_path / "run", overrides=Overrides(source=draw))
    state = restore(Run(tmp_path / "run").checkpoints)
    assert state is not None
    counts = sorted(len(rows) for rows in state.memory["advantage"]["seen"].values())
    assert len(counts) <= 3 and sum(counts) == 12


def test_a_resumed_run_draws_what_the_uninterrupted_one_draws(
    config: Config, tmp_path: Path
) -> None:
    given = Overrides(source=draw, rewards={"brightness": brightness})
    train(config, tmp_path / "uninterrupted", overrides=given)
    train(replace(config, iterations=1), tmp_path / "resumed", overrides=given)
    train(config, tmp_path / "resumed", overrides=given, resume=True)
    assert log(tmp_path / "uninterrupted") == log(tmp_path / "resumed")


def test_the_run_directory_marks_parts_it_cannot_save(config: Config, tmp_path: Path) -> None:
    given = Overrides(source=draw, rewards={"mine": brightness})
    run = Run(train(config, tmp_path / "run", overrides=given))
    saved = configuration.load(run.config)
    assert saved.prompts == {"use": IN_MEMORY}
    assert saved.rewards == [{"use": IN_MEMORY, "name": "mine", "weight": 1.0}]

    with pytest.raises(ValueError, match="prompts: this was an object of a Python program"):
        train(saved, run.folder, resume=True)


def test_a_given_reward_keeps_the_weight_of_its_name(config: Config) -> None:
    table = {**config.rewards[0], "weight": 3.0}
    weighted = configuration.parse({**asdict(config), "rewards": [table]})
    given = Overrides(rewards={"brightness": brightness, "other": brightness})
    rewards = given.apply_to(weighted).rewards
    weights = {table["name"]: table["weight"] for table in rewards}
    assert weights == {"brightness": 3.0, "other": 1.0}


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        (
            {"run": {"sample_every": 1}},
            Overrides(source=draw),
            "need some that stay: set evaluation.prompts",
        ),
        ({}, Overrides(source=lambda n: draw(n - 1)), "returned 5 prompts, but 6 were wanted"),
    ],
)
def test_drawn_prompts_that_are_an_error(
    config: Config, tmp_path: Path, changes: dict[str, Any], given: Overrides, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(configuration.parse({**asdict(config), **changes}), tmp_path / "run", overrides=given)


def test_a_policy_that_contradicts_the_configuration(config: Config, tmp_path: Path) -> None:
    given = Overrides(policy=Policy.load(config.model.id, train="full", device="cpu"))
    message = 'the given policy has train = "full" and computes in float32; make'
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "run", overrides=given)


def test_trackers_are_opened_with_their_project_and_options() -> None:
    class Accelerator:
        log_with = ("wandb",)
        trackers = ("open",)

        def init_trackers(self, project: str, config: Any, init_kwargs: Any) -> None:
            self.opened = project, config, init_kwargs

    world = World(accelerator=Accelerator())
    world.track({"a": {"b": 1}}, "mine", {"wandb": {"entity": "me"}})
    assert world.accelerator.opened == ("mine", {"a/b": 1}, {"wandb": {"entity": "me"}})
    assert world.trackers == ["open"]
    assert World(rank=1, accelerator=Accelerator()).trackers == []


@pytest.mark.parametrize(("count", "most"), [(65, 64), (128, 64), (1000, 64), (10_000, 64), (7, 3)])
def test_a_long_list_is_thinned_evenly_and_always_alike(count: int, most: int) -> None:
    prompts = [Prompt(str(number)) for number in range(count)]
    chosen = [int(prompt.text) for prompt in thinned(prompts, most)]
    assert len(set(chosen)) == most and chosen == sorted(chosen)
    # one of each stretch of the list
    assert all(i * count // most <= n < (i + 1) * count // most for i, n in enumerate(chosen))
    assert thinned(prompts, most) == thinned(list(prompts), most)
    assert thinned(prompts, 0) is prompts and thinned(prompts, count) is prompts


def test_a_list_with_a_rhythm_keeps_all_of_its_kinds() -> None:
    styles = [Prompt(f"a {noun} in style {style}") for noun in range(64) for style in range(2)]
    found = {prompt.text[-1] for prompt in thinned(styles, 64)}
    assert found == {"0", "1"}


def test_evaluations_take_a_sample_of_many_prompts(write_recipe: Callable[..., Path]) -> None:
    texts = [f"a cat {number}" for number in range(200)]
    recipe = write_recipe(
        prompts={"use": "list", "texts": texts},
        evaluation={"unseen": {"use": "list", "texts": [f"a dog {i}" for i in range(70)]}},
    )
    parts = assemble(load(recipe))
    assert len(parts.prompts) == 200, "all are trained on"
    assert {name: len(prompts) for name, prompts in parts.evaluation_prompts.items()} == {
        "train": 64,
        "unseen": 64,
    }

    parts = assemble(load(recipe, ["evaluation.max_prompts=0"]))
    assert [len(prompts) for prompts in parts.evaluation_prompts.values()] == [200, 70]

    with pytest.raises(ValueError, match=r"evaluation.max_prompts = -1; it must be 0 \(all\)"):
        load(recipe, ["evaluation.max_prompts=-1"])


@pytest.mark.parametrize("name", recipes())
def test_no_recipe_of_ours_is_thinned(name: str) -> None:
    config = load(name)
    sets = load_evaluation_prompts(config, load_prompts(config.prompts, "prompts"))
    assert all(thinned(s, config.evaluation.max_prompts) == s for s in sets.values())
