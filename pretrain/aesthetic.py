"""`zoo:emoji-aesthetic` and `zoo:emoji-preference`: linear heads on `zoo:emoji-clip`.

Each predicts a stated taste (`burnish.zoo.taste`).

`python -m pretrain.aesthetic`, two minutes for both, or one of them by name. Scenes, moved about
and with more or less colour so that taste varies, are embedded and rated by the formula; the head
is their ridge regression in float64, its penalty chosen on held-out scenes. Written to the package
with its card.
"""

from __future__ import annotations

import argparse
import json

import torch
from safetensors.torch import save_file
from torch import Tensor

from burnish.rewards.clip import Clip
from burnish.zoo.scenes import Scenes
from burnish.zoo.taste import preference, taste
from pretrain.data import ZOO

TASTES = {"emoji-aesthetic": taste, "emoji-preference": preference}
PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
SETS = ("noto", "twemoji", "fluent-emoji", "fluent-emoji-flat")
HELD_OUT = (("choose", (2000, 2)), ("test", (2000, 3)))  # number of scenes, and the seed


def examples(count: int, seed: int) -> Tensor:
    """Return scenes (count, 3, 64, 64), half of them as they are and half of them changed.

    The changed ones are moved by up to 14 pixels and have 0 to 1.5 of their colour.
    """
    images, _ = Scenes(seed, sets=SETS).draw(count)
    x = images.permute(0, 3, 1, 2).float() / 255
    generator = torch.Generator().manual_seed(seed)

    for row in range(0, count, 2):
        x[row] = _changed(x[row], generator)

    return x


def _changed(image: Tensor, generator: torch.Generator) -> Tensor:
    """Return the image (3, 64, 64) with its figure moved and more or less colour."""
    ground = image[:, 0, 0][:, None, None].clone()
    dy, dx = torch.randint(-14, 15, (2,), generator=generator).tolist()
    moved = ground.expand_as(image).clone()
    source = image[:, max(0, -dy) : 64 - max(0, dy), max(0, -dx) : 64 - max(0, dx)]
    moved[:, max(0, dy) : 64 - max(0, -dy), max(0, dx) : 64 - max(0, -dx)] = source

    grey = moved.mean(0, keepdim=True)
    saturation = float(torch.rand(1, generator=generator)) * 1.5
    coloured = (grey + saturation * (moved - grey)).clamp(0, 1)
    figure = (moved - ground).abs().amax(0, keepdim=True) > 0.02
    return torch.where(figure, coloured, moved)


def fit(features: Tensor, values: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Return the ridge regression's weight (1, D) and bias (1,), float64."""
    x = features - features.mean(0)
    y = values - values.mean()
    weight = torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    return weight[None], (values.mean() - features.mean(0) @ weight)[None]


def explained(weight: Tensor, bias: Tensor, features: Tensor, values: Tensor) -> float:
    """Return R squared of a head."""
    error = values - (features @ weight[0] + bias)
    return float(1 - error.square().mean() / values.var(correction=0))


def spearman(a: Tensor, b: Tensor) -> float:
    """Return the rank correlation; equal values get ranks in their order."""
    ranks = torch.stack([x.argsort(stable=True).argsort().double() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def best(
    features: dict[str, Tensor], values: dict[str, Tensor]
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Return the best head: its weight, its bias, and measures of it on "test".

    It is fitted to "train", with the penalty that explains most of "choose".
    """
    heads = {penalty: fit(features["train"], values["train"], penalty) for penalty in PENALTIES}

    def explains(penalty: float) -> float:
        return explained(*heads[penalty], features["choose"], values["choose"])

    penalty = max(heads, key=explains)
    weight, bias = heads[penalty]
    test = features["test"]
    r2 = explained(weight, bias, test, values["test"])
    rank = spearman(test @ weight[0], values["test"])

    return (
        weight,
        bias,
        {"r2": round(r2, 4), "spearman": round(rank, 4), "penalty": penalty},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("heads", nargs="*", help=f"which of {', '.join(TASTES)}; all")
    parser.add_argument("--scenes", type=int, default=20000)
    options = parser.parse_args()

    clip = Clip.load("zoo:emoji-clip")
    parts = (("train", (options.scenes, 1)), *HELD_OUT)
    images = {part: examples(count, seed) for part, (count, seed) in parts}
    features = {
        part: torch.cat([clip.images(chunk).double() for chunk in x.split(500)])
        for part, x in images.items()
    }

    for name in options.heads or TASTES:
        values = {part: TASTES[name](x).double() for part, x in images.items()}
        write(name, *best(features, values), options.scenes)


def write(name: str, weight: Tensor, bias: Tensor, measures: dict[str, float], scenes: int) -> None:
    """Write the head and its card to the package."""
    facts = {**measures, "scenes": scenes}
    folder = ZOO / name
    folder.mkdir(exist_ok=True)
    save_file(
        {"layers.0.weight": weight.float(), "layers.0.bias": bias.float()},
        folder / "head.safetensors",
        metadata={key: str(value) for key, value in facts.items()},
    )
    card = {"clip": "zoo:emoji-clip", **facts}
    (folder / "config.json").write_text(json.dumps(card, indent=1) + "\n")
    print(name, json.dumps(facts))


if __name__ == "__main__":
    main()
