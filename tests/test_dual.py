"""Guidance centred on the original of an expanded prompt.

The formula, its two ends, and a loop of stock diffusers.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import generator, perturb
from diffusers import StableDiffusionPipeline
from PIL import Image
from test_guidance import COND, NULL, Network, T, X

from burnish import config as configuration
from burnish.diffusion.guidance import (
    CFG,
    DualGuidance,
    EmbeddedDualGuidance,
    EmbeddedGuidance,
    NoGuidance,
)
from burnish.diffusion.kernels import DDIM, LCM
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.evaluation.paired import evaluate
from burnish.runs import Run
from burnish.tools.gallery import centred
from burnish.tools.preflight import Finding, preflight
from burnish.training.loop import train
from burnish.types import Guidance, Prompt, Trajectory

EXAMPLE = Path(__file__).parent.parent / "examples" / "dual_guidance.py"
BOTH_CONDS = COND | {"original.text": torch.tensor([[[3.0, -1.0]], [[0.5, 0.5]], [[2.0, 0.0]]])}
ORIGINAL_COND = {"text": BOTH_CONDS["original.text"]}
EXPANDED = [
    Prompt("a red cat, oil", {"original": "a cat"}),
    Prompt("two dogs", {"original": "dogs"}),
    Prompt("an ox"),
]
ORIGINALS = [Prompt("a cat"), Prompt("dogs"), Prompt("an ox")]
GROUP = torch.arange(3)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    specification = importlib.util.spec_from_file_location("dual_guidance", EXAMPLE)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def roll(policy: Policy, guidance: Guidance, prompts: list[Prompt] = EXPANDED) -> Trajectory:
    sampler = Sampler(DDIM(), 4, guidance)
    return sampler.rollout(policy, sampler.encode(policy, prompts), GROUP, generator(2))


def test_the_formula_in_one_call() -> None:
    network = Network()
    out = DualGuidance(3.0, 7.0)(network, X, T, BOTH_CONDS, NULL)
    null, original, expanded = (Network()(X, T, cond) for cond in (NULL, ORIGINAL_COND, COND))
    torch.testing.assert_close(out, 3 * original + (1 - 3 - 7) * null + 7 * expanded)
    assert network.rows == [9]


@pytest.mark.parametrize("weight", [5.0, 1.0, 0.0])
def test_with_one_weight_zero_it_is_plain_guidance_bit_for_bit(weight: float) -> None:
    for guidance, cond in (
        (DualGuidance(0.0, weight), COND),
        (DualGuidance(weight, 0.0), ORIGINAL_COND),
    ):
        network = Network()
        plain = Network()
        out = guidance(network, X, T, BOTH_CONDS, NULL)
        assert torch.equal(out, CFG(weight)(plain, X, T, cond, NULL))
        assert network.rows == plain.rows


def test_a_share_of_the_weight_for_the_original() -> None:
    assert centred(CFG(4.0, "a dog"), 0.75) == DualGuidance(3.0, 1.0, "a dog")
    assert centred(EmbeddedGuidance(4.0), 0.75) == EmbeddedDualGuidance(3.0, 1.0)
    with pytest.raises(ValueError, match="has a weight to share"):
        centred(NoGuidance(), 0.5)


class Distilled:
    """A network with an input for the weight that has learned `Network`'s guided output."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(
        self, x: torch.Tensor, t: torch.Tensor, cond: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        self.rows.append(len(cond["text"]))
        times = len(cond["text"]) // len(x)
        null = {"text": NULL["text"].repeat(times, 1, 1)}
        without = Network()(x, t, null)
        with_prompt = Network()(x, t, {"text": cond["text"]})
        weight = cond["guidance"].view(-1, *[1] * (x.ndim - 1))
        return without + weight * (with_prompt - without)


def test_a_network_that_takes_the_weight_gives_the_same_in_two_rows() -> None:
    network = Distilled()
    torch.testing.assert_close(
        EmbeddedDualGuidance(3.0, 1.0)(network, X, T, BOTH_CONDS, {}),
        DualGuidance(3.0, 1.0)(Network(), X, T, BOTH_CONDS, NULL),
    )
    assert network.rows == [6]

    for guidance, cond in (
        (EmbeddedDualGuidance(0.0, 4.0), COND),
        (EmbeddedDualGuidance(4.0, 0.0), ORIGINAL_COND),
    ):
        network = Distilled()
        plain = Distilled()
        out = guidance(network, X, T, BOTH_CONDS, {})
        assert torch.equal(out, EmbeddedGuidance(4.0)(plain, X, T, cond, {}))
        assert network.rows == plain.rows

    for wrong in ((0.0, 0.0), (-1.0, 4.0), (1.0, float("inf")), (1.0, float("nan"))):
        with pytest.raises(ValueError, match="must be at least 0 and not both 0"):
            EmbeddedDualGuidance(*wrong)
    with pytest.raises(ValueError, match=r"encode by Sampler.encode"):
        EmbeddedDualGuidance()(Distilled(), X, T, COND, {})


@pytest.mark.parametrize("weights", ["lora", "full"])
def test_a_consistency_model_rolls_out_and_replays_with_both(tiny_lcm: Path, weights: str) -> None:
    policy = Policy.load(tiny_lcm, train=weights)
    perturb(policy)

    def rollout(guidance: Guidance, prompts: list[Prompt]) -> Trajectory:
        sampler = Sampler(LCM(), 3, guidance)
        return sampler.rollout(policy, sampler.encode(policy, prompts), GROUP, generator(2))

    both = rollout(EmbeddedDualGuidance(3.0, 1.0), EXPANDED)
    sampler = Sampler(LCM(), 3, EmbeddedDualGuidance(3.0, 1.0))
    replay = sampler.replay(policy, both, GROUP, torch.arange(2).expand(3, -1))
    assert replay.logp.requires_grad and (replay.logp - replay.logp_old).expm1().abs().max() < 5e-6

    for guidance, prompts in (
        (EmbeddedDualGuidance(0.0, 4.0), EXPANDED),
        (EmbeddedDualGuidance(4.0, 0.0), ORIGINALS),
    ):
        expected = rollout(EmbeddedGuidance(4.0), prompts)
        assert torch.equal(rollout(guidance, EXPANDED).latent, expected.latent)

    single = rollout(EmbeddedGuidance(4.0), EXPANDED)
    assert not torch.allclose(both.latent, single.latent, atol=1e-3)


def test_half_precision_is_combined_in_float32() -> None:
    assert DualGuidance()(Network(torch.bfloat16), X, T, BOTH_CONDS, NULL).dtype == torch.float32


def test_an_entry_without_an_original_is_the_same_for_both() -> None:
    class WithControl(Network):
        def __call__(
            self, x: torch.Tensor, t: torch.Tensor, cond: dict[str, torch.Tensor]
        ) -> torch.Tensor:
            assert cond["control"].tolist() == [0.0] * 3 + [1.0, 2.0, 3.0] * 2
            return super().__call__(x, t, cond)

    control = torch.tensor([1.0, 2.0, 3.0])
    cond = BOTH_CONDS | {"control": control}
    out = DualGuidance()(WithControl(), X, T, cond, NULL | {"control": 0 * control})
    assert torch.equal(out, DualGuidance()(Network(), X, T, BOTH_CONDS, NULL))


def test_errors(tiny_pipeline: Path) -> None:
    with pytest.raises(ValueError, match=r"guidance.w2 must be a finite number"):
        DualGuidance(1.0, float("inf"))
    with pytest.raises(ValueError, match=r"encode by Sampler.encode"):
        DualGuidance()(Network(), X, T, COND, NULL)

    policy = Policy.load(tiny_pipeline)
    for wrong in (3, " "):
        with pytest.raises(ValueError, match="the original of the prompt 'a cat' is"):
            Sampler(DDIM(), 2, DualGuidance()).encode(
                policy, [Prompt("a cat", {"original": wrong})]
            )


def test_originals_are_encoded_only_where_they_are_needed(tiny_pipeline: Path) -> None:
    policy = Policy.load(tiny_pipeline)
    plain = Sampler(DDIM(), 2, CFG()).encode(policy, EXPANDED)
    both = Sampler(DDIM(), 2, DualGuidance()).encode(policy, EXPANDED)
    assert set(plain) == {"text"} and set(both) == {"text", "original.text"}
    assert torch.equal(both["text"], plain["text"])
    assert torch.equal(both["original.text"], policy.encode(ORIGINALS)["text"])

    with_identifier = Prompt("a cat", {"original": "cat"}, "<reward 1> ")
    cond = Sampler(DDIM(), 2, DualGuidance()).encode(policy, [with_identifier])
    expected = policy.encode([Prompt("cat")])["text"]
    assert torch.equal(cond["original.text"], expected), "the original has no identifiers"


@pytest.mark.parametrize("model", ["tiny_sd1", "tiny_pipeline", "tiny_sd2"])
def test_sampling_is_the_example_on_stock_diffusers(
    model: str, request: pytest.FixtureRequest, example: ModuleType
) -> None:
    policy = Policy.load(request.getfixturevalue(model), train="none")
    sampler = Sampler(DDIM(0.8), 5, DualGuidance(4.0, 2.5))
    cond = sampler.encode(policy, [EXPANDED[0]] * 2)
    trajectory = sampler.rollout(policy, cond, torch.zeros(2).long(), generator(3))
    images = policy.decode(trajectory.latent)

    pipe = StableDiffusionPipeline.from_pretrained(request.getfixturevalue(model))
    stock = example.draw(
        pipe,
        "a cat",
        "a red cat, oil",
        w1=4.0,
        w2=2.5,
        count=2,
        steps=5,
        eta=0.8,
        generator=generator(3),
    )
    torch.testing.assert_close(stock, images, rtol=1e-3, atol=1e-4)
    plain = example.draw(
        pipe, "a cat", "a red cat, oil", w1=4.0, w2=0.0, count=2, steps=5, generator=generator(3)
    )
    assert not torch.allclose(plain, images, atol=1e-2)


def test_the_example_from_the_command_line(tiny_pipeline: Path, tmp_path: Path) -> None:
    out = tmp_path / "cat.png"
    command = [
        sys.executable,
        str(EXAMPLE),
        str(tiny_pipeline),
        "a cat",
        "a red cat",
        "--steps",
        "2",
        "--out",
        str(out),
    ]
    subprocess.run(command, check=True, capture_output=True)

    with Image.open(out) as image:
        assert image.size == (32, 32)


@pytest.mark.parametrize("model", ["tiny_pipeline", "tiny_sdxl"])
def test_a_rollout_with_one_weight_zero_is_plain_guidance(
    model: str, request: pytest.FixtureRequest
) -> None:
    policy = Policy.load(request.getfixturevalue(model))
    for guidance, prompts in (
        (DualGuidance(0.0, 4.0), EXPANDED),
        (DualGuidance(4.0, 0.0), ORIGINALS),
    ):
        expected = roll(policy, CFG(4.0), prompts)
        assert torch.equal(roll(policy, guidance).latent, expected.latent)

    both = roll(policy, DualGuidance(4.0, 4.0))
    assert not torch.allclose(both.latent, roll(policy, CFG(4.0)).latent, atol=1e-2)

    single = roll(policy, CFG(8.0))
    torch.testing.assert_close(both.latent[2], single.latent[2], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("model", ["tiny_pipeline", "tiny_sdxl"])
@pytest.mark.parametrize("weights", ["lora", "full"])
def test_a_fresh_trajectory_replays_to_ratio_one(
    model: str, weights: str, request: pytest.FixtureRequest
) -> None:
    policy = Policy.load(request.getfixturevalue(model), train=weights)
    sampler = Sampler(DDIM(), 4, DualGuidance(3.0, 2.0))
    perturb(policy)
    traj = sampler.rollout(policy, sampler.encode(policy, EXPANDED), GROUP, generator(0))
    replay = sampler.replay(policy, traj, GROUP, torch.arange(4).expand(3, -1))
    assert replay.logp.requires_grad and (replay.logp - replay.logp_old).expm1().abs().max() < 5e-6


def test_the_negative_prompt_replaces_the_empty_one(tiny_pipeline: Path) -> None:
    policy = Policy.load(tiny_pipeline)
    negative = roll(policy, DualGuidance(negative="a dog"))
    assert not torch.allclose(negative.latent, roll(policy, DualGuidance()).latent)


def test_evaluation_uses_both(tiny_pipeline: Path) -> None:
    policy = Policy.load(tiny_pipeline, train="none")

    def parts(guidance: Guidance, prompts: list[Prompt]) -> list[list[float | None]]:
        bright = {"bright": lambda images, prompts: images.mean((1, 2, 3))}
        sampler = Sampler(DDIM(), 3, guidance)
        return evaluate(policy, sampler, prompts, bright, images_per_prompt=2).parts

    assert parts(DualGuidance(4.0, 0.0), EXPANDED) == parts(CFG(4.0), ORIGINALS)
    assert parts(DualGuidance(4.0, 4.0), EXPANDED) != parts(CFG(4.0), EXPANDED)


def test_a_run_with_it_and_prompts_from_a_file(
    tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    (tmp_path / "prompts.jsonl").write_text(
        '{"prompt": "a red cat, oil", "original": "a cat"}\n'
        '{"prompt": "two dogs", "original": "dogs"}\n'
    )
    recipe = write_recipe(
        iterations=2,
        sampler={"guidance": {"use": "dual", "w1": 3.0, "w2": 2.0}},
        prompts={"use": "jsonl", "path": "HERE/prompts.jsonl"},
        batch={
            "prompts": 2,
            "images_per_prompt": 4,
            "sample_batch": 4,
            "train_batch": 5,
            "minibatches": 1,
        },
        evaluation={"images_per_prompt": 1},
    )
    records = Run(train(configuration.load(recipe), tmp_path / "run")).records()
    assert all(record["ratio_deviation"] < 1e-5 and record["grad_norm"] > 0 for record in records)
    assert _warnings(configuration.load(recipe)) == []

    changes = ["prompts={use='list',texts=['a cat','ox']}"]
    (warning,) = _warnings(configuration.load(recipe, changes))
    assert "no prompt has an original" in warning.text
    assert "jsonl" in warning.remedy


def _warnings(config: configuration.Config) -> list[Finding]:
    """Return the findings of preflight that are not fine."""
    return [finding for finding in preflight(config) if finding.level != "ok"]
