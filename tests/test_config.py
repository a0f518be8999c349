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
        ("model.alpha=0", "model.alpha = 0.0; it must be more than 0"),
        ("model.alpha=-0.5", "model.alpha = -0.5; it must be more than 0"),
        ("model.alpha=inf", "model.alpha = inf; it must be"),
        ("model.alpha=nan", "model.alpha = nan; it must be"),
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
        (
            "advantage={use='pareto',standardise='False'}",
            "advantage.standardise = 'False' is of the",
        ),
        ("advantage={use='pareto',standardise=1}", "standardise = 1 is .* it wants true or false"),
        ("advantage.standardise=False", 'False is not TOML: write false, or .*"False"'),
        ("rewards.0.weight=TRUE", "TRUE is not TOML: write true"),
        ("model.id=None", 'None is not TOML: write ""'),
        ("model.id=null", 'null is not TOML: write ""'),
        ("rewards.0.weight=nan", "rewards.0.weight = nan; it must be a finite number"),
        ("rewards.0.weight=1e39", "rewards.0.weight = 1e.39 is too large"),
        ("rewards.0.weight='2'", "rewards.0.weight = '2' is of the wrong type; it wants a number"),
        ("rewards.0.name=3", "rewards.0.name = 3 is of the wrong type; it wants a text"),
        ("rewards.0.of=all", 'rewards.0.of = \'all\'; it must be "original" or "prompt"'),
        ("rewards=[{weight=1.0}]", "rewards.0: say which one by use"),
        ("rewards=[{}]", "rewards.0: say which one by use"),
        ("rewards=[1]", "it wants a list of tables"),
        ("run.tracker_options={wandb={x=[1,inf]}}", "run.tracker_options.wandb.x.1 = inf"),
        (
            "guard.panel=[{use='remote',url='http://a',timeout=-inf}]",
            "guard.panel.0.timeout = -inf",
        ),
        (
            "rewards.0={use='remote',url='http://a',timeout=0}",
            "timeout = 0; it must be more than 0",
        ),
        (
            "rewards.0={use='sentiment',temperature=-1.0}",
            "temperature = -1.0; it must be more than",
        ),
        ("rewards.0={use='caption',endpoint={timout=3}}", 'does not take "timout"; did you mean'),
        (
            "rewards.0={use='caption',endpoint={timeout='3'}}",
            "endpoint.timeout = '3' is of the wrong",
        ),
        (
            "rewards.0={use='question',writing='no'}",
            'writing = \'no\'; it must be "zero" or "keep"',
        ),
        ("rewards.0={use='compressibility',quality=1e2}", "it wants a whole number, such as 100"),
        ("rewards.0={use='aesthetic',device='gpu'}", "rewards.0.device = 'gpu'; it must be"),
        ("prompts={use='list',texts=['a',1]}", "texts = .* it wants a list of texts"),
        ("prompts={use='template',text='{a}',a=[1]}", "prompts.a = .1. is of the wrong type"),
        ("prompts={use='zoo_nouns',split='birds'}", "split = 'birds'; it must be \"animals\" or"),
        ("prompts={use='qr',texts={use='animls'},random=3}", 'did you mean "animals"'),
        ("prompts={use='qr',texts=['a'],random=3,code={eror='L'}}", 'did you mean "error"'),
        ("iterations=1e3", "iterations = 1000.0 is .* it wants a whole number, such as 1000"),
        ("iterations=99999999999999999999", "iterations is too large; it must be less than 2.63"),
        ("seed=2020-01-01", 'a date or a time; write it as a text, "2020-01-01"'),
        ("model.device=tpu", 'model.device = \'tpu\'; it must be "auto", "cpu", "cuda"'),
        ("model.device=meta", "model.device = 'meta'; it must be"),
        ("model.device=cuda:x", "model.device = 'cuda:x'; it must be"),
        ("prompts=" + "[" * 3000, "nested too deeply"),
        ("prompts=" + "[" * 30 + "]" * 30, "nested too deeply"),
        ('prompts.text="a\\u0000b"', "prompts.text = .* has a character that no text file holds"),
        ("batch.prompts", "write it as"),
        ("seed.x=1", "seed = .* is of the wrong type"),
        ("model.id=", "model.id = ''; it must be a model"),
    ],
)
def test_errors_name_the_key(minimal: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.load(minimal, [override])


@pytest.mark.parametrize("alpha", [0.5, 1e-3, 64.0])
def test_alpha_is_any_positive_number(minimal: Path, alpha: float) -> None:
    assert config.load(minimal, [f"model.alpha={alpha}"]).model.alpha == alpha


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


def test_numbers_of_any_length_are_one_sentence(tmp_path: Path) -> None:
    for number in ("1" * 5000, "0x" + "f" * 5000, "1" * 400):
        path = tmp_path / "long.toml"
        path.write_text(f"seed = {number}\n{MINIMAL}")
        with pytest.raises(ValueError, match=r"long.toml: (not TOML|seed is too large)") as raised:
            config.load(path)
        assert len(str(raised.value)) < 400
