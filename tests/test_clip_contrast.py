"""Similarity to the own prompt beside others: contrast and retrieval."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from burnish import catalog, config, references
from burnish.rewards.clip import Clip
from burnish.rewards.clip_contrast import clip_contrast, clip_retrieval, contrast, log_share, rank
from burnish.types import Prompt
from burnish.zoo.scenes import Scenes, nouns

CLIP = "zoo:emoji-clip"
OTHERS = ["a cat", "a dog", "a red car", "a tree", "two horses"]
NOUNS = {"use": "zoo_nouns", "split": "all"}


def brute_force(images: torch.Tensor, texts: list[str], others: list[str]) -> np.ndarray:
    """Return own similarity, mean other similarity and rank of each image (B, 3), in float64."""
    clip = Clip.load(CLIP)
    rows = []

    for image, text in zip(images, texts, strict=True):
        embedded = clip.images(image[None])[0].double().numpy()
        own = float(embedded @ clip.texts([text])[0].double().numpy())
        rest = [
            float(embedded @ clip.texts([other])[0].double().numpy())
            for other in others
            if other != text
        ]
        rows.append((own, sum(rest) / len(rest), 1 + sum(value >= own for value in rest)))

    return np.array(rows)


def test_both_are_what_brute_force_gives_image_by_image() -> None:
    images = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    # of these one is in no list, and one is in it under another noun
    texts = ["a cat", "a red car", "a violin", "two horses", "a tree", "a cat"]
    prompts = [Prompt(text) for text in texts]
    own, mean, ranks = brute_force(images, texts, OTHERS).T

    # what comes twice counts once
    values = clip_contrast([*OTHERS, "a dog"], CLIP)(images, prompts)
    np.testing.assert_allclose(values.double().numpy(), own - mean, atol=1e-6)

    for top in (1, 2, 4):
        found = clip_retrieval(OTHERS, top, CLIP)(images, prompts)
        assert found.tolist() == (ranks <= top).astype(float).tolist()


@pytest.mark.parametrize("temperature", [0.03, 0.1, 1.0])
def test_with_a_temperature_it_is_minus_the_loss_of_clip(temperature: float) -> None:
    generator = torch.Generator().manual_seed(2)
    own = torch.rand(8, generator=generator, dtype=torch.float64, requires_grad=True)
    to_others = torch.rand(8, 5, generator=generator, dtype=torch.float64)
    is_other = torch.rand(8, 5, generator=generator) > 0.2
    is_other[:, 0] = True
    values = log_share(temperature)(own, to_others, is_other)

    for row, value in enumerate(values):
        logits = torch.cat([own[row : row + 1], to_others[row][is_other[row]]]) / temperature
        loss = functional.cross_entropy(logits[None], torch.tensor([0]))
        torch.testing.assert_close(value, -loss)

    # what is nearest already has little to gain
    (gradient,) = torch.autograd.grad(values.sum(), own)
    torch.testing.assert_close(gradient, (1 - values.exp()) / temperature)


def test_the_temperature_changes_which_of_two_images_is_better() -> None:
    own = torch.tensor([0.5, 0.5])
    # the first is as near to one other prompt, the second is a little like all of them
    to_others = torch.tensor([[0.5, 0.0, 0.0], [0.3, 0.3, 0.3]])
    all_others = torch.ones(2, 3, dtype=torch.bool)

    by_mean = contrast(own, to_others, all_others)
    by_share = log_share(0.05)(own, to_others, all_others)
    assert by_mean[0] > by_mean[1] and by_share[0] < by_share[1]


def test_what_all_similarities_share_changes_neither() -> None:
    generator = torch.Generator().manual_seed(1)
    own = torch.rand(8, generator=generator, dtype=torch.float64)
    others = torch.rand(8, 5, generator=generator, dtype=torch.float64)
    is_other = torch.rand(8, 5, generator=generator) > 0.2
    is_other[:, 0] = True

    torch.testing.assert_close(
        contrast(own + 0.3, others + 0.3, is_other), contrast(own, others, is_other)
    )
    assert torch.equal(rank(own + 0.25, others + 0.25, is_other), rank(own, others, is_other))


def test_a_tie_counts_against_the_image_and_the_own_prompt_does_not_count() -> None:
    own = torch.tensor([0.5, 0.5])
    others = torch.tensor([[0.5, 0.2], [0.5, 0.2]])
    assert rank(own, others, torch.tensor([[True, True], [False, True]])).tolist() == [2, 1]


def test_scenes_are_retrieved_among_all_nouns_and_noise_is_not() -> None:
    images, scenes = Scenes(3).draw(24, "single")
    pixels = images.permute(0, 3, 1, 2).float() / 255
    prompts = [Prompt(f"a {scene.nouns[0]}") for scene in scenes]
    found = clip_retrieval(NOUNS, 5, CLIP)(pixels, prompts)
    assert len(nouns()) == 106 and found.mean() >= 0.9

    noise = torch.rand(24, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert clip_retrieval(NOUNS, 5, CLIP)(noise, prompts).mean() <= 0.3


def test_an_image_that_the_model_fails_on_has_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    prompts = [Prompt("a cat"), Prompt("a dog")]
    embed = Clip.images

    def failing(clip: Clip, given: torch.Tensor) -> torch.Tensor:
        found = embed(clip, given)
        found[0] = torch.nan
        return found

    monkeypatch.setattr(Clip, "images", failing)
    for reward in (clip_contrast(OTHERS, CLIP), clip_retrieval(OTHERS, 2, CLIP)):
        assert reward(images, prompts).isnan().tolist() == [True, False]


@pytest.mark.parametrize("name", ["clip_contrast", "clip_retrieval"])
def test_of_the_original_of_an_expanded_prompt(name: str) -> None:
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    table = {"use": name, "others": OTHERS, "model": CLIP}
    expanded = [Prompt("a cat in noto style", {"original": "a cat"})]
    original = catalog.build("reward", {**table, "of": "original"})
    assert torch.equal(
        original(images, expanded), catalog.build("reward", table)(images, [Prompt("a cat")])
    )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"use": "clip_contrast"}, "clip_contrast needs others = ...; add it"),
        ({"use": "clip_contrast", "others": []}, "texts is empty; give at least one prompt"),
        ({"use": "clip_contrast", "others": "a cat"}, "others"),
        ({"use": "clip_contrast", "others": OTHERS, "of": "first"}, 'must be .*"text"'),
        ({"use": "clip_retrieval", "others": OTHERS, "top": 0}, "top .*at least 1"),
        (
            {"use": "clip_retrieval", "others": OTHERS, "top": 6},
            "compares with 5 other prompts, so that every image would be among the 6 nearest",
        ),
        ({"use": "clip_contrast", "others": {"use": "zoo_noun"}}, 'did you mean "zoo_nouns"'),
    ],
)
def test_wrong_arguments_are_named(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        catalog.build("reward", {"model": CLIP, **table}, "rewards.0")


def test_a_prompt_that_has_no_others_is_named() -> None:
    reward = clip_contrast(["a cat"], CLIP)
    with pytest.raises(ValueError, match="the prompt 'a cat' is compared with no other one"):
        reward(torch.rand(1, 3, 64, 64), [Prompt("a cat")])


def test_the_source_of_the_others_is_a_part_of_the_configuration() -> None:
    """Its code needs consent and its paths are moved, as those of any source."""
    tree = {
        "rewards": [{"use": "clip_contrast", "others": {"use": "mine.py:f"}}],
        "guard": {
            "action": "warn",
            "panel": [{"use": "clip_retrieval", "others": {"use": "lines", "path": "nouns.txt"}}],
        },
    }
    parts = {part.where: part.kind for part in references.parts(tree)}
    assert parts["rewards.0.others"] == parts["guard.panel.0.others"] == "prompts"
    paths = {named.where: named.path for named in references.paths(tree, config.Config)}
    assert paths == {"rewards.0.others.use": "mine.py", "guard.panel.0.others.path": "nouns.txt"}
