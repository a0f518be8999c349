"""The picks of Pareto selection among 16, 64 and 256 images a prompt, and the best by a sum.

A pool of images of the model before training is drawn once, and their rewards are kept. It is cut
into parts, and from each the front is taken, or as many images by the largest sum of z-scores: the
same images drawn and learned from. Of both, in standard deviations of the prompt's pool:

    mean of each reward          where the selected images would lead
    part of the hypervolume      what of the trade-offs between rewards is left; 1 of a front
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from burnish import config as configuration
from burnish.files import dumps, write
from burnish.rewards import score
from burnish.rl.pareto import nondominated
from burnish.seeds import generator
from burnish.training.assembly import load_policy, load_prompts, load_rewards, load_sampler
from burnish.types import Prompt
from experiments.parrot import plan

SIZES = (16, 64, 256)
LOWEST = 2.0  # standard deviations below the mean from which hypervolumes count
EQUAL_SUM = (1.0, 1.0, 1.0, 1.0)
SUMS = {"sum": EQUAL_SUM, "balanced_sum": plan.SUM_WEIGHTS}

Selection = Callable[[Tensor], Tensor]
"""From z-scores (n, K) to the selected images (n,) bool."""


def pool_path(out: Path, budget: plan.Budget) -> Path:
    """Return the file of the pool's rewards; the full one is kept beside this module."""
    return (out if budget.quick else Path(__file__).parent) / "pool.json"


def draw_pool(out: Path, budget: plan.Budget) -> None:
    """Draw the pool and write its rewards, if they do not exist yet."""
    path = pool_path(out, budget)
    if path.exists():
        return

    config = configuration.load(plan.RECIPE, plan.trial("normalised", 0, budget).changes())
    policy = load_policy(config)
    sampler = load_sampler(config)
    rewards = load_rewards(config.rewards, "rewards")
    prompts = load_prompts(config.prompts, "prompts")
    pool = {}

    for prompt in prompts[:: len(prompts) // budget.pool_prompts][: budget.pool_prompts]:
        copies = [prompt] * budget.pool_images
        images = sampler.images(policy, copies, generator("pool", prompt.text), chunk=64)
        pool[prompt.text] = _scored(rewards, images, copies)
        print(f"{prompt.text}: {len(copies)} images drawn", flush=True)

    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, dumps({"rewards": list(rewards), "pool": pool}) + "\n")


def _scored(
    rewards: dict[str, Any], images: Tensor, prompts: Sequence[Prompt]
) -> list[list[float]]:
    parts = score(rewards, images, prompts).parts
    return [[round(value, 4) for value in row] for row in parts.tolist()]


def front(z: Tensor) -> Tensor:
    """Return the images that none dominates, (n,) bool."""
    return nondominated(z, torch.zeros(len(z)))


def largest_sum(weights: Sequence[float]) -> Selection:
    """Return the selection of as many images as are on the front, by their weighted sum."""

    def select(z: Tensor) -> Tensor:
        count = int(front(z).sum())
        best = (z @ torch.tensor(weights, dtype=z.dtype)).argsort(descending=True)[:count]
        return torch.zeros(len(z), dtype=torch.bool).index_fill(0, best, True)

    return select


def standardised(rewards: Tensor) -> Tensor:
    """Return the z-scores of a prompt's images (n, K)."""
    return (rewards - rewards.mean(0)) / rewards.std(0, correction=0)


def hypervolume(z: Tensor) -> float:
    """Return the hypervolume of z-scores (n, K), counted from `LOWEST` below their mean."""
    import moocore

    points = (z + LOWEST).clamp(min=0).numpy()
    return float(moocore.hypervolume(-points, ref=np.zeros(points.shape[1])))


def simulate(pool: Sequence[Tensor], sizes: Sequence[int] = SIZES) -> dict[str, Any]:
    """Return what is selected of `sizes` images of a prompt at once, by the selection.

    Args:
        pool: the rewards (n, K) of each prompt's images.
        sizes: that divide n; larger ones are left out.
    """
    selections: dict[str, Selection] = {"pareto": front}
    selections |= {name: largest_sum(weights) for name, weights in SUMS.items()}
    everything = [standardised(rewards) for rewards in pool]
    result: dict[str, Any] = {}

    for size in sizes:
        parts = [part for z in everything if len(z) >= size for part in z.split(size)]
        if parts:
            shares = [float(front(part).double().mean()) for part in parts]
            result[str(size)] = {"share": float(np.mean(shares))}
            result[str(size)] |= {
                name: _selected(parts, select) for name, select in selections.items()
            }

    return result


def _selected(parts: Sequence[Tensor], select: Selection) -> dict[str, Any]:
    chosen = [part[select(part)] for part in parts]
    means = torch.stack([rows.mean(0) for rows in chosen]).mean(0).tolist()
    volumes = [
        hypervolume(rows) / hypervolume(part) for rows, part in zip(chosen, parts, strict=True)
    ]
    return {
        "z": dict(zip(plan.REWARDS, means, strict=True)),
        "least": min(means),
        "hypervolume": float(np.mean(volumes)),
    }


def load_pool(path: Path) -> list[Tensor]:
    """Return the rewards (n, K) float64 of each prompt's images."""
    pool = json.loads(path.read_text())["pool"]
    return [torch.tensor(rows, dtype=torch.float64) for rows in pool.values()]
