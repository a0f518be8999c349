"""Rewards that know only the images that an iteration is trained on; evaluations leave them out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from burnish.types import Prompt


class TrainingReward:
    """A reward that has no number for any other image, or not the same one at another time.

    Images before and after training cannot be compared by it, so an evaluation measures the other
    rewards of a run: those of weight 0 too.
    """

    of_iterations = False
    """Its values come from all images of an iteration together, not from a chunk of them."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Return the value of each training image, (B,)."""
        raise NotImplementedError


class Chosen(TrainingReward):
    """1 for the chosen image of a pair and 0 for the other, with prompts.use = "pairs"."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Return what the pairs say of each image, (B,).

        Raises:
            ValueError: an image is of no pair.
        """
        preferred = [prompt.metadata.get("preferred") for prompt in prompts]
        if None in preferred:
            raise ValueError(
                "reward 'chosen' knows only the images of pairs; set prompts.use = \"pairs\""
            )
        return torch.tensor([float(one is True) for one in preferred])


def chosen() -> Chosen:
    """Reward the chosen image of each pair with 1 and the rejected one with 0; see `prompts.pairs`.

    Evaluations leave it out: add another reward with weight = 0.0 for these.
    """
    return Chosen()
