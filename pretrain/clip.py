"""`zoo:emoji-clip`: a small CLIP trained contrastively on scenes.

Its text tower is the generator's text encoder.

`python -m pretrain.clip --minutes 16`; then, while a generator already learns to read its text
tower, the image tower alone goes on with `python -m pretrain.clip --image-only --minutes 38` (job
`clip-image`). All seven icon sets, mild image noise, and a background that a caption sometimes
does not mention, so that similarity depends on nouns first. Two scenes of one batch that one
caption describes are not negatives.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from burnish.zoo.scenes import Scene, Scenes, article, nouns, vocabulary
from pretrain import loop
from pretrain.data import ZOO

LENGTH = 24  # tokens of a prompt, its two marks included
MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)
START = "<|startoftext|>"
END = "<|endoftext|>"
EXTRA = (
    "the of with big small happy four five six seven eight one washing dishes riding bike playing "
    "picture emoji"
).split()


def tokenizer() -> CLIPTokenizer:
    """Return a byte-level BPE in CLIP's format.

    Its merges make every word of the vocabulary one token; other words fall to pieces.
    """
    words: Counter[str] = Counter()
    for scene in Scenes(0).draw(4000)[1]:
        words.update(scene.caption.split())

    vocabulary_words = [
        *nouns(),
        *vocabulary()["plurals"].values(),
        *vocabulary()["colours"],
        *vocabulary()["styles"],
        *EXTRA,
    ]

    for word in vocabulary_words:
        words[word] += 1

    trainer = trainers.BpeTrainer(
        vocab_size=20000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False
    )
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.train_from_iterator(([w] * n for w, n in sorted(words.items())), trainer)

    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    vocab[START] = len(vocab)
    vocab[END] = len(vocab)

    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH, pad_token=END)


def build(text_tokenizer: CLIPTokenizer) -> CLIPModel:
    """Return a new model: text tower 4 x 128, image tower (8-pixel patches) 4 x 128.

    They have 1.8 M parameters together.
    """
    tower = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "projection_dim": 128,
        "hidden_act": "quick_gelu",
    }
    text = {
        **tower,
        "vocab_size": len(text_tokenizer),
        "max_position_embeddings": LENGTH,
        "bos_token_id": text_tokenizer.bos_token_id,
        "eos_token_id": text_tokenizer.eos_token_id,
        "pad_token_id": text_tokenizer.pad_token_id,
    }
    vision = {**tower, "image_size": 64, "patch_size": 8}

    return CLIPModel(
        CLIPConfig(
            text_config=text,
            vision_config=vision,
            projection_dim=128,
            logit_scale_init_value=2.6592,
        )
    )


def same(a: Scene, b: Scene) -> bool:
    """Return whether a caption of one could be a caption of the other."""
    styles = a.style == b.style or not a.style or not b.style
    return a.nouns == b.nouns and a.count == b.count and a.colour == b.colour and styles


def normalise(images: Tensor) -> Tensor:
    """Return uint8 images (n, 64, 64, 3) as the processor does: float (n, 3, 64, 64)."""
    return (images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def disturb(x: Tensor) -> Tensor:
    """Add noise, blur and contrast to some of the images each.

    Images of a generator are never as clean as a sprite.
    """

    def uniform() -> Tensor:
        return torch.rand(len(x), 1, 1, 1, device=x.device)

    def normal() -> Tensor:
        return torch.randn(len(x), 1, 1, 1, device=x.device)

    noisy = uniform() < 0.5
    noise = 0.08 * uniform() * torch.randn_like(x)
    x = torch.where(noisy, x + noise, x)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.where(uniform() < 0.3, blurred, x)

    return x * (1 + 0.1 * normal()) + 0.05 * normal()


@torch.no_grad()
def disturb_latents(vae: AutoencoderKL, x: Tensor, every: int, first: int = 0) -> None:
    """Pass one in `every` images, from `first` on, through the autoencoder with noisy latents.

    They are changed in place.
    """
    with loop.autocast(x.device):
        z = vae.encode(x[first::every]).latent_dist.mean
        noise = 0.15 * torch.rand(len(z), 1, 1, 1, device=z.device) * torch.randn_like(z)
        z = z + noise / vae.config.scaling_factor
        x[first::every] = vae.decode(z).sample.float()


def batches(
    batch: int, text_tokenizer: CLIPTokenizer, unmentioned: float
) -> Callable[[int], Iterator[tuple[Tensor, Tensor, Tensor]]]:
    """Return a function of a seed to endless batches: images, token ids, pairs to ignore (B, B).

    `unmentioned` is the fraction of captions that do not mention the background.
    """

    def endless(seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        scenes = Scenes(seed, tuple(vocabulary()["sets"]))
        rng = scenes.rng

        while True:
            images, drawn = scenes.draw(batch)
            mentioned = [rng.random() >= unmentioned for _ in drawn]
            captions = [
                (scene if full else replace(scene, colour="white")).caption
                for scene, full in zip(drawn, mentioned, strict=True)
            ]
            ids = text_tokenizer(
                captions, padding="max_length", truncation=True, return_tensors="pt"
            ).input_ids

            yield disturb(normalise(images)), ids, _ignored_pairs(drawn, mentioned)

    return endless


def _ignored_pairs(scenes: list[Scene], mentioned: list[bool]) -> Tensor:
    """Return which pairs (B, B) bool are not negatives: one caption describes both."""
    groups: dict[tuple, list[int]] = {}
    for row, scene in enumerate(scenes):
        groups.setdefault((scene.nouns, scene.count), []).append(row)

    ignored = torch.zeros(len(scenes), len(scenes), dtype=torch.bool)
    for rows in groups.values():
        for i, j in product(rows, rows):
            vague = not mentioned[i] or not mentioned[j]
            ignored[i, j] = i != j and (vague or same(scenes[i], scenes[j]))

    return ignored


def accuracy(
    model: CLIPModel, text_tokenizer: CLIPTokenizer, images: Tensor, scenes: list[Scene]
) -> float:
    """Return how often the right noun is found among "a {noun}" for all nouns.

    Images are uint8 and show single sprites.
    """
    captions = [article(noun) for noun in nouns()]
    ids = text_tokenizer(
        captions, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids

    with torch.no_grad():
        text = F.normalize(model.get_text_features(ids).pooler_output, dim=-1)
        image = F.normalize(model.get_image_features(normalise(images)).pooler_output, dim=-1)

    best = (image @ text.T).argmax(1).tolist()
    right = [nouns()[b] == scene.nouns[0] for b, scene in zip(best, scenes, strict=True)]
    return sum(right) / len(scenes)


def load(options: argparse.Namespace) -> tuple[CLIPTokenizer, CLIPModel]:
    """Return a new tokenizer and model, or those of the finished job for `--image-only`."""
    if not options.image_only:
        text_tokenizer = tokenizer()
        return text_tokenizer, build(text_tokenizer)

    folder = options.build / "clip" / "model"
    if not folder.exists():
        folder = ZOO / "emoji-clip"  # on another machine the package's own goes on

    model = CLIPModel.from_pretrained(folder, dtype=torch.float32)
    return CLIPTokenizer.from_pretrained(folder), model


def main() -> None:
    parser = loop.arguments(__doc__, minutes=35, batch=128, lr=1e-3)
    parser.add_argument(
        "--image-only",
        action="store_true",
        help="go on from the finished job with a frozen text tower",
    )
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    name = "clip-image" if options.image_only else "clip"
    text_tokenizer, model = load(options)
    model = model.to(device)

    if device.type == "cpu":
        # the fused kernel's backward is slow on CPU for so few tokens
        model.set_attn_implementation("eager")

    model.text_model.requires_grad_(not options.image_only)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(text_tokenizer)} tokens, {parameters / 1e6:.2f} M parameters", flush=True)

    def loss_of(batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
        x, ids, ignored = (part.to(device) for part in batch)
        with loop.autocast(device):
            text = F.normalize(model.get_text_features(ids).pooler_output.float(), dim=-1)
            image = F.normalize(model.get_image_features(x).pooler_output.float(), dim=-1)

        logits = model.logit_scale.clamp(max=4.0).exp() * image @ text.T
        logits = logits.masked_fill(ignored, -100.0)
        target = torch.arange(len(x), device=device)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

        return loss, {"top1 in batch": (logits.argmax(1) == target).float().mean().item()}

    images, scenes = Scenes(10**6).draw(512, "single")

    def preview() -> Image.Image:
        print(
            "noun retrieval on the generator's styles:",
            accuracy(model, text_tokenizer, images, scenes),
            flush=True,
        )
        return loop.grid(images[:32], 16)

    def finish() -> None:
        folder = options.build / name / "model"
        model.save_pretrained(folder)
        text_tokenizer.save_pretrained(folder)

    loop.train(
        name,
        model,
        batches(options.batch, text_tokenizer, 0.4 if options.image_only else 0.15),
        loss_of,
        options,
        preview=preview,
        finish=finish,
        decay=0.998,
        weight_decay=0.05,
    )


if __name__ == "__main__":
    main()
