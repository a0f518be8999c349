"""The expander in the loop: learning from images, resume, the files of a run, and its errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import generator, log
from safetensors.torch import load_file
from test_expander import build_language

from burnish import config as configuration
from burnish.cli import sample
from burnish.config import BatchConfig, Config, ExpanderConfig, OptimizerConfig
from burnish.prompts.expander import Expander
from burnish.report.page import page
from burnish.runs import Run
from burnish.tools.evaluate_run import evaluate_run
from burnish.tools.export import export_run
from burnish.tools.gallery import draw, open_expander, open_source
from burnish.training.batch import Credit
from burnish.training.expansion import text_advantages
from burnish.training.learners import ExpanderLearner
from burnish.training.loop import train
from burnish.types import Prompt
from burnish.world import World

REWARD = """
texts, pairs = [], []
def brightness(images, prompts):
    texts.extend(prompt.text for prompt in prompts)
    return images.mean((1, 2, 3))
def redness(images, prompts):
    pairs.extend((prompt.metadata["original"], prompt.text) for prompt in prompts)
    return images[:, 0].mean((1, 2))
"""


@pytest.fixture
def recipe(tmp_path: Path, write_recipe: Callable[..., Path]) -> Path:
    model, tokenizer = build_language()
    model.save_pretrained(tmp_path / "language")
    tokenizer.save_pretrained(tmp_path / "language")

    return write_recipe(
        REWARD,
        iterations=3,
        sampler={"steps": 2},
        expander={
            "model": "HERE/language",
            "rank": 2,
            "lr": 1e-2,
            "kl": 0.01,
            "tokens": 4,
            "expansions": 2,
        },
        rewards=[
            {"use": "HERE/reward.py:brightness"},
            {"use": "HERE/reward.py:redness", "of": "prompt"},
        ],
        optimizer={"lr": 1e-3},
        batch={
            "prompts": 2,
            "images_per_prompt": 4,
            "sample_batch": 8,
            "train_batch": 16,
            "minibatches": 1,
        },
        evaluation={"images_per_prompt": 1},
        run={"sample_every": 2, "sample_prompts": 2},
    )


def load(recipe: Path, *overrides: str) -> Config:
    return configuration.load(recipe, overrides)


def test_stop_then_resume_is_the_uninterrupted_run(recipe: Path, tmp_path: Path) -> None:
    uninterrupted = tmp_path / "uninterrupted"
    resumed = tmp_path / "resumed"
    train(load(recipe), uninterrupted)

    for calls in (4, 4):  # in the middle of two iterations
        answers = chain([False] * calls, repeat(True))
        train(load(recipe), resumed, resume=Run(resumed).exists(), stop=partial(next, answers))

    assert 0 < len(log(resumed)) < 3
    train(load(recipe), resumed, resume=True)
    assert log(resumed) == log(uninterrupted)

    for file in (
        "evaluation.json",
        "samples/000003.png",
        "checkpoints/000003/tensors.safetensors",
    ):
        assert (resumed / file).read_bytes() == (uninterrupted / file).read_bytes(), file

    records = log(uninterrupted)
    tensors = load_file(uninterrupted / "checkpoints/000003/tensors.safetensors")
    assert {name.partition("/")[0] for name in tensors} == {"generator", "expander"}
    assert all(record["expander_ratio_deviation"] < 1e-4 for record in records)
    assert records[0]["expander_kl"] < 1e-6 < records[2]["expander_kl"]
    texts = [pair for record in records for pair in record["expander_texts"]]
    assert all(after.startswith(before) for before, after in texts)
    learned = json.loads((uninterrupted / "adapter/expander/adapter_config.json").read_text())
    assert learned["peft_type"] == "LORA"
    assert learned["base_model_name_or_path"] == f"{tmp_path}/language"
    assert records[0]["expander_texts"][0][1] in page(Run(uninterrupted)), "the report shows them"

    # the trained expander is drawn with
    policy, sampler = open_source(str(uninterrupted), steps=2)
    expander = open_expander(str(uninterrupted), policy)
    before = open_expander(str(uninterrupted), policy, before=True)
    assert expander is not None and before is not None
    drawn = before.draw([Prompt("a cat")] * 8, generator())
    assert (expander.replay(drawn, torch.arange(8)).logp - drawn.logp).abs().max() > 1e-3
    unexpanded = draw(policy, sampler, ["a cat"], 2, 0, None)
    expanded = draw(policy, sampler, ["a cat"], 2, 0, expander)
    assert not torch.equal(unexpanded, expanded)
    assert torch.equal(expanded, draw(policy, sampler, ["a cat"], 2, 0, expander))


def test_each_text_of_a_grid_is_expanded_with_its_own_random_stream(tiny_pipeline: Path) -> None:
    seeds: list[int] = []

    class Recorder:
        def draw(self, prompts: list[Prompt], generator: torch.Generator) -> SimpleNamespace:
            seeds.append(generator.initial_seed())
            return SimpleNamespace(prompts=prompts)

    policy, sampler = open_source(str(tiny_pipeline), steps=1)
    draw(policy, sampler, ["a cat", "a dog", "a cat"], 1, 0, Recorder())  # type: ignore[arg-type]
    first, second, again = seeds
    assert first == again != second

    with pytest.raises(ValueError, match="--original needs an expanded prompt"):
        sample(str(tiny_pipeline), ["a cat"], original=0.5)


def test_only_the_expander_learns_and_rewards_judge_the_original(
    recipe: Path, tmp_path: Path
) -> None:
    run = Run(train(load(recipe, "model.train=none", "iterations=1"), tmp_path / "run"))
    (record,) = run.records()
    assert record["expander_grad_norm"] > 0 and "grad_norm" not in record
    tensors = load_file(run.checkpoints / "000001/tensors.safetensors")
    assert {name.partition("/")[0] for name in tensors} == {"expander"}
    assert [path.name for path in run.adapter.iterdir()] == ["expander"]

    # what is refused names what there is
    with pytest.raises(ValueError, match=rf'--out with expander.adapter = "{run.adapter}/expander'):
        train(load(recipe, "model.train=none", "seed=1"), run.folder, resume=True)
    with pytest.raises(ValueError, match="did not learn: take --to diffusers$"):
        export_run(run, "kohya")
    with pytest.raises(ValueError, match="did not learn: take --to diffusers, which has"):
        export_run(run, "merged")
    card = (export_run(run, "diffusers") / "README.md").read_text()
    assert "No weight of" in card and "none of the model's own" in card
    assert "expanded by language with the LoRA in `expander`" in card
    assert "| learning rate of the expander | 0.01 |" in card and "| learning rate |" not in card
    from burnish.catalog import resolve

    module = resolve("reward", f"{tmp_path}/reward.py:brightness").__globals__
    assert set(module["texts"]) == {"a cat", "a dog", "an ox"}
    assert all(text.startswith(original) for original, text in module["pairs"])
    assert any(text != original for original, text in module["pairs"])


def test_a_finished_run_is_judged_without_its_start(recipe: Path, tmp_path: Path) -> None:
    """Its weights before training are those of a stored evaluation, those after of a checkpoint."""
    start = tmp_path / "start.jsonl"
    start.write_text('{"prompt": "a cat", "expansion": "a cat in blue"}\n')
    settings = [f'expander.start="{start}"', "iterations=1", "model.train=none"]
    run = Run(train(load(recipe, *settings), tmp_path / "run"))
    stored = json.loads(run.evaluation.read_text())
    start.unlink()
    assert evaluate_run(run, trust=True)["train"] == stored["train"]


def test_a_lora_file_says_that_the_expander_is_left_out(recipe: Path, tmp_path: Path) -> None:
    run = Run(train(load(recipe, "iterations=1"), tmp_path / "run"))
    with pytest.warns(
        UserWarning, match="comes without its prompt expander, with which its images"
    ):
        card = (export_run(run, "kohya") / "README.md").read_text()
    assert "which learned too and is not among these files" in card


def test_learning_rate_zero_leaves_the_expander_unchanged(recipe: Path, tmp_path: Path) -> None:
    still = ["expander.lr=0", "optimizer.lr=0", "iterations=2", "run.sample_every=0"]
    run = Run(train(load(recipe, *still), tmp_path / "run"))
    tensors = load_file(run.checkpoints / "000002/tensors.safetensors")
    fresh = Expander.load(f"{tmp_path}/language", rank=2).state()
    assert all(
        torch.equal(tensors[f"expander/weights.{name}"], value) for name, value in fresh.items()
    )
    evaluation = json.loads(run.evaluation.read_text())["train"]
    assert evaluation["paired_mean"] == 0, "the same texts from the same random stream"


def test_the_advantage_of_a_text_is_against_the_other_texts_of_its_prompt() -> None:
    adv = torch.tensor([1.0, 3.0, 0.0, 0.0, 5.0, 5.0, 9.0, 1.0])
    group = torch.tensor([7, 7, 7, 7, 8, 8, 8, 8])
    valid = torch.ones(8).bool()
    assert text_advantages(adv, valid, group, 4).tolist() == [1.0, -1.0, 0.0, 0.0]
    valid[7] = False  # 9 alone counts
    assert text_advantages(adv, valid, group, 4).tolist() == [1.0, -1.0, -2.0, 2.0]
    valid[6] = False  # no other text is left to compare with
    assert text_advantages(adv, valid, group, 4).tolist() == [1.0, -1.0, 0.0, 0.0]


def test_rewarded_texts_become_likelier_and_without_an_advantage_nothing_changes() -> None:
    """Texts with "red" in them are rewarded, without any image: the loop's own step learns it."""
    expander = Expander(*build_language(), "full", tokens=4)
    config = Config(
        rewards=[{"use": "compressibility"}],
        expander=ExpanderConfig(model="any", train="full", lr=3e-3),
        optimizer=OptimizerConfig(max_grad_norm=1.0, weight_decay=0.0),
        batch=BatchConfig(train_batch=5),
    )
    learner = ExpanderLearner(config, World(), expander)
    prompts = [Prompt("a cat")] * 16 + [Prompt("an ox")] * 16
    group = torch.arange(2).repeat_interleave(16)
    shares = []

    for iteration in range(25):
        drawn = expander.draw(prompts, generator(iteration))
        batch: Any = SimpleNamespace(expansions=drawn)
        adv = torch.tensor([float("red" in prompt.text) for prompt in drawn.prompts])
        shares.append(float(adv.mean()))

        before = expander.state()
        everything = torch.ones(32).bool()
        nothing = Credit(torch.zeros(32), everything, group, everything, 1.0)
        assert "grad_norm" not in learner.learn(batch, nothing)
        assert all(torch.equal(before[n], p) for n, p in expander.state().items())
        learner.learn(batch, replace(nothing, advantages=adv))

    assert sum(shares[-5:]) > sum(shares[:5]) + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["expander.expansions=3"], "3 texts cannot share the 4 images of a prompt evenly"),
        (["expander.expansions=1"], "expander.expansions = 1 leaves no other text"),
        (["expander.train=none", "model.train=none"], 'model.train = "none", so nothing learns'),
        (
            ["expander.train=none", "expander.start=x.jsonl"],
            "expander.start wants an expander that learns",
        ),
        (["expander.temperature=0.0"], "expander.temperature = 0.0; it must be more than 0"),
        (["expander.instruction=more"], "it must be a text with {prompt} in it"),
        (["rewards.0.of=text"], 'rewards.0.of = \'text\'; it must be "original" or "prompt"'),
    ],
)
def test_errors_say_what_to_do(recipe: Path, changes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(recipe, *changes)
