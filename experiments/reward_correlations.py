"""Correlations of Parrot's four rewards in the zoo; `python -m experiments.reward_correlations`.

Prints JSON. Of 200 images of `zoo:emoji-sd` (50 captions of fresh scenes, four of each, 5 DDIM
steps): the correlations of the four rewards over all images ("all") and within captions
("within"), which is where Pareto selection compares; how well both heads predict the tastes they
were fitted to; and how the two tastes themselves agree.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import torch
from torch import Tensor

from burnish.diffusion.guidance import CFG
from burnish.diffusion.kernels import DDIM
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.rewards import score
from burnish.rewards.aesthetic import aesthetic
from burnish.rewards.clip import clip_similarity
from burnish.rewards.sentiment import sentiment
from burnish.tools.gallery import draw
from burnish.types import Prompt
from burnish.zoo.scenes import Scenes
from burnish.zoo.taste import preference, taste
from pretrain.aesthetic import spearman

EACH = 4  # images of a caption
STEPS = 5  # network calls of an image
SEED = 10_000_019  # of the scenes, far from those of training
CLIP = "zoo:emoji-clip"


def draw_images(captions: Sequence[str], steps: int = STEPS) -> Tensor:
    """Return EACH images of every caption."""
    policy = Policy.load("zoo:emoji-sd", train="none", device="cpu")
    return draw(policy, Sampler(DDIM(), steps, CFG(4.0)), captions, EACH)


def measure(images: Tensor, prompts: Sequence[Prompt]) -> dict[str, object]:
    """Return the module's numbers for these images, `EACH` of a prompt being neighbours."""
    rewards = {
        "alignment": clip_similarity(CLIP, of="original"),
        "aesthetic": aesthetic(CLIP, "zoo:emoji-aesthetic"),
        "preference": aesthetic(CLIP, "zoo:emoji-preference"),
        "sentiment": sentiment(CLIP),
    }
    scores = score(rewards, images, prompts).parts
    tastes = torch.stack([taste(images), preference(images)], 1).double()

    limits = torch.tensor([0.05, 0.95], dtype=torch.float64)
    errors = (scores[:, 1:3] - tastes).square().mean(0)
    return {
        "names": list(rewards),
        "mean": _rounded(scores.mean(0)),
        "std": _rounded(scores.std(0)),
        "5 to 95 % of sentiment": _rounded(scores[:, 3].quantile(limits)),
        "all": _rounded(torch.corrcoef(scores.T)),
        "within": _rounded(torch.corrcoef(_centred(scores).T)),
        "head and taste, Spearman": [
            round(spearman(scores[:, 1 + i], tastes[:, i]), 3) for i in (0, 1)
        ],
        "head and taste, R2": _rounded(1 - errors / tastes.var(0, correction=0)),
        "the two tastes": _rounded(torch.corrcoef(tastes.T)[0, 1]),
        "the two tastes within captions": _rounded(torch.corrcoef(_centred(tastes).T)[0, 1]),
    }


def _centred(values: Tensor) -> Tensor:
    """Return (N, K) values less the mean of each caption's images."""
    by_caption = values.view(-1, EACH, values.shape[1])
    return (by_caption - by_caption.mean(1, keepdim=True)).flatten(0, 1)


def _rounded(values: Tensor) -> object:
    if values.dim():
        return [_rounded(row) for row in values]

    return round(float(values), 3)


def main() -> None:
    """Print the numbers as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--captions", type=int, default=50)
    options = parser.parse_args()

    captions = [scene.caption for scene in Scenes(SEED).draw(options.captions)[1]]
    prompts = [Prompt(caption) for caption in captions for _ in range(EACH)]
    print(json.dumps(measure(draw_images(captions), prompts), indent=1))


if __name__ == "__main__":
    main()
