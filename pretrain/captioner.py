"""``zoo:emoji-captioner``: a small LLaVA that answers questions about scenes.

``python -m pretrain.captioner --minutes 27``. CLIP's image tower (warm-started from
``zoo:emoji-clip``), a projector
and a Llama of three layers, trained together on scenes of all seven icon sets, disturbed as for the
judge: noise, blur, contrast, one in eight through the autoencoder with disturbed latents. Some have
words written over them, some show nothing. Several questions about a picture are packed behind it
in one row, blind to each other, so that the picture, which is most of the tokens, is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import (
    CLIPModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from burnish.zoo.questions import CAPTION, KINDS, NUMBERS, TEXT, Question, Shown, write
from burnish.zoo.scenes import Scenes, nouns, vocabulary
from pretrain import loop
from pretrain.clip import MEAN, disturb, normalise
from pretrain.clip import STD as PIXEL_STD
from pretrain.data import ZOO

PAD, UNKNOWN, IMAGE, ANSWER, END = SPECIAL = ("<pad>", "<unk>", "<image>", "<answer>", "<end>")
PATCH = 8
WIDTH = 128
PLACES = (64 // PATCH) ** 2 + 1  # of a picture among the tokens: its patches, and CLIP's summary
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{{ '<end>' if message['role'] == 'assistant' else '<answer>' }}{% endfor %}"
)
KINDS_OF_SCENES = {"single": 0.35, "count": 0.2, "pair": 0.45}
# shares of pictures with words on them, and without a scene
WRITTEN = 0.18
EMPTY = 0.06
ALWAYS = 3  # kinds asked about every picture, the first; then one of the others
# of the new weights: about 1 / sqrt(width). With Llama's own 0.02 nouns are learned five times
# later
STD = 0.08
FONTS = sorted(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("DejaVu*.ttf"))


def words() -> list[str]:
    """Every word of the questions and the answers, in a fixed order."""
    rng = np.random.default_rng(0)
    known = vocabulary()
    listed = [
        *nouns(),
        *known["plurals"].values(),
        *known["colours"],
        *NUMBERS,
        "a",
        "an",
        "and",
        "on",
    ]

    for scene in Scenes(0).draw(200)[1]:
        for kind in KINDS:
            for _ in range(20):
                question, answer = kind(Shown(scene), rng)
                listed += (
                    f"{question} {answer}".lower()
                    .replace("?", " ?")
                    .replace(".", " .")
                    .replace(":", " :")
                    .split()
                )

    return [*dict.fromkeys(listed), ",", "text", "nothing", "image", "picture", "photo"]


def tokenizer() -> PreTrainedTokenizerFast:
    """A token a word; what is none of them is ``<unk>``."""
    vocab = {word: i for i, word in enumerate(dict.fromkeys([*SPECIAL, *words()]))}
    text = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    text.normalizer = normalizers.Lowercase()
    text.pre_tokenizer = pre_tokenizers.Whitespace()
    text.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # joins words with spaces
    special = {
        "additional_special_tokens": [IMAGE, ANSWER],
        "model_max_length": 256,
        "padding_side": "left",
    }

    return PreTrainedTokenizerFast(
        tokenizer_object=text, pad_token=PAD, unk_token=UNKNOWN, eos_token=END, clean_up_tokenization_spaces=False,
        **special,
    )  # fmt: skip


def processor(text: PreTrainedTokenizerFast) -> LlavaProcessor:
    """How a picture and a question become tokens."""
    side = {"height": 64, "width": 64}
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 64}, crop_size=side, image_mean=list(MEAN), image_std=list(PIXEL_STD)
    )
    return LlavaProcessor(
        images, text, patch_size=PATCH, vision_feature_select_strategy="full", chat_template=TEMPLATE,
        image_token=IMAGE, num_additional_image_tokens=1,
    )  # fmt: skip


def build(text: PreTrainedTokenizerFast, warm: bool = False) -> LlavaForConditionalGeneration:
    """1.5 M parameters: an image tower of 0.8, a projector, and a Llama of 0.7; with ``warm`` the
    package's own.
    """
    if warm:
        return LlavaForConditionalGeneration.from_pretrained(
            ZOO / "emoji-captioner", dtype=torch.float32
        )

    clip = CLIPModel.from_pretrained(ZOO / "emoji-clip", dtype=torch.float32)
    llama = LlamaConfig(
        vocab_size=len(text), hidden_size=WIDTH, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=256, tie_word_embeddings=True, pad_token_id=text.pad_token_id,
        bos_token_id=None, eos_token_id=text.eos_token_id,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=clip.config.vision_config, text_config=llama, tie_word_embeddings=True,
        image_token_index=text.convert_tokens_to_ids(IMAGE), image_seq_length=PLACES,
        vision_feature_select_strategy="full", vision_feature_layer=-1,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)

    for part in (model.model.language_model, model.model.multi_modal_projector):
        for weight in part.parameters():
            if weight.ndim == 2:
                torch.nn.init.normal_(weight, std=STD)

    tower = model.model.vision_tower
    tower.load_state_dict(
        {name: value for name, value in clip.vision_model.state_dict().items()}, strict=False
    )
    model.generation_config.update(
        do_sample=False, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id
    )

    return model


@dataclass(frozen=True)
class Pack:
    """Pictures with questions and answers behind each, in one row; T tokens, the longest row's."""

    pixels: Tensor  # (B, 3, 64, 64)
    ids: Tensor  # (B, T) questions and answers
    segment: Tensor  # (B, T) which question of its row a token belongs to; -1: padding
    position: Tensor  # (B, T) place in its own question and answer
    target: Tensor  # (B, T) the token to say next, -100 where none is


def pack(
    pixels: Tensor, asked: Sequence[Sequence[Question]], text: PreTrainedTokenizerFast
) -> Pack:
    """Tokens and where they belong."""
    flat = [question for row in asked for question in row]
    questions = text([q + ANSWER for q, _ in flat], add_special_tokens=False)["input_ids"]
    answers = text([a + END for _, a in flat], add_special_tokens=False)["input_ids"]
    rows = []
    start = 0

    for row in asked:
        parts: list[tuple[int, int, int, int]] = []

        for number in range(len(row)):
            said = questions[start + number]
            reply = answers[start + number]
            ids = said + reply
            hidden = [-100] * (len(said) - 1)
            parts += [
                (token, number, place, aim)
                for place, (token, aim) in enumerate(zip(ids, [*hidden, *reply, -100], strict=True))
            ]

        rows.append(parts)
        start += len(row)

    longest = max(map(len, rows))
    table = torch.tensor(
        [[*row, *[(text.pad_token_id, -1, 0, -100)] * (longest - len(row))] for row in rows]
    )
    return Pack(pixels, *table.unbind(-1))


def losses(model: LlavaForConditionalGeneration, pack: Pack) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every token to be said, and whether it is the likeliest: two vectors."""
    core = model.model
    seen = torch.stack(core.get_image_features(pixel_values=pack.pixels).pooler_output)
    x = torch.cat([seen, core.get_input_embeddings()(pack.ids).to(seen.dtype)], 1)
    rows = len(x)
    length = x.shape[1]
    segment = torch.cat([torch.full((rows, PLACES), -2), pack.segment], 1)
    alike = (segment[:, :, None] == segment[:, None]) | (segment[:, None] == -2)
    mask = alike & torch.ones(length, length, dtype=torch.bool).tril()
    position = torch.cat([torch.arange(PLACES).expand(rows, -1), pack.position + PLACES], 1)
    bias = torch.zeros(rows, 1, length, length).masked_fill(~mask[:, None], -1e4)
    state = core.language_model(
        inputs_embeds=x, attention_mask=bias, position_ids=position
    ).last_hidden_state
    aims = pack.target != -100
    logits = model.lm_head(state[:, PLACES:][aims]).float()
    target = pack.target[aims]

    return F.cross_entropy(logits, target, reduction="none"), logits.argmax(1) == target


def garble(rng: np.random.Generator) -> str:
    """Words as a picture may have them: a number and a noun, one of them, letters, stuttered, in
    any case.
    """
    plurals = list(vocabulary()["plurals"].values())
    number = str(rng.choice(NUMBERS[1:]))
    noun = str(rng.choice([*plurals, *nouns()]))
    text = [f"{number} {noun}", f"{number}\n{noun}", number, noun, str(rng.integers(100))][
        int(rng.integers(5))
    ]

    if rng.random() < 0.3:
        text = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), int(rng.integers(3, 8))))
    if rng.random() < 0.3:
        text = "".join(letter * int(rng.choice([1, 1, 2, 3])) for letter in text)

    return [text, text.upper(), text.title()][int(rng.integers(3))]


def nothing(rng: np.random.Generator) -> np.ndarray:
    """A picture without a thing in it: a plain ground, a ramp, stripes, noise of any grain."""
    kind = rng.integers(4)
    grain = int(rng.choice([1, 2, 4, 8, 16]))
    colours = np.array(list(vocabulary()["colours"].values()))

    if kind == 0:
        return np.broadcast_to(
            rng.choice(colours) if rng.random() < 0.5 else rng.integers(0, 256, 3), (64, 64, 3)
        )

    if kind == 1:
        line = np.linspace(rng.integers(0, 256, 3), rng.integers(0, 256, 3), 64)
        line = line[np.arange(64) // grain * grain]
    elif kind == 2:
        line = np.where(
            (np.arange(64) // grain % 2)[:, None], rng.integers(0, 256, 3), rng.integers(0, 256, 3)
        )
    else:
        coarse = (
            rng.integers(0, 256, (64 // grain, 64 // grain, 3)).repeat(grain, 0).repeat(grain, 1)
        )
        return 128 + (coarse - 128) * rng.random()

    line = np.broadcast_to(line, (64, 64, 3))
    return line if rng.random() < 0.5 else line.swapaxes(0, 1)


def draw(scenes: Scenes, count: int) -> tuple[np.ndarray, list[Shown]]:
    """``count`` pictures uint8 (count, 64, 64, 3), and what they show."""
    rng = scenes.rng
    images = np.empty((count, 64, 64, 3), np.uint8)
    shown = []
    kinds = rng.choice(list(KINDS_OF_SCENES), count, p=list(KINDS_OF_SCENES.values()))

    for row, kind in enumerate(kinds):
        scene = None
        if rng.random() < EMPTY:
            images[row] = np.asarray(nothing(rng)).round().astype(np.uint8)
        else:
            drawn, described = scenes.draw(1, str(kind))
            images[row], scene = drawn[0].numpy(), described[0]

        text = garble(rng) if rng.random() < WRITTEN else ""
        if text:
            font = None if rng.random() < 0.4 else str(rng.choice(FONTS))  # type: ignore[arg-type]
            images[row] = write(images[row], text, rng, font)

        shown.append(Shown(scene, text))

    return images, shown


def ask(shown: Shown, rng: np.random.Generator) -> list[Question]:
    """Four questions: for a caption, how many, which, and one of the other kinds."""
    kinds = [*KINDS[:ALWAYS], KINDS[int(rng.integers(ALWAYS, len(KINDS)))]]
    return [kind(shown, rng) for kind in kinds]


def batches(
    batch: int, text: PreTrainedTokenizerFast, vae: AutoencoderKL
) -> Callable[[int], Iterator[Pack]]:
    def endless(seed: int) -> Iterator[Pack]:
        scenes = Scenes(seed, tuple(vocabulary()["sets"]))

        while True:
            images, shown = draw(scenes, batch)
            x = disturb(normalise(torch.from_numpy(images)))

            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                z = vae.encode(x[::8]).latent_dist.mean
                z = (
                    z
                    + 0.15
                    * torch.rand(len(z), 1, 1, 1)
                    * torch.randn_like(z)
                    / vae.config.scaling_factor
                )
                x[::8] = vae.decode(z).sample.float()

            yield pack(x, [ask(one, scenes.rng) for one in shown], text)

    return endless


@torch.no_grad()
def answers(
    model: LlavaForConditionalGeneration,
    text: PreTrainedTokenizerFast,
    images: np.ndarray,
    question: str,
) -> list[str]:
    """What it says about each picture."""
    pixels = normalise(torch.from_numpy(images))
    ids = text(
        [IMAGE * PLACES + question + ANSWER] * len(images),
        return_tensors="pt",
        add_special_tokens=False,
    )
    out = model.generate(**ids, pixel_values=pixels, max_new_tokens=16)

    return text.batch_decode(out[:, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def report(model: LlavaForConditionalGeneration, text: PreTrainedTokenizerFast) -> Image.Image:
    """Prints how often answers are right on fresh scenes in the generator's styles; returns some of
    the pictures.
    """
    scenes = Scenes(10**6)
    right = {}

    for kind in ("single", "count", "pair"):
        images, shown = scenes.draw(128, kind)
        said = answers(model, text, images.numpy(), CAPTION)
        right[kind] = sum(a == Shown(s).caption for a, s in zip(said, shown, strict=True)) / 128

    pictures, seen = draw(scenes, 256)
    said = answers(model, text, pictures, TEXT)

    for wanted in ("yes", "no"):
        chosen = [
            a for a, s in zip(said, seen, strict=True) if ("yes" if s.text else "no") == wanted
        ]
        right[f"text: {wanted}"] = sum(a == wanted for a in chosen) / len(chosen)

    print(
        "whole captions right, and text noticed:",
        {k: round(v, 3) for k, v in right.items()},
        flush=True,
    )
    captions = answers(model, text, pictures[:32], CAPTION)
    print(
        " | ".join(f"{s.caption} -> {a}" for s, a in zip(seen[:12], captions, strict=False)),
        flush=True,
    )

    return loop.grid(torch.from_numpy(pictures[:64]), 16)


def main() -> None:
    parser = loop.arguments(__doc__, minutes=27, batch=32, lr=1e-3)
    parser.add_argument("--warm", action="store_true", help="go on from the weights in the package")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    text = tokenizer()
    model = build(text, options.warm)
    # the fused kernel's backward is slow on CPU for so few tokens
    model.set_attn_implementation("eager")
    vae = AutoencoderKL.from_pretrained(ZOO / "emoji-sd" / "vae", dtype=torch.float32).eval()
    print(
        f"{len(text)} words, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters",
        flush=True,
    )

    def loss_of(batch: Pack) -> tuple[Tensor, dict[str, float]]:
        with torch.autocast("cpu", torch.bfloat16):
            loss, right = losses(model, batch)
        return loss.mean(), {"tokens right": right.float().mean().item()}

    def finish() -> None:
        folder = options.build / "captioner" / "model"
        model.save_pretrained(folder)
        processor(text).save_pretrained(folder)

    loop.train(
        "captioner",
        model.model,  # all there is: what says the words is the table that reads them
        batches(options.batch, text, vae),
        loss_of,
        options,
        picture=lambda: report(model, text),
        finish=finish,
        decay=0.99,
        weight_decay=0.05,
    )


if __name__ == "__main__":
    main()
