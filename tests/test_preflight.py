"""The rehearsal finds errors that would waste hours, and none in a sound configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from burnish import config as configuration
from burnish.tools.preflight import Finding, preflight

Look = Callable[..., list[Finding]]
REWARDS = """
import torch
def bright(images, prompts):
    return images.mean((1, 2, 3))
def constant(images, prompts):
    return images.mean((1, 2, 3)) * 0
def chance(images, prompts):
    return torch.rand(len(images))
def by_prompt(images, prompts):
    return [float(len(prompt.text)) for prompt in prompts]
"""


@pytest.fixture
def look(tmp_path: Path, write_recipe: Callable[..., Path]) -> Look:
    path = write_recipe(
        REWARDS,
        prompts={"use": "list", "texts": ["a cat", "a goose"]},
        rewards=[{"use": "HERE/reward.py:bright"}],
        batch={"prompts": 2, "images_per_prompt": 4, "sample_batch": 8, "train_batch": 6},
    )

    def run(*overrides: str) -> list[Finding]:
        return preflight(
            configuration.load(path, [text.replace("HERE", str(tmp_path)) for text in overrides])
        )

    return run


def wrong(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level != "ok"]


def test_a_sound_configuration(look: Look) -> None:
    findings = look()
    assert wrong(findings) == []
    text = "\n".join(finding.text for finding in findings)

    for said in (
        "2 of 2 prompts x 4 images",
        "finite at all 3",
        "ratio - 1",
        "trained towards higher",
        "MiB",
        "an iteration",
    ):
        assert said in text

    assert all("\n" not in finding.text for finding in findings)


@pytest.mark.parametrize(
    ("override", "level", "said"),
    [
        ("batch.images_per_prompt=1", "error", "a group of one has no advantage"),
        ("batch.images_per_prompt=2", "warning", "few to compare"),
        ("rewards.0.use=HERE/reward.py:constant", "error", "0 to 0"),
        ("rewards.0.use=HERE/reward.py:by_prompt", "warning", "std within a prompt up to 0"),
        ("rewards.0.weight=0", "warning", "trained towards nothing"),
    ],
)
def test_what_would_waste_hours(look: Look, override: str, level: str, said: str) -> None:
    found = wrong(look(override, "batch.minibatches=1"))
    assert (
        [finding.level for finding in found] == [level]
        and said in found[0].text
        and found[0].remedy
    )


def test_previews_that_tell_something_and_nothing(look: Look) -> None:
    assert any(
        "of the advantages' variance is explained" in finding.text
        for finding in look("batch.baseline=x0_preview")
    )
    many = (
        "batch.prompts=2",
        "batch.images_per_prompt=32",
        "batch.sample_batch=64",
        "batch.baseline=x0_preview",
    )
    found = wrong(look("rewards.0.use=HERE/reward.py:chance", *many))
    assert [finding.level for finding in found] == ["warning"] and found[0].text.startswith(
        "x0 baseline: "
    )


def test_a_slow_tracker_and_a_negative_weight(look: Look) -> None:
    small = ["batch.images_per_prompt=1", "batch.prompts=1", "batch.minibatches=1"]
    findings = look("advantage.use=tracker", "rewards.0.weight=-1", *small)
    assert [finding.level for finding in wrong(findings)] == ["warning"]
    assert "after about 32 iterations" in wrong(findings)[0].text
    assert any("trained towards LOWER" in finding.text for finding in findings)


def test_a_ratio_that_is_off_is_an_error(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    from burnish.diffusion.policy import Policy

    right = Policy.predict

    with monkeypatch.context() as patch:
        calls = iter(range(100))
        # the first three calls sample; whatever replays afterwards sees another network
        patch.setattr(Policy, "predict", lambda *a: right(*a) * (1.0 if next(calls) < 3 else 1.05))
        found = wrong(look())

    assert [finding.level for finding in found] == ["error"] and "ratio - 1" in found[0].text
    assert "float32" in found[0].remedy


HUB = [
    name
    for name in configuration.recipes()
    if not configuration.load(name).model.id.startswith("zoo:")
]
STEERED = [name for name in HUB if configuration.load(name).model.controlnet]
WORDED = [name for name in HUB if configuration.load(name).expander.model]
REAL = [name for name in HUB if name not in (*STEERED, *WORDED)]
TINY = {"sd15": "tiny_sd1", "lcm": "tiny_lcm", "sd21": "tiny_sd2", "sdxl": "tiny_sdxl"}
"""A model of the same architecture, by the first word of a recipe's name."""


@pytest.mark.parametrize("name", REAL)
def test_recipes_hold_on_a_tiny_model_of_their_architecture(
    name: str, request: pytest.FixtureRequest
) -> None:
    """All but their size is rehearsed; rewards that would download a model are left to their own
    tests.
    """
    model = request.getfixturevalue(TINY[name.partition("-")[0]])
    small = (
        "batch.sample_batch=4",
        "batch.train_batch=3",
        "batch.transitions=0",
        "sampler.steps=4",
    )
    here = (f"model.id={model}", "model.device=cpu", "model.dtype=float32", "model.variant=''")
    config = configuration.load(name, [*here, *small])

    if config.rewards[0]["use"] not in ("compressibility", "incompressibility"):
        config = configuration.load(name, [*here, *small, 'rewards=[{use="compressibility"}]'])

    findings = preflight(config)
    assert len(findings) > 4 and [one.text for one in findings if one.level == "error"] == []


@pytest.mark.parametrize("name", STEERED)
def test_recipes_of_codes_hold_on_a_tiny_model(
    name: str, tiny_pipeline: Path, tiny_controlnet: Path, tmp_path: Path
) -> None:
    """With codes that fit 64 pixels; the CLIP model and the base images are the embedded ones."""
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "base.png")
    here = [
        f"model.id={tiny_pipeline}",
        f"model.controlnet={tiny_controlnet}",
        "model.device=cpu",
        "model.size=64",
    ]
    here += [
        "model.dtype=float32",
        "sampler.steps=6",
        "batch.sample_batch=4",
        "batch.train_batch=3",
        "batch.transitions=2",
    ]

    for where in ("prompts", "evaluation.prompts"):
        here += [f"{where}.length=5", f"{where}.random=12", f"{where}.base={tmp_path}/base.png"]

    tables = configuration.load(name).rewards
    here += [
        f"rewards.{i}.model=zoo:emoji-clip"
        for i, one in enumerate(tables)
        if "similarity" in one["use"]
    ]
    findings = preflight(configuration.load(name, here))
    assert len(findings) > 4 and [one.text for one in findings if one.level == "error"] == []


@pytest.mark.parametrize("name", WORDED)
def test_recipes_with_an_expander_hold_on_a_tiny_model(name: str, tiny_sd1: Path) -> None:
    """The language model and the rewards' CLIP model are the embedded ones."""
    here = [
        f"model.id={tiny_sd1}",
        "model.device=cpu",
        "model.dtype=float32",
        "expander.model=zoo:emoji-expander",
    ]
    here += [
        "expander.tokens=6",
        "sampler.steps=6",
        "batch.sample_batch=4",
        "batch.train_batch=3",
        "batch.transitions=2",
    ]
    here += [f"rewards.{place}.model=zoo:emoji-clip" for place in range(4)]
    here += ["rewards.0.head=zoo:emoji-aesthetic"]
    findings = preflight(configuration.load(name, here))
    assert len(findings) > 4 and [one.text for one in findings if one.level == "error"] == []
