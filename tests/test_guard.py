"""The guard: a reward that is hacked on purpose is noticed, and undone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import generator
from safetensors.torch import load_file

from burnish import config as configuration
from burnish.config import Config
from burnish.diffusion.guidance import CFG
from burnish.diffusion.kernels import DDIM
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.evaluation.guard import decide, over_optimised
from burnish.evaluation.held_out import Panel, divergence, diversity
from burnish.evaluation.paired import Evaluation, save_evaluation
from burnish.report.page import page
from burnish.runs import Run
from burnish.training.loop import train
from burnish.types import Prompt

REWARDS = """
def brightness(images, prompts):
    return images.mean((1, 2, 3))
def darkness(images, prompts):
    return -images.mean((1, 2, 3))
"""
ONE = torch.ones(1)


def evaluation(
    reward: list[float], judged: list[bool] | None = None, **panel: list[float | None]
) -> Evaluation:
    return Evaluation(
        ["a", "b", "c", "d"], 2, 0, 8, ["r"], [[value] for value in reward], judged, panel
    )


def guarded(**changes: object) -> Config:
    config = configuration.load("demo")
    return replace(config, guard=replace(config.guard, **changes))  # type: ignore[arg-type]


LOW = [0.0] * 8
HIGH = [1.0] * 8
SPREAD = [1.0, 3.0] * 4  # mean 2, standard deviation 1


@pytest.mark.parametrize(
    ("before", "now", "reason"),
    [
        (
            evaluation(LOW, m=SPREAD),
            evaluation(HIGH, m=[v - 0.5 for v in SPREAD]),
            "m fell from 2 to 1.5 while the reward rose",
        ),
        (
            evaluation(LOW, m=SPREAD),
            evaluation(HIGH, m=[v - 0.2 for v in SPREAD]),
            "",
        ),  # too little
        (evaluation(LOW, m=SPREAD), evaluation(HIGH, m=[v + 0.5 for v in SPREAD]), ""),  # it rose
        # the reward fell too: not hacking
        (evaluation(HIGH, m=SPREAD), evaluation(LOW, m=[v - 0.5 for v in SPREAD]), ""),
        # one prompt only: not significant
        (evaluation(LOW, m=SPREAD), evaluation(HIGH, m=[-3.0, -1.0, 3, 5, 3, 5, 1, 3]), ""),
        (evaluation(LOW, [True] * 8), evaluation(HIGH, [False] * 8), "judge fell from 1 to 0"),
        (
            evaluation(LOW),
            evaluation(HIGH, kl=[3.0, 5.0, *[None] * 6]),
            "the KL to the untrained model is 4 nats .* budget of 3",
        ),
        (evaluation(LOW), evaluation(LOW, kl=[2.0, 3.0, *[None] * 6]), ""),
        (
            evaluation(LOW, m=[1.0, None] * 4),
            evaluation(HIGH, m=[None, 1.0] * 4),
            "",
        ),  # never both times
    ],
)
def test_the_definition_of_over_optimised(before: Evaluation, now: Evaluation, reason: str) -> None:
    reasons = over_optimised(before, now, ONE, guarded(kl=3.0, drop=0.3))
    assert bool(reasons) == bool(reason)
    assert not reasons or re.search(reason, reasons[0])


def test_with_several_rewards_the_guard_says_what_became_of_each() -> None:
    before = evaluation(LOW, m=SPREAD)
    before = replace(before, rewards=["r", "s"], parts=[[0.0, 1.0]] * 8)
    now = replace(evaluation(HIGH, m=[v - 0.5 for v in SPREAD]), rewards=["r", "s"])
    now = replace(now, parts=[[1.0, 0.5]] * 8)
    assert over_optimised(before, now, torch.ones(2), guarded(drop=0.3)) == (
        "m fell from 2 to 1.5 while the weighted sum of the rewards rose (r 0 to 1, s 1 to 0.5)",
    )


def test_the_decision_is_in_the_files(tmp_path: Path) -> None:
    run = Run(tmp_path)
    before = evaluation(LOW, m=SPREAD)

    for iteration, fall in {2: 0.0, 4: 1.0, 6: 0.0, 8: 1.0, 10: 1.0, 12: 0.0}.items():
        now = evaluation(HIGH, m=[value - fall for value in SPREAD])
        save_evaluation(run.evaluation_file(iteration), {"train": now})

    patient = guarded(patience=2)
    decisions = {i: decide(run, patient, ONE, before, i) for i in (2, 4, 6, 8, 10)}
    assert [i for i, decision in decisions.items() if decision.tripped] == [10]
    assert [decision.best for decision in decisions.values()] == [2, 2, 6, 6, 6]
    assert decide(run, guarded(patience=1), ONE, before, 4).tripped


def test_diversity_by_brute_force() -> None:
    points = torch.nn.functional.normalize(torch.randn(6, 5, generator=generator()), dim=1)
    distances = diversity(points, 3)

    for i in range(6):
        others = [j for j in range(6) if j // 3 == i // 3 and j != i]
        expected = sum(1 - float(points[i] @ points[j]) for j in others) / 2
        assert float(distances[i]) == pytest.approx(expected, abs=1e-6)

    assert diversity(points[:1].expand(4, 5), 2).abs().max() < 1e-6


def test_divergence_is_the_mean_log_ratio_of_trajectories(tiny_pipeline: Path) -> None:
    """KL = E[log p/q] over trajectories of p.

    By Monte Carlo on 256 of them, within four standard errors.
    """
    policy = Policy.load(tiny_pipeline, train="full", reference=True)
    sampler = Sampler(DDIM(), 3, CFG(2.0))
    assert divergence(policy, sampler, sample(policy, sampler, 2)).tolist() == [0, 0]

    with torch.no_grad():
        for i, p in enumerate(policy.trainable):
            p.add_(0.02 * p.abs().mean() * torch.randn(p.shape, generator=generator(i)))

    trajectory = sample(policy, sampler, 256)
    kl = divergence(policy, sampler, trajectory)
    ratio = torch.zeros(256, dtype=torch.float64)

    for transition in range(3):
        index = torch.full((256, 1), transition)
        replay = sampler.replay(policy, trajectory, torch.arange(256), index, reference=True)
        assert replay.logp_ref is not None
        ratio += ((replay.logp - replay.logp_ref).detach() * replay.dims)[:, 0].double()

    error = float((ratio - kl).std()) / 256**0.5
    assert float(kl.mean()) > 5 * error and abs(float((ratio - kl).mean())) < 4 * error


def sample(policy: Policy, sampler: Sampler, count: int) -> object:
    cond = policy.encode([Prompt("a cat")] * count)
    return sampler.rollout(policy, cond, torch.zeros(count, dtype=torch.long), generator())


@pytest.fixture
def recipe(write_recipe: Callable[..., Path]) -> Path:
    """Brightness is rewarded and darkness watched, so that success is a fall."""
    return write_recipe(
        REWARDS,
        iterations=12,
        model={"train": "full"},
        rewards=[{"use": "HERE/reward.py:brightness"}],
        optimizer={"lr": 3e-3},
        batch={
            "prompts": 3,
            "images_per_prompt": 8,
            "sample_batch": 24,
            "train_batch": 72,
            "minibatches": 2,
        },
        evaluation={
            "images_per_prompt": 4,
            "every": 2,
            "unseen": {"use": "list", "texts": ["a bee"]},
        },
        guard={
            "action": "rollback",
            "drop": 0.8,
            "panel": [{"use": "HERE/reward.py:darkness"}],
        },
        run={"sample_every": 4, "sample_prompts": 4, "checkpoint_every": 1, "keep": 1},
    )


def test_rollback_leaves_the_last_good_state(recipe: Path, tmp_path: Path) -> None:
    run = Run(train(configuration.load(recipe), tmp_path / "run"))
    about = json.loads(run.guard.read_text())
    assert about["action"] == "rollback" and (about["best"], about["iteration"]) == (4, 6)
    assert len(run.records()) == about["iteration"]
    assert "darkness fell" in about["reasons"][0]

    darkness = json.loads(run.evaluation.read_text())["train"]["panel"]["darkness"]
    small = -darkness["paired_mean"] <= 0.8 * darkness["spread"]
    assert small or darkness["ci95"][1] >= 0
    checkpoints = sorted(path.name for path in run.checkpoints.iterdir())
    assert checkpoints == [f"{about['best']:06d}"]

    options = ["guard.action=none", f"iterations={about['best']}", "evaluation.images_per_prompt=0"]
    plain = Run(train(configuration.load(recipe, options), tmp_path / "plain"))
    # the same model as a run of so many iterations ends with
    name = "diffusion_pytorch_model.safetensors"
    rolled_back = load_file(run.adapter / name)
    expected = load_file(plain.adapter / name)
    assert all(rolled_back[key].equal(expected[key]) for key in expected)

    with pytest.raises(
        ValueError,
        match=r"the guard ended this run after iteration .*darkness fell .*delete .*guard.json",
    ):
        train(configuration.load(recipe), run.folder, resume=True)

    assert "The guard ended the run" in page(run) and "darkness" in page(run)


@pytest.mark.parametrize("watched", ["darkness", "kl"])
def test_a_run_along_gradients_is_guarded(
    write_recipe: Callable[..., Path], tmp_path: Path, watched: str
) -> None:
    panel = [{"use": "HERE/reward.py:darkness"}]
    recipe = write_recipe(
        f"import burnish\n{REWARDS}brightness = burnish.differentiable(brightness)\n",
        iterations=8,
        model={"train": "full"},
        rewards=[{"use": "HERE/reward.py:brightness"}],
        objective={"use": "latent"},
        advantage={"use": "none"},
        optimizer={"lr": 2e-4, "warmup": 0},
        batch={"prompts": 2, "images_per_prompt": 2, "sample_batch": 4, "minibatches": 1},
        evaluation={"images_per_prompt": 4, "every": 1},
        guard={
            "action": "rollback",
            "drop": 0.8,
            **({"kl": 1e-9} if watched == "kl" else {"panel": panel}),
        },
        run={"sample_every": 0, "checkpoint_every": 1, "keep": 1},
    )
    run = Run(train(configuration.load(recipe), tmp_path / "run", progress=False))
    about = json.loads(run.guard.read_text())
    assert about["best"] < about["iteration"] == len(run.records()) < 8
    expected = "darkness fell" if watched == "darkness" else "over the budget of 1e-09"
    assert expected in about["reasons"][0]
    if watched == "kl":
        assert (about["best"], about["iteration"]) == (0, 1)
        return

    rewards = [record["rewards"]["brightness"]["mean"] for record in run.records()]
    assert about["best"] > 0 and rewards[-1] > rewards[0]
    options = ["guard.action=none", f"iterations={about['best']}", "evaluation.images_per_prompt=0"]
    plain = Run(train(configuration.load(recipe, options), tmp_path / "plain", progress=False))
    name = "diffusion_pytorch_model.safetensors"
    rolled_back, expected_weights = load_file(run.adapter / name), load_file(plain.adapter / name)
    assert all(rolled_back[key].equal(expected_weights[key]) for key in expected_weights)


def test_a_run_that_stopped_before_its_guard_looked_is_ended_on_resume(
    recipe: Path, tmp_path: Path
) -> None:
    config = configuration.load(recipe)
    uninterrupted = Run(train(config, tmp_path / "uninterrupted"))
    last = json.loads(uninterrupted.guard.read_text())["iteration"]

    records: list[Any] = []
    stopped = Run(tmp_path / "stopped")
    train(config, stopped.folder, on_record=records.append, stop=lambda: len(records) == last)
    # the last evaluation before the end of the program: remove it, as a kill would have
    stopped.evaluation_file(last).unlink(missing_ok=True)
    assert not stopped.guard.exists()

    train(config, stopped.folder, resume=True)
    assert stopped.guard.read_bytes() == uninterrupted.guard.read_bytes()
    assert stopped.evaluation.read_bytes() == uninterrupted.evaluation.read_bytes()
    assert len(stopped.records()) == last


@pytest.mark.parametrize(("before", "now"), [("none", "stop"), ("warn", "rollback")])
def test_a_guard_cannot_watch_what_was_not_kept(
    recipe: Path, tmp_path: Path, before: str, now: str
) -> None:
    start = configuration.load(recipe, [f"guard.action={before}", "iterations=1"])
    run = train(start, tmp_path / "run")
    with pytest.raises(ValueError, match="was trained with another guard.action"):
        train(configuration.load(recipe, [f"guard.action={now}"]), run, resume=True)


def test_stop_keeps_the_last_state_and_warn_goes_on(recipe: Path, tmp_path: Path) -> None:
    stopped = Run(train(configuration.load(recipe, ["guard.action=stop"]), tmp_path / "stop"))
    about = json.loads(stopped.guard.read_text())
    assert [int(path.name) for path in stopped.checkpoints.iterdir()] == [about["iteration"]]

    config = configuration.load(recipe, ["guard.action=warn", "iterations=8"])
    with pytest.warns(UserWarning, match="over-optimisation after iteration .*darkness fell"):
        warned = Run(train(config, tmp_path / "warn"))

    assert len(warned.records()) == 8 and not warned.guard.exists()


def test_a_kl_budget_is_kept(recipe: Path, tmp_path: Path) -> None:
    options = ["guard.panel=[]", "guard.kl=1e-9", "guard.action=stop"]
    run = Run(train(configuration.load(recipe, options), tmp_path / "run"))
    about = json.loads(run.guard.read_text())
    assert about["iteration"] == 2 and "over the budget of 1e-09" in about["reasons"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("evaluation.every=0", "guard.action needs evaluations: set evaluation.every"),
        ("guard.panel=[]", "guard.action needs something to watch"),
        ("guard.panel=[{use='compressibility',name='kl'}]", '"kl" is a measure of its own'),
        (
            "guard.panel=[{use='compressibility'},{use='compressibility'}]",
            "guard.panel: two rewards have the same name",
        ),
        (
            "guard={action='rollback',diversity='zoo:emoji-clip'}",
            "guard.diversity compares images of a prompt",
        ),
    ],
)
def test_a_guard_that_cannot_work_is_an_error(recipe: Path, change: str, message: str) -> None:
    more = ["evaluation.images_per_prompt=1"] if "diversity" in change else []
    with pytest.raises(ValueError, match=message):
        configuration.load(recipe, [change, *more])


def test_an_empty_panel_measures_nothing() -> None:
    assert Panel().columns([{}, {}], [[], []], 2) == {}
