"""The rehearsal finds errors that would waste hours, and none in a sound configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import tiny_model
from PIL import Image

from burnish import config as configuration
from burnish.tools.preflight import UNITS, Finding, check_precision, cpu_units, preflight

Rehearse = Callable[..., list[Finding]]
REWARDS = """
import torch
def bright(images, prompts):
    return images.mean((1, 2, 3))
def constant(images, prompts):
    return images.mean((1, 2, 3)) * 0
def noise(images, prompts):
    return torch.rand(len(images))
def by_prompt(images, prompts):
    return [float(len(prompt.text)) for prompt in prompts]
"""


@pytest.fixture
def rehearse(tmp_path: Path, write_recipe: Callable[..., Path]) -> Rehearse:
    path = write_recipe(
        REWARDS,
        prompts={"use": "list", "texts": ["a cat", "a goose"]},
        rewards=[{"use": "HERE/reward.py:bright"}],
        batch={"prompts": 2, "images_per_prompt": 4, "sample_batch": 8, "train_batch": 6},
    )

    def run(*overrides: str) -> list[Finding]:
        here = [text.replace("HERE", str(tmp_path)) for text in overrides]
        return preflight(configuration.load(path, here))

    return run


def problems(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level != "ok"]


def test_a_sound_configuration(rehearse: Rehearse) -> None:
    findings = rehearse()
    assert problems(findings) == []
    text = "\n".join(finding.text for finding in findings)

    for part in (
        "2 of 2 prompts x 4 images",
        "finite at all 3",
        "ratio - 1",
        "trained towards higher",
        "MiB",
        "an iteration",
    ):
        assert part in text

    assert all("\n" not in finding.text for finding in findings)


@pytest.mark.parametrize(
    ("override", "level", "message"),
    [
        ("batch.images_per_prompt=2", "warning", "few to compare"),
        ("rewards.0.use=HERE/reward.py:constant", "error", "0 to 0"),
        ("rewards.0.use=HERE/reward.py:by_prompt", "warning", "std within a prompt up to 0"),
        ("rewards.0.weight=0", "warning", "trained towards nothing"),
    ],
)
def test_a_problem_that_would_waste_hours(
    rehearse: Rehearse, override: str, level: str, message: str
) -> None:
    (problem,) = problems(rehearse(override, "batch.minibatches=1"))
    assert problem.level == level
    assert message in problem.text
    assert problem.remedy


@pytest.mark.parametrize(
    ("overrides", "whose"),
    [
        (["objective.use=nft", "batch.minibatches=2"], "predictions of the old policy take"),
        (["objective.use=nft", "old_policy.decay=0.5"], "predictions of the old policy take"),
        (["objective.use=ram"], "predictions of the anchor take"),
        (
            ["objective.use=ram", "batch.minibatches=2"],
            "predictions of the old policy and the anchor take",
        ),
        (["objective.use=dppo"], "predictions of the network take"),
        (["objective.use=rvm", "batch.minibatches=2"], ""),
        (["objective.use=nft"], ""),
    ],
)
def test_what_is_kept_of_predictions_is_said(
    rehearse: Rehearse, overrides: list[str], whose: str
) -> None:
    findings = rehearse("batch.minibatches=1", *overrides)
    assert problems(findings) == []
    texts = [finding.text for finding in findings if "predictions of" in finding.text]
    assert len(texts) == bool(whose) and all(text.startswith(whose) for text in texts)


def test_the_groups_that_dgpo_needs_are_checked(rehearse: Rehearse) -> None:
    assert problems(rehearse("objective.use=dgpo", "batch.minibatches=1")) == []
    with pytest.raises(ValueError, match="compares the images of a prompt"):
        rehearse("objective.use=dgpo", "batch.minibatches=3")


def test_blocks_without_an_adapter_are_told(rehearse: Rehearse, tiny_klein_distilled: Path) -> None:
    """Those of a single stream have other layers; blocks without attention are no matter."""
    klein = (
        f"model.id={tiny_klein_distilled}",
        "sampler.kernel={use='renoise'}",
        "sampler.guidance={use='none'}",
    )
    found = [finding for finding in rehearse(*klein) if "no adapter" in finding.text]
    assert [finding.level for finding in found] == ["warning"]
    assert "in 1 of the network's blocks" in found[0].text
    assert "single_transformer_blocks.0.attn" in found[0].text

    targets = "model.targets=['to_q','to_qkv_mlp_proj']"
    full = "model.train=full"
    for changes in ((*klein, targets), (*klein, full), ()):
        assert not any("no adapter" in finding.text for finding in rehearse(*changes))


def test_an_x0_baseline_that_explains_something_and_nothing(rehearse: Rehearse) -> None:
    texts = [finding.text for finding in rehearse("batch.baseline=x0_preview")]
    assert any("of the advantages' variance is explained" in text for text in texts)

    many = (
        "batch.prompts=2",
        "batch.images_per_prompt=32",
        "batch.sample_batch=64",
        "batch.baseline=x0_preview",
    )
    (problem,) = problems(rehearse("rewards.0.use=HERE/reward.py:noise", *many))
    assert problem.level == "warning"
    assert problem.text.startswith("x0 baseline: ")


def test_a_slow_tracker_and_a_negative_weight(rehearse: Rehearse) -> None:
    small = ["batch.images_per_prompt=1", "batch.prompts=1", "batch.minibatches=1"]
    findings = rehearse("advantage.use=tracker", "rewards.0.weight=-1", *small)
    (problem,) = problems(findings)
    assert problem.level == "warning"
    assert "after about 32 iterations" in problem.text
    assert any("trained towards LOWER" in finding.text for finding in findings)


def test_a_ratio_that_is_off_is_an_error(
    rehearse: Rehearse, monkeypatch: pytest.MonkeyPatch
) -> None:
    from burnish.diffusion.policy import Policy

    predict = Policy.predict

    with monkeypatch.context() as patch:
        calls = iter(range(100))
        # the first three calls sample; whatever replays afterwards sees another network
        patch.setattr(
            Policy, "predict", lambda *a: predict(*a) * (1.0 if next(calls) < 3 else 1.05)
        )
        (problem,) = problems(rehearse())

    assert problem.level == "error"
    assert "ratio - 1" in problem.text
    assert "float32" in problem.remedy


HUB = [
    name
    for name in configuration.recipes()
    if not configuration.load(name).model.id.startswith("zoo:")
]
CONTROLLED = [name for name in HUB if configuration.load(name).model.controlnet]
EXPANDED = [name for name in HUB if configuration.load(name).expander.model]
OTHERS = [name for name in HUB if name not in (*CONTROLLED, *EXPANDED)]


@pytest.mark.parametrize("name", OTHERS)
def test_recipes_hold_on_a_tiny_model_of_their_architecture(
    name: str, request: pytest.FixtureRequest
) -> None:
    """All but their size is rehearsed; rewards that would download a model have their own tests."""
    model = request.getfixturevalue(tiny_model(name))
    small = (
        "batch.sample_batch=4",
        "batch.train_batch=3",
        "batch.transitions=0",
        "sampler.steps=4",
        "sampler.window.last=0",
    )
    here = (
        f"model.id={model}",
        "model.device=cpu",
        "model.dtype=float32",
        "model.variant=''",
        "model.size=32",
    )
    config = configuration.load(name, [*here, *small])

    if config.rewards[0]["use"] not in ("compressibility", "incompressibility"):
        config = configuration.load(name, [*here, *small, 'rewards=[{use="compressibility"}]'])

    findings = preflight(config)
    assert len(findings) > 4
    assert [finding.text for finding in findings if finding.level == "error"] == []


@pytest.mark.parametrize("name", CONTROLLED)
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

    for key in ("prompts", "evaluation.prompts"):
        here += [f"{key}.length=5", f"{key}.random=12", f"{key}.base={tmp_path}/base.png"]

    tables = configuration.load(name).rewards
    here += [
        f"rewards.{index}.model=zoo:emoji-clip"
        for index, table in enumerate(tables)
        if "similarity" in table["use"]
    ]
    findings = preflight(configuration.load(name, here))
    assert len(findings) > 4
    assert [finding.text for finding in findings if finding.level == "error"] == []


@pytest.mark.parametrize("name", EXPANDED)
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
    here += [f"rewards.{index}.model=zoo:emoji-clip" for index in range(4)]
    here += ["rewards.0.head=zoo:emoji-aesthetic"]
    findings = preflight(configuration.load(name, here))
    assert len(findings) > 4
    assert [finding.text for finding in findings if finding.level == "error"] == []


@pytest.mark.parametrize(
    ("dtype", "units", "warned"),
    [
        ("bfloat16", {"avx2": True, "amx_bf16": False}, True),
        ("bfloat16", {"avx2": True, "avx512_bf16": True}, False),
        ("float16", {"avx2": True, "amx_bf16": True}, True),
        ("float32", {"avx2": True}, False),
        ("bfloat16", {}, False),  # torch cannot tell
    ],
)
def test_a_precision_that_the_cpu_has_no_units_for(
    dtype: str, units: dict[str, bool], warned: bool
) -> None:
    findings = list(check_precision(dtype, units))
    assert [finding.level for finding in findings] == ["warning"] * warned
    assert all(dtype in finding.text and "float32" in finding.remedy for finding in findings)


def test_the_units_of_this_cpu_have_the_names_that_are_looked_for() -> None:
    units = cpu_units()
    assert not units or all(name in units for names in UNITS.values() for name in names)
