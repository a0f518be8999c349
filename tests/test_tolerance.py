"""Rewards that fail: asked again, given up, masked."""

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
    """A reward that does one thing after the other, and the prompts it was asked about."""
    asked: list[list[str]] = []

    def reward(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        asked.append([prompt.text for prompt in prompts])
        return answers[min(len(asked), len(answers)) - 1](images)

    return reward, asked


def value(images: Tensor) -> Tensor:
    return images.mean((1, 2, 3))


def odd_missing(images: Tensor) -> Tensor:
    return torch.where(value(images) % 2 == 1, torch.nan, value(images))


def gone(images: Tensor) -> Tensor:
    raise ConnectionError("gone")


def test_only_what_is_missing_is_asked_again() -> None:
    reward, asked = scripted(gone, odd_missing, value)
    scores = score({"r": reward}, IMAGES, PROMPTS, Tolerance(retries=2, pause=0))
    assert scores.parts[:, 0].tolist() == [0, 1, 2, 3] and scores.problems == ()
    assert asked == [list("abcd"), list("abcd"), list("bd")]


def test_pauses_double(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("burnish.rewards.tolerance.time.sleep", pauses.append)
    with pytest.raises(ValueError, match="'r' raised ConnectionError: gone .* scoring.missing"):
        score({"r": scripted(gone)[0]}, IMAGES, PROMPTS, Tolerance(retries=3, pause=0.5))
    assert pauses == [0.5, 1.0, 2.0]


def test_what_stays_missing_is_masked_or_an_error() -> None:
    masked = score(
        {"r": scripted(odd_missing)[0], "s": scripted(value)[0]},
        IMAGES,
        PROMPTS,
        Tolerance(mask=True),
    )
    assert masked.parts[:, 0].isnan().tolist() == [False, True, False, True]
    assert masked.parts[:, 1].tolist() == [0, 1, 2, 3] and masked.problems == (
        "r: 2 numbers were not finite",
    )

    with pytest.raises(
        ValueError, match=r"'r' returned nan for 2 of 4 images \(first: row 1, prompt 'b'\)"
    ):
        score({"r": scripted(odd_missing)[0]}, IMAGES, PROMPTS)

    everything = score({"r": scripted(gone)[0]}, IMAGES, PROMPTS, Tolerance(mask=True))
    assert everything.parts.isnan().all() and everything.problems == ("r: ConnectionError: gone",)
    infinite = score(
        {"r": scripted(lambda images: value(images).log())[0]},
        IMAGES,
        PROMPTS,
        Tolerance(mask=True),
    )
    assert infinite.parts[0].isnan().all() and infinite.parts[1:].isfinite().all()


def test_an_answer_that_does_not_come_is_left_behind() -> None:
    def hangs(images: Tensor) -> Tensor:
        time.sleep(5)
        return value(images)

    started = time.monotonic()
    reward, asked = scripted(hangs, value)
    scores = score({"r": reward}, IMAGES, PROMPTS, Tolerance(retries=1, timeout=0.2, pause=0))
    assert (
        time.monotonic() - started < 3
        and scores.parts[:, 0].tolist() == [0, 1, 2, 3]
        and len(asked) == 2
    )

    with pytest.raises(ValueError, match=r"raised TimeoutError: no answer within 0.1 s"):
        score({"r": scripted(hangs)[0]}, IMAGES, PROMPTS, Tolerance(timeout=0.1))


@pytest.mark.parametrize(
    "answer", [lambda images: torch.ones(2), lambda images: "much", lambda images: images]
)
def test_a_wrong_shape_is_never_tolerated(answer: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match="'r' returned .* must return"):
        score(
            {"r": scripted(answer)[0]}, IMAGES, PROMPTS, Tolerance(retries=3, mask=True, timeout=5)
        )
