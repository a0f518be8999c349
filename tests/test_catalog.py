"""Names become parts; a wrong name or argument is reported before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from burnish import catalog
from burnish.types import Scores

REWARDS = '''
def redness(images, prompts, strength=1.0):
    """The mean of the red channel."""
    return strength * images[:, 0].mean((1, 2))

def factory(power: int):
    return lambda images, prompts: images.mean((1, 2, 3)) ** power

not_callable = 3
'''


@pytest.fixture
def rewards_file(tmp_path: Path) -> str:
    path = tmp_path / "my_rewards.py"
    path.write_text(REWARDS)
    return str(path)


@pytest.mark.parametrize("kind", catalog.BUILTIN)
def test_every_builtin_exists(kind: str) -> None:
    for name in catalog.BUILTIN[kind]:
        assert catalog.resolve(kind, name).__doc__, f"{kind} {name} has no docstring"


def test_a_plain_function_is_the_reward_itself(rewards_file: str) -> None:
    images = torch.full((2, 3, 4, 4), 0.5)
    plain = catalog.build("reward", {"use": f"{rewards_file}:redness"})
    bound = catalog.build("reward", {"use": f"{rewards_file}:redness", "strength": 2})
    made = catalog.build("reward", {"use": f"{rewards_file}:factory", "power": 2})
    assert [float(reward(images, [])[0]) for reward in (plain, bound, made)] == [0.5, 1.0, 0.25]
    assert catalog.resolve("reward", f"{rewards_file}:redness") is plain


def test_a_plain_function_of_every_kind(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def first(scores, weights, group, power=1):\n    return scores.parts[:, 0] ** power\n"
    )
    use = f"{tmp_path}/mine.py:first"
    made = catalog.build("advantage", {"use": use, "power": 2})
    scores = Scores(torch.full((2, 1), 3.0), ("x",))
    assert made(scores, torch.ones(1), torch.zeros(2).long()).tolist() == [9.0, 9.0]

    with pytest.raises(ValueError, match="needs scores"):
        catalog.build("reward", {"use": use})


def test_a_package_name() -> None:
    assert catalog.resolve("kernel", "burnish.diffusion.kernels:DDIM") is catalog.resolve(
        "kernel", "ddim"
    )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "say which one by use"),
        (
            {"use": "compresibility"},
            'use = "compresibility" is unknown; did you mean "compressibility"?',
        ),
        (
            {"use": "compressibility", "qualty": 90},
            'does not take "qualty"; did you mean "quality"?',
        ),
        (
            {"use": "compressibility", "quality": "high"},
            "reward.quality = 'high' is of the wrong type; .* whole number",
        ),
        ({"use": "compressibility", "quality": 500}, "quality = 500"),
        ({"use": "FILE:rednes"}, 'has no function "rednes"; did you mean "redness"?'),
        ({"use": "FILE:not_callable"}, 'has no function "not_callable"'),
        (
            {"use": "FILE:redness", "strenght": 1},
            'does not take "strenght"; did you mean "strength"?',
        ),
        ({"use": "FILE:factory"}, "needs power = ..."),
        ({"use": "FILE:factory", "power": True}, "power = True is of the wrong type"),
        ({"use": "FILE:"}, "needs both parts"),
        ({"use": "no_such_package.rewards:x"}, "no_such_package.rewards cannot be imported"),
    ],
)
def test_errors_name_the_fault(rewards_file: str, table: dict, message: str) -> None:
    table = {
        key: value.replace("FILE", rewards_file) if isinstance(value, str) else value
        for key, value in table.items()
    }

    with pytest.raises(ValueError, match=message):
        catalog.build("reward", table)


PARTS = """
from typing import Annotated
from burnish.annotations import Bounds

def bare(images, prompts, on=True, power=2, words="a"):
    return images.mean((1, 2, 3)) * power * on

def ranged(images, prompts, fraction: Annotated[float, Bounds(0, 1)] = 0.5):
    return images.mean((1, 2, 3)) * fraction

class Made:
    def __init__(self, on: bool = True, layers: "list[int]" = ()):
        self.on = on
    def __call__(self, images, prompts):
        return images.mean((1, 2, 3))

class Inherits(Made):
    pass

def raises(power: int = 1):
    return {}["key"]
"""


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"use": "bare", "on": "False"}, "reward.on = 'False' is .* it wants true or false"),
        ({"use": "bare", "on": 1}, "reward.on = 1 is of the wrong type"),
        ({"use": "bare", "power": "2"}, "reward.power = '2' is .* it wants a number"),
        ({"use": "bare", "words": [float("nan")]}, "reward.words.0 = nan; it must be a finite"),
        ({"use": "ranged", "fraction": 1.5}, "fraction = 1.5; it must be at least 0 and at most 1"),
        ({"use": "ranged", "fraction": 10**400}, "fraction is too large"),
        ({"use": "Made", "on": "False"}, "reward.on = 'False' is of the wrong type"),
        ({"use": "Made", "layers": [1, "2"]}, "layers = .* it wants a list of whole numbers"),
        ({"use": "Inherits", "on": "False"}, "reward.on = 'False' is of the wrong type"),
        ({"use": "raises"}, "reward: .*raises raised KeyError: 'key'"),
    ],
)
def test_arguments_of_functions_and_classes(tmp_path: Path, table: dict, message: str) -> None:
    (tmp_path / "parts.py").write_text(PARTS)
    with pytest.raises(ValueError, match=message):
        catalog.build("reward", {**table, "use": f"{tmp_path}/parts.py:{table['use']}"})


def test_arguments_that_fit(tmp_path: Path) -> None:
    (tmp_path / "parts.py").write_text(PARTS)
    for table in (
        {"use": "bare", "on": False, "power": 0.5, "words": ["a", "b"]},
        {"use": "ranged", "fraction": 1},
        {"use": "Made", "on": False, "layers": [1, 2]},
    ):
        catalog.build("reward", {**table, "use": f"{tmp_path}/parts.py:{table['use']}"})


def test_a_bad_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        catalog.resolve("reward", f"{tmp_path}/missing.py:x")
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(ValueError, match=r"broken.py fails when it is read: ModuleNotFoundError"):
        catalog.resolve("reward", f"{tmp_path}/broken.py:x")
