"""`zoo:emoji-captioner`: a small LLaVA that answers questions about scenes.

`python -m pretrain.captioner --minutes 27`. CLIP's image tower (warm-started from
`zoo:emoji-clip`), a projector and a Llama of three layers, trained together on scenes of all
seven icon sets, disturbed as for the judge: noise, blur, contrast, one in eight through the
autoencoder with disturbed latents. Some have words written over them, some show nothing. Several
questions about an image are packed behind it in one row without attention to each other, so that
the image, which is most of the tokens, is computed once.
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

from burnish.zoo.questions import CAPTION, KINDS, NUMBERS, TEXT, Content, Question, write
from burnish.zoo.scenes import Scenes, nouns, vocabulary
from pretrain import loop
from pretrain.clip import MEAN, disturb, disturb_latents, normalise
from pretrain.clip import STD as PIXEL_STD
from pretrain.data import ZOO

SPECIAL = ("<pad>", "<unk>", "<image>", "<answer>", "<end>")
PAD, UNKNOWN, IMAGE, ANSWER, END = SPECIAL
PATCH = 8
WIDTH = 128
IMAGE_TOKENS = (64 // PATCH) ** 2 + 1  # tokens of an image: its patches, and CLIP's summary
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{{ '<end>' if message['role'] == 'assistant' else '<answer>' }}{% endfor %}"
)
KINDS_OF_SCENES = {"single": 0.35, "count": 0.2, "pair": 0.45}
WRITTEN = 0.18  # share of images with words on them
EMPTY = 0.06  # share of images without a scene
ALWAYS = 3  # each image gets the first three kinds of questions, then one of the others
# of the new weights: about 1 / sqrt(width). With Llama's own 0.02 nouns are learned five times
# later
STD = 0.08
FONTS = sorted(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("DejaVu*.ttf"))


def words() -> list[str]:
    """Return every word of the questions and the answers, in a fixed order."""
    rng = np.random.default_rng(0)
    known = vocabulary()
    texts = [*nouns(), *known["plurals"].values(), *known["colours"], *NUMBERS]
    texts += ["a", "an", "and", "on"]

    for scene in Scenes(0).draw(200)[1]:
        for kind in KINDS:
            for _ in range(20):
                question, answer = kind(Content(scene), rng)
                text = f"{question} {answer}".lower()
                for mark in "?.:":
                    text = text.replace(mark, f" {mark}")
                texts += text.split()

    return [*dict.fromkeys(texts), ",", "text", "nothing", "image", "picture", "photo"]


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token a word; any other word is `<unk>`."""
    vocab = {word: i for i, word in enumerate(dict.fromkeys([*SPECIAL, *words()]))}
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
        additional_special_tokens=[IMAGE, ANSWER],
        model_max_length=256,
        padding_side="left",
    )


def processor(text: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Return the processor that turns an image and a question into tokens."""
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 64},
        crop_size={"height": 64, "width": 64},
        image_mean=list(MEAN),
        image_std=list(PIXEL_STD),
    )
    return LlavaProcessor(
        images,
        text,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )


def build(text: PreTrainedTokenizerFast, warm: bool = False) -> LlavaForConditionalGeneration:
    """Return a new model, or with `warm` the package's own.

    It has 1.5 M parameters: an image tower of 0.8, a projector, and a Llama of 0.7.
    """
    if warm:
        return LlavaForConditionalGeneration.from_pretrained(
            ZOO / "emoji-captioner", dtype=torch.float32
        )

    clip = CLIPModel.from_pretrained(ZOO / "emoji-clip", dtype=torch.float32)
    llama = LlamaConfig(
        vocab_size=len(text),
        hidden_size=WIDTH,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=text.pad_token_id,
        bos_token_id=None,
        eos_token_id=text.eos_token_id,
    )
    config = LlavaConfig(
        vision_config=clip.config.vision_config,
        text_config=llama,
        tie_word_embeddings=True,
        image_token_index=text.convert_tokens_to_ids(IMAGE),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config)

    for part in (model.model.language_model, model.model.multi_modal_projector):
        for weight in part.parameters():
            if weight.ndim == 2:
                torch.nn.init.normal_(weight, std=STD)

    weights = dict(clip.vision_model.state_dict())
    model.model.vision_tower.load_state_dict(weights, strict=False)
    model.generation_config.update(
        do_sample=False, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id
    )

    return model


@dataclass(frozen=True)
class Pack:
    """Images with questions and answers behind each, in one row; T tokens, the longest row's."""

    pixels: Tensor  # (B, 3, 64, 64)
    ids: Tensor  # (B, T) questions and answers
    segment: Tensor  # (B, T) number of the question that a token belongs to; -1: padding
    position: Tensor  # (B, T) index in its own question and answer
    target: Tensor  # (B, T) the token to predict next, -100 where none is


def pack(pixels: Tensor, rows: Sequence[Sequence[Question]], text: PreTrainedTokenizerFast) -> Pack:
    """Return the tokens of questions and answers, one row an image, and where they belong."""
    flat = [question for row in rows for question in row]
    questions = iter(text([q + ANSWER for q, _ in flat], add_special_tokens=False)["input_ids"])
    answers = iter(text([a + END for _, a in flat], add_special_tokens=False)["input_ids"])
    tokens = [_row_tokens([(next(questions), next(answers)) for _ in row]) for row in rows]

    longest = max(map(len, tokens))
    padding = (text.pad_token_id, -1, 0, -100)
    table = torch.tensor([[*row, *[padding] * (longest - len(row))] for row in tokens])
    return Pack(pixels, *table.unbind(-1))


def _row_tokens(pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[int, int, int, int]]:
    """Return (id, segment, position, target) of each token of one image's questions."""
    tokens: list[tuple[int, int, int, int]] = []

    for segment, (question, answer) in enumerate(pairs):
        targets = [-100] * (len(question) - 1) + answer + [-100]
        for position, (token, target) in enumerate(zip(question + answer, targets, strict=True)):
            tokens.append((token, segment, position, target))

    return tokens


def losses(model: LlavaForConditionalGeneration, pack: Pack) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of every target token, and whether it is the likeliest."""
    core = model.model
    image = torch.stack(core.get_image_features(pixel_values=pack.pixels).pooler_output)
    x = torch.cat([image, core.get_input_embeddings()(pack.ids).to(image.dtype)], 1)
    rows = len(x)
    length = x.shape[1]

    # a token attends to the image, which is segment -2, and to its own question
    segment = torch.cat([torch.full((rows, IMAGE_TOKENS), -2), pack.segment], 1)
    attends = (segment[:, :, None] == segment[:, None]) | (segment[:, None] == -2)
    mask = attends & torch.ones(length, length, dtype=torch.bool).tril()
    bias = torch.zeros(rows, 1, length, length).masked_fill(~mask[:, None], -1e4)
    position = torch.cat(
        [torch.arange(IMAGE_TOKENS).expand(rows, -1), pack.position + IMAGE_TOKENS], 1
    )

    state = core.language_model(
        inputs_embeds=x, attention_mask=bias, position_ids=position
    ).last_hidden_state
    has_target = pack.target != -100
    logits = model.lm_head(state[:, IMAGE_TOKENS:][has_target]).float()
    target = pack.target[has_target]

    return F.cross_entropy(logits, target, reduction="none"), logits.argmax(1) == target


def random_text(rng: np.random.Generator) -> str:
    """Return words as an image may have them, in any case.

    A number and a noun, one of them, letters, or a stutter of these.
    """
    plurals = list(vocabulary()["plurals"].values())
    number = str(rng.choice(NUMBERS[1:]))
    noun = str(rng.choice([*plurals, *nouns()]))
    texts = [f"{number} {noun}", f"{number}\n{noun}", number, noun, str(rng.integers(100))]
    text = texts[int(rng.integers(5))]

    if rng.random() < 0.3:
        text = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), int(rng.integers(3, 8))))
    if rng.random() < 0.3:
        text = "".join(letter * int(rng.choice([1, 1, 2, 3])) for letter in text)

    return [text, text.upper(), text.title()][int(rng.integers(3))]


def empty_image(rng: np.random.Generator) -> np.ndarray:
    """Return an image without a thing: a plain ground, a ramp, stripes, noise of any grain."""
    kind = rng.integers(4)
    grain = int(rng.choice([1, 2, 4, 8, 16]))
    colours = np.array(list(vocabulary()["colours"].values()))

    if kind == 0:
        colour = rng.choice(colours) if rng.random() < 0.5 else rng.integers(0, 256, 3)
        return np.broadcast_to(colour, (64, 64, 3))

    if kind == 3:
        noise = rng.integers(0, 256, (64 // grain, 64 // grain, 3))
        coarse = noise.repeat(grain, 0).repeat(grain, 1)
        return 128 + (coarse - 128) * rng.random()

    first = rng.integers(0, 256, 3)
    second = rng.integers(0, 256, 3)
    if kind == 1:
        line = np.linspace(first, second, 64)[np.arange(64) // grain * grain]
    else:
        line = np.where((np.arange(64) // grain % 2)[:, None], first, second)

    image = np.broadcast_to(line, (64, 64, 3))
    return image if rng.random() < 0.5 else image.swapaxes(0, 1)


def draw(scenes: Scenes, count: int) -> tuple[np.ndarray, list[Content]]:
    """Return `count` images uint8 (count, 64, 64, 3), and their contents."""
    rng = scenes.rng
    images = np.empty((count, 64, 64, 3), np.uint8)
    contents = []
    kinds = rng.choice(list(KINDS_OF_SCENES), count, p=list(KINDS_OF_SCENES.values()))

    for row, kind in enumerate(kinds):
        scene = None
        if rng.random() < EMPTY:
            images[row] = np.asarray(empty_image(rng)).round().astype(np.uint8)
        else:
            drawn, (scene,) = scenes.draw(1, str(kind))
            images[row] = drawn[0].numpy()

        text = random_text(rng) if rng.random() < WRITTEN else ""
        if text:
            font = None if rng.random() < 0.4 else str(rng.choice(FONTS))  # type: ignore[arg-type]
            images[row] = write(images[row], text, rng, font)

        contents.append(Content(scene, text))

    return images, contents


def ask(content: Content, rng: np.random.Generator) -> list[Question]:
    """Return four questions: for a caption, a count, names, and one of the other kinds."""
    kinds = [*KINDS[:ALWAYS], KINDS[int(rng.integers(ALWAYS, len(KINDS)))]]
    return [kind(content, rng) for kind in kinds]


def batches(
    batch: int, text: PreTrainedTokenizerFast, vae: AutoencoderKL
) -> Callable[[int], Iterator[Pack]]:
    """Return a function of a seed to endless packs of `batch` images."""

    def endless(seed: int) -> Iterator[Pack]:
        scenes = Scenes(seed, tuple(vocabulary()["sets"]))

        while True:
            images, contents = draw(scenes, batch)
            x = disturb(normalise(torch.from_numpy(images)))
            disturb_latents(vae, x, 8)
            yield pack(x, [ask(content, scenes.rng) for content in contents], text)

    return endless


@torch.no_grad()
def answers(
    model: LlavaForConditionalGeneration,
    text: PreTrainedTokenizerFast,
    images: np.ndarray,
    question: str,
) -> list[str]:
    """Return the model's answer to one question about each image."""
    pixels = normalise(torch.from_numpy(images))
    prompt = IMAGE * IMAGE_TOKENS + question + ANSWER
    ids = text([prompt] * len(images), return_tensors="pt", add_special_tokens=False)
    tokens = model.generate(**ids, pixel_values=pixels, max_new_tokens=16)

    length = ids["input_ids"].shape[1]
    return text.batch_decode(tokens[:, length:], skip_special_tokens=True)


def report(model: LlavaForConditionalGeneration, text: PreTrainedTokenizerFast) -> Image.Image:
    """Print how often answers are right on fresh scenes in the generator's styles.

    Returns:
        Some of the images.
    """
    scenes = Scenes(10**6)
    right = {}

    for kind in ("single", "count", "pair"):
        drawn, shown = scenes.draw(128, kind)
        captions = answers(model, text, drawn.numpy(), CAPTION)
        hits = [a == Content(s).caption for a, s in zip(captions, shown, strict=True)]
        right[kind] = sum(hits) / 128

    images, contents = draw(scenes, 256)
    replies = answers(model, text, images, TEXT)
    expected = ["yes" if content.text else "no" for content in contents]

    for word in ("yes", "no"):
        hits = [a == word for a, e in zip(replies, expected, strict=True) if e == word]
        right[f"text: {word}"] = sum(hits) / len(hits)

    print(
        "whole captions right, and text noticed:",
        {k: round(v, 3) for k, v in right.items()},
        flush=True,
    )
    captions = answers(model, text, images[:32], CAPTION)
    pairs = zip(contents[:12], captions, strict=False)
    print(" | ".join(f"{content.caption} -> {answer}" for content, answer in pairs), flush=True)

    return loop.grid(torch.from_numpy(images[:64]), 16)


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
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(text)} words, {parameters / 1e6:.2f} M parameters", flush=True)

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
        model.model,  # with all weights: the output layer is the table of input embeddings
        batches(options.batch, text, vae),
        loss_of,
        options,
        preview=lambda: report(model, text),
        finish=finish,
        decay=0.99,
        weight_decay=0.05,
    )


if __name__ == "__main__":
    main()
