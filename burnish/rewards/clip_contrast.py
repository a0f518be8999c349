"""Is an image more like its own prompt than like others? Measures that no tint can please.

With s the cosine between CLIP's embeddings of image and text (arXiv 2103.00020):

    clip_contrast     s(own prompt) - mean over the other prompts of s(other prompt), or with a
                      temperature T the log of the own prompt's share among all prompts of
                      exp(s / T): the loss that CLIP was trained with, with the sign changed
    clip_retrieval    1 where fewer than `top` of the other prompts have an s as large as the own
                      prompt's, else 0

What pleases CLIP whatever is asked for, such as a tint, raises `clip_similarity` and neither of
these. The other prompts are the same for every image, but for its own prompt if that is among them,
and given by a list or by a source of prompts:

    [[rewards]]
    use = "clip_contrast"
    model = "zoo:emoji-clip"
    others = { use = "zoo_nouns", split = "all" }

    [[guard.panel]]                          # measured at every evaluation, not trained on
    use = "clip_retrieval"
    name = "retrieval_top5"
    model = "zoo:emoji-clip"
    others = { use = "zoo_nouns", split = "all" }
    top = 5
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from burnish import catalog
from burnish.annotations import Count, DeviceName, ModelPath, PositiveOrZero
from burnish.rewards.clip import Clip, Compared, compared_texts, remembering
from burnish.types import Prompt, Reward, differentiable

Measure = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(own (B,), to_others (B, N), is_other (B, N)) -> (B,), as `contrast`."""


def clip_contrast(
    others: list[str] | dict[str, Any],
    model: ModelPath = "openai/clip-vit-large-patch14",
    device: DeviceName = "auto",
    of: Compared = "text",
    temperature: PositiveOrZero = 0.0,
) -> Reward:
    """Reward the similarity of each image to its own prompt, less its mean to other prompts.

    A mean asks for distance to all other prompts alike. With a temperature those count that the
    image is nearest to, and what sets it apart is rewarded less and less once its own prompt is
    clearly the nearest.

    Args:
        others: the other prompts: texts, or the table of a prompt source.
        model: a hub id, a folder with a CLIPModel, its tokenizer and its processor, or
            `zoo:emoji-clip`.
        device: `auto` takes the device of the images, so that nothing is moved.
        of: the own prompt's "text", or its "original" (`metadata["original"]`), as in
            `clip_similarity`.
        temperature: in the unit of the similarities, about 0.01 for CLIP and 0.1 for
            `zoo:emoji-clip`; 0 compares with the mean.

    Raises:
        ValueError: there are no other prompts, or the model cannot be found or is not a CLIP model;
            later, a prompt that is the only one of `others`.
    """
    _check_of(of, "clip_contrast")
    texts = _other_texts(others, "clip_contrast")
    measure = log_share(temperature) if temperature else contrast
    return differentiable(compare_with(Clip.load(model), texts, measure, device, of))


def clip_retrieval(
    others: list[str] | dict[str, Any],
    top: Count = 1,
    model: ModelPath = "openai/clip-vit-large-patch14",
    device: DeviceName = "auto",
    of: Compared = "text",
) -> Reward:
    """Reward images whose own prompt is among the nearest of all prompts: 1 where it is, else 0.

    A measure to watch in a held-out panel. The mean is the accuracy of retrieval at `top`; a tie
    counts against the image.

    Args:
        others: the other prompts: texts, or the table of a prompt source.
        top: the number of nearest prompts.
        model: a hub id, a folder with a CLIPModel, its tokenizer and its processor, or
            `zoo:emoji-clip`.
        device: `auto` takes the device of the images, so that nothing is moved.
        of: the own prompt's "text", or its "original" (`metadata["original"]`), as in
            `clip_similarity`.

    Raises:
        ValueError: `top` is not above 0, or all prompts together are so few that every image would
            get 1; the model cannot be found or is not a CLIP model.
    """
    _check_of(of, "clip_retrieval")
    if top < 1:
        raise ValueError(f"rewards: clip_retrieval.top must be 1 or more, not {top}")

    texts = _other_texts(others, "clip_retrieval")
    if len(texts) < top:
        raise ValueError(
            f"rewards: clip_retrieval compares with {len(texts)} other prompts, so that every "
            f"image would be among the {top} nearest; give it more in others, or a lower top"
        )

    return compare_with(Clip.load(model), texts, retrieved(top), device, of)


def contrast(own: Tensor, to_others: Tensor, is_other: Tensor) -> Tensor:
    """Return the own similarity less the mean of the other ones, (B,).

    Args:
        own: (B,) similarity of each image to its own prompt.
        to_others: (B, N) similarity to all prompts of the list.
        is_other: (B, N) bool: False where that is the image's own prompt.
    """
    return own - to_others.where(is_other, 0).sum(1) / is_other.sum(1)


def log_share(temperature: float) -> Measure:
    """Return the measure log(exp(own / T) / sum over all prompts of exp(s / T)), at most 0."""

    def measure(own: Tensor, to_others: Tensor, is_other: Tensor) -> Tensor:
        others = to_others.masked_fill(~is_other, -torch.inf)
        logits = torch.cat([own[:, None], others], 1) / temperature
        return logits.log_softmax(1)[:, 0]

    return measure


def rank(own: Tensor, to_others: Tensor, is_other: Tensor) -> Tensor:
    """Return the rank (B,) of the own prompt from 1; of several as near it is the last.

    Args:
        own: (B,) similarity of each image to its own prompt.
        to_others: (B, N) similarity to all prompts of the list.
        is_other: (B, N) bool: False where that is the image's own prompt.
    """
    return 1 + ((to_others >= own[:, None]) & is_other).sum(1)


def retrieved(top: int) -> Measure:
    """Return the measure that is 1 where the own prompt is among the `top` nearest, else 0."""

    def measure(own: Tensor, to_others: Tensor, is_other: Tensor) -> Tensor:
        fewest = int(is_other.sum(1).min())
        if fewest < top:
            raise ValueError(
                f"rewards: clip_retrieval compares an image with {fewest} prompts beside its own, "
                f"so that it would always be among the {top} nearest; give it more in others, or "
                "a lower top"
            )

        return (rank(own, to_others, is_other) <= top).float().where(own.isfinite(), torch.nan)

    return measure


def compare_with(
    clip: Clip,
    others: Sequence[str],
    measure: Measure,
    device: str = "auto",
    of: Compared = "text",
) -> Reward:
    """Reward a measure of each image's similarities to its own prompt and to others.

    Args:
        clip: the model.
        others: the other prompts; what comes twice counts once.
        measure: as `contrast`, or what `retrieved` returns.
        device: `auto` takes the device of the images.
        of: the own prompt's "text" or its "original".
    """
    embed_texts = remembering(clip)
    other_texts = list(dict.fromkeys(others))

    def reward(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        clip.move_to(device, images)
        texts = compared_texts(prompts, of)
        is_other = torch.tensor([[other != text for other in other_texts] for text in texts])

        if not is_other.any(1).all():
            text = texts[int(is_other.any(1).int().argmin())]
            raise ValueError(
                f"the prompt '{text}' is compared with no other one; give more prompts in others"
            )

        embedded = clip.images(images)
        own = (embedded * embed_texts(texts)).sum(-1)
        return measure(own, embedded @ embed_texts(other_texts).T, is_other)

    return reward


def _other_texts(others: list[str] | dict[str, Any], name: str) -> list[str]:
    """Return the texts of the other prompts of a reward, each once."""
    listed = catalog.build("prompts", catalog.prompts_table(others), f"{name}.others")
    return list(dict.fromkeys(prompt.text for prompt in listed))


def _check_of(of: str, name: str) -> None:
    if of not in ("text", "original"):
        raise ValueError(f'{name}.of must be "text" or "original", not "{of}"')
