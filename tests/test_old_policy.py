"""The old policy: what it keeps of itself, who samples with it, and what runs make of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from burnish import config as configuration
from burnish.config import OldPolicyConfig
from burnish.runs import Run
from burnish.training.average import LaggingPolicy, OldPolicy
from burnish.training.collect import Collector
from burnish.training.job import prepare
from burnish.training.learners import GeneratorLearner
from burnish.training.loop import train
from burnish.world import World

FORWARD = ("rvm", "ram", "nft", "dgpo", "awm")
ANCHORS = ("reference", "guided_reference", "average", "images")


class Network:
    """One weight, as `Trainable`."""

    def __init__(self) -> None:
        self.trainable = [nn.Parameter(torch.zeros(1))]

    def state(self) -> dict[str, Tensor]:
        return {"weight": self.trainable[0].detach().clone()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.trainable[0].data.copy_(state["weight"])

    def set(self, value: float) -> None:
        self.trainable[0].data.fill_(value)


def held(policy: OldPolicy, network: Network) -> float:
    with policy.applied():
        return float(network.trainable[0].detach())


@pytest.mark.parametrize(
    ("settings", "decays"),
    [
        # DiffusionNFT: min(0.001 i, 0.5), and 0 for 75 iterations, then 0.0075 each up to 0.999
        (OldPolicyConfig(0.5, 0.001), {1: 0.001, 300: 0.3, 500: 0.5, 900: 0.5}),
        (OldPolicyConfig(0.999, 0.0075, 75), {1: 0.0, 75: 0.0, 76: 0.0075, 175: 0.75, 300: 0.999}),
        # RAM: min(0.01 i, 0.9)
        (OldPolicyConfig(0.9, 0.01), {1: 0.01, 50: 0.5, 90: 0.9, 100: 0.9}),
    ],
)
def test_the_schedules_of_the_papers(settings: OldPolicyConfig, decays: dict[int, float]) -> None:
    policy = LaggingPolicy(Network(), settings)
    assert {i: policy.decay(i) for i in decays} == pytest.approx(decays)


def test_it_keeps_a_part_of_itself_and_gives_the_weights_back() -> None:
    network = Network()
    policy = LaggingPolicy(network, OldPolicyConfig(0.5, 0.25))
    expected = 0.0

    for iteration, value in enumerate((1.0, 3.0, -2.0), 1):
        network.set(value)
        policy.step(iteration)
        keep = min(0.5, 0.25 * iteration)
        expected = keep * expected + (1 - keep) * value
        assert held(policy, network) == pytest.approx(expected)
        assert float(network.trainable[0].detach()) == value

    restored = LaggingPolicy(Network(), OldPolicyConfig(0.5, 0.25))
    restored.load_state(policy.state())
    assert held(restored, restored.network) == pytest.approx(expected)  # type: ignore[arg-type]


@pytest.fixture
def recipe(write_recipe: Callable[..., Path]) -> Path:
    return write_recipe(
        iterations=3,
        rewards=[{"use": "compressibility"}],
        advantage={"use": "group"},
        optimizer={"lr": 1e-2},
        batch={
            "prompts": 2,
            "images_per_prompt": 4,
            "sample_batch": 8,
            "train_batch": 6,
            "minibatches": 2,
            "transitions": 2,
        },
        evaluation={"images_per_prompt": 0},
        run={"sample_every": 0},
    )


def test_it_is_the_one_that_samples(recipe: Path, tmp_path: Path) -> None:
    options = ["objective.use=nft", "old_policy={decay=0.9,rise=1.0}"]
    config = configuration.load(recipe, options)
    job = prepare(config, Run.create(tmp_path / "run"), World())
    learner = job.learners["generator"]
    assert isinstance(learner, GeneratorLearner)
    before = Collector(job).collect(1)
    parameters = learner.policy.trainable
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(1.0)

    again = Collector(job).collect(1)
    assert again.trajectory.latent.equal(before.trajectory.latent)
    assert float(parameters[0].detach().mean()) > 0.5
    learner.weights.old_policy.step(1)
    moved = Collector(job).collect(1)
    assert not moved.trajectory.latent.equal(before.trajectory.latent)


@pytest.mark.parametrize("objective", FORWARD)
def test_before_any_update_nothing_has_moved(recipe: Path, tmp_path: Path, objective: str) -> None:
    options = [f"objective={{use='{objective}',kl=0.5}}", "optimizer.lr=0", "iterations=2"]
    run = Run(train(configuration.load(recipe, options), tmp_path / "run"))

    for record in run.records():
        assert record["kl"] < 1e-6 and record.get("kl_old", 0.0) < 1e-6
        assert record.get("ratio_deviation", 0.0) < 1e-6
        assert record["grad_norm"] > 0


@pytest.mark.parametrize("anchor", ANCHORS)
def test_every_anchor_is_a_distance_to_something(recipe: Path, tmp_path: Path, anchor: str) -> None:
    """The untrained policy is the reference and its own average, but not the guided reference."""
    options = [
        "objective={use='rvm',kl=1.0}",
        f"forward.anchor={anchor}",
        "optimizer.ema=0.5",
        "sampler.guidance={use='cfg',weight=4.0}",
    ]
    control = configuration.load(recipe, [*options, "optimizer.lr=0", "iterations=1"])
    (record,) = Run(train(control, tmp_path / "control")).records()
    assert (abs(record["kl"]) > 1e-3) == (anchor == "guided_reference")

    records = Run(train(configuration.load(recipe, options), tmp_path / "run")).records()
    assert all(abs(record["kl"]) > 1e-3 for record in records)


def test_settings_that_do_not_fit_are_refused(recipe: Path, tmp_path: Path) -> None:
    for options, message in (
        (["objective={use='rvm',kl=0.1}", "forward.anchor=average"], "needs a moving average"),
        (["objective.use=dgpo", "forward.anchor=average"], "needs a moving average"),
        (["objective.use=rvm", "forward.anchor=images"], "has no effect with objective.kl = 0"),
        (["objective={use='awm',normalise=true}"], "normalise is for transitions"),
        (["objective.use=dgpo", "forward.anchor=images"], "compares images with what the refer"),
        (["objective.use=nft", "batch.baseline=x0_preview"], "no transitions to preview"),
        (["objective.use=dgpo", "batch.minibatches=3"], "compares the images of a prompt"),
    ):
        with pytest.raises(ValueError, match=message):
            train(configuration.load(recipe, options), tmp_path / message[:8])


def test_it_may_be_added_to_a_run_and_begins_with_its_weights(recipe: Path, tmp_path: Path) -> None:
    plain = configuration.load(recipe, ["objective.use=nft", "iterations=1"])
    out = train(plain, tmp_path / "run")
    options = ["objective.use=nft", "old_policy={decay=0.5,rise=0.1}", "optimizer.ema=0.9"]
    train(configuration.load(recipe, options), out, resume=True, accept_changes=True)
    assert len(Run(out).records()) == 3


def test_images_of_a_prompt_stay_in_one_minibatch_of_dgpo(recipe: Path, tmp_path: Path) -> None:
    config = configuration.load(recipe, ["objective.use=dgpo", "batch.minibatches=2"])
    job = prepare(config, Run.create(tmp_path / "run"), World())
    learner = job.learners["generator"]
    assert isinstance(learner, GeneratorLearner)
    for images, transitions in learner.updates.pairs(1, torch.zeros(8)):
        assert sorted(images.unique().tolist()) in ([0, 1, 2, 3], [4, 5, 6, 7])
        assert transitions.unique().tolist() == [0, 1]


def test_the_metrics_of_an_iteration_are_numbers(recipe: Path, tmp_path: Path) -> None:
    options = ["objective={use='ram',strength=1.0}", "old_policy={decay=0.5,rise=0.5}"]
    run = Run(train(configuration.load(recipe, options), tmp_path / "run"))
    records = run.records()
    assert records[2]["kl_old"] > 0, "the old policy lags"
    assert json.dumps(records[2])
