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

import burnish
from burnish import catalog
from burnish import config as configuration
from burnish.catalog import IN_MEMORY
from burnish.config import Config, load, recipes
from burnish.diffusion.kernels import DDIM
from burnish.diffusion.policy import Policy
from burnish.report.page import page
from burnish.rl.advantages import TrackerAdvantage
from burnish.rl.curriculum import LinearCurriculum
from burnish.rl.forward_objectives import RWR
from burnish.rl.objectives import Clipped, Reinforce
from burnish.runs import Run
from burnish.tools.gallery import open_source
from burnish.training.assembly import (
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


# Objects of a Python program in place of the method's parts --------------------------------------


class Watchful(burnish.Objective):
    """The clipped objective with a KL, a metric of its own and a count of its calls."""

    kl = 0.1
    uses_ratio = True

    def __init__(self) -> None:
        self.inner = Clipped(kl=0.1)
        self.calls = 0

    def __call__(self, replay: burnish.Replay, adv: Tensor) -> burnish.Loss:
        self.calls += 1
        loss = self.inner(replay, adv)
        return burnish.Loss(loss.value, {**loss.metrics, "watched": 1.0})


def gain_over_mean(scores: burnish.Scores, weights: Tensor, group: Tensor) -> Tensor:
    return (scores.parts @ weights.double() - (scores.parts @ weights.double()).mean()).float()


class Halfway(burnish.Kernel):
    """DDIM with half the noise."""

    def __call__(self, *arguments: Any) -> burnish.Gaussian:
        return DDIM(eta=0.5)(*arguments)


class Alone(burnish.Guidance):
    """The prompt alone."""

    def __call__(self, raw: Any, x: Tensor, t: Tensor, cond: Any, null: Any) -> Tensor:
        return raw(x, t, cond)


def test_the_parts_of_a_method_as_objects(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """What is given is what trains; a resumed run is the same run, with the same objects only."""
    settings = {"batch": {"prompts": 2, "images_per_prompt": 2}, "run": {"sample_every": 0}}
    config = load(write_recipe(iterations=3, evaluation={"images_per_prompt": 0}, **settings))
    objective = Watchful()

    def given() -> Overrides:
        return Overrides(
            objective=objective, advantage=gain_over_mean, kernel=Halfway(), guidance=Alone()
        )

    whole = Run(train(config, tmp_path / "whole", overrides=given()))
    assert objective.calls and all(record["watched"] == 1 for record in whole.records())

    saved = load(whole.config)
    assert saved.objective == {"use": IN_MEMORY, "name": "Watchful"}
    assert saved.advantage == {"use": IN_MEMORY, "name": "gain_over_mean"}
    assert saved.sampler.kernel == {"use": IN_MEMORY, "name": "Halfway"}
    assert saved.sampler.guidance == {"use": IN_MEMORY, "name": "Alone"}

    records: list[Any] = []
    parted = tmp_path / "parted"
    train(config, parted, overrides=given(), on_record=records.append, stop=lambda: bool(records))
    train(config, parted, overrides=given(), resume=True)
    assert log(parted) == log(whole.folder)

    with pytest.raises(ValueError, match="object of a Python program"):
        train(load(Run(parted).config), parted, resume=True)
    message = r"another sampler.guidance.use, .*an object of a Python program"
    with pytest.raises(ValueError, match=message):
        train(
            config, parted, overrides=Overrides(objective=objective, kernel=Halfway()), resume=True
        )


def test_a_built_in_part_as_an_object_is_the_one_by_name(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    settings = {"batch": {"prompts": 2, "images_per_prompt": 2}, "run": {"sample_every": 0}}
    recipe = write_recipe(iterations=2, evaluation={"images_per_prompt": 0}, **settings)
    named = load(recipe, ["advantage.use=tracker", "objective.use=reinforce"])
    named = replace(named, batch=replace(named.batch, minibatches=1))
    plain = load(recipe, ["batch.minibatches=1"])
    objects = Overrides(advantage=TrackerAdvantage(), objective=Reinforce(), kernel=DDIM())
    train(named, tmp_path / "named")
    train(plain, tmp_path / "objects", overrides=objects)
    assert log(tmp_path / "objects") == log(tmp_path / "named")


def test_a_curriculum_as_an_object(
    tiny_sd1: Path, tiny_controlnet: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    prompts = {"use": "qr", "texts": ["a cat", "a dog"], "payloads": ["HI"]}
    recipe = write_recipe(
        iterations=2,
        model={"id": str(tiny_sd1), "controlnet": str(tiny_controlnet), "size": 64},
        prompts=prompts,
        batch={"prompts": 2, "images_per_prompt": 2},
        evaluation={"images_per_prompt": 0},
        run={"sample_every": 0},
    )
    run = train(
        load(recipe), tmp_path / "run", overrides=Overrides(curriculum=LinearCurriculum(1.0, 0.5))
    )
    assert [record["control_scale"] for record in Run(run).records()] == [1.0, 0.5]

    plain = load(write_recipe())
    given = Overrides(curriculum=LinearCurriculum(1.0, 0.5))
    with pytest.raises(ValueError, match="set model.controlnet"):
        train(plain, tmp_path / "none", overrides=given)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"objective": Clipped}, r"objective Clipped is a class; give an object of it"),
        ({"advantage": Watchful}, "advantage Watchful is a class"),
        ({"advantage": Clipped()}, "Clipped is no advantage"),
        ({"kernel": "ddim"}, "kernel str cannot be called"),
        ({"objective": RWR()}, "objective 'rwr' and the advantages"),
        ({"kernel": DDIM(eta=0.0)}, "eta must be > 0"),
    ],
    ids=["a class", "another class", "another kind", "a text", "imitates", "no noise"],
)
def test_objects_that_are_no_parts(
    overrides: dict[str, Any], message: str, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        train(load(write_recipe()), tmp_path / "run", overrides=Overrides(**overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"rewards": [brightness]}, "overrides.rewards is a list; give a dict of rewards by name"),
        ({"rewards": brightness}, "overrides.rewards is a function; give a dict"),
        ({"rewards": {1: brightness}}, "overrides.rewards is a dict; give a dict of rewards by"),
        ({"rewards": {"a": lambda images: 0}}, r"reward 'a' takes \(images\), but it is called"),
        ({"learners": [Clipped()]}, "overrides.learners is a list; give a dict of learners by"),
        ({"learners": {"a": 1}}, '"a" is a int without a method learn'),
        ({"source": [Prompt("a cat")]}, r"overrides.source is a list; give a function of \(count"),
        ({"source": "a cat"}, "overrides.source is a str; give a function"),
        ({"source": lambda: []}, r"overrides.source takes \(\), but it is called with \(count\)"),
    ],
)
def test_objects_of_another_form_are_refused_before_anything_is_loaded(
    overrides: dict[str, Any],
    message: str,
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ValueError, match=message):
        train(load(write_recipe()), tmp_path / "run", overrides=Overrides(**overrides))
    assert not (tmp_path / "run").exists()
    assert "loading" not in capsys.readouterr().out


HOOKS = ["on_record", "on_images", "stop"]


@pytest.mark.parametrize("name", HOOKS)
def test_functions_that_follow_a_run_are_looked_at_first(
    name: str, config: Config, tmp_path: Path
) -> None:
    wrong: dict[str, Any] = {name: lambda a, b: 0}
    with pytest.raises(ValueError, match=rf"^{name} takes \(a, b\), but it is called with"):
        train(config, tmp_path / "run", **wrong)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", HOOKS)
def test_functions_that_follow_a_run_are_named_where_they_fail(
    name: str, config: Config, tmp_path: Path
) -> None:
    wrong: dict[str, Any] = {name: lambda *given: 1 / 0}
    place = r"ZeroDivisionError: division by zero \(.*test_assembly.py:\d+\)"
    with pytest.raises(ValueError, match=f"^{name} raised {place}"):
        train(config, tmp_path / "run", **wrong)


def test_a_run_with_an_objective_in_memory_is_sampled(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """Sampling needs the kernel and the guidance, and nothing of how the run learned."""
    settings = {"batch": {"prompts": 2, "images_per_prompt": 2}, "run": {"sample_every": 0}}
    config = load(write_recipe(iterations=1, evaluation={"images_per_prompt": 0}, **settings))
    given = Overrides(objective=Watchful(), advantage=gain_over_mean)
    run = train(config, tmp_path / "run", overrides=given)
    policy, sampler = open_source(str(run))
    assert sampler.steps == 3 and policy.trainable
    assert "objective Watchful" in page(Run(run))


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
    assert parts.listed == {"train": 200, "unseen": 70}

    parts = assemble(load(recipe, ["evaluation.max_prompts=0"]))
    assert [len(prompts) for prompts in parts.evaluation_prompts.values()] == [200, 70]

    with pytest.raises(ValueError, match=r"evaluation.max_prompts = -1; it must be 0 \(all\)"):
        load(recipe, ["evaluation.max_prompts=-1"])


@pytest.mark.parametrize("name", recipes())
def test_no_recipe_of_ours_is_thinned(name: str) -> None:
    config = load(name)
    sets = load_evaluation_prompts(config, load_prompts(config.prompts, "prompts"))
    assert all(thinned(s, config.evaluation.max_prompts) == s for s in sets.values())
