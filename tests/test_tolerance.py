"""Rewards that fail: called again, given up, masked."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from burnish.rewards import Tolerance, score
from burnish.types import Prompt

IMAGES = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 8, 8)
PROMPTS = [Prompt(name) for name in "abcd"]


def scripted(*answers: Callable[[Tensor], Tensor]) -> tuple[Callable[..., Tensor], list[list[str]]]:
    """Return a reward that gives one answer after the other, and the prompts of its calls."""
    calls: list[list[str]] = []

    def reward(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        calls.append([prompt.text for prompt in prompts])
        return answers[min(len(calls), len(answers)) - 1](images)

    return reward, calls


def value(images: Tensor) -> Tensor:
    return images.mean((1, 2, 3))


def odd_missing(images: Tensor) -> Tensor:
    return torch.where(value(images) % 2 == 1, torch.nan, value(images))


def fails(images: Tensor) -> Tensor:
    raise ConnectionError("gone")


def test_only_missing_images_are_tried_again() -> None:
    reward, calls = scripted(fails, odd_missing, value)
    scores = score({"r": reward}, IMAGES, PROMPTS, Tolerance(retries=2, pause=0))
    assert scores.parts[:, 0].tolist() == [0, 1, 2, 3] and scores.problems == ()
    assert calls == [list("abcd"), list("abcd"), list("bd")]


def test_pauses_double(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("burnish.rewards.tolerance.time.sleep", pauses.append)
    with pytest.raises(ValueError, match="'r' raised ConnectionError: gone .* scoring.missing"):
        score({"r": scripted(fails)[0]}, IMAGES, PROMPTS, Tolerance(retries=3, pause=0.5))
    assert sum(pauses) == pytest.approx(0.5 + 1 + 2)
    assert max(pauses) <= 0.1, "in short steps, between which a stop is noticed"


def test_images_that_stay_missing_are_masked_or_an_error() -> None:
    masked = score(
        {"r": scripted(odd_missing)[0], "s": scripted(value)[0]},
        IMAGES,
        PROMPTS,
        Tolerance(mask=True),
    )
    assert masked.parts[:, 0].isnan().tolist() == [False, True, False, True]
    assert masked.parts[:, 1].tolist() == [0, 1, 2, 3]
    assert masked.problems == ("r: 2 numbers were not finite",)

    with pytest.raises(
        ValueError, match=r"'r' returned nan for 2 of 4 images \(first: row 1, prompt 'b'\)"
    ):
        score({"r": scripted(odd_missing)[0]}, IMAGES, PROMPTS)

    everything = score({"r": scripted(fails)[0]}, IMAGES, PROMPTS, Tolerance(mask=True))
    assert everything.parts.isnan().all()
    assert everything.problems == ("r: ConnectionError: gone",)

    reward, _ = scripted(lambda images: value(images).log())
    infinite = score({"r": reward}, IMAGES, PROMPTS, Tolerance(mask=True))
    assert infinite.parts[0].isnan().all() and infinite.parts[1:].isfinite().all()


def test_an_answer_that_does_not_come_is_left_behind() -> None:
    def hangs(images: Tensor) -> Tensor:
        time.sleep(5)
        return value(images)

    started = time.monotonic()
    reward, calls = scripted(hangs, value)
    scores = score({"r": reward}, IMAGES, PROMPTS, Tolerance(retries=1, timeout=0.2, pause=0))
    assert time.monotonic() - started < 3
    assert scores.parts[:, 0].tolist() == [0, 1, 2, 3]
    assert len(calls) == 2

    with pytest.raises(ValueError, match=r"raised TimeoutError: no answer within 0.1 s"):
        score({"r": scripted(hangs)[0]}, IMAGES, PROMPTS, Tolerance(timeout=0.1))


@pytest.mark.parametrize(
    "answer", [lambda images: torch.ones(2), lambda images: "much", lambda images: images]
)
def test_a_wrong_shape_is_never_tolerated(answer: Callable[[Tensor], Tensor]) -> None:
    tolerance = Tolerance(retries=3, mask=True, timeout=5)
    with pytest.raises(ValueError, match="'r' returned .* must return"):
        score({"r": scripted(answer)[0]}, IMAGES, PROMPTS, tolerance)
