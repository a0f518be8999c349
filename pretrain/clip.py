"""``zoo:emoji-clip``: a small CLIP trained contrastively on scenes; its text tower is the
generator's text encoder.

``python -m pretrain.clip --minutes 16``; then, while a generator already learns to read its text
tower, the image tower alone goes on with ``python -m pretrain.clip --image-only --minutes 38`` (job
``clip-image``). All seven icon sets, mild image noise, and a background that a caption sometimes
leaves unsaid, so that similarity tells nouns first. Two scenes of one batch that a caption cannot
tell apart are not negatives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
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
EXTRA = "the of with big small happy four five six seven eight one washing dishes riding bike playing picture emoji".split()


def tokenizer() -> CLIPTokenizer:
    """A byte-level BPE in CLIP's format whose merges make every word of the vocabulary one token;
    others fall to pieces.
    """
    words: Counter[str] = Counter()
    for scene in Scenes(0).draw(4000)[1]:
        words.update(scene.caption.split())

    every = [
        *nouns(),
        *vocabulary()["plurals"].values(),
        *vocabulary()["colours"],
        *vocabulary()["styles"],
        *EXTRA,
    ]

    for word in every:
        words[word] += 1

    trainer = trainers.BpeTrainer(
        vocab_size=20000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False
    )
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.train_from_iterator(([w] * n for w, n in sorted(words.items())), trainer)
    import json

    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    vocab[START], vocab[END] = len(vocab), len(vocab) + 1

    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH, pad_token=END)


def build(words: CLIPTokenizer) -> CLIPModel:
    """Text tower 4 x 128, image tower (8-pixel patches) 4 x 128: 1.8 M parameters together."""
    special = {
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    text = {
        "vocab_size": len(words), "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 4, "max_position_embeddings": LENGTH, "projection_dim": 128, "hidden_act": "quick_gelu",
        **special,
    }  # fmt: skip
    vision = {
        "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
        "image_size": 64, "patch_size": 8, "projection_dim": 128, "hidden_act": "quick_gelu",
    }  # fmt: skip

    return CLIPModel(
        CLIPConfig(
            text_config=text,
            vision_config=vision,
            projection_dim=128,
            logit_scale_init_value=2.6592,
        )
    )


def same(a: Scene, b: Scene) -> bool:
    """Whether a caption of one could be a caption of the other."""
    styles = a.style == b.style or not a.style or not b.style
    return a.nouns == b.nouns and a.count == b.count and a.colour == b.colour and styles


def normalise(images: Tensor) -> Tensor:
    """uint8 (n, 64, 64, 3) -> float (n, 3, 64, 64), as the processor does."""
    return (images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def disturb(x: Tensor) -> Tensor:
    """Noise, blur and contrast on half of the images each: pictures of a generator are never as
    clean as a sprite.
    """
    x = torch.where(
        torch.rand(len(x), 1, 1, 1) < 0.5,
        x + 0.08 * torch.rand(len(x), 1, 1, 1) * torch.randn_like(x),
        x,
    )
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.3, blurred, x)

    return x * (1 + 0.1 * torch.randn(len(x), 1, 1, 1)) + 0.05 * torch.randn(len(x), 1, 1, 1)


def batches(
    batch: int, words: CLIPTokenizer, unsaid: float
) -> Callable[[int], Iterator[tuple[Tensor, Tensor, Tensor]]]:
    def endless(seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        scenes = Scenes(seed, tuple(vocabulary()["sets"]))
        rng = scenes.rng

        while True:
            images, shown = scenes.draw(batch)
            said = [replace(s, colour="white") if rng.random() < unsaid else s for s in shown]
            ids = words(
                [s.caption for s in said],
                padding="max_length",
                truncation=True,
                return_tensors="pt",
            ).input_ids
            keys: dict[tuple, list[int]] = {}

            for i, s in enumerate(shown):
                keys.setdefault((s.nouns, s.count), []).append(i)

            ignore = torch.zeros(batch, batch, dtype=torch.bool)
            for rows in keys.values():
                for i in rows:
                    for j in rows:
                        quiet = said[i] is not shown[i] or said[j] is not shown[j]
                        ignore[i, j] = i != j and (quiet or same(shown[i], shown[j]))

            yield disturb(normalise(images)), ids, ignore

    return endless


def accuracy(model: CLIPModel, words: CLIPTokenizer, images: Tensor, scenes: list[Scene]) -> float:
    """Top-1 retrieval of the noun among "a {noun}" for all nouns, on single-sprite scenes (uint8
    images).
    """
    ids = words(
        [article(n) for n in nouns()], padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids

    with torch.no_grad():
        text = F.normalize(model.get_text_features(ids).pooler_output, dim=-1)
        image = F.normalize(model.get_image_features(normalise(images)).pooler_output, dim=-1)

    best = (image @ text.T).argmax(1).tolist()
    return sum(nouns()[b] == s.nouns[0] for b, s in zip(best, scenes, strict=True)) / len(scenes)


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
    first = options.build / "clip" / "model"
    name = "clip-image" if options.image_only else "clip"
    # on another machine the package's own goes on
    first = first if first.exists() else ZOO / "emoji-clip"
    words = CLIPTokenizer.from_pretrained(first) if options.image_only else tokenizer()
    model = (
        CLIPModel.from_pretrained(first, dtype=torch.float32)
        if options.image_only
        else build(words)
    )
    model = model.to(device)

    if device.type == "cpu":
        # the fused kernel's backward is slow on CPU for so few tokens
        model.set_attn_implementation("eager")

    model.text_model.requires_grad_(not options.image_only)
    print(
        f"{len(words)} tokens, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters",
        flush=True,
    )

    def loss_of(batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
        x, ids, ignore = (part.to(device) for part in batch)
        with torch.autocast(device.type, torch.bfloat16):
            text = F.normalize(model.get_text_features(ids).pooler_output.float(), dim=-1)
            image = F.normalize(model.get_image_features(x).pooler_output.float(), dim=-1)

        logits = (model.logit_scale.clamp(max=4.0).exp() * image @ text.T).masked_fill(
            ignore, -100.0
        )
        target = torch.arange(len(x), device=device)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

        return loss, {"top1 in batch": (logits.argmax(1) == target).float().mean().item()}

    test = Scenes(10**6).draw(512, "single")

    def picture() -> Image.Image:
        images, scenes = test
        print(
            "noun retrieval on the generator's styles:",
            accuracy(model, words, images, scenes),
            flush=True,
        )
        return loop.grid(images[:32], 16)

    def finish() -> None:
        folder = options.build / name / "model"
        model.save_pretrained(folder)
        words.save_pretrained(folder)

    loop.train(
        name,
        model,
        batches(options.batch, words, 0.4 if options.image_only else 0.15),
        loss_of,
        options,
        picture=picture,
        finish=finish,
        decay=0.998,
        weight_decay=0.05,
    )


if __name__ == "__main__":
    main()
