"""A pool of encoded scenes for `pretrain.flow`: shards of latents with their captions.

`python -m pretrain.flow_pool --shards 60` encodes scenes with the autoencoder of
`pretrain.flow_vae`, 1,000 a shard, and skips the shards that are there; it may run beside the
training, which takes the shards that it finds when it starts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from burnish.zoo.scenes import Scenes
from pretrain import loop

SHARD = 1000  # scenes in a file
CHUNK = 50  # scenes of a kind that are encoded together
KINDS = {"pair": 0.45, "single": 0.33, "count": 0.22}


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, device: torch.device) -> Tensor:
    """Return uint8 images (n, 128, 128, 3) as shifted, scaled latents (n, 16, 16, 16) float16."""
    x = (images.permute(0, 3, 1, 2).float() / 127.5 - 1).to(
        device, memory_format=torch.channels_last
    )

    with loop.autocast(device):
        mean = vae.encode(x).latent_dist.mean.float()

    return ((mean - vae.config.shift_factor) * vae.config.scaling_factor).half().cpu()


def write_shard(path: Path, vae: AutoencoderKL, seed: int, device: torch.device) -> None:
    """Encode the scenes of a seed into a file."""
    scenes = Scenes(seed, size=128)
    rng = random.Random(seed)
    latents = []
    captions = []

    for _ in range(SHARD // CHUNK):
        kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
        images, drawn = scenes.draw(CHUNK, kind)
        latents.append(encode(vae, images, device))
        captions += [scene.caption for scene in drawn]

    partial = path.with_suffix(".part")
    pool = torch.cat(latents).contiguous()
    save_file({"latents": pool}, partial, {"captions": json.dumps(captions)})
    os.replace(partial, path)


def read_pool(folder: Path) -> tuple[Tensor, list[str]]:
    """Return all latents (N, 16, 16, 16) float16 of a folder, and their captions."""
    latents = []
    captions: list[str] = []

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            latents.append(file.get_tensor("latents"))
            captions += json.loads(file.metadata()["captions"])

    if not latents:
        raise SystemExit(f"no shards in {folder}: run python -m pretrain.flow_pool")
    return torch.cat(latents), captions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=60)
    parser.add_argument("--first", type=int, default=0, help="shard to begin with")
    parser.add_argument(
        "--every", type=int, default=1, help="one shard in so many: one process each"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--build", type=Path, default=Path("build"))
    options = parser.parse_args()
    device = torch.device(options.device)
    model = options.build / "flow-vae" / "model"
    vae = AutoencoderKL.from_pretrained(model, dtype=torch.float32)
    vae.to(device, memory_format=torch.channels_last)
    folder = options.build / "flow-pool"
    folder.mkdir(parents=True, exist_ok=True)

    for number in range(options.first, options.shards, options.every):
        path = folder / f"{number:03}.safetensors"
        if not path.exists():
            write_shard(path, vae, 10_000 + number, device)
            print(path.name, flush=True)


if __name__ == "__main__":
    main()
