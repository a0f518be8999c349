"""Is an image more like its own prompt than like others? Measures that no tint can please.

With s the cosine between CLIP's embeddings of image and text (arXiv 2103.00020):

    clip_contrast     s(own prompt) - mean over the other prompts of s(other prompt)
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
from burnish.annotations import Count, DeviceName, ModelPath
from burnish.rewards.clip import Clip, Compared, compared_texts, remembering
from burnish.types import Prompt, Reward


def clip_contrast(
    others: list[str] | dict[str, Any],
    model: ModelPath = "openai/clip-vit-large-patch14",
    device: DeviceName = "auto",
    of: Compared = "text",
) -> Reward:
    """Reward the similarity of each image to its own prompt, less its mean to other prompts.

    Args:
        others: the other prompts: texts, or the table of a prompt source.
        model: a hub id, a folder with a CLIPModel, its tokenizer and its processor, or
            `zoo:emoji-clip`.
        device: `auto` takes the device of the images, so that nothing is moved.
        of: the own prompt's "text", or its "original" (`metadata["original"]`), as in
            `clip_similarity`.

    Raises:
        ValueError: there are no other prompts, or the model cannot be found or is not a CLIP model;
            later, a prompt that is the only one of `others`.
    """
    return _comparison("clip_contrast", others, model, device, of, contrast)


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
    if top < 1:
        raise ValueError(f"rewards: clip_retrieval.top must be 1 or more, not {top}")

    def retrieved(own: Tensor, to_others: Tensor, is_other: Tensor) -> Tensor:
        return (rank(own, to_others, is_other) <= top).float().where(own.isfinite(), torch.nan)

    return _comparison("clip_retrieval", others, model, device, of, retrieved, least=top)


def contrast(own: Tensor, to_others: Tensor, is_other: Tensor) -> Tensor:
    """Return the own similarity less the mean of the other ones, (B,).

    Args:
        own: (B,) similarity of each image to its own prompt.
        to_others: (B, N) similarity to all prompts of the list.
        is_other: (B, N) bool: False where that is the image's own prompt.
    """
    return own - to_others.where(is_other, 0).sum(1) / is_other.sum(1)


def rank(own: Tensor, to_others: Tensor, is_other: Tensor) -> Tensor:
    """Return the rank (B,) of the own prompt from 1; of several as near it is the last.

    Args:
        own: (B,) similarity of each image to its own prompt.
        to_others: (B, N) similarity to all prompts of the list.
        is_other: (B, N) bool: False where that is the image's own prompt.
    """
    return 1 + ((to_others >= own[:, None]) & is_other).sum(1)


def _comparison(
    name: str,
    others: list[str] | dict[str, Any],
    model: str,
    device: str,
    of: Compared,
    measure: Callable[[Tensor, Tensor, Tensor], Tensor],
    least: int = 1,
) -> Reward:
    """Return the reward that measures each image's similarities.

    Args:
        name: of the reward.
        others: as of the rewards.
        model: as of the rewards.
        device: as of the rewards.
        of: as of the rewards.
        measure: of the similarities, as `contrast`.
        least: prompts besides its own that each image must be compared with.
    """
    if of not in ("text", "original"):
        raise ValueError(f'{name}.of must be "text" or "original", not "{of}"')

    listed = catalog.build("prompts", catalog.prompts_table(others), f"{name}.others")
    other_texts = list(dict.fromkeys(prompt.text for prompt in listed))
    if len(other_texts) < least:
        raise ValueError(
            f"rewards: {name} compares with {len(other_texts)} other prompts, so that every image "
            f"would be among the {least} nearest; give it more in others, or a lower top"
        )

    clip = Clip.load(model)
    embed_texts = remembering(clip)

    def reward(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        clip.move_to(device, images)
        texts = compared_texts(prompts, of)
        is_other = torch.tensor([[other != text for other in other_texts] for text in texts])

        if (is_other.sum(1) < least).any():
            row = int((is_other.sum(1) < least).nonzero()[0])
            raise ValueError(
                f"{name}: the prompt '{texts[row]}' has only {int(is_other[row].sum())} others to "
                f"be compared with; give at least {least} beside it in others"
            )

        embedded = clip.images(images)
        own = (embedded * embed_texts(texts)).sum(-1)
        return measure(own, embedded @ embed_texts(other_texts).T, is_other)

    return reward
