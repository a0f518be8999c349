"""The choice of an iteration's images that an optimizer step replays: the others have no part."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from burnish.diffusion.process import Pairs
from burnish.training.batch import Credit
from burnish.types import Objective


def counted_pairs(counted: Tensor, pairs: Pairs) -> tuple[Pairs, float]:
    """Return the pairs whose images are `counted` (B,), and their share of all.

    Without one there is still a pair, of share 0, so that the update has a gradient.
    """
    images, transitions = pairs
    useful = counted[images]
    share = float(useful.double().mean())
    useful[0] |= not useful.any()
    return (images[useful], transitions[useful]), share


def drawn_together(group: Tensor, images_per_prompt: int) -> Tensor:
    """Return numbers (B,) that are equal for images of one drawn prompt, which are compared.

    A prompt that an iteration draws twice has two such groups: they may be in different optimizer
    steps, and people voted on images of one of them.

    Args:
        group: (B,) prompts, of whole processes.
        images_per_prompt: neighbours, of each drawn prompt.
    """
    draws = torch.arange(len(group), device=group.device) // images_per_prompt
    together: Tensor = torch.stack([group, draws], 1).unique(dim=0, return_inverse=True)[1]
    return together


def by_draw(credit: Credit, images_per_prompt: int) -> Credit:
    """Return the credit with the groups of `drawn_together`."""
    return replace(credit, group=drawn_together(credit.group, images_per_prompt))


def compared_pairs(objective: Objective, credit: Credit, minibatches: list[Pairs]) -> list[Pairs]:
    """Return the pairs of each minibatch that an objective which compares images learns from.

    Without one there are those of a single image, so that the update has a gradient.
    """
    valid = credit.valid
    chosen = torch.zeros_like(valid)
    chosen[valid] = objective.learns_from(credit.advantages[valid], credit.group[valid])
    found = []

    for images, transitions in minibatches:
        rows = chosen[images]
        if not rows.any():
            rows = images == images[0]
        found.append((images[rows], transitions[rows]))

    return found
