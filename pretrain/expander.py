"""`zoo:emoji-expander`: a small Llama that adds a style and a background to a prompt about emoji.

`python -m pretrain.expander --minutes 4`. It continues a prompt, "a cat", by an ending of scenes'
captions, "in noto style on a blue background", every ending as often as any other: 3 styles or
none, then 9 colours or none, but not nothing at all. To a prompt that names its style it adds a
background, to one with a background nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from burnish.prompts.expander import Expander
from burnish.types import Prompt
from burnish.zoo.scenes import NUMBERS, Scene, nouns, vocabulary
from pretrain import loop

SPECIAL = ("<pad>", "<unk>", "<end>")
PAD, UNKNOWN, END = SPECIAL
WIDTH = 96
LAYERS = 2
BARE = 0.8  # share of prompts that name neither style nor background; the others name one of them
UNKNOWN_NOUNS = 0.1  # share of nouns that are replaced by a word it does not know
STD = 0.1  # of the new weights: about 1 / sqrt(width)


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token a word; any other word is `<unk>`."""
    known = vocabulary()
    texts = [
        *nouns(),
        *known["plurals"].values(),
        *known["colours"],
        *known["styles"],
        *NUMBERS.values(),
    ]
    texts += ["a", "an", "and", "in", "on", "style", "background", ",", "."]
    words = dict.fromkeys(word for text in texts for word in text.lower().split())
    vocab = {word: i for i, word in enumerate([*SPECIAL, *words])}
    text = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    text.normalizer = normalizers.Lowercase()
    text.pre_tokenizer = pre_tokenizers.Whitespace()
    text.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # joins words with spaces

    return PreTrainedTokenizerFast(
        tokenizer_object=text,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        clean_up_tokenization_spaces=False,
        model_max_length=64,
        padding_side="left",
    )


def build(text: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return a new model of 0.25 M parameters."""
    config = LlamaConfig(
        vocab_size=len(text),
        hidden_size=WIDTH,
        intermediate_size=256,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=text.pad_token_id,
        bos_token_id=None,
        eos_token_id=text.eos_token_id,
    )
    model = LlamaForCausalLM(config)

    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=STD)

    model.generation_config.update(
        do_sample=True, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id
    )
    return model


def endings(scene: Scene) -> list[str]:
    """Return all texts that may be added to a scene's caption; [""] if it has a background."""
    if scene.colour != "white":
        return [""]

    styles = [scene.style] if scene.style else ["", *vocabulary()["styles"]]
    length = len(scene.caption)
    captions = [
        replace(scene, style=style, colour=colour).caption
        for style in styles
        for colour in vocabulary()["colours"]
    ]

    return [caption[length:] for caption in captions if len(caption) > length]


def subject(rng: np.random.Generator) -> Scene:
    """Draw one noun, two or three of it, or two nouns, in the shares of `Scenes`.

    Sometimes the scene has a style or a background.
    """
    kind = ("single", "single", "single", "count", "pair")[rng.integers(5)]
    picked = rng.choice(nouns(), 2 if kind == "pair" else 1, replace=False)
    count = int(rng.integers(2, 4)) if kind == "count" else 1
    scene = Scene(tuple(str(noun) for noun in picked), count)

    if rng.random() < BARE:
        return scene
    if rng.random() < 0.5:
        return replace(scene, style=str(rng.choice(list(vocabulary()["styles"]))))

    colours = [colour for colour in vocabulary()["colours"] if colour != "white"]
    return replace(scene, colour=str(rng.choice(colours)))


@dataclass(frozen=True)
class Batch:
    """Prompts with their endings; T tokens, the longest row's."""

    ids: Tensor  # (B, T) right-padded
    target: Tensor  # (B, T) the token to predict next, -100 where none is


def batches(size: int, text: PreTrainedTokenizerFast) -> Callable[[int], Iterator[Batch]]:
    """Return a function of a seed to endless batches of `size` prompts."""

    def endless(seed: int) -> Iterator[Batch]:
        rng = np.random.default_rng(seed)

        while True:
            ids = []
            targets = []

            for _ in range(size):
                scene = subject(rng)
                prompt = text(scene.caption)["input_ids"]
                ending = text(str(rng.choice(endings(scene))) + END)["input_ids"]
                no_target = [-100] * (len(prompt) - 1)

                if rng.random() < UNKNOWN_NOUNS:
                    prompt[1] = text.unk_token_id

                ids.append(torch.tensor(prompt + ending))
                targets.append(torch.tensor([*no_target, *ending, -100]))

            yield Batch(
                torch.nn.utils.rnn.pad_sequence(ids, True, text.pad_token_id),
                torch.nn.utils.rnn.pad_sequence(targets, True, -100),
            )

    return endless


@torch.no_grad()
def measure(
    model: LlamaForCausalLM, text: PreTrainedTokenizerFast, count: int = 500
) -> dict[str, float]:
    """Return the share of expansions by the grammar, the number of endings and their entropy.

    The last is in nats, over the endings of bare prompts; log(39) = 3.66 if all are as likely.
    """
    rng = np.random.default_rng(10**6)
    scenes = [subject(rng) for _ in range(count)]
    prompts = [Prompt(scene.caption) for scene in scenes]
    expanded = Expander(model, text).draw(prompts, torch.Generator().manual_seed(0)).prompts

    right = 0
    bare_endings = []
    for scene, prompt in zip(scenes, expanded, strict=True):
        ending = prompt.text[len(scene.caption) :]
        allowed = endings(scene)
        right += ending in allowed
        if len(allowed) == 39:
            bare_endings.append(ending)

    counts = torch.tensor([bare_endings.count(ending) for ending in set(bare_endings)]).double()
    shares = counts / counts.sum()

    return {
        "by the grammar": right / count,
        "different endings": len(counts),
        "entropy": float(-(shares * shares.log()).sum()),
    }


def main() -> None:
    options = loop.arguments(__doc__, minutes=4, batch=64, lr=3e-3).parse_args()
    torch.manual_seed(options.seed)
    text = tokenizer()
    model = build(text)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(text)} words, {parameters / 1e6:.2f} M parameters", flush=True)

    def loss_of(batch: Batch) -> tuple[Tensor, dict[str, float]]:
        logits = model(batch.ids).logits.float()
        return F.cross_entropy(logits.flatten(0, 1), batch.target.flatten(), ignore_index=-100), {}

    def finish() -> None:
        print({name: round(value, 4) for name, value in measure(model, text).items()}, flush=True)
        folder = options.build / "expander" / "model"
        model.save_pretrained(folder)
        text.save_pretrained(folder)

    loop.train(
        "expander",
        model.model,  # with all weights: the output layer is the table of input embeddings
        batches(options.batch, text),
        loss_of,
        options,
        finish=finish,
        decay=0.99,
    )


if __name__ == "__main__":
    main()
