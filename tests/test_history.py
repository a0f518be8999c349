"""A reward's values depend on the images and prompts of a call, not on the calls before.

A resumed run has made fewer calls, so anything that is remembered would change its bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from burnish import catalog, zoo
from burnish.evaluation.held_out import Panel
from burnish.rewards import vlm
from burnish.rewards.caption import Encoder, caption
from burnish.rewards.clip import Clip, clip_similarity
from burnish.types import Prompt
from burnish.zoo.scenes import Scenes

if TYPE_CHECKING:
    from conftest import LocalServer

CLIP = "zoo:emoji-clip"
CAPTIONER = "zoo:emoji-captioner"
NOUNS = ("cat", "dog", "wolf", "car", "tree", "guitar", "fox", "ant on a red hill", "pear")
REWARDS: dict[str, dict[str, Any]] = {
    "aesthetic": {"model": CLIP, "head": "zoo:emoji-aesthetic"},
    "caption": {"model": CAPTIONER, "encoder": CLIP, "layer": 1},
    "clip_contrast": {"model": CLIP, "others": ["a cat", "a dog", "a pear"]},
    "clip_retrieval": {"model": CLIP, "others": ["a cat", "a dog", "a pear"]},
    "clip_similarity": {"model": CLIP},
    "code_distance": {"model": CLIP},
    "compressibility": {},
    "incompressibility": {},
    "picture_similarity": {"model": CLIP},
    "preference": {"model": CLIP},
    "qr_modules": {},
    "qr_scan": {"workers": 1},
    "question": {"model": CAPTIONER},
    "remote": {},
    "sentiment": {"model": CLIP},
}


def test_every_reward_is_in_the_list() -> None:
    """But for a fitted head, which needs its file, and those of an iteration's own images."""
    assert {*REWARDS, "taste", "votes", "chosen"} == set(catalog.BUILTIN["reward"])


def built(name: str, server: LocalServer) -> Callable[..., Tensor]:
    table: dict[str, Any] = {"use": name, **REWARDS[name]}
    if name == "remote":
        server.answer = lambda body: (200, {"scores": [len(text) for text in body["images"]]})
        table["url"] = server.url
    reward: Callable[..., Tensor] = catalog.build("reward", table)
    return reward


@pytest.fixture(scope="module")
def images() -> Tensor:
    return Scenes(3).draw(12)[0].permute(0, 3, 1, 2).float() / 255


@pytest.fixture
def prompts(tmp_path: Path, images: Tensor) -> list[Prompt]:
    """Twelve prompts, each with all that any reward reads; three images beside them."""
    for number in range(3):
        pixels = (images[number] * 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")

    return [
        Prompt(
            f"a {NOUNS[row % len(NOUNS)]}",
            {
                "payload": f"AB{row % 4}",
                "base": str(tmp_path / f"{row % 3}.png"),
                "questions": [f"how many {NOUNS[row % len(NOUNS)]}s are there?"],
                "answers": ["two"],
            },
        )
        for row in range(12)
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REWARDS)
def test_values_do_not_depend_on_the_calls_before(
    name: str, server: LocalServer, images: Tensor, prompts: list[Prompt]
) -> None:
    def call(reward: Callable[..., Tensor], rows: Sequence[int]) -> Tensor:
        return torch.as_tensor(reward(images[list(rows)], [prompts[row] for row in rows]))

    expected = call(built(name, server), range(4, 12))
    older = built(name, server)

    for rows in ((3, 9, 11), (5,), (8, 2, 0, 7, 10), (4, 4)):
        call(older, rows)

    assert torch.equal(call(older, range(4, 12)).nan_to_num(-9), expected.nan_to_num(-9))


def test_a_text_alone_and_among_others_is_the_same_to_the_bit() -> None:
    clip = Clip.load(CLIP)
    texts = [f"a {noun}" for noun in NOUNS]
    together = clip.texts(texts)
    for text, row in zip(texts, together, strict=True):
        assert torch.equal(clip.texts([text])[0], row)


# One bad image or answer ------------------------------------------------------------------------


class Odd(ValueError):
    """An error of a library."""


def failing(call: Callable[..., Any], is_bad: Callable[..., bool], error: Exception) -> Any:
    """Return `call`, which raises where `is_bad` says so of its arguments."""

    def called(*arguments: Any, **options: Any) -> Any:
        if is_bad(*arguments, **options):
            raise error
        return call(*arguments, **options)

    return called


def test_a_local_model_that_fails_on_one_image_answers_about_the_others(
    monkeypatch: pytest.MonkeyPatch, images: Tensor, prompts: list[Prompt]
) -> None:
    bad = (images[2] * 255).round().byte().permute(1, 2, 0).numpy()
    monkeypatch.setattr(
        vlm.Local,
        "_generate",
        failing(vlm.Local._generate, lambda self, p, q: any((i == bad).all() for i in p), Odd("x")),
    )
    reward = caption(CAPTIONER, encoder=CLIP)
    with pytest.warns(UserWarning, match="1 of 12 images failed and have no score.*Odd: x"):
        values = reward(images, prompts)
    assert values.isnan().nonzero().flatten().tolist() == [2]


def test_an_encoder_that_fails_on_one_answer_scores_the_others(
    monkeypatch: pytest.MonkeyPatch, images: Tensor, prompts: list[Prompt]
) -> None:
    answers = [f"answer {row}" for row in range(12)]
    monkeypatch.setattr(vlm, "load", lambda *_, **__: lambda images, questions: answers)
    monkeypatch.setattr(
        Encoder,
        "_chunk_states",
        failing(Encoder._chunk_states, lambda self, texts: "answer 5" in texts, Odd("x")),
    )
    with pytest.warns(UserWarning, match="of .* texts failed"):
        values = caption(CAPTIONER, encoder=CLIP)(images, prompts)
    assert values.isnan().nonzero().flatten().tolist() == [5]


@pytest.mark.parametrize("name", ["aesthetic", "clip_similarity", "preference", "sentiment"])
def test_a_clip_model_that_fails_on_one_image_scores_the_others(
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    server: LocalServer,
    images: Tensor,
    prompts: list[Prompt],
) -> None:
    bad = images[7:8]
    monkeypatch.setattr(
        "burnish.rewards.clip.prepare",
        failing(
            __import__("burnish.rewards.clip", fromlist=["prepare"]).prepare,
            lambda images, *_: any(torch.equal(image, bad[0]) for image in images),
            Odd("x"),
        ),
    )
    with pytest.warns(UserWarning, match="1 of 12 images failed"):
        values = built(name, server)(images, prompts)
    assert values.isnan().nonzero().flatten().tolist() == [7]


def test_a_text_that_no_tokenizer_reads_is_missing(images: Tensor, prompts: list[Prompt]) -> None:
    unreadable = Prompt("half a letter")
    object.__setattr__(unreadable, "text", "half a letter: \ud800")  # which Prompt refuses
    mixed = [*prompts[:3], unreadable]
    fresh = clip_similarity(CLIP)
    with pytest.warns(UserWarning, match="1 of 4 texts failed"):
        values = fresh(images[:4], mixed)
    assert values.isnan().tolist() == [False, False, False, True]
    assert fresh(images[:4], mixed).isnan().tolist() == [False, False, False, True]

    older = clip_similarity(CLIP)
    older(images[:3], mixed[:3])
    with pytest.warns(UserWarning, match="1 of 1 texts failed"):
        last = older(images[3:4], mixed[3:])
    assert last.isnan().all()


@pytest.mark.parametrize(
    "error",
    [MemoryError("all of it"), torch.OutOfMemoryError("CUDA out of memory"), NameError("x")],
)
def test_memory_and_mistakes_in_code_are_no_missing_scores(
    monkeypatch: pytest.MonkeyPatch, images: Tensor, error: Exception
) -> None:
    clip = Clip.load(CLIP)
    calls: list[int] = []

    def count(images: Tensor, *_: Any) -> bool:
        calls.append(len(images))
        return True

    monkeypatch.setattr("burnish.rewards.clip.prepare", failing(print, count, error))
    with pytest.raises(type(error)):
        clip.images(images)
    assert calls == [12]


def test_what_fails_for_all_is_raised(monkeypatch: pytest.MonkeyPatch, images: Tensor) -> None:
    clip = Clip.load(CLIP)
    monkeypatch.setattr("burnish.rewards.clip.prepare", failing(print, lambda *_: True, Odd("x")))
    with pytest.raises(Odd):
        clip.images(images)


def test_the_panel_embeds_an_image_the_same_after_other_calls(images: Tensor) -> None:
    panel = Panel(clip=Clip.load(zoo.resolve(CLIP)))
    assert panel.clip is not None
    first = panel.clip.images(images[:5])
    panel.clip.images(images)
    assert torch.equal(panel.clip.images(images[:5]), first)
    assert not math.isnan(float(first.sum()))
