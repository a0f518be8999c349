"""Prompts that a text encoder does not read as they were meant: said, once, with the words."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from burnish import config as configuration
from burnish.diffusion.policy import Policy
from burnish.rewards.clip import clip_similarity
from burnish.training.assembly import assemble
from burnish.types import Prompt

LONG = "a fox and a guitar " * 20


@pytest.fixture
def policy() -> Policy:
    return Policy.load("zoo:emoji-sd", train="none", device="cpu")


def warned(policy: Policy, *texts: str) -> list[str]:
    """Return what is said of prompts, as a whole and again when each is encoded."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        policy.prompt_encoder.check(texts)
        policy.encode(list(map(Prompt, texts)))
    return [str(warning.message) for warning in caught]


def test_short_plain_prompts_need_no_word(policy: Policy) -> None:
    assert not warned(policy, "a cat", "A cat", "a cat (at 10:30)", "two cats [sic]", "C++")


@pytest.mark.parametrize(
    "text",
    [
        "a screen with Notepad++",
        "a song (verse: 3)",
        "a note [a: b]",
        "a page [see: 4]",
        "LUNCH BREAK IN RED",
        "a coffee BREAK",
        "a cat (at 10:30) of (a) kind",
    ],
)
def test_signs_of_plain_writing_are_none(policy: Policy, text: str) -> None:
    assert not warned(policy, text)


def test_what_is_cut_is_said_once(policy: Policy) -> None:
    (message,) = warned(policy, "a cat", LONG)
    assert message.startswith("one of 2 prompts is longer than the text encoder reads (24 tokens)")
    assert 'of "a fox and a guitar a fox' in message
    assert 'it does not read "and a guitar a fox' in message
    assert not warned(policy, "a cat " * 40)


def test_a_prompt_that_is_drawn_later_is_noticed_too(policy: Policy) -> None:
    with pytest.warns(UserWarning, match="a prompt is longer than the text encoder reads"):
        policy.encode([Prompt(LONG)])


@pytest.mark.parametrize("ends", [("red", "blue"), ("", "blue")])
def test_prompts_that_are_one_after_the_cut_are_named(
    policy: Policy, ends: tuple[str, str]
) -> None:
    first, second = (f"{LONG}{end}".strip() for end in ends)
    messages = warned(policy, first, second)
    assert len(messages) == 2
    assert "differ only in what is cut" in messages[1]
    assert all(f'{end}"' in messages[1] for end in ends)


@pytest.mark.parametrize(
    "text",
    [
        "a (red:1.3) cat",
        "a (red :0.8) cat",
        "a ((red)) cat",
        "a [[red]] cat",
        "a [cat:dog:0.5]",
        "a {red|blue} cat",
        "a cat <lora:style:0.7>",
        "a (red cat)++",
        "a red++ cat",
        "a ((red) ball:1.3)",
        "a [red:0.5] cat",
        "a [red|blue] cat",
        "a cat BREAK a dog",
        "a cat, BREAK, A dog",
    ],
)
def test_signs_for_weights_are_named(policy: Policy, text: str) -> None:
    (message,) = warned(policy, "a dog", text, "a (blue:1.2) cat")
    assert "2 of 3 prompts are written with signs such as" in message
    assert "mean nothing here: they are read as letters" in message


def test_a_reward_says_once_what_its_model_does_not_read() -> None:
    reward = clip_similarity("zoo:emoji-clip")
    images = torch.rand(2, 3, 8, 8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reward(images, [Prompt("a (red:1.3) cat"), Prompt("a dog")])
        scores = reward(images[:1].expand(2, -1, -1, -1), [Prompt(LONG), Prompt(LONG + "blue")])
        reward(images[:1], [Prompt(LONG + "red")])

    assert scores[0] == scores[1]
    cut, same = (str(warning.message) for warning in caught)
    assert cut.startswith("2 of 2 prompts are longer than a reward's CLIP model reads (24 tokens)")
    assert 'it does not read "and a guitar a fox' in cut
    assert "differ only in what is cut" in same and 'blue"' in same


def test_a_run_says_it_before_it_begins(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    texts = [LONG + "red", LONG + "blue"]
    recipe = write_recipe(prompts={"use": "list", "texts": texts})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assemble(configuration.load(recipe))

    messages = [str(warning.message) for warning in caught]
    assert any("2 of 2 prompts are longer" in message for message in messages)
    assert any("differ only in what is cut" in message for message in messages)


def wrote_weights(**tables: object) -> dict[str, object]:
    return {"prompts": {"use": "list", "texts": ["a dog", "a (red:1.3) cat"]}, **tables}


NEGATIVE = {"guidance": {"use": "cfg", "weight": 2.0, "negative": "(ugly:1.4)"}}


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        (wrote_weights(), r'one of 2 prompts is written with signs such as "\(red:1.3\)"'),
        ({"sampler": NEGATIVE}, r'one of 4 prompts is written with signs such as "\(ugly:1.4\)"'),
        (
            {"evaluation": {"unseen": {"use": "list", "texts": ["((red)) cat", "an [a|b]"]}}},
            r'2 of 5 prompts are written with signs such as "\(\(red\)\)"',
        ),
    ],
)
def test_a_run_refuses_weights_before_it_loads_a_model(
    write_recipe: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tables: dict[str, object],
    words: str,
) -> None:
    monkeypatch.setattr(Policy, "load", None)
    with pytest.raises(ValueError, match=words) as error:
        assemble(configuration.load(write_recipe(**tables)))
    assert 'set model.prompt_signs = "letters"' in str(error.value)


def test_a_run_takes_signs_as_letters_where_it_is_to(write_recipe: Callable[..., Path]) -> None:
    recipe = write_recipe(**wrote_weights(model={"prompt_signs": "letters"}))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parts = assemble(configuration.load(recipe))
        parts.policy.encode(parts.prompts)

    assert [prompt.text for prompt in parts.prompts] == ["a dog", "a (red:1.3) cat"]
    assert not any("signs" in str(warning.message) for warning in caught)

    with pytest.raises(ValueError, match='it must be "refuse" or "letters"'):
        configuration.load(recipe, ["model.prompt_signs=weights"])
