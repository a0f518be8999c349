"""The mood of an image, one of two, by CLIP's zero-shot classification.

    reward = P / (P + N)
    P      = mean over positive texts p of exp(s <E(image), E(p)>), N likewise over negative ones

with embeddings of length 1 and s the model's own scale (CLIP ViT-L/14: 100) divided by
`temperature` (arXiv 2103.00020, section 3.1). The texts define the two classes, so the reward
classifies anything that two lists of words can separate. Here it stands in for Parrot's fourth
reward (arXiv 2401.05675), the positive class of a model fitted to the sentiment of tweets.

`zoo:emoji-clip` knows no moods, only things and colours. Its default texts separate bright
backgrounds from gray and black ones: a stand-in that can be computed offline, and no measure of
sentiment.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from burnish.annotations import DeviceName, ModelPath, Positive
from burnish.rewards.clip import Clip
from burnish.types import Prompt, Reward, differentiable

CHEERFUL = (
    "a cheerful, happy picture",
    "a joyful scene full of hope",
    "a warm, friendly, uplifting photo",
    "a picture that makes people smile",
)
GLOOMY = (
    "a gloomy, sad picture",
    "a scene full of despair",
    "a cold, hostile, depressing photo",
    "a picture that makes people cry",
)
THINGS = ("a cat", "a car", "a tree")
BRIGHT = tuple(
    f"{thing} on a {colour} background" for thing in THINGS for colour in ("yellow", "pink")
)
DARK = tuple(
    f"{thing} on a {colour} background" for thing in THINGS for colour in ("gray", "black")
)


def sentiment(
    model: ModelPath = "openai/clip-vit-large-patch14",
    positive: tuple[str, ...] = (),
    negative: tuple[str, ...] = (),
    temperature: Positive = 1.0,
    device: DeviceName = "auto",
) -> Reward:
    """Reward the probability that the positive texts, not the negative ones, describe an image.

    It lies in 0 to 1; prompts do not matter. Costs one pass of CLIP's image tower (ViT-L/14: 81
    GFLOP).

    Args:
        model: a hub id, a folder with a CLIPModel, its tokenizer and its processor, or
            `zoo:emoji-clip`.
        positive: texts of the mood that is wanted; none for a few about cheerful images, with
            `zoo:emoji-clip` for `BRIGHT`, yellow and pink backgrounds.
        negative: texts of its opposite; none for gloomy images, with `zoo:emoji-clip` for gray and
            black backgrounds (`DARK`). The lists need not be of one length.
        temperature: above 1 it separates images that would otherwise all be near 0 or near 1.
        device: `auto` takes the device of the images, so that nothing is moved.

    Raises:
        ValueError: only one of the lists is given, an empty text is in one, a temperature that is
            not positive, or the model cannot be found or is not a CLIP model.
    """
    if bool(positive) != bool(negative):
        raise ValueError(
            "rewards: sentiment compares two lists of texts; "
            "give both positive and negative, or neither"
        )
    if not all(text.strip() for text in (*positive, *negative)):
        raise ValueError(
            "rewards: sentiment has an empty text in positive or negative; take it out"
        )
    if temperature <= 0:
        raise ValueError(f"rewards: sentiment.temperature must be above 0, not {temperature:g}")

    if not positive:
        positive, negative = (BRIGHT, DARK) if model == "zoo:emoji-clip" else (CHEERFUL, GLOOMY)

    clip = Clip.load(model)
    scale = float(clip.model.logit_scale.exp()) / temperature
    texts = [*positive, *negative]
    embeddings: list[Tensor] = []  # the text tower is frozen: the texts pass it once

    @differentiable
    def reward(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        clip.move_to(device, images)
        if not embeddings:
            embeddings.append(clip.texts(texts))

        logits = scale * clip.images(images) @ embeddings[0].T
        positive_logits, negative_logits = logits.split([len(positive), len(negative)], dim=1)
        return torch.sigmoid(_log_mean_exp(positive_logits) - _log_mean_exp(negative_logits))

    return reward


def _log_mean_exp(logits: Tensor) -> Tensor:
    """Return log(mean(exp)) over the texts, (B, N) -> (B,): a longer list is no likelier."""
    return logits.logsumexp(1) - torch.tensor(float(logits.shape[1])).log()
