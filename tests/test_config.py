"""The configuration: round trip, overrides, and one clear sentence for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from burnish import config

MINIMAL = """
[model]
id = "zoo:emoji-sd"
[prompts]
use = "animals"
[[rewards]]
use = "compressibility"
"""


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize("name", config.recipes())
def test_every_recipe_round_trips(name: str, tmp_path: Path) -> None:
    loaded = config.load(name)
    (tmp_path / "again.toml").write_text(config.dump(loaded, tmp_path))
    assert config.load(tmp_path / "again.toml") == loaded


def test_recipes_are_commented_line_by_line() -> None:
    for name in config.recipes():
        for row, line in enumerate(config.recipe(name).read_text().splitlines(), 1):
            assert not line or line.startswith(("#", "[")) or "#" in line, (
                f"{name}, row {row} has no comment"
            )


def test_overrides(minimal: Path) -> None:
    loaded = config.load(
        minimal,
        [
            "batch.prompts=4",
            "optimizer.lr=1e-4",
            "objective.clip=2.5",
            "rewards.0.weight=2",
            "model.dtype=float16",
        ],
    )
    assert (
        loaded.batch.prompts == 4
        and loaded.optimizer.lr == 1e-4
        and loaded.rewards[0]["weight"] == 2
    )
    assert loaded.objective == {"use": "clipped", "clip": 2.5} and loaded.model.dtype == "float16"
    other = config.load(
        minimal, ["objective.clip=2", "objective.use=reinforce", 'prompts={use="list",texts=["a"]}']
    )
    assert other.objective == {"use": "reinforce"}, (
        "another objective does not inherit the arguments of the first"
    )
    assert other.prompts["texts"] == ["a"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch.promts=4", 'unknown key "batch.promts"; did you mean "prompts"'),
        ("bach.prompts=4", 'unknown key "bach"; did you mean "batch"'),
        ("objective.clp=4", 'objective: clipped does not take "clp"; did you mean "clip"'),
        (
            "batch.prompts=four",
            "batch.prompts = 'four' is of the wrong type; it wants a whole number",
        ),
        ("batch.prompts=4.5", "batch.prompts = 4.5 is of the wrong type"),
        ("batch=4", r"batch = 4 is of the wrong type; write a table \[batch\]"),
        (
            "model.targets=[1]",
            r"model.targets = \[1\] is of the wrong type; it wants a list of texts",
        ),
        ("batch.prompts=0", "batch.prompts = 0; it must be at least 1"),
        ("batch.minibatches=65", "batch.minibatches = 65, but an iteration has only 64 images"),
        ("sampler.steps=0", "sampler.steps = 0; it must be at least 1 network call"),
        ("sampler.kernel.eta=0", "eta"),
        ("sampler.kernel={eta=0.0}", "sampler.kernel.eta must be > 0"),
        ("evaluation.unseen={noun=['a']}", "evaluation.unseen: say which one by use"),
        ("optimizer.lr=-1e-4", "optimizer.lr = -0.0001; it must be 0 or more"),
        ("optimizer.lr=nan", "optimizer.lr = nan; it must be"),
        ("optimizer.lr=inf", "optimizer.lr = inf; it must be"),
        ("model.train=lara", 'model.train = \'lara\'; it must be "lora" or "full"'),
        ("model.dtype=fp16", "model.dtype = 'fp16'; it must be"),
        (
            "evaluation.unseen.use=animal",
            'evaluation.unseen: .*did you mean "animals"|prompts: use = "animal"',
        ),
        ("rewards.0.weight=heavy", "rewards.0.weight = 'heavy' is of the wrong type"),
        ("rewards.1.weight=1", "1 is no place in a list of 1"),
        ("rewards=[]", "rewards = .*at least one reward"),
        (
            'rewards=[{use="compressibility"},{use="compressibility"}]',
            "two rewards have the same name",
        ),
        ("batch.prompts", "write it as"),
        ("seed.x=1", "seed = .* is of the wrong type"),
        ("model.id=", "model.id = ''; it must be a model"),
    ],
)
def test_errors_name_the_key(minimal: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.load(minimal, [override])


def test_eta_zero_with_a_policy_gradient_says_why(minimal: Path) -> None:
    with pytest.raises(ValueError, match=r"sampler.kernel.*eta"):
        config.load(minimal, ['sampler.kernel={use="ddim",eta=0.0}'])


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='no recipe of that name; did you mean "demo"'):
        config.load("dem")

    (tmp_path / "bad.toml").write_text("[model\n")
    with pytest.raises(ValueError, match=r"bad.toml: not TOML"):
        config.load(tmp_path / "bad.toml")

    (tmp_path / "bad.toml").write_bytes(b"\xff\x00")
    with pytest.raises(ValueError, match=r"bad.toml: not TOML"):
        config.load(tmp_path / "bad.toml")
