"""User code: what it writes into is its own, what it returns is taken or refused by name."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import burnish
from burnish import catalog
from burnish.checked import checked_part, checked_prompts
from burnish.evaluation.held_out import Panel
from burnish.evaluation.paired import _judged
from burnish.objective_check import check_objective
from burnish.rewards import Tolerance, check_reward, score
from burnish.types import Gaussian, Loss, Prompt, Replay, Scores
from burnish.user_code import to_column

IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
PROMPTS = [Prompt(name, {"words": [name]}) for name in "abcd"]


def brightness(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    return images.mean((1, 2, 3))


# What a function is given -----------------------------------------------------------------------


def in_place(images: Tensor, prompts: Sequence[Prompt]) -> None:
    images.mul_(255).round_()


def as_array(images: Tensor, prompts: Sequence[Prompt]) -> None:
    images.numpy()[:] = 0  # torch's version counter does not see this


def as_data(images: Tensor, prompts: Sequence[Prompt]) -> None:
    images.data.zero_()


def through_a_view(images: Tensor, prompts: Sequence[Prompt]) -> None:
    images.permute(0, 2, 3, 1).clamp_(0, 0.1)


def metadata(images: Tensor, prompts: Sequence[Prompt]) -> None:
    for prompt in prompts:
        prompt.metadata["words"].clear()  # a list in the dict
        prompt.metadata.clear()  # type: ignore[attr-defined]


@pytest.mark.parametrize("spoil", [in_place, as_array, as_data, through_a_view, metadata])
@pytest.mark.parametrize("timeout", [0.0, 5.0])
def test_a_reward_spoils_only_its_own(spoil: Callable[..., None], timeout: float) -> None:
    def spoils(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        spoil(images, prompts)
        return torch.arange(float(len(images)))

    def reads(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        assert [prompt.metadata["words"] for prompt in prompts] == [["a"], ["b"], ["c"], ["d"]]
        return brightness(images, prompts)

    images = IMAGES.clone()
    rewards = {"first": spoils, "second": spoils, "reads": reads}
    scores = score(rewards, images, PROMPTS, Tolerance(timeout=timeout))
    assert torch.equal(images, IMAGES)
    assert PROMPTS[0].metadata == {"words": ["a"]}
    assert torch.equal(scores.parts[:, 2].float(), brightness(IMAGES, PROMPTS))

    panel = Panel(rewards)
    rows, _ = panel.measure(images, PROMPTS)
    assert [row["reads"] for row in rows] == scores.parts[:, 2].tolist()


def test_images_of_one_prompt_share_one_object() -> None:
    def counts(images: Tensor, prompts: Sequence[Prompt]) -> list[int]:
        return [len({id(prompt) for prompt in prompts})] * len(prompts)

    prompts = [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2
    assert score({"r": counts}, IMAGES, prompts).parts[:, 0].tolist() == [2] * 4


def test_what_cannot_be_copied_is_shared() -> None:
    def reads(images: Tensor, prompts: Sequence[Prompt]) -> list[float]:
        return [float(prompt.metadata["file"] is file) for prompt in prompts]

    with open(os.devnull) as file:
        prompts = [Prompt("a", {"file": file})] * 4
        assert score({"r": reads}, IMAGES, prompts).parts[:, 0].tolist() == [1] * 4


def test_a_judge_spoils_only_its_own_and_is_checked() -> None:
    def judge(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        images.zero_()
        prompts[0].metadata.clear()  # type: ignore[attr-defined]
        return torch.tensor([True, False, True, True])

    images = IMAGES.clone()
    assert _judged(judge, images, PROMPTS) == [True, False, True, True]
    assert torch.equal(images, IMAGES) and PROMPTS[0].metadata

    wrong = {
        "returned shape": lambda images, prompts: torch.ones(3).bool(),
        "must return torch.bool": lambda images, prompts: torch.rand(4),
        "returned nothing": lambda images, prompts: None,
        "raised KeyError: 'x' .*test_user_code.py": lambda images, prompts: {}["x"],
    }
    for message, answer in wrong.items():
        with pytest.raises(ValueError, match=f"the judge .*{message}"):
            _judged(answer, images, PROMPTS)  # type: ignore[arg-type]


def test_a_prompt_function_keeps_no_hold_on_its_prompts() -> None:
    mine = [Prompt("a cat", {"words": ["cat"]}), Prompt("a dog", {})]
    taken = checked_prompts(mine, "f", 2)
    mine[0].metadata["words"].append("spoilt")
    mine[1].metadata["new"] = 1  # type: ignore[index]
    mine.clear()
    assert [prompt.metadata for prompt in taken] == [{"words": ["cat"]}, {}]


def test_what_a_function_returns_is_copied() -> None:
    buffer = torch.zeros(4)
    array = np.zeros(4)
    numbers = [buffer, array]

    def overwrites(images: Tensor, prompts: Sequence[Prompt]) -> Any:
        values = numbers.pop(0)
        values[:] = brightness(images, prompts)
        return values

    scores = score({"a": overwrites, "b": overwrites}, IMAGES, PROMPTS)
    buffer.zero_()
    array[:] = 0
    assert torch.equal(scores.parts, brightness(IMAGES, PROMPTS).double()[:, None].expand(4, 2))

    column = np.arange(4.0)
    own = to_column(column, 4)
    column[:] = 0
    assert own.tolist() == [0, 1, 2, 3]


def test_an_advantage_keeps_no_hold_on_what_it_returns() -> None:
    def advantage(scores: Scores, weights: Tensor, group: Tensor) -> np.ndarray:
        return shared

    shared = np.arange(4, dtype=np.float32)
    part = checked_part("advantage", advantage, "mine")
    scores = Scores(torch.zeros(4, 1), ("r",))
    adv = part(scores, torch.ones(1), torch.zeros(4))
    shared[:] = 0
    assert adv.tolist() == [0, 1, 2, 3]


def test_a_kernel_and_a_guidance_spoil_only_their_own() -> None:
    out = torch.empty(2, 4, 3, 3)

    def kernel(x_t: Tensor, x0: Tensor, level_t: Any, level_s: Any) -> Gaussian:
        out.copy_(x0)
        x_t.zero_()
        x0.zero_()
        return Gaussian(out, torch.ones(2, 1, 1, 1))

    latents = torch.ones(2, 4, 3, 3)
    gaussian = checked_part("kernel", kernel, "mine")(latents, latents, None, None)
    out.zero_()
    assert latents.eq(1).all() and gaussian.mean.eq(1).all()

    def guidance(raw: Any, x: Tensor, t: Tensor, cond: Any, null: Any) -> Tensor:
        result = raw(x, t, cond)
        for tensor in (x, t, cond["text"], null["text"]):
            tensor.zero_()
        cond.clear()
        null.clear()
        return result

    t = torch.ones(2).long()
    cond = {"text": torch.ones(2, 3)}
    null = {"text": torch.ones(1, 3).expand(2, 3)}
    part = checked_part("guidance", guidance, "mine")
    assert torch.equal(part(lambda x, t, cond: x * 2, latents, t, cond, null), latents * 2)
    assert latents.eq(1).all() and t.eq(1).all()
    assert cond["text"].eq(1).all() and null["text"].eq(1).all()


def seeds(images: Tensor) -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)


def draws(images: Tensor) -> None:
    torch.rand(7)
    random.random()
    np.random.rand(3)


SPOILS: dict[str, Callable[[Tensor], Any]] = {
    "seeds": seeds,
    "draws": draws,
    "images": lambda images: images.zero_(),
    "gradients": lambda images: torch.set_grad_enabled(False),
    "dtype": lambda images: torch.set_default_dtype(torch.float64),
    "folder": lambda images: os.chdir("/"),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {}


@pytest.mark.parametrize("name", SPOILS)
def test_training_does_not_depend_on_what_a_reward_changes(
    write_recipe: Callable[..., Path], tmp_path: Path, name: str, undisturbed: dict[str, Any]
) -> None:
    path = write_recipe(
        iterations=2,
        prompts={"use": "list", "texts": ["a cat", "a dog"]},
        batch={"prompts": 2, "images_per_prompt": 4, "sample_batch": 4},
        evaluation={"images_per_prompt": 0},
        run={"sample_every": 0},
    )

    def trained(spoil: Callable[[Tensor], Any], folder: str) -> tuple[Any, ...]:
        def reward(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
            values = images.mean((1, 2, 3))
            spoil(images)
            return values

        overrides = burnish.Overrides(rewards={"bright": reward})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what was put back is said
            run = burnish.train(burnish.load_config(path), tmp_path / folder, overrides=overrides)
        weights = (run / "checkpoints" / "000002" / "tensors.safetensors").read_bytes()
        return os.getcwd(), torch.get_default_dtype(), torch.is_grad_enabled(), weights

    if not undisturbed:
        undisturbed["run"] = trained(lambda images: None, "undisturbed")
    assert trained(SPOILS[name], "spoilt") == undisturbed["run"]


def test_what_is_put_back_is_said(tmp_path: Path) -> None:
    def goes_elsewhere(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        os.chdir(tmp_path)
        return brightness(images, prompts)

    before = os.getcwd()
    with pytest.warns(UserWarning, match="reward 'r' changed the current folder; it was put back"):
        score({"r": goes_elsewhere}, IMAGES, PROMPTS)
    assert os.getcwd() == before


@pytest.mark.parametrize(
    ("change", "read", "message"),
    [
        (
            lambda: torch.use_deterministic_algorithms(True),
            torch.are_deterministic_algorithms_enabled,
            "torch's deterministic algorithms",
        ),
        (
            lambda: torch.set_num_threads(torch.get_num_threads() + 1),
            torch.get_num_threads,
            "torch's number of threads",
        ),
        (
            lambda: setattr(torch.backends.cudnn, "benchmark", True),
            lambda: torch.backends.cudnn.benchmark,
            "the settings of cuDNN",
        ),
    ],
)
def test_how_torch_computes_is_put_back(
    change: Callable[[], None], read: Callable[[], Any], message: str
) -> None:
    def reward(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        change()
        return brightness(images, prompts)

    before = read()
    with pytest.warns(UserWarning, match=f"reward 'r' changed {message}; it was put back"):
        score({"r": reward}, IMAGES, PROMPTS)
    assert read() == before


# What a reward returns --------------------------------------------------------------------------

NUMBERS = [0.5, 1.0, 0.25, 2.0]
FORMS: dict[str, Callable[[], Any]] = {
    "list": lambda: NUMBERS,
    "tuple": lambda: tuple(NUMBERS),
    "tensor": lambda: torch.tensor(NUMBERS),
    "sparse": lambda: torch.tensor(NUMBERS).to_sparse(),
    "half": lambda: torch.tensor(NUMBERS, dtype=torch.float16),
    "with a gradient": lambda: torch.tensor(NUMBERS, requires_grad=True),
    "array": lambda: np.array(NUMBERS),
    "objects": lambda: np.array(NUMBERS, dtype=object),
    "tensors": lambda: [torch.tensor(number) for number in NUMBERS],
    "arrays": lambda: [np.array(number) for number in NUMBERS],
    "numpy's": lambda: [np.float32(number) for number in NUMBERS],
    "decimals": lambda: [Decimal(str(number)) for number in NUMBERS],
    "fractions": lambda: [Fraction(number) for number in NUMBERS],
    "generator": lambda: (number for number in NUMBERS),
    "mixed": lambda: [np.array(0.5), torch.tensor(1), Fraction(1, 4), 2],
    "values": lambda: dict(enumerate(NUMBERS)).values(),
}


@pytest.mark.parametrize("name", FORMS)
def test_numbers_of_every_kind(name: str) -> None:
    scores = score({"r": lambda images, prompts: FORMS[name]()}, IMAGES, PROMPTS)
    assert scores.parts[:, 0].tolist() == NUMBERS


def test_truths_are_numbers() -> None:
    for values in ([True, False], np.array([True, False]), torch.tensor([True, False])):
        assert to_column(values, 2).tolist() == [1, 0]
    assert to_column([np.True_, False], 2).tolist() == [1, 0]


@pytest.mark.parametrize(
    "values",
    [
        [0.5, None, 1.0, 2.0],
        [0.5, float("nan"), 1, 2],
        np.array([0.5, None, 1, 2], dtype=object),
        np.ma.masked_array([0.5, 9, 1, 2], [False, True, False, False]),
        [torch.tensor(0.5), None, np.array(1.0), Decimal(2)],
        [0.5, Decimal("NaN"), 1, 2],
    ],
)
def test_none_is_a_missing_score(values: Any) -> None:
    calls: list[int] = []

    def reward(images: Tensor, prompts: Sequence[Prompt]) -> Any:
        calls.append(len(images))
        return values if len(calls) == 1 else [7.0]

    again = score({"r": reward}, IMAGES, PROMPTS, Tolerance(retries=1, pause=0))
    assert again.parts[:, 0].tolist() == [0.5, 7, 1, 2] and calls == [4, 1]

    masked = score({"r": lambda images, prompts: values}, IMAGES, PROMPTS, Tolerance(mask=True))
    assert masked.parts[:, 0].isnan().tolist() == [False, True, False, False]
    with pytest.raises(ValueError, match=r"for 1 of 4 images \(first: row 1, prompt 'b'\)"):
        score({"r": lambda images, prompts: values}, IMAGES, PROMPTS)


def sparse(values: list[float]) -> Tensor:
    return torch.tensor(values).to_sparse()


async def asynchronous(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    return brightness(images, prompts)


def endless() -> Iterator[float]:
    while True:
        yield 1.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["1", "2", "3", "4"], "a str in row 0"),
        ("1234", "a str"),
        (b"1234", "a bytes"),
        ({"a": [1, 2, 3, 4]}, "a dict"),
        ({1.0, 2.0, 3.0, 4.0}, "a set"),
        (0.5, "a float"),
        (None, "nothing"),
        (torch.tensor(0.5), r"tensor of shape \(\)"),
        (np.float64(0.5), "a float64"),
        (np.zeros((4, 2)), r"an array of shape \(4, 2\)"),
        (torch.zeros(4, 1), r"tensor of shape \(4, 1\)"),
        ([1.0, 2.0, 3.0], "a list of 3 entries"),
        ([1.0] * 5, "a list of 5 entries or more"),
        ([[1.0], [2.0], [3.0], [4.0]], "a list in row 0"),
        ([1.0, 2.0, np.array([3.0]), 4.0], r"an array of shape \(1,\) in row 2"),
        ([1.0, 2j, 3.0, 4.0], "a complex in row 1"),
        ([1.0, 2.0, 3.0, 10**400], "no float holds in row 3"),
        ((torch.zeros(4), {}), "a tuple of 2 entries"),
        (endless(), "a list of 5 entries or more"),
        (np.array(["1", "2", "3", "4"]), "a str in row 0"),
        (lambda: 1.0, "a function"),
    ],
)
def test_what_is_no_number_an_image_is_refused(values: Any, message: str) -> None:
    reward = {"mine": lambda images, prompts: values}
    with pytest.raises(ValueError, match=rf"reward 'mine' returned .*{message}.*must return"):
        score(reward, IMAGES, PROMPTS, Tolerance(retries=2, mask=True))


def test_an_asynchronous_reward_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reward 'r' is asynchronous; write it with def"):
        score({"r": asynchronous}, IMAGES, PROMPTS)  # type: ignore[dict-item]
    assert check_reward(asynchronous) == [  # type: ignore[arg-type]
        "the reward is asynchronous; write it with def instead of async def"
    ]


def test_a_failure_names_the_line_of_the_users_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("import json\ndef reward(images, prompts):\n\n    return json.loads('{')\n")
    reward = catalog.build("reward", {"use": f"{path}:reward"})
    place = rf"reward 'r' raised JSONDecodeError: .* \({path}:4\)"
    with pytest.raises(ValueError, match=place):
        score({"r": reward}, IMAGES, PROMPTS)

    path = tmp_path / "ends.py"
    path.write_text("import sys\ndef reward(images, prompts):\n    sys.exit(0)\n")
    reward = catalog.build("reward", {"use": f"{path}:reward"})
    place = rf"reward 'r' raised SystemExit: 0 \({path}:3\), which ends programs"
    with pytest.raises(ValueError, match=place):
        score({"r": reward}, IMAGES, PROMPTS)


class Panic(BaseException):
    """As libraries in Rust raise it: no `Exception`."""


@pytest.mark.parametrize("error", [UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), Panic("index")])
def test_one_image_that_a_library_fails_on_costs_one_score(error: BaseException) -> None:
    def reward(images: Tensor, prompts: Sequence[Prompt]) -> list[float]:
        if any(prompt.text == "c" for prompt in prompts):
            raise error
        return [1.0] * len(images)

    scores = score({"r": reward}, IMAGES, PROMPTS, Tolerance(mask=True))
    assert scores.parts[:, 0].isnan().tolist() == [False, False, True, False]
    assert type(error).__name__ in scores.problems[0]
    with pytest.raises(ValueError, match=rf"reward 'r' raised .*{type(error).__name__}"):
        score({"r": reward}, IMAGES, PROMPTS)


def test_a_server_that_is_down_is_asked_once() -> None:
    calls: list[int] = []

    def reward(images: Tensor, prompts: Sequence[Prompt]) -> list[float]:
        calls.append(len(images))
        raise ConnectionError("gone")

    score({"r": reward}, IMAGES, PROMPTS, Tolerance(mask=True))
    assert calls == [4]


# How a function is called -----------------------------------------------------------------------

SIGNATURES = """
import functools
import torch

def mean(images, prompts):
    return images.mean((1, 2, 3))

def other_names(imgs, texts):
    return mean(imgs, texts)

def by_place(a, b, /):
    return mean(a, b)

def with_default(pictures, captions, scale=1.0):
    return mean(pictures, captions) * scale

def anything(*args, **kwargs):
    return mean(*args)

def decorated(function):
    def wrapper(*args):
        return function(*args)
    return wrapper

wrapped = decorated(mean)
partial = functools.partial(lambda scale, x, y: mean(x, y) * scale, 1.0)
short = lambda x, y: mean(x, y)

class Object:
    def __call__(self, x, y):
        return mean(x, y)
    def method(self, x, y):
        return mean(x, y)

instance = Object()
bound = instance.method

class Module(torch.nn.Module):
    def forward(self, x, prompts):
        return mean(x, prompts)

module = Module()

def factory(scale=1.0):
    return other_names

def needs(scale):
    return lambda x, y: mean(x, y) * scale

def needs_two(scale, offset):
    return lambda x, y: mean(x, y) * scale + offset

def one(images):
    return mean(images, None)

def three(images, prompts, metadata):
    return mean(images, prompts)

def others(imgs, texts, metadata):
    return mean(imgs, texts)

def swapped(prompts, images):
    return mean(images, prompts)

def by_name(*, images, prompts):
    return mean(images, prompts)

async def awaited(images, prompts):
    return mean(images, prompts)

class Late:
    async def __call__(self, images, prompts):
        return mean(images, prompts)

def makes_nothing():
    return None

def makes_a_class():
    return Object

def makes_one_argument():
    return lambda images: mean(images, None)

def fails():
    return {}["key"]

number = 3
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(SIGNATURES)
    return path


@pytest.mark.parametrize(
    "table",
    [
        *(
            {"use": name}
            for name in "mean other_names by_place with_default anything wrapped partial short "
            "Object instance bound module Module factory".split()
        ),
        {"use": "with_default", "scale": 1.0},
        {"use": "needs", "scale": 1.0},
        {"use": "needs_two", "scale": 1.0, "offset": 0.0},
    ],
    ids=lambda table: "-".join(map(str, table.values())),
)
def test_a_reward_in_every_form(mine: Path, table: dict[str, Any]) -> None:
    reward = catalog.build("reward", {**table, "use": f"{mine}:{table['use']}"})
    assert torch.equal(
        score({"r": reward}, IMAGES, PROMPTS).parts[:, 0].float(), IMAGES.mean((1, 2, 3))
    )
    assert check_reward(reward) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("one", r"needs images = .*if it is the reward itself.*has to take \(images, prompts\)"),
        ("three", r"needs metadata = .*has to take \(images, prompts\)"),
        ("others", r"needs imgs = .*has to take \(images, prompts\)"),
        ("swapped", r"takes \(prompts, images\), but it is called with \(images, prompts\)"),
        ("by_name", r"needs images = .*has to take \(images, prompts\)"),
        ("awaited", "is asynchronous; write it with def"),
        ("Late", "is asynchronous; write it with def"),
        ("makes_nothing", r"is nothing; give a function of \(images, prompts\)"),
        ("makes_a_class", r"is a class; give an object of it, such as Object\(\)"),
        ("makes_one_argument", r"takes \(images\), but it is called with \(images, prompts\)"),
        ("fails", r"raised KeyError: 'key' \(.*mine.py:\d+\)"),
        ("needs", r"needs scale = "),
        ("number", 'has no function "number"'),
    ],
)
def test_a_reward_that_cannot_be_called(mine: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"mine.py.*{message}"):
        catalog.build("reward", {"use": f"{mine}:{name}"})


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("advantage", "s, w, g"),
        ("objective", "r, a"),
        ("kernel", "x, y, level, other"),
        ("guidance", "network, x, time, prompt, empty"),
        ("curriculum", "p, g"),
    ],
)
def test_every_kind_of_part_may_name_its_parameters(
    tmp_path: Path, kind: str, parameters: str
) -> None:
    path = tmp_path / "parts.py"
    path.write_text(
        f"def part({parameters}):\n    return 1.0\n"
        f"def lacks_one({parameters.rpartition(',')[0]}, *, more=1):\n    return 1.0\n"
        f"async def late({parameters}):\n    return 1.0\n"
    )
    assert callable(catalog.build(kind, {"use": f"{path}:part"}))
    with pytest.raises(ValueError, match=f"parts.py:lacks_one needs .*if it is the {kind} itself"):
        catalog.build(kind, {"use": f"{path}:lacks_one"})
    with pytest.raises(ValueError, match="is asynchronous"):
        catalog.build(kind, {"use": f"{path}:late"})


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda images: images, "takes \\(images\\), but"),
        ("compressibility", "is a str; give a function"),
        (SimpleNamespace, "is a class"),
    ],
)
def test_rewards_of_a_program_are_looked_at(
    write_recipe: Callable[..., Path], tmp_path: Path, reward: Any, message: str
) -> None:
    overrides = burnish.Overrides(rewards={"mine": reward})
    with pytest.raises(ValueError, match=f"reward 'mine' {message}"):
        burnish.train(burnish.load_config(write_recipe()), tmp_path / "run", overrides=overrides)
    (finding,) = check_reward(reward)
    assert message.partition("\\")[0] in finding


def test_building_a_part_shifts_no_random_numbers(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import random, numpy, torch\ntorch.manual_seed(7)\n"
        "class Reward:\n    def __init__(self):\n"
        "        torch.rand(3); random.seed(1); numpy.random.seed(1)\n"
        "    def __call__(self, images, prompts):\n        return images\n"
    )
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    catalog.build("reward", {"use": f"{path}:Reward"})
    assert torch.equal(torch.rand(1), expected)


# What other parts return ------------------------------------------------------------------------


def part_of(kind: str, function: Callable[..., Any]) -> Any:
    return checked_part(kind, function, "mine", catalog.CALLED_WITH[kind])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(3), r"returned shape \(3,\); it must return \(4,\)"),
        (torch.ones(4, 1), r"returned shape \(4, 1\)"),
        ([1.0, 2.0, 3.0], "returned a list of 3 entries"),
        ([1.0, float("nan"), 3.0, 4.0], "returned a number that is not finite .first: row 1"),
        ([1.0, None, 3.0, 4.0], "returned a number that is not finite .first: row 1"),
        (np.array([1.0, np.inf, 3.0, 4.0]), "returned a number that is not finite .first: row 1"),
        ([1.0, 1e300, 3.0, 4.0], "returned a number beyond float32"),
        (["a", "b", "c", "d"], "returned a str in row 0"),
        ({}, "returned a dict"),
        (0.5, "returned a float"),
        (torch.ones(4) * 1j, "returned complex numbers"),
    ],
)
def test_an_advantage_is_checked(value: Any, message: str) -> None:
    part = part_of("advantage", lambda scores, weights, group: value)
    scores = Scores(torch.zeros(4, 1), ("r",))
    with pytest.raises(ValueError, match=f"^advantage mine {message}"):
        part(scores, torch.ones(1), torch.zeros(4))


def test_what_is_returned_is_taken_apart_under_the_functions_name() -> None:
    scores = Scores(torch.zeros(4, 1), ("r",))
    part = part_of("advantage", lambda scores, weights, group: (1 / 0 for _ in range(4)))
    place = r"raised ZeroDivisionError: division by zero \(.*test_user_code.py:\d+\)"
    with pytest.raises(ValueError, match=f"^advantage mine {place}"):
        part(scores, torch.ones(1), torch.zeros(4))

    class Scale(Fraction):
        def __float__(self) -> float:
            return 1 / 0

    curriculum = part_of("curriculum", lambda progress, generator: Scale(1))
    with pytest.raises(ValueError, match=f"^curriculum mine {place}"):
        curriculum(0.0, torch.Generator())

    objective = part_of("objective", lambda replay, adv: Loss(replay.logp.mean(), {"a": Scale(1)}))
    logp = torch.zeros(2, 1, requires_grad=True)
    with pytest.raises(ValueError, match=f"^objective mine {place}"):
        objective(Replay(logp, logp.detach(), 4), torch.ones(2))


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, sparse])
def test_an_advantage_of_any_numbers_is_taken_and_bad_rows_are_zero(kind: Any) -> None:
    part = part_of("advantage", lambda scores, weights, group: kind([1.0, float("nan"), 3, 4]))
    scores = Scores(torch.tensor([[0.0], [torch.nan], [0.0], [0.0]]), ("r",))
    assert part(scores, torch.ones(1), torch.zeros(4)).tolist() == [1, 0, 3, 4]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda logp: Loss(logp.abs().sqrt().mean(), {}), "a gradient that is not finite"),
        (lambda logp: Loss(logp.mean() * torch.nan, {}), "returned the loss nan"),
        (lambda logp: Loss(logp.sum(1), {}), "returned a loss of a float32 tensor"),
        (lambda logp: Loss(float(logp.mean().detach()), {}), "returned a loss of a float"),  # type: ignore[arg-type]
        (lambda logp: Loss(logp.mean(), {"a": "b"}), "metrics that are no mapping"),
        (lambda logp: Loss(logp.mean(), [1.0]), "metrics that are no mapping"),  # type: ignore[arg-type]
        (lambda logp: (logp.mean(), {}), "returned a tuple; return burnish.Loss"),
    ],
)
def test_an_objective_is_checked(loss: Callable[[Tensor], Any], message: str) -> None:
    part = part_of("objective", lambda replay, adv: loss(replay.logp))
    logp = torch.zeros(2, 1, requires_grad=True)

    def learn() -> None:
        part(Replay(logp, logp.detach(), 4), torch.ones(2)).value.backward()

    with pytest.raises(ValueError, match=f"^objective mine .*{message}"):
        learn()


def test_check_objective_finds_a_gradient_that_is_not_finite() -> None:
    def root(replay: Replay, adv: Tensor) -> Loss:
        return Loss((adv[:, None] * (replay.logp - replay.logp).abs().sqrt()).mean(), {})

    (finding,) = check_objective(root)
    assert "a gradient that is not finite" in finding


def test_metrics_of_one_number_are_numbers() -> None:
    metrics = {"a": torch.tensor(0.5), "b": np.float32(2), "c": True}
    part = part_of("objective", lambda replay, adv: Loss(replay.logp.mean(), metrics))
    logp = torch.zeros(2, 1, requires_grad=True)
    taken = part(Replay(logp, logp.detach(), 4), torch.ones(2)).metrics
    assert taken == {"a": 0.5, "b": 2.0, "c": 1.0}
    assert all(type(value) is float for value in taken.values())


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (lambda x: None, "returned nothing"),
        (lambda x: x[:1], "returned a float32 tensor of shape"),
        (lambda x: x.long(), "returned a int64 tensor"),
        (lambda x: x / 0, "returned numbers that are not finite, though the network's are"),
        (lambda x: {}["x"], r"raised KeyError: 'x' \(.*test_user_code.py"),
    ],
)
def test_a_guidance_is_checked(out: Callable[[Tensor], Any], message: str) -> None:
    part = part_of("guidance", lambda raw, x, t, cond, null: out(raw(x, t, cond)))
    with pytest.raises(ValueError, match=f"guidance mine {message}"):
        part(lambda x, t, cond: x, torch.ones(2, 4, 3, 3), torch.zeros(2), {}, {})


def test_what_a_guidance_overwrites_keeps_the_networks_gradient() -> None:
    def guidance(raw: Any, x: Tensor, t: Tensor, cond: Any, null: Any) -> Tensor:
        out: Tensor = raw(x, t, cond)
        result = out * 1
        for tensor in (x, cond["text"], out):
            tensor.zero_()
        return result

    weight = torch.full((2, 1), 2.0, requires_grad=True)
    x, cond = torch.full((2, 1), 3.0), {"text": torch.full((2, 1), 5.0)}
    part = part_of("guidance", guidance)
    part(
        lambda x, t, cond: (weight * x * cond["text"]).exp2(), x / 10, x, cond, {}
    ).sum().backward()
    expected = 1.5 * torch.tensor(3.0).exp2() * torch.tensor(2.0).log()
    torch.testing.assert_close(weight.grad, expected.expand(2, 1))


def test_a_guidance_is_not_blamed_for_the_network() -> None:
    part = part_of("guidance", lambda raw, x, t, cond, null: raw(x, t, cond))
    x = torch.ones(2, 4, 3, 3)
    assert part(lambda x, t, cond: x / 0, x, torch.zeros(2), {}, {}).isinf().all()

    def broken(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        raise RuntimeError("the network")

    with pytest.raises(RuntimeError, match="^the network$"):
        part(broken, x, torch.zeros(2), {}, {})


@pytest.mark.parametrize(
    ("mean", "message"),
    [
        (lambda x0: x0 / 0, "returned a mean that is not finite, though x0 is"),
        (lambda x0: x0[:1], "as mean; it must be a tensor of shape"),
        (lambda x0: x0.long(), "as mean; it must be a tensor of shape .*floating-point"),
    ],
)
def test_a_kernel_is_checked(mean: Callable[[Tensor], Any], message: str) -> None:
    def kernel(x_t: Tensor, x0: Tensor, level_t: Any, level_s: Any) -> Gaussian:
        return Gaussian(mean(x0), torch.ones(2, 1, 1, 1))

    x0 = torch.ones(2, 4, 3, 3)
    with pytest.raises(ValueError, match=f"kernel mine .*{message}"):
        part_of("kernel", kernel)(x0, x0, None, None)
    part_of("kernel", lambda a, b, c, d: Gaussian(b, torch.ones(2, 1, 1, 1)))(
        x0, x0 / 0, None, None
    )


@pytest.mark.parametrize("scale", ["0.5", None, float("nan"), -1.0, [1.0], 2j])
def test_a_curriculum_is_checked(scale: Any) -> None:
    part = part_of("curriculum", lambda progress, generator: scale)
    with pytest.raises(ValueError, match="^curriculum mine returned"):
        part(0.5, torch.Generator())


def endless_prompts() -> Iterator[Prompt]:
    while True:
        yield Prompt("a cat")


def broken_prompts() -> Iterator[Prompt]:
    yield Prompt("a cat")
    raise KeyError("x")


PROMPTS_RETURNED: list[tuple[Callable[[], Any], str]] = [
    (lambda: [7, "a dog"], "returned a int in row 0; return a text, a row"),
    (lambda: [{"text": "a cat"}] * 2, "returned a dict in row 0"),
    (lambda: [{"prompt": 7}] * 2, "returned a dict in row 0"),
    (lambda: [("a cat",)] * 2, "returned a tuple in row 0"),
    (lambda: [("a cat", "red")] * 2, "returned a str as metadata in row 0"),
    (lambda: [{"prompt": " "}, "a cat"], "returned an empty text in row 0"),
    (lambda: {"a cat": 1}, "returned a dict"),
    (lambda: None, "returned nothing"),
    (lambda: [], "returned no prompts"),
    (lambda: 3, "returned a int"),
    (lambda: [Prompt("a cat"), Prompt("  ")], "returned an empty text in row 1"),
    (lambda: [Prompt("a cat", ["x"])] * 2, "returned a list as metadata in row 0"),  # type: ignore[arg-type]
    (lambda: [Prompt("a cat", None)] * 2, "returned nothing as metadata in row 0"),  # type: ignore[arg-type]
    (lambda: [Prompt("a cat", template="no")] * 2, "returned the template 'no' in row 0"),
    (lambda: [Prompt("a cat")] * 3, "returned 3 prompts, but 2 were wanted"),
    (endless_prompts, "returned 1,003 prompts or more, but 2 were wanted"),
    (broken_prompts, r"raised KeyError: 'x' \(.*test_user_code.py:\d+\)"),
]


@pytest.mark.parametrize(("returned", "message"), PROMPTS_RETURNED)
def test_what_a_prompt_function_returns_is_checked(
    returned: Callable[[], Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"the prompt function f {message}"):
        checked_prompts(returned(), "f", 2)


def test_a_generator_of_prompts_is_taken() -> None:
    assert [p.text for p in checked_prompts((Prompt(c) for c in "ab"), "f", 2)] == ["a", "b"]
    assert len(checked_prompts((Prompt(c) for c in "abc"), "f")) == 3


def test_texts_rows_and_pairs_are_prompts() -> None:
    rows = ["a cat", {"prompt": "a dog", "legs": 4}, ("an ox", {"legs": 4}), Prompt("a bee")]
    drawn = checked_prompts(rows, "f", 4)
    assert drawn == [
        Prompt("a cat"),
        Prompt("a dog", {"legs": 4}),
        Prompt("an ox", {"legs": 4}),
        Prompt("a bee"),
    ]


def test_an_endless_source_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.checked.MOST_PROMPTS", 100)
    with pytest.raises(ValueError, match="returned 101 prompts or more, but 100 at most"):
        checked_prompts(endless_prompts(), "f")


def test_prompts_that_are_there_twice_are_said(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    from burnish.training.assembly import load_prompts

    (tmp_path / "prompts.txt").write_text("a cat\na dog\na cat \n")
    with pytest.warns(UserWarning, match=r"prompts: 1 of 3 prompts are there already .*'a cat'"):
        load_prompts({"use": "lines", "path": str(tmp_path / "prompts.txt")}, "prompts")

    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "a", "payload": 1}\n{"prompt": "a", "payload": 2}'
    )
    assert len(load_prompts({"use": "jsonl", "path": str(tmp_path / "p.jsonl")}, "prompts")) == 2
