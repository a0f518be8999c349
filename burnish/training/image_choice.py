"""The choice of an iteration's images that an optimizer step replays: the others have no part."""

from __future__ import annotations

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
