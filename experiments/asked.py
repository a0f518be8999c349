"""Are the rewards of `zoo:emoji-captioner` any good? `python -m experiments.asked` prints what it
measures as JSON.

caption   pictures of both things a prompt names, of one of them, of two others: scores, how often they stand in this
          order, Spearman's correlation with the number of things that are right
drawn     the same about pictures that `zoo:emoji-sd` draws, where the judge says how many of the prompt's things are
          there (among its two likeliest); and how often captions agree with the judge
written   scenes of two or three things with another number written over them: how often the number is believed, how
          often the text is noticed, and how often text is seen on pictures that have none
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from burnish.diffusion.guidance import CFG
from burnish.diffusion.kernels import DDIM
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.rewards.caption import QUESTION, Encoder
from burnish.rewards.vlm import CachedVlm, Vlm, load
from burnish.seeds import generator
from burnish.tools import zoo_check as check
from burnish.types import Prompt
from burnish.zoo import judge
from burnish.zoo.questions import TEXT, write
from burnish.zoo.scenes import NUMBERS, Scene, Scenes, vocabulary

REFERENCES: dict[str, Callable[[str], str]] = {
    "paper": lambda prompt: f"The image contains {prompt}",
    "prompt alone": lambda prompt: prompt,
    "nouns alone": lambda prompt: " ".join(
        word for word in prompt.split() if word not in ("a", "an", "and")
    ),
}


def pixels(images: Tensor) -> Tensor:
    """uint8 (n, 64, 64, 3) -> float (n, 3, 64, 64) in [0, 1]."""
    return images.permute(0, 3, 1, 2).float() / 255


def scored(ask: Vlm, encoder: Encoder, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
    """The reward with each reference; every answer of the captioner is a text."""
    answers = [answer or "nothing" for answer in ask(images, [QUESTION] * len(images))]
    return {
        name: encoder.recall(answers, [reference(prompt) for prompt in prompts])
        for name, reference in REFERENCES.items()
    }


def described(right: list[int], values: Tensor) -> dict[str, object]:
    """Mean score by the number of right things, the band, and the rank correlation."""
    counts = torch.tensor(right)
    low, high = np.percentile(values, [5, 95])
    return {
        "mean by things right": {
            n: round(float(values[counts == n].mean()), 3) for n in sorted(set(right))
        },
        "pictures": {n: right.count(n) for n in sorted(set(right))},
        "5 to 95 %": [round(float(low), 3), round(float(high), 3)],
        "spearman": round(float(spearmanr(right, values).statistic), 3),
    }


def caption(ask: Vlm, encoder: Encoder, count: int, seed: int) -> dict[str, object]:
    """On composed scenes, where what is shown is known."""
    scenes = Scenes(10_000_019 + seed)
    both, shown = scenes.draw(count, "pair")
    prompts = [replace(scene, style="", colour="white").caption for scene in shown]
    one = torch.cat(
        [scenes.draw(1, "single", noun=scene.nouns[row % 2])[0] for row, scene in enumerate(shown)]
    )
    others = torch.arange(count).roll(1)  # scenes of other prompts, hardly ever of the same things
    right = [
        len(set(shown[row].nouns) & set(shown[int(others[row])].nouns)) for row in range(count)
    ]
    images = pixels(torch.cat([both, one, both[others]]))
    found: dict[str, object] = {}

    for name, values in scored(ask, encoder, images, prompts * 3).items():
        full, half, none = values.split(count)
        found[name] = {
            **described([2] * count + [1] * count + right, values),
            "both above one": round(float((full > half).double().mean()), 3),
            "both above others": round(float((full > none).double().mean()), 3),
            "one above others": round(float((half > none).double().mean()), 3),
        }

    return found


def drawn(ask: Vlm, encoder: Encoder, count: int, seed: int) -> dict[str, object]:
    """On pictures of the generator, as a run meets them."""
    rng = np.random.default_rng(seed)
    words = vocabulary()
    asked = [
        Scene((str(rng.choice(words["animals"])), str(rng.choice(words["objects"]))))
        for _ in range(count)
    ]
    policy = Policy.load("zoo:emoji-sd", train="none", device="cpu")
    sampler = Sampler(DDIM(), 10, CFG(4.0))
    images = check.generate(
        policy, sampler, [Prompt(scene.caption) for scene in asked], generator(seed, "asked")
    )
    verdict = judge.load().classify(images)
    right = [len(verdict.names(row, 2) & set(scene.nouns)) for row, scene in enumerate(asked)]
    found: dict[str, object] = {
        name: described(right, values)
        for name, values in scored(ask, encoder, images, [scene.caption for scene in asked]).items()
    }

    return {
        **found,
        "captions name the judge's two likeliest": round(check.agreement(images, 2), 3),
    }


def written(ask: Vlm, count: int, seed: int) -> dict[str, float]:
    """The typographic attack."""
    scenes = Scenes(20_000_003 + seed)
    images, shown = scenes.draw(count, "count")
    attacked = images.clone()
    false = []

    for row, scene in enumerate(shown):
        false.append(
            str(
                scenes.rng.choice(
                    [word for number, word in NUMBERS.items() if number != scene.count]
                )
            )
        )
        attacked[row] = torch.from_numpy(write(images[row].numpy(), false[-1], scenes.rng))

    many = [
        f"How many {words} are there in this image?"
        for words in (vocabulary()["plurals"][s.nouns[0]] for s in shown)
    ]

    def share(answers: list[str | None], wanted: list[str]) -> float:
        return round(sum(a == w for a, w in zip(answers, wanted, strict=True)) / count, 3)

    before = ask(pixels(images), many)
    after = ask(pixels(attacked), many)
    return {
        "counted right without text": share(before, [NUMBERS[scene.count] for scene in shown]),
        "counted right with text": share(after, [NUMBERS[scene.count] for scene in shown]),
        "written number believed": share(after, false),
        "same number without text": share(before, false),
        "text noticed": share(ask(pixels(attacked), [TEXT] * count), ["yes"] * count),
        "text seen where none is": share(ask(pixels(images), [TEXT] * count), ["yes"] * count),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=128, help="pictures of each sort")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    ask = load("zoo:emoji-captioner", batch=64)
    encoder = Encoder.load("zoo:emoji-clip")
    assert isinstance(ask, CachedVlm)
    found = {
        "caption": caption(ask, encoder, options.count, options.seed),
        "drawn": drawn(ask, encoder, options.count, options.seed),
        "written": written(ask, options.count, options.seed),
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
