"""The gain an expander could have by asking where things stand, if the generator knew the words.

Scenes of the search's pairs are composed from the sprites themselves, once as the generator has
seen them, two things of 30 pixels side by side, and once in every other arrangement: the same
sprites, mirrored and shifted alike. All are scored by the four rewards with the pair's own caption.
No generator takes part, so that this bounds what one that follows such words could bring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from burnish import config as configuration
from burnish.evaluation.paired import interval
from burnish.files import dumps, write
from burnish.rewards import score
from burnish.training.assembly import load_rewards
from burnish.types import Prompt, Reward
from burnish.zoo.scenes import CENTRES, SMALL, Scene, Scenes
from experiments.parrot import plan
from experiments.parrot.prompts import SETS

IMAGES = 12  # of each pair and arrangement: a half chooses the best, the other half measures it
RESULT = Path(__file__).with_name("arrangements.json")
USUAL = "side by side"


@dataclass(frozen=True)
class Arrangement:
    """Where two things stand, (x, y) of their centres in a scene of 64, and the side of each."""

    centres: tuple[tuple[int, int], ...]
    side: int = SMALL


ARRANGEMENTS: Mapping[str, Arrangement] = {
    USUAL: Arrangement(CENTRES[2]),
    "the other way round": Arrangement((CENTRES[2][1], CENTRES[2][0])),
    "one above the other": Arrangement(((32, 17), (32, 47))),
    "one below the other": Arrangement(((32, 47), (32, 17))),
    "diagonally": Arrangement(((17, 17), (47, 47))),
    "at the top": Arrangement(((17, 17), (47, 17))),
    "at the bottom": Arrangement(((17, 47), (47, 47))),
    "close together": Arrangement(((23, 32), (41, 32))),
    "small": Arrangement(CENTRES[2], 20),
    "a little larger": Arrangement(((18, 32), (46, 32)), 33),
    "large": Arrangement(((20, 32), (44, 32)), 38),
    "large, diagonally": Arrangement(((20, 20), (44, 44)), 38),
}
BEST = "the best of each pair"


def pairs() -> list[Scene]:
    """Return the pairs of the search's prompts."""
    words = SETS["search"]
    return [Scene(pair) for pair in product(words.animals, words.objects)]


def compose(arrangement: Arrangement, scenes: Sequence[Scene]) -> Tensor:
    """Return `IMAGES` images of each scene, (scenes * IMAGES, 3, 64, 64) in [0, 1].

    Image k of a scene has the same sprites in every arrangement, mirrored and shifted alike.
    """
    images = []

    for row, scene in enumerate(scenes):
        for image in range(IMAGES):
            source = Scenes(
                row * IMAGES + image, centres={2: arrangement.centres}, small=arrangement.side
            )
            images.append(source.compose(scene, source.sets[image % len(source.sets)]))

    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255


def scores(rewards: Mapping[str, Reward], arrangement: Arrangement) -> np.ndarray:
    """Return the rewards of an arrangement's images, (pairs, IMAGES, rewards)."""
    scenes = pairs()
    prompts = [Prompt(scene.caption) for scene in scenes for _ in range(IMAGES)]
    parts = score(dict(rewards), compose(arrangement, scenes), prompts).parts
    return parts.double().numpy().reshape(len(scenes), IMAGES, -1)


def best_of_each(gains: np.ndarray) -> np.ndarray:
    """Return the gains of choosing an arrangement for each pair, the usual one included.

    By the searched weights, the first half of a pair's images choose and the second half measure,
    then the other way round.

    Args:
        gains: (arrangements, pairs, images, rewards) in standard deviations.

    Returns:
        (pairs, rewards).
    """
    halves = np.stack(np.split(gains, 2, axis=2)).mean(3)  # (2, arrangements, pairs, rewards)
    chosen = (halves @ np.asarray(plan.SUM_WEIGHTS)).argmax(1)  # (2, pairs)
    rows = np.arange(halves.shape[2])
    measured = [halves[1 - half][chosen[half], rows] for half in (0, 1)]
    return np.mean(measured, axis=0)


def measure_arrangements(std: Mapping[str, float]) -> dict[str, Any]:
    """Write `RESULT`: what each arrangement gains over the usual one in each reward.

    Args:
        std: of each reward among images of the untrained generator (`result.json`): the unit.

    Returns:
        What was written: by arrangement, and for `BEST`, by reward, `mean` and `ci95` over pairs.
    """
    rewards = load_rewards(configuration.load(plan.RECIPE).rewards, "rewards")
    scored = {name: scores(rewards, arrangement) for name, arrangement in ARRANGEMENTS.items()}
    unit = np.array([std[name] for name in plan.REWARDS])
    gains = {name: (each - scored[USUAL]) / unit for name, each in scored.items()}
    means = {name: each.mean(1) for name, each in gains.items() if name != USUAL}
    means[BEST] = best_of_each(np.stack(list(gains.values())))
    result = {name: _summary(each) for name, each in means.items()}
    write(RESULT, dumps(result, indent=1) + "\n")
    return result


def _summary(gains: np.ndarray) -> dict[str, Any]:
    """Return the mean and interval of each reward's gains (pairs, rewards)."""
    by_reward = torch.from_numpy(gains).unsqueeze(1).unbind(2)
    return {
        name: {"mean": float(gain.mean()), "ci95": interval(gain)}
        for name, gain in zip(plan.REWARDS, by_reward, strict=True)
    }
