"""Expansions that the untrained generator makes something of: the expander's supervised start.

Each ending that `zoo:emoji-expander` knows, a style or a background, is put behind the pairs of the
search's prompts; images are scored by the prompts without it. The best endings behind each of these
prompts are the package's `expander.start = "emoji-endings"`.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np

from burnish import config as configuration
from burnish.files import write
from burnish.prompts.imitation import ENDINGS
from burnish.tools.gallery import draw
from burnish.training.assembly import load_rewards
from burnish.types import Prompt
from burnish.zoo.scenes import Scene, vocabulary
from experiments.parrot import plan
from experiments.parrot.measure import open_arm
from experiments.parrot.prompts import SETS

KEPT = 4
IMAGES = 3  # of each prompt and ending
NOISE = 77


def captions() -> list[str]:
    """Return the pairs of the search's prompts."""
    words = SETS["search"]
    return [Scene(pair).caption for pair in product(words.animals, words.objects)]


def endings() -> list[str]:
    """Return the endings with one thing to say: a style, or a background."""
    noun = ("cat",)
    length = len(Scene(noun).caption)
    words = vocabulary()
    scenes = [
        *(Scene(noun, style=style) for style in words["styles"]),
        *(Scene(noun, colour=colour) for colour in words["colours"] if colour != "white"),
    ]
    return [scene.caption[length:] for scene in scenes]


def choose_endings(out: Path) -> None:
    """Write the best endings behind the search's pairs, and print what each ending gains.

    Args:
        out: the folder of the experiment, with the run "no_expander": its settings are read.
    """
    source = open_arm(out, plan.ARMS["base"], plan.SEEDS[0])
    rewards = load_rewards(configuration.load(plan.RECIPE).rewards, "rewards")
    originals = [Prompt(text) for text in captions() for _ in range(IMAGES)]

    def scores(ending: str) -> np.ndarray:
        """Return the rewards, (prompts, images of each, rewards)."""
        prompts = [Prompt(text + ending) for text in captions()]
        images = draw(source.policy, source.sampler, prompts, IMAGES, NOISE)
        values = np.stack([reward(images, originals).numpy() for reward in rewards.values()], -1)
        return values.reshape(len(prompts), IMAGES, -1)

    bare = scores("")
    std = bare.reshape(-1, bare.shape[-1]).std(0)
    gains = {ending: (scores(ending) - bare).mean((0, 1)) / std for ending in endings()}
    ranked = sorted(gains, key=lambda ending: -float(gains[ending] @ plan.SUM_WEIGHTS))

    for ending in ranked:
        print(f"{ending:30}", " ".join(f"{gain:+.2f}" for gain in gains[ending]))

    rows = [
        {"prompt": text, "expansion": text + ending}
        for text in captions()
        for ending in ranked[:KEPT]
    ]
    write(ENDINGS, "".join(json.dumps(row) + "\n" for row in rows))
    print(f"{ENDINGS}: {len(rows)} expansions")
