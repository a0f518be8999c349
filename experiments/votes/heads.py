"""The taste that a preference head knows after so many votes, by what it reads of an image.

The model before training draws 16 images of each prompt. The voter compares pairs among 8 of them;
of the other 8 the head's scores are correlated with the true taste, prompt by prompt: it is the
images of one prompt that training compares.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import get_args

import torch
from torch import Tensor

from burnish.files import dumps, write
from burnish.prompts.sources import zoo_nouns
from burnish.rewards.bradley_terry import Comparisons, fit
from burnish.rewards.clip import Clip, Features
from burnish.seeds import generator
from burnish.tools.gallery import draw, open_source
from burnish.zoo.taste import taste
from experiments.votes import plan

EACH = 16  # images of a prompt
SEEDS = 4  # of votes


def measure_heads(out: Path) -> None:
    """Write `heads.json`: mean correlations by features and votes, if it is not there yet."""
    target = out / "heads.json"
    if target.exists():
        return

    policy, sampler = open_source("zoo:emoji-sd", steps=5, guidance=4)
    prompts = [prompt.text for prompt in zoo_nouns("animals")]
    images = draw(policy, sampler, prompts, EACH, seed=0)
    truth = taste(images).double().view(len(prompts), EACH)
    clip = Clip.load(plan.CLIP)
    found = {}

    for which in get_args(Features):
        features = clip.features(images, which).double().view(len(prompts), EACH, -1)
        found[which] = {
            str(votes): mean(correlation(features, truth, votes, seed) for seed in range(SEEDS))
            for votes in plan.BUDGETS
        }

    write(target, dumps(found, indent=1))


def correlation(features: Tensor, truth: Tensor, votes: int, seed: int) -> float:
    """Return the mean correlation within a prompt of a head's scores with the true taste.

    Args:
        features: (prompts, images, D).
        truth: (prompts, images).
        votes: that the head is fitted to.
        seed: of the pairs and of the wrong answers.
    """
    stream = generator(seed, "heads")
    half = EACH // 2
    prompt = torch.randint(len(features), (votes,), generator=stream)
    pair = torch.stack([torch.randperm(half, generator=stream)[:2] for _ in range(votes)])
    wrong = torch.rand(votes, generator=stream) < plan.WRONG

    first_is_better = (truth[prompt, pair[:, 0]] > truth[prompt, pair[:, 1]]) != wrong
    better = pair.gather(1, (~first_is_better).long()[:, None])[:, 0]
    worse = pair.gather(1, first_is_better.long()[:, None])[:, 0]
    compared = features[prompt, better], features[prompt, worse]
    head = fit(Comparisons(*compared, torch.arange(votes)))

    held_out = features[:, half:]
    scores = head.score(held_out.flatten(0, 1))[0].view(len(features), -1)
    return float((standardised(scores) * standardised(truth[:, half:])).mean())


def standardised(values: Tensor) -> Tensor:
    """Return each row (n, k) less its mean, in units of its standard deviation."""
    centred = values - values.mean(1, keepdim=True)
    return centred / centred.std(1, correction=0, keepdim=True).clamp(min=1e-12)
