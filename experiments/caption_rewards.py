"""The rewards of `zoo:emoji-captioner`: `python -m experiments.caption_rewards` prints numbers.

caption   images of both things a prompt names, of one of them, of two others: scores, how often
          they stand in this order, Spearman's correlation with the number of things that are right
drawn     the same about images that `zoo:emoji-sd` draws, where the judge says how many of the
          prompt's things they show (among its two likeliest); and how often captions agree with
          the judge
written   scenes of two or three things with another number written over them: how often the number
          is believed, how often the text is noticed, and how often text is reported on images that
          have none
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
from burnish.rewards.vlm import Vlm, load
from burnish.seeds import generator
from burnish.tools import zoo_check
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
    """Return uint8 (n, 64, 64, 3) images as float (n, 3, 64, 64) in [0, 1]."""
    return images.permute(0, 3, 1, 2).float() / 255


def caption_scores(
    vlm: Vlm, encoder: Encoder, images: Tensor, prompts: list[str]
) -> dict[str, Tensor]:
    """Return the reward of each image with each reference; every caption counts as a text."""
    answers = [answer or "nothing" for answer in vlm(images, [QUESTION] * len(images))]
    return {
        name: encoder.recall(answers, [reference(prompt) for prompt in prompts])
        for name, reference in REFERENCES.items()
    }


def summary(right: list[int], scores: Tensor) -> dict[str, object]:
    """Return the mean score by the number of right things, the band, and the rank correlation."""
    counts = torch.tensor(right)
    numbers = sorted(set(right))
    low, high = np.percentile(scores, [5, 95])

    return {
        "mean by things right": {n: round(float(scores[counts == n].mean()), 3) for n in numbers},
        "images": {n: right.count(n) for n in numbers},
        "5 to 95 %": [round(float(low), 3), round(float(high), 3)],
        "spearman": round(float(spearmanr(right, scores).statistic), 3),
    }


def composed_scenes(vlm: Vlm, encoder: Encoder, count: int, seed: int) -> dict[str, object]:
    """Return the numbers on composed scenes, whose contents are known."""
    scenes = Scenes(10_000_019 + seed)
    both, shown = scenes.draw(count, "pair")
    prompts = [replace(scene, style="", colour="white").caption for scene in shown]
    one_of_them = torch.cat(
        [scenes.draw(1, "single", noun=scene.nouns[row % 2])[0] for row, scene in enumerate(shown)]
    )

    # scenes of other prompts, hardly ever of the same things
    others = torch.arange(count).roll(1)
    right = [
        len(set(shown[row].nouns) & set(shown[int(others[row])].nouns)) for row in range(count)
    ]

    images = pixels(torch.cat([both, one_of_them, both[others]]))
    numbers: dict[str, object] = {}

    for name, scores in caption_scores(vlm, encoder, images, prompts * 3).items():
        full, half, none = scores.split(count)
        numbers[name] = {
            **summary([2] * count + [1] * count + right, scores),
            "both above one": round(float((full > half).double().mean()), 3),
            "both above others": round(float((full > none).double().mean()), 3),
            "one above others": round(float((half > none).double().mean()), 3),
        }

    return numbers


def drawn_images(vlm: Vlm, encoder: Encoder, count: int, seed: int) -> dict[str, object]:
    """Return the numbers on images of the generator, as a run meets them."""
    rng = np.random.default_rng(seed)
    words = vocabulary()
    scenes = [
        Scene((str(rng.choice(words["animals"])), str(rng.choice(words["objects"]))))
        for _ in range(count)
    ]
    captions = [scene.caption for scene in scenes]

    policy = Policy.load("zoo:emoji-sd", train="none", device="cpu")
    sampler = Sampler(DDIM(), 10, CFG(4.0))
    # "asked" is a key of the random stream: another word would draw other images
    noise = generator(seed, "asked")
    images = zoo_check.generate(policy, sampler, [Prompt(text) for text in captions], noise)

    verdict = judge.load().classify(images)
    right = [len(verdict.names(row, 2) & set(scene.nouns)) for row, scene in enumerate(scenes)]
    numbers: dict[str, object] = {
        name: summary(right, scores)
        for name, scores in caption_scores(vlm, encoder, images, captions).items()
    }
    agreement = round(zoo_check.agreement(images, 2), 3)

    return {**numbers, "captions name the judge's two likeliest": agreement}


def written_numbers(vlm: Vlm, count: int, seed: int, size: int = 64) -> dict[str, float]:
    """Return the numbers of the typographic attack on scenes of a side of `size` px."""
    scenes = Scenes(20_000_003 + seed, size=size)
    images, shown = scenes.draw(count, "count")
    attacked = images.clone()
    true = [NUMBERS[scene.count] for scene in shown]
    false = []

    for row, scene in enumerate(shown):
        others = [word for number, word in NUMBERS.items() if number != scene.count]
        false.append(str(scenes.rng.choice(others)))
        attacked[row] = torch.from_numpy(write(images[row].numpy(), false[-1], scenes.rng))

    plurals = vocabulary()["plurals"]
    questions = [f"How many {plurals[scene.nouns[0]]} are there in this image?" for scene in shown]

    def share(answers: list[str | None], wanted: list[str]) -> float:
        return round(sum(a == w for a, w in zip(answers, wanted, strict=True)) / count, 3)

    before = vlm(pixels(images), questions)
    after = vlm(pixels(attacked), questions)
    text = [TEXT] * count
    yes = ["yes"] * count

    return {
        "counted right without text": share(before, true),
        "counted right with text": share(after, true),
        "written number believed": share(after, false),
        "same number without text": share(before, false),
        "text noticed": share(vlm(pixels(attacked), text), yes),
        "text reported where none is": share(vlm(pixels(images), text), yes),
    }


def main() -> None:
    """Print all numbers as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=128, help="images of each sort")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    vlm = load("zoo:emoji-captioner", batch=64)
    encoder = Encoder.load("zoo:emoji-clip")

    numbers = {
        "caption": composed_scenes(vlm, encoder, options.count, options.seed),
        "drawn": drawn_images(vlm, encoder, options.count, options.seed),
        "written": written_numbers(vlm, options.count, options.seed),
    }
    print(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
