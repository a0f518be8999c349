"""Paired evaluation: the same noise, the right numbers, a correct interval."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from burnish.diffusion.guidance import CFG
from burnish.diffusion.kernels import DDIM
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.evaluation import paired as evaluation
from burnish.evaluation.paired import Evaluation, evaluate, interval, paired
from burnish.training.reward_stats import gains
from burnish.types import Prompt, Scores
from burnish.world import World

PROMPTS = [Prompt("a cat"), Prompt("a dog")]
REWARDS = {"bright": lambda images, prompts: images.mean((1, 2, 3))}
WEIGHTS = torch.tensor([2.0])


def judge(images: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
    return torch.tensor([prompt.text == "a cat" for prompt in prompts])


@pytest.fixture(scope="module")
def policy(tiny_pipeline: Path) -> Policy:
    return Policy.load(tiny_pipeline, device="cpu")


def test_the_same_weights_are_no_gain_at_all(policy: Policy) -> None:
    sampler = Sampler(DDIM(1.0), 2, CFG(2.0))
    options: dict[str, Any] = {"judge": judge, "images_per_prompt": 3, "seed": 5, "chunk": 4}

    before = evaluate(policy, sampler, PROMPTS, REWARDS, **options)
    after = evaluate(policy, sampler, PROMPTS, REWARDS, **options)
    assert before == after and len(before.parts) == 6
    assert before.judged == [True] * 3 + [False] * 3
    assert len({row[0] for row in before.parts}) == 6, "every image has noise of its own"

    result = paired(before, after, WEIGHTS)
    assert result["paired_mean"] == 0 and result["ci95"] == [0, 0] and result["judge_before"] == 0.5
    assert result["before"] == pytest.approx(2 * sum(row[0] for row in before.parts) / 6)

    other = evaluate(policy, sampler, PROMPTS, REWARDS, **{**options, "seed": 6})
    assert other.parts != before.parts

    with pytest.raises(ValueError, match="different seed cannot be compared"):
        paired(before, other, WEIGHTS)


def test_poll_may_stop(policy: Policy) -> None:
    def poll() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        evaluate(policy, Sampler(DDIM(1.0), 2, CFG(2.0)), PROMPTS, REWARDS, poll=poll)


def make(parts: list[list[float]], judged: list[bool] | None = None) -> Evaluation:
    return Evaluation(["a", "b"], len(parts) // 2, 0, 8, ["x", "y"], parts, judged)


def test_paired_by_hand() -> None:
    before = make([[1.0, 0], [2.0, 0], [3.0, 1], [4.0, 1]])
    after = make([[2.0, 0], [3.0, 0], [5.0, 1], [6.0, 2]])
    result = paired(before, after, torch.tensor([1.0, -1.0]))
    assert result["before"] == 2.0 and result["after"] == 3.25 and result["paired_mean"] == 1.25
    assert result["judge_before"] is None
    assert 1.0 <= result["ci95"][0] < 1.25 < result["ci95"][1] <= 1.5
    assert list(result) == [
        "before", "after", "paired_mean", "ci95", "judge_before", "judge_after",
        "prompts", "images", "rewards",
    ]  # fmt: skip
    assert (result["prompts"], result["images"]) == (2, 4)
    assert evaluation.compare({"train": before}, {"train": after}, torch.ones(2))["unseen"] is None


def test_the_interval_is_that_of_the_clusters() -> None:
    stream = torch.Generator().manual_seed(0)
    clusters = torch.randn(40, generator=stream, dtype=torch.float64)
    # images of a prompt all alike: 40 numbers, not 320
    low, high = interval(clusters[:, None].expand(40, 8))
    half = 1.96 * float(clusters.std(correction=0)) / 40**0.5
    assert low == pytest.approx(float(clusters.mean()) - half, abs=0.05)
    assert high == pytest.approx(float(clusters.mean()) + half, abs=0.05)
    assert interval(clusters[None, :]) == pytest.approx([low, high]), "a single prompt: its images"


def test_evaluations_are_saved_and_loaded(tmp_path: Path) -> None:
    measured = {"train": make([[0.1, 1 / 3]] * 4, [True, False, True, True])}
    path = tmp_path / "000000.json"
    assert evaluation.load_evaluation(path) is None
    evaluation.save_evaluation(path, measured)
    assert evaluation.load_evaluation(path) == measured
    assert evaluation.load_evaluation(path) != {"train": replace(measured["train"], seed=1)}
    path.write_text("[]")

    with pytest.raises(ValueError, match="not an evaluation of this version"):
        evaluation.load_evaluation(path)


def test_each_reward_has_an_interval_of_its_own() -> None:
    before = make([[1.0, 0], [2.0, 0], [3.0, 1], [4.0, 1]])
    after = make([[2.0, 0], [3.0, -3], [5.0, 1], [6.0, -2]])
    result = paired(before, after, torch.tensor([1.0, -1.0]))
    x, y = result["rewards"].values()
    assert (x["weight"], x["before"], x["after"], x["paired_mean"]) == (1.0, 2.5, 4.0, 1.5)
    assert (y["weight"], y["before"], y["after"], y["paired_mean"]) == (-1.0, 0.5, -1.0, -1.5)
    assert x["ci95"] == [1.0, 2.0] and y["ci95"] == [-1.5, -1.5], "as if it were the only reward"
    assert result["paired_mean"] == x["paired_mean"] - y["paired_mean"]

    missing = make([[2.0, float("nan")], [3.0, 0], [5.0, 1], [6.0, 2]])
    result = paired(before, missing, torch.tensor([1.0, -1.0]))
    assert result["missing"] == 1 and result["rewards"]["x"]["paired_mean"] == 1.5


def test_a_bootstrap_over_many_prompts_takes_little_memory() -> None:
    gain = torch.randn(3000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chosen = torch.randint(3000, (10_000, 3000), generator=evaluation.generator("bootstrap"))
    means = gain[:, 0][chosen].mean(1)
    assert interval(gain) == [float(means.quantile(q)) for q in (0.025, 0.975)]


def test_gains_take_out_which_prompts_were_drawn() -> None:
    initial = make([[1.0, 0], [3.0, 0], [10.0, 5], [20.0, 5]])  # a: 2, b: 15 of the first reward
    drawn = [Prompt("a"), Prompt("b"), Prompt("b, red", {"original": "b"}), Prompt("c")]
    parts = torch.tensor([[2.5, 0], [15.5, math.nan], [15.5, 6], [99.0, 9]]).double()
    found = gains(Scores(parts, ("x", "y")), drawn, initial, World())
    assert found["x"] == {"gain": 0.5, "gain_std": 0.0, "gain_images": 3}, "c is not known"
    assert found["y"] == {"gain": 0.5, "gain_std": 0.5, "gain_images": 2}, "nor is a missing one"
    assert gains(Scores(parts[3:], ("x", "y")), drawn[3:], initial, World()) == {}
