"""`zoo:emoji-judge`: a small residual network that names a scene's nouns, background and count.

`python -m pretrain.judge --minutes 15`. All seven icon sets; noise, blur, contrast and, once
`pretrain.vae` has run, a trip through the autoencoder with disturbed latents, because generated
images are never clean sprites.

`python -m pretrain.judge --codes` makes `zoo:emoji-code-judge`, which sees nouns under codes too:
40 % of its scenes have one in their luminance (`pretrain.shading`), by a share drawn evenly from 0
to 1. Three scenes in four have 64 px and Micro QR codes; the others have 128 px and QR codes, and
are reduced to 64 as the judge does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification

from burnish.zoo import judge as judging
from burnish.zoo.judge import Judge, reduced, split
from burnish.zoo.scenes import SIZE, SIZES, Scene, Scenes, nouns, vocabulary
from pretrain import loop
from pretrain.clip import disturb, disturb_latents
from pretrain.data import ZOO
from pretrain.shading import codes, shaded

LARGE = 2 * SIZE  # side of the larger scenes in px
CODED = 0.4  # share of the scenes that get a code
POOLS = {SIZE: 2048, LARGE: 1024}  # codes by the side of their scene
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the luminance that codes move, where it is measured
UNSEEN = 10**6  # seed of scenes that no training draws
Drawn = tuple[np.ndarray, list[Scene]]  # uint8 scenes (n, size, size, 3)


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


def drawn(batch: int, with_large: bool, seed: int) -> Iterator[list[Drawn]]:
    """Yield batches: uint8 scenes of 64 px and, `with_large`, as the last quarter of 128 px."""
    small = Scenes(seed, tuple(vocabulary()["sets"]))
    large = Scenes(seed, size=LARGE)
    quarter = batch // 4

    while True:
        pairs, shown_pairs = small.draw(quarter, "pair")
        others, shown_others = small.draw(batch - quarter - (quarter if with_large else 0))
        groups = [(torch.cat([pairs, others]).numpy(), shown_pairs + shown_others)]

        if with_large:
            images, shown = large.draw(quarter)
            groups.append((images.numpy(), shown))

        yield groups


class Codes:
    """Random codes of each size of a scene, for scenes to have them in their luminance."""

    def __init__(self, counts: Mapping[int, int], seed: int, device: torch.device) -> None:
        self.pools = {size: codes(counts[size], seed, size).to(device) for size in counts}

    def put_into(self, images: Tensor) -> Tensor:
        """Return images (B, 3, size, size) in [0, 1], some of them with codes of any strength."""
        pool = self.pools[images.shape[-1]]
        rows = torch.randint(len(pool), (len(images),), device=images.device)
        share = torch.rand(len(images), 1, 1, 1, device=images.device)
        coded = shaded(images, pool[rows, None].float() / 255, share)
        chosen = torch.rand(len(images), 1, 1, 1, device=images.device) < CODED
        return torch.where(chosen, coded, images)


def batches(
    options: argparse.Namespace, vae: AutoencoderKL | None, device: torch.device
) -> Callable[[int], Iterator[tuple[Tensor, ...]]]:
    """Return a function of a seed to endless batches: images and their targets."""

    def endless(seed: int) -> Iterator[tuple[Tensor, ...]]:
        pools = Codes(POOLS, seed, device) if options.codes else None
        source = partial(drawn, options.batch, options.codes)

        for groups in loop.in_workers(source, seed, options.workers):
            shown = [scene for _, scenes in groups for scene in scenes]
            images = [_as_images(pixels, device) for pixels, _ in groups]

            if pools:
                images = [pools.put_into(part) for part in images]

            x = disturb(torch.cat([reduced(part) for part in images]) * 2 - 1)
            if vae is not None:
                disturb_latents(vae, x, 4)

            yield x, *(part.to(device) for part in targets(shown))

    return endless


def _as_images(pixels: np.ndarray, device: torch.device) -> Tensor:
    """Return bytes (B, H, W, 3) as images (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 255


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

    if (options.warm or options.codes) and not path.exists():
        path = ZOO / "emoji-sd" / "vae"
    if not path.exists():
        return model, None

    return model, AutoencoderKL.from_pretrained(path, dtype=torch.float32).eval().to(device)


def under_codes(judges: Sequence[Judge], size: int, count: int) -> list[list[float]]:
    """Return how often each judge sees the noun of single scenes first, by the codes' share.

    Scenes and payloads are ones that no training draws; every share has the same.

    Args:
        judges: J of them.
        size: side of the scenes in px.
        count: of the scenes.

    Returns:
        J rows with a fraction for each of `SHARES`.
    """
    pixels, scenes = Scenes(UNSEEN, size=size).draw(count, "single")
    images = _as_images(pixels.numpy(), torch.device("cpu"))
    code = codes(count, UNSEEN, size, "unseen")[:, None].float() / 255
    rows: list[list[float]] = [[] for _ in judges]

    for share in SHARES:
        coded = shaded(images, code, torch.full((count, 1, 1, 1), share))
        for row, judge in zip(rows, judges, strict=True):
            verdict = judge.classify(coded)
            right = [set(scene.nouns) == verdict.names(i, 1) for i, scene in enumerate(scenes)]
            row.append(sum(right) / count)

    return rows


def report_codes(judge: Judge, count: int = 256) -> None:
    """Print how often this judge and the package's plain one see nouns under codes."""
    plain = judging.load()
    print("nouns seen by the share of the luminance that codes move:", SHARES, flush=True)

    for size in SIZES:
        rows = under_codes((judge, plain), size, count)
        for name, row in zip(("this judge", "zoo:emoji-judge"), rows, strict=True):
            print(f"{size} px, {name}:", [round(right, 3) for right in row], flush=True)


def report(
    model: ResNetForImageClassification, images: Tensor, scenes: list[Scene], with_codes: bool
) -> None:
    """Print how often the network is right about uint8 images of `scenes`."""
    model.eval()
    judge = Judge(model)
    verdict = judge.classify(_as_images(images.numpy(), model.device))
    if with_codes:
        report_codes(judge)
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
    loop.add_workers(parser)
    parser.add_argument("--codes", action="store_true", help="learn to see nouns under codes")
    parser.add_argument("--warm", action="store_true", help="go on from the weights in the package")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    name = "code-judge" if options.codes else "judge"
    model, vae = load(options, device)
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{parameters:.2f} M parameters; autoencoder: {vae is not None}", flush=True)

    def loss_of(batch: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, float]]:
        x, noun, colour, count = batch
        with loop.autocast(device):
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

    images, scenes = Scenes(UNSEEN).draw(1024)

    def preview() -> Image.Image:
        report(model, images, scenes, options.codes)
        return loop.grid(images[:32], 16)

    loop.train(
        name,
        model,
        batches(options, vae, device),
        loss_of,
        options,
        preview=preview,
        finish=lambda: model.save_pretrained(options.build / name / "model"),
        decay=0.998,
    )


if __name__ == "__main__":
    main()
