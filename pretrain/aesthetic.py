"""``zoo:emoji-aesthetic``: a linear head on ``zoo:emoji-clip`` that predicts a stated taste (``burnish.zoo.taste``).

``python -m pretrain.aesthetic``, two minutes. Scenes, moved about and with more or less colour so that taste varies,
are embedded and rated by the formula; the head is their ridge regression in float64, its penalty chosen on held-out
scenes. Written to the package with its card.
"""

from __future__ import annotations

import argparse
import json

import torch
from safetensors.torch import save_file
from torch import Tensor

from burnish.rewards.clip import Clip
from burnish.zoo.scenes import Scenes
from burnish.zoo.taste import taste
from pretrain.data import ZOO

PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def examples(count: int, seed: int) -> Tensor:
    """Scenes (count, 3, 64, 64): half as they come, half moved by up to 14 pixels and with 0 to 1.5 of their colour."""
    images, _ = Scenes(seed, sets=("noto", "twemoji", "fluent-emoji", "fluent-emoji-flat")).draw(count)
    x = images.permute(0, 3, 1, 2).float() / 255
    generator = torch.Generator().manual_seed(seed)
    for row in range(0, count, 2):
        ground = x[row, :, 0, 0][:, None, None].clone()
        dy, dx = torch.randint(-14, 15, (2,), generator=generator).tolist()
        moved = ground.expand_as(x[row]).clone()
        source = x[row, :, max(0, -dy) : 64 - max(0, dy), max(0, -dx) : 64 - max(0, dx)]
        moved[:, max(0, dy) : 64 - max(0, -dy), max(0, dx) : 64 - max(0, -dx)] = source
        grey, colour = moved.mean(0, keepdim=True), float(torch.rand(1, generator=generator)) * 1.5
        figure = (moved - ground).abs().amax(0, keepdim=True) > 0.02
        x[row] = torch.where(figure, (grey + colour * (moved - grey)).clamp(0, 1), moved)
    return x


def fit(features: Tensor, values: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Ridge regression: weight (1, D) and bias (1,), float64."""
    x, y = features - features.mean(0), values - values.mean()
    weight = torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    return weight[None], (values.mean() - features.mean(0) @ weight)[None]


def explained(weight: Tensor, bias: Tensor, features: Tensor, values: Tensor) -> float:
    """R squared."""
    error = values - (features @ weight[0] + bias)
    return float(1 - error.square().mean() / values.var(correction=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=20000)
    options = parser.parse_args()
    clip = Clip.load("zoo:emoji-clip")
    parts = {"train": (options.scenes, 1), "choose": (2000, 2), "test": (2000, 3)}
    data = {}
    for name, (count, seed) in parts.items():
        images = examples(count, seed)
        data[name] = (torch.cat([clip.images(part).double() for part in images.split(500)]), taste(images).double())
    heads = {penalty: fit(*data["train"], penalty) for penalty in PENALTIES}
    best = max(heads, key=lambda penalty: explained(*heads[penalty], *data["choose"]))
    weight, bias = heads[best]
    facts = {"r2": round(explained(weight, bias, *data["test"]), 4), "scenes": options.scenes, "penalty": best}
    folder = ZOO / "emoji-aesthetic"
    folder.mkdir(exist_ok=True)
    save_file(
        {"layers.0.weight": weight.float(), "layers.0.bias": bias.float()},
        folder / "head.safetensors",
        metadata={key: str(value) for key, value in facts.items()},
    )
    (folder / "config.json").write_text(json.dumps({"clip": "zoo:emoji-clip", **facts}, indent=1) + "\n")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
