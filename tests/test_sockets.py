"""The sockets: something new plugs into the loop without a line of the loop being touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from burnish import catalog
from burnish import config as configuration
from burnish.checked import check_objective
from burnish.config import Config
from burnish.rl.objectives import RWR, Clipped, Rebel
from burnish.runs import Run
from burnish.training.assembly import Overrides
from burnish.training.batch import Credit, RolloutBatch
from burnish.training.learners import Learner
from burnish.training.loop import train
from burnish.types import Loss, Prompt, Replay, Scores

QUICK = ("evaluation.images_per_prompt=0", "run.sample_every=0")


@pytest.fixture
def recipe(tiny_pipeline: Path, tmp_path: Path) -> Path:
    (tmp_path / "reward.py").write_text(
        "def brightness(images, prompts):\n    return images.mean((1, 2, 3))\n"
    )
    path = tmp_path / "tiny.toml"
    path.write_text(f"""
iterations = 2
model = {{ id = "{tiny_pipeline}", device = "cpu" }}
sampler = {{ steps = 3, guidance = {{ use = "none" }} }}
prompts = {{ use = "list", texts = ["a cat", "a dog"] }}
rewards = [ {{ use = "{tmp_path}/reward.py:brightness" }} ]
batch = {{ prompts = 2, images_per_prompt = 4, sample_batch = 8, train_batch = 8 }}
""")
    return path


def load(recipe: Path, *overrides: str) -> Config:
    return configuration.load(recipe, [*QUICK, *overrides])


# A third learner -------------------------------------------------------------------------------


class BrightnessModel(Learner):
    """A critic that learns the mean reward of each group by gradient descent."""

    def __init__(self) -> None:
        self.value = torch.zeros(1)
        self.before = self.value.clone()

    def learn(self, batch: RolloutBatch, credit: Credit) -> dict[str, Any]:
        """Take a step towards the mean reward of the valid images."""
        rewards = batch.scores.parts[credit.valid, 0].float()
        self.value += 0.5 * (rewards.mean() - self.value)
        return {"value": float(self.value), "images": len(rewards)}

    def state(self) -> dict[str, Tensor]:
        """Return the value."""
        return {"value": self.value.clone()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the value."""
        self.value = state["value"].clone()

    def export(self, folder: Path) -> None:
        """Write the value as a text."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "value.txt").write_text(f"{float(self.value):.6f}")


def test_a_third_learner_learns_is_saved_and_resumed(recipe: Path, tmp_path: Path) -> None:
    whole = BrightnessModel()
    overrides = Overrides(learners={"critic": whole})
    run = Run(train(load(recipe), tmp_path / "whole", overrides=overrides))
    values = [record["critic_value"] for record in run.records()]
    assert all(record["critic_images"] == 8 for record in run.records())
    assert 0 < values[0] < values[1]
    assert (run.adapter / "value.txt").read_text() == f"{values[1]:.6f}"

    first = Overrides(learners={"critic": BrightnessModel()})
    parted = train(load(recipe, "iterations=1"), tmp_path / "parted", overrides=first)
    again = Overrides(learners={"critic": BrightnessModel()})
    train(load(recipe), parted, overrides=again, resume=True)
    assert [record["critic_value"] for record in Run(parted).records()] == values


def test_a_learner_cannot_take_the_generators_name(recipe: Path, tmp_path: Path) -> None:
    overrides = Overrides(learners={"generator": BrightnessModel()})
    with pytest.raises(ValueError, match='the name "generator" is taken'):
        train(load(recipe), tmp_path / "run", overrides=overrides)


# An objective from a file -----------------------------------------------------------------------

OBJECTIVE = '''
from dataclasses import dataclass
from burnish import Loss, Objective


@dataclass
class Cubed(Objective):
    """A policy gradient with the cube of the advantage."""

    weight: float = 1.0

    def __call__(self, replay, adv):
        value = -(self.weight * adv.to(replay.logp) ** 3 * replay.logp[:, 0]).mean()
        return Loss(value, {"cubed": 1.0})
'''


@pytest.mark.parametrize("base", ["Objective", "object"])
def test_an_objective_from_a_short_file(recipe: Path, tmp_path: Path, base: str) -> None:
    assert len(OBJECTIVE.strip().splitlines()) <= 15
    (tmp_path / "mine.py").write_text(OBJECTIVE.replace("(Objective)", f"({base})"))
    use = f"objective={{use='{tmp_path}/mine.py:Cubed',weight=2.0}}"
    run = Run(train(load(recipe, use, "iterations=1"), tmp_path / "run"))
    (record,) = run.records()
    assert record["cubed"] == 1.0 and record["grad_norm"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("proces = 'forward'", "has the attribute 'proces'.*did you mean 'process'"),
        ("process = 'foward'", "has process = 'foward'; did you mean 'forward'"),
        ("imitate = True", "has the attribute 'imitate'.*did you mean 'imitates'"),
        ("imitates = 'yes'", "has imitates = 'yes'; it must be true or false"),
        ("kl = 'much'", "has kl = 'much'; it must be a number"),
        ("def target(self): pass", "has the attribute 'target'.*did you mean 'targets'"),
    ],
)
def test_a_misspelt_attribute_is_refused_by_name(
    recipe: Path, tmp_path: Path, change: str, message: str
) -> None:
    text = OBJECTIVE.replace(
        "    weight: float = 1.0\n", f"    weight: float = 1.0\n    {change}\n"
    )
    (tmp_path / "slip.py").write_text(text)
    with pytest.raises(ValueError, match=f"objective .*slip.py:Cubed {message}"):
        load(recipe, f"objective={{use='{tmp_path}/slip.py:Cubed'}}")


# What user code returns -------------------------------------------------------------------------

RETURNED = {
    "advantage": [
        ("torch.ones(3)", r"returned shape \(3,\); it must return \(8,\)"),
        ("torch.full((8,), float('nan'))", "returned a number that is not finite"),
        ("None", "returned nothing; return a tensor of numbers"),
    ],
    "objective": [
        ("replay.logp.mean()", "returned a float32 tensor.*return burnish.Loss"),
        (
            "Loss(replay.logp[:, 0], {})",
            "returned a loss of a float32.*its value must be a tensor with one",
        ),
        ("Loss(replay.logp.mean() * float('inf'), {})", "returned the loss -?inf"),
        ("Loss(replay.logp.mean(), {'a': 'b'})", "returned metrics that are no mapping"),
    ],
    "curriculum": [
        ("'much'", "returned a str; return a control scale"),
        ("-1.0", "returned the control scale -1.0; it must be >= 0"),
        ("float('nan')", "returned the control scale nan"),
    ],
}
SIGNATURES = {
    "advantage": "scores, weights, group",
    "objective": "replay, adv",
    "curriculum": "progress, generator",
}


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [(kind, value, message) for kind, cases in RETURNED.items() for value, message in cases],
)
def test_a_returned_value_is_checked_with_the_functions_name(
    tmp_path: Path, kind: str, value: str, message: str
) -> None:
    (tmp_path / "mine.py").write_text(
        f"import torch\nfrom burnish import Loss\n"
        f"def wrong({SIGNATURES[kind]}):\n    return {value}\n"
    )
    part = catalog.build(kind, {"use": f"{tmp_path}/mine.py:wrong"})
    logp = torch.zeros(8, 1, requires_grad=True)
    arguments: dict[str, tuple[Any, ...]] = {
        "advantage": (Scores(torch.zeros(8, 1), ("r",)), torch.ones(1), torch.zeros(8).long()),
        "objective": (Replay(logp + 1.0, logp.detach(), 4), torch.ones(8)),
        "curriculum": (0.5, torch.Generator()),
    }
    with pytest.raises(ValueError, match=f"^{kind} .*mine.py:wrong {message}"):
        part(*arguments[kind])


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        (lambda count: ["a cat", "a dog"], "returned a str in row 0; return burnish.Prompt"),
        (lambda count: "a cat", "returned a str; return a list of 2 burnish.Prompt"),
        (lambda count: None, "returned nothing; return a list of 2"),
        (lambda count: [{"text": "a cat"}] * 2, "returned a dict in row 0"),
        (lambda count: [Prompt(" "), Prompt("a cat")], "returned an empty text in row 0"),
        (lambda count: (Prompt("a cat") for _ in range(3)), "returned 3 prompts, but 2 were"),
    ],
)
def test_a_prompt_function_is_checked(
    recipe: Path, tmp_path: Path, drawn: Any, message: str
) -> None:
    overrides = Overrides(source=drawn)
    with pytest.raises(ValueError, match=f"the prompt function test_sockets.<lambda> {message}"):
        train(load(recipe), tmp_path / "run", overrides=overrides)


def test_user_code_cannot_spoil_the_loops_tensors(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def spoils(scores, weights, group):\n"
        "    scores.parts.zero_(); weights.zero_(); group.zero_()\n"
        "    return scores.parts[:, 0]\n"
    )
    part = catalog.build("advantage", {"use": f"{tmp_path}/mine.py:spoils"})
    scores = Scores(torch.ones(2, 1), ("r",))
    weights = torch.ones(1)
    group = torch.tensor([1, 2])
    part(scores, weights, group)
    assert scores.parts.eq(1).all() and weights.eq(1).all() and group.tolist() == [1, 2]


# burnish.check_objective ------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [Clipped(), Clipped(kl=0.1), RWR(), Rebel()])
def test_the_objectives_of_the_package_pass(objective: Any) -> None:
    assert check_objective(objective) == []


def no_gradient(replay: Replay, adv: Tensor) -> Loss:
    return Loss((adv * replay.logp.detach()[:, 0]).mean().requires_grad_(), {})


def in_place(replay: Replay, adv: Tensor) -> Loss:
    adv.mul_(2)
    return Loss((adv * replay.logp[:, 0]).mean(), {})


@dataclass
class Misspelt:
    processs: str = "forward"

    def __call__(self, replay: Replay, adv: Tensor) -> Loss:
        return Loss(replay.logp.mean(), {})


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (no_gradient, "the loss has no gradient"),
        (in_place, "it changes the tensors that it is given"),
        (Misspelt(), "has the attribute 'processs'"),
        (lambda replay, adv: 1.0, "return burnish.Loss"),
        (lambda replay, adv: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_check_objective_says_what_is_wrong(objective: Any, message: str) -> None:
    findings = check_objective(objective)
    assert len(findings) == 1 and message in findings[0]
