"""``zoo:emoji-judge``: a small residual network that names nouns, background colour and count of a
scene.

``python -m pretrain.judge --minutes 15``. All seven icon sets; noise, blur, contrast and, once
``pretrain.vae`` has run, a trip through the autoencoder with disturbed latents, because generated
pictures are never clean sprites.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification

from burnish.zoo.judge import Judge, split
from burnish.zoo.scenes import Scene, Scenes, nouns, vocabulary
from pretrain import loop
from pretrain.clip import disturb, normalise
from pretrain.data import ZOO


def build() -> ResNetForImageClassification:
    labels = [*nouns(), *vocabulary()["colours"], "1", "2", "3"]
    config = ResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 128, 192],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )
    return ResNetForImageClassification(config)


def targets(scenes: list[Scene]) -> tuple[Tensor, Tensor, Tensor]:
    """Multi-hot nouns (B, N), colour index (B,), count minus one (B,)."""
    place = {n: i for i, n in enumerate(nouns())}
    colours = list(vocabulary()["colours"])
    noun = torch.zeros(len(scenes), len(place))

    for row, scene in enumerate(scenes):
        noun[row, [place[n] for n in scene.nouns]] = 1

    colour = torch.tensor([colours.index(s.colour) for s in scenes])
    return noun, colour, torch.tensor([s.count * len(s.nouns) - 1 for s in scenes])


def batches(batch: int, vae: AutoencoderKL | None) -> Callable[[int], Iterator[tuple[Tensor, ...]]]:
    def endless(seed: int) -> Iterator[tuple[Tensor, ...]]:
        scenes = Scenes(seed, tuple(vocabulary()["sets"]))

        while True:
            some = scenes.draw(batch // 4, "pair")
            more = scenes.draw(batch - batch // 4)
            images = torch.cat([some[0], more[0]])
            shown = some[1] + more[1]
            x = disturb(normalise(images))

            if vae is not None:
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                    z = vae.encode(x[::4]).latent_dist.mean
                    z = (
                        z
                        + 0.15
                        * torch.rand(len(z), 1, 1, 1)
                        * torch.randn_like(z)
                        / vae.config.scaling_factor
                    )
                    x[::4] = vae.decode(z).sample.float()

            yield x, *targets(shown)

    return endless


def main() -> None:
    parser = loop.arguments(__doc__, minutes=15, batch=64, lr=2e-3)
    parser.add_argument("--warm", action="store_true", help="go on from the weights in the package")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    home = ZOO / "emoji-judge"
    model = (
        ResNetForImageClassification.from_pretrained(home, dtype=torch.float32)
        if options.warm
        else build()
    )
    model.to(device, memory_format=torch.channels_last).train()
    path = options.build / "vae" / "model"

    if options.warm and not path.exists():
        path = ZOO / "emoji-sd" / "vae"

    vae = AutoencoderKL.from_pretrained(path, dtype=torch.float32).eval() if path.exists() else None
    count = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{count:.2f} M parameters; autoencoder: {vae is not None}", flush=True)

    def loss_of(batch: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, float]]:
        x, noun, colour, count = (part.to(device) for part in batch)
        with torch.autocast(device.type, torch.bfloat16):
            out = model(x.to(memory_format=torch.channels_last)).logits

        a, b, c = split(out.float())
        soft = noun / noun.sum(1, keepdim=True)
        loss = (
            F.cross_entropy(a, soft)
            + 0.3 * F.cross_entropy(b, colour)
            + 0.3 * F.cross_entropy(c, count)
        )
        hit = soft.gather(1, a.argmax(1, keepdim=True)).gt(0).float().mean().item()

        return loss, {"noun": hit, "count": (c.argmax(1) == count).float().mean().item()}

    test = Scenes(10**6).draw(1024)

    def picture() -> Image.Image:
        images, scenes = test
        model.eval()
        verdict = Judge(model).classify(images.permute(0, 3, 1, 2).float() / 255)
        model.train()
        right = [set(s.nouns) == verdict.names(i, len(s.nouns)) for i, s in enumerate(scenes)]
        by = {
            k: [r for r, s in zip(right, scenes, strict=True) if (s.count, len(s.nouns)) == k]
            for k in ((1, 1), (2, 1), (3, 1), (1, 2))
        }
        print(
            "nouns right by (count, nouns):",
            {k: round(sum(v) / len(v), 3) for k, v in by.items()},
            flush=True,
        )
        counts = [
            s.count * len(s.nouns) == c for s, c in zip(scenes, verdict.count.tolist(), strict=True)
        ]
        colours = [
            list(vocabulary()["colours"])[c] == s.colour
            for s, c in zip(scenes, verdict.colour.tolist(), strict=True)
        ]
        print(
            f"counts right: {sum(counts) / 1024:.3f}; colours right: {sum(colours) / 1024:.3f}",
            flush=True,
        )

        return loop.grid(images[:32], 16)

    def finish() -> None:
        model.save_pretrained(options.build / "judge" / "model")

    loop.train(
        "judge",
        model,
        batches(options.batch, vae),
        loss_of,
        options,
        picture=picture,
        finish=finish,
        decay=0.998,
    )


if __name__ == "__main__":
    main()
