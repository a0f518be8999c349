"""`zoo:emoji-judge`: a small residual network that names a scene's nouns, background and count.

`python -m pretrain.judge --minutes 15`. All seven icon sets; noise, blur, contrast and, once
`pretrain.vae` has run, a trip through the autoencoder with disturbed latents, because generated
images are never clean sprites.
"""

from __future__ import annotations

import argparse
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
from pretrain.clip import disturb, disturb_latents, normalise
from pretrain.data import ZOO


def build() -> ResNetForImageClassification:
    """Return a new network with a label for every noun, colour and count."""
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
    """Return multi-hot nouns (B, N), the colour's index (B,) and the count minus one (B,)."""
    classes = {noun: index for index, noun in enumerate(nouns())}
    colours = list(vocabulary()["colours"])
    noun = torch.zeros(len(scenes), len(classes))

    for row, scene in enumerate(scenes):
        noun[row, [classes[name] for name in scene.nouns]] = 1

    colour = torch.tensor([colours.index(scene.colour) for scene in scenes])
    count = torch.tensor([scene.count * len(scene.nouns) - 1 for scene in scenes])
    return noun, colour, count


def batches(batch: int, vae: AutoencoderKL | None) -> Callable[[int], Iterator[tuple[Tensor, ...]]]:
    """Return a function of a seed to endless batches: images and their targets."""

    def endless(seed: int) -> Iterator[tuple[Tensor, ...]]:
        scenes = Scenes(seed, tuple(vocabulary()["sets"]))

        while True:
            pairs, shown_pairs = scenes.draw(batch // 4, "pair")
            others, shown_others = scenes.draw(batch - batch // 4)
            x = disturb(normalise(torch.cat([pairs, others])))

            if vae is not None:
                disturb_latents(vae, x, 4)

            yield x, *targets(shown_pairs + shown_others)

    return endless


def load(
    options: argparse.Namespace, device: torch.device
) -> tuple[ResNetForImageClassification, AutoencoderKL | None]:
    """Return the network, new or with `--warm` the package's, and the autoencoder, if any."""
    if options.warm:
        model = ResNetForImageClassification.from_pretrained(
            ZOO / "emoji-judge", dtype=torch.float32
        )
    else:
        model = build()

    model.to(device, memory_format=torch.channels_last).train()
    path = options.build / "vae" / "model"

    if options.warm and not path.exists():
        path = ZOO / "emoji-sd" / "vae"
    if not path.exists():
        return model, None

    return model, AutoencoderKL.from_pretrained(path, dtype=torch.float32).eval()


def report(model: ResNetForImageClassification, images: Tensor, scenes: list[Scene]) -> None:
    """Print how often the network is right about uint8 images of `scenes`."""
    model.eval()
    verdict = Judge(model).classify(images.permute(0, 3, 1, 2).float() / 255)
    model.train()

    by_kind: dict[tuple[int, int], list[bool]] = {(1, 1): [], (2, 1): [], (3, 1): [], (1, 2): []}
    for row, scene in enumerate(scenes):
        right = set(scene.nouns) == verdict.names(row, len(scene.nouns))
        by_kind[scene.count, len(scene.nouns)].append(right)

    shares = {kind: round(sum(right) / len(right), 3) for kind, right in by_kind.items()}
    print("nouns right by (count, nouns):", shares, flush=True)

    names = list(vocabulary()["colours"])
    counts = zip(scenes, verdict.count.tolist(), strict=True)
    colours = zip(scenes, verdict.colour.tolist(), strict=True)
    right_counts = sum(scene.count * len(scene.nouns) == count for scene, count in counts)
    right_colours = sum(names[colour] == scene.colour for scene, colour in colours)
    print(
        f"counts right: {right_counts / len(scenes):.3f}; "
        f"colours right: {right_colours / len(scenes):.3f}",
        flush=True,
    )


def main() -> None:
    parser = loop.arguments(__doc__, minutes=15, batch=64, lr=2e-3)
    parser.add_argument("--warm", action="store_true", help="go on from the weights in the package")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    model, vae = load(options, device)
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{parameters:.2f} M parameters; autoencoder: {vae is not None}", flush=True)

    def loss_of(batch: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, float]]:
        x, noun, colour, count = (part.to(device) for part in batch)
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(x.to(memory_format=torch.channels_last)).logits

        noun_logits, colour_logits, count_logits = split(logits.float())
        noun_share = noun / noun.sum(1, keepdim=True)
        loss = (
            F.cross_entropy(noun_logits, noun_share)
            + 0.3 * F.cross_entropy(colour_logits, colour)
            + 0.3 * F.cross_entropy(count_logits, count)
        )
        hits = noun_share.gather(1, noun_logits.argmax(1, keepdim=True)).gt(0)
        right_count = count_logits.argmax(1) == count

        return loss, {
            "noun": hits.float().mean().item(),
            "count": right_count.float().mean().item(),
        }

    images, scenes = Scenes(10**6).draw(1024)

    def preview() -> Image.Image:
        report(model, images, scenes)
        return loop.grid(images[:32], 16)

    loop.train(
        "judge",
        model,
        batches(options.batch, vae),
        loss_of,
        options,
        preview=preview,
        finish=lambda: model.save_pretrained(options.build / "judge" / "model"),
        decay=0.998,
    )


if __name__ == "__main__":
    main()
