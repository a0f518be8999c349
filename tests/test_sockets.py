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
from burnish.config import Config
from burnish.objective_check import check_objective
from burnish.rl.forward_objectives import RWR
from burnish.rl.objectives import Clipped, Rebel
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


class OnlyLearns:
    """A learner that has nothing but the one method it needs, and a state that shares memory."""

    def __init__(self, metrics: Any = None, state: Any = None) -> None:
        self.metrics = {"loss": torch.tensor(0.5)} if metrics is None else metrics
        self.tensors = torch.arange(4.0)
        self.returned = {"a": self.tensors, "b": self.tensors[:2]} if state is None else state

    def learn(self, batch: RolloutBatch, credit: Credit) -> Any:
        return self.metrics

    def state(self) -> Any:
        return self.returned

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.loaded = dict(state)


def test_a_learner_needs_only_learn(recipe: Path, tmp_path: Path) -> None:
    first = Overrides(learners={"critic": OnlyLearns()})
    run = Run(train(load(recipe, "iterations=1"), tmp_path / "run", overrides=first))
    assert run.records()[0]["critic_loss"] == 0.5

    again = OnlyLearns()
    train(load(recipe), run.folder, overrides=Overrides(learners={"critic": again}), resume=True)
    assert again.loaded["a"].tolist() == [0, 1, 2, 3]
    assert again.loaded["b"].tolist() == [0, 1]


def test_a_run_goes_on_with_its_learners_only(recipe: Path, tmp_path: Path) -> None:
    overrides = Overrides(learners={"critic": OnlyLearns()})
    train(load(recipe, "iterations=1"), tmp_path / "run", overrides=overrides)
    with pytest.raises(ValueError, match="with the learners generator, critic, and this program"):
        train(load(recipe), tmp_path / "run", resume=True)


class Forgetful:
    """A learner whose state could never be put back."""

    def learn(self, batch: RolloutBatch, credit: Credit) -> Any:
        return {}

    def state(self) -> Any:
        return {}


class MisspeltLearner(Forgetful):
    def load_states(self, state: Mapping[str, Tensor]) -> None:
        return None


class HalfLearner(Learner):
    """As `Forgetful`, where the other half is inherited and does nothing."""

    def learn(self, batch: RolloutBatch, credit: Credit) -> Any:
        return {}

    def state(self) -> Any:
        return {}


@pytest.mark.parametrize(
    ("name", "learner", "message"),
    [
        ("a/b", OnlyLearns(), '"a/b" is no name for a learner'),
        ("", OnlyLearns(), '"" is no name for a learner'),
        ("critic", OnlyLearns, "without a method learn"),
        ("critic", object(), "without a method learn"),
        ("critic", Forgetful(), "has only one of state and load_state"),
        ("critic", HalfLearner(), "has only one of state and load_state"),
        ("critic", MisspeltLearner(), "a method load_states; did you mean load_state"),
        ("critic", OnlyLearns(metrics=[]), "learn returned a list; return a dict of metrics"),
        ("critic", OnlyLearns({"x": object()}), "metrics that JSON cannot hold"),
        ("critic", OnlyLearns(state={"a": 1}), "state returned a dict; return a dict of tensors"),
        ("grad", OnlyLearns({"norm": 1.0}), 'the record has "grad_norm" already'),
        ("zero", OnlyLearns({"advantage": 1.0}), 'the record has "zero_advantage" already'),
    ],
)
def test_a_learner_that_does_not_fit(
    recipe: Path, tmp_path: Path, name: str, learner: Any, message: str
) -> None:
    overrides = Overrides(learners={name: learner})
    with pytest.raises(ValueError, match=message):
        train(load(recipe, "iterations=1"), tmp_path / "run", overrides=overrides)


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
        ("forward = True", 'has forward, which is now process = "forward"; rename it'),
        ("compares_images = True", "has only one of compares_images = True and a method targets"),
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


@pytest.mark.parametrize(
    "change",
    [
        "target_kl = 0.02",
        "clips = [1.0]",
        "processed = []",
        "kl_target = 'adaptive'",
        "def forward(self): pass",
    ],
)
def test_an_honest_attribute_is_no_slip(tmp_path: Path, change: str) -> None:
    text = OBJECTIVE.replace("@dataclass\n", "").replace(
        "    weight: float = 1.0\n", f"    {change}\n"
    )
    (tmp_path / "mine.py").write_text(text.replace("self.weight * ", ""))
    catalog.build("objective", {"use": f"{tmp_path}/mine.py:Cubed"})


def test_a_slip_in_the_constructor_is_found_too(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "class Slip:\n"
        "    def __init__(self):\n        self.proces = 'forward'\n"
        "    def __call__(self, replay, adv):\n        return None\n"
    )
    with pytest.raises(ValueError, match="has the attribute 'proces'.*did you mean 'process'"):
        catalog.build("objective", {"use": f"{tmp_path}/mine.py:Slip"})


def test_attributes_are_read_each_time(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from burnish import Loss\n"
        "class Warm:\n"
        "    calls = 0\n"
        "    @property\n"
        "    def kl(self):\n        return 0.1 if self.calls else 0.0\n"
        "    def __call__(self, replay, adv):\n"
        "        self.calls += 1\n"
        "        return Loss(replay.logp.mean(), {})\n"
    )
    part = catalog.build("objective", {"use": f"{tmp_path}/mine.py:Warm"})
    assert part.kl == 0
    part(Replay(torch.zeros(2, 1, requires_grad=True), torch.zeros(2, 1), 4), torch.ones(2))
    assert part.kl == 0.1


def test_a_functions_attributes_stay_when_it_has_arguments(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from burnish import Loss\n"
        "def forward_loss(replay, adv, weight=1.0):\n    return Loss(replay.logp.mean(), {})\n"
        "forward_loss.process = 'forward'\n"
    )
    use = f"{tmp_path}/mine.py:forward_loss"
    assert catalog.build("objective", {"use": use}).process == "forward"
    assert catalog.build("objective", {"use": use, "weight": 2.0}).process == "forward"


def test_an_advantage_that_selects_gives_the_others_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Best:\n"
        "    selects = True\n"
        "    def __init__(self, others=0.0):\n        self.others = others\n"
        "    def front(self, scores, weights, group):\n"
        "        return scores.parts[:, 0] == scores.parts[:, 0].max()\n"
        "    def __call__(self, scores, weights, group):\n"
        "        return torch.where(self.front(scores, weights, group), 1.0, self.others)\n"
    )
    arguments = (Scores(torch.tensor([[1.0], [2.0]]), ["r"], []), torch.ones(1), torch.zeros(2))
    use = f"{tmp_path}/mine.py:Best"
    assert catalog.build("advantage", {"use": use})(*arguments).tolist() == [0, 1]
    with pytest.raises(ValueError, match="selects, but an image outside its front is not 0"):
        catalog.build("advantage", {"use": use, "others": -1.0})(*arguments)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("[1]", "returned a int in row 0"),
        ("[]", "returned no prompts"),
        ("'a cat'", "returned a str; return a list of texts, rows or burnish.Prompt"),
    ],
)
def test_a_source_of_ones_own_is_checked(
    recipe: Path, tmp_path: Path, returned: str, message: str
) -> None:
    (tmp_path / "mine.py").write_text(f"def animals():\n    return {returned}\n")
    config = load(recipe, f"prompts={{use='{tmp_path}/mine.py:animals'}}")
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "run")


def test_a_built_in_part_of_another_kind_is_refused() -> None:
    use = "burnish.rl.advantages:GroupAdvantage"
    with pytest.raises(ValueError, match="GroupAdvantage is no objective"):
        catalog.build("objective", {"use": use})


def test_an_objective_with_a_kl_of_its_own_gets_a_reference(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        OBJECTIVE.replace("    weight: float = 1.0\n", "    weight: float = 1.0\n    kl = 0.1\n")
    )
    use = f"objective={{use='{tmp_path}/mine.py:Cubed'}}"
    train(load(recipe, use, "model.train=full", "iterations=1"), tmp_path / "run")


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
        (
            "Loss(replay.logp.mean(), {'iteration': 7})",
            'returned the metric "iteration", a name that',
        ),
        ("Loss(adv.mean(), {})", "returned a loss without a gradient"),
        ("replay.log_p", r"raised AttributeError: .*log_p.* \(.*mine.py:4\)"),
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
        (lambda count: [1, "a dog"], "returned a int in row 0; return a text, a row"),
        (lambda count: "a cat", "returned a str; return a list of 2 texts, rows or burnish.Prompt"),
        (lambda count: None, "returned nothing; return a list of 2"),
        (lambda count: [{"text": "a cat"}] * 2, "returned a dict in row 0"),
        (lambda count: [Prompt(None), Prompt("a cat")], "returned nothing in row 0"),  # type: ignore[arg-type]
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


def test_an_advantage_is_not_asked_about_an_outage(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def centred(scores, weights, group):\n"
        "    x = scores.parts[:, 0]\n    return x - x[x.isfinite()].mean()\n"
    )
    part = catalog.build("advantage", {"use": f"{tmp_path}/mine.py:centred"})
    group = torch.zeros(2).long()
    missing = torch.full((2, 1), torch.nan)
    assert part(Scores(missing, ("r",)), torch.ones(1), group).tolist() == [0, 0]

    partly = torch.tensor([[torch.nan], [3.0]])
    assert part(Scores(partly, ("r",)), torch.ones(1), group).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("std", "message"),
    [
        ("torch.arange(1., 4.)", r"a float32 tensor of shape \(3,\) as std"),
        ("0.5", "a float as std"),
        ("-torch.ones(3, 1, 1, 1)", "a std that is not finite or below 0"),
    ],
)
def test_a_kernels_std_has_a_row_an_image(tmp_path: Path, std: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom burnish import Gaussian\n"
        f"def kernel(x_t, x0, level_t, level_s):\n    return Gaussian(x0, {std})\n"
    )
    part = catalog.build("kernel", {"use": f"{tmp_path}/mine.py:kernel"})
    latents = torch.zeros(3, 4, 3, 3)
    with pytest.raises(ValueError, match=message):
        part(latents, latents, None, None)


def test_memory_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "class Remembers:\n"
        "    def __call__(self, scores, weights, group):\n        return scores.parts[:, 0]\n"
        "    def state_dict(self):\n        return {0: 1.0}\n"
        "    def load_state_dict(self, state):\n        pass\n"
    )
    part = catalog.build("advantage", {"use": f"{tmp_path}/mine.py:Remembers"})
    with pytest.raises(ValueError, match="state_dict must return a dict of texts"):
        part.state_dict()


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
        (lambda replay, adv: Loss((adv * replay.logp).mean(), {}), "write adv[:, None]"),
        (lambda replay, adv: Loss((adv[:, None] * replay.logp).sum(), {}), "take the mean"),
        (
            lambda replay, adv: Loss((adv[:, None] * (replay.logp - replay.logp_old)).mean(), {}),
            "it reads replay.logp_old: set uses_ratio = True",
        ),
        (Clipped, "is a class; give an object of it"),
    ],
)
def test_check_objective_says_what_is_wrong(objective: Any, message: str) -> None:
    findings = check_objective(objective)
    assert len(findings) == 1 and message in findings[0]
