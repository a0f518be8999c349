"""`zoo:emoji-captioner`: a small LLaVA that answers questions about scenes.

`python -m pretrain.captioner --minutes 27`. CLIP's image tower (warm-started from
`zoo:emoji-clip`), a projector and a Llama of three layers, trained together on scenes of all
seven icon sets, disturbed as for the judge: noise, blur, contrast, one in four through an
autoencoder with disturbed latents. Some have words written over them in many ways
(`pretrain.lettering`), some shapes that are no letters, some show nothing. Several questions about
an image are packed behind it in one row without attention to each other, so that the image, which
is most of the tokens, is computed once.

`--size 128` makes `zoo:emoji-captioner-128`, which sees letters: 257 tokens of an image instead of
65. It goes on from `zoo:emoji-captioner`, with two layers more before the four of its image tower.
Half of its scenes have 128 px, one in four through `zoo:emoji-sd`'s autoencoder and one through
`zoo:emoji-flow`'s; half are scenes of 64 px, enlarged as its processor does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial

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

from burnish.diffusion.guidance import CFG
from burnish.diffusion.kernels import DDIM, ODE
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.types import Prompt
from burnish.zoo.questions import CAPTION, KINDS, NUMBERS, TEXT, Content, Question, ask_text, write
from burnish.zoo.scenes import SIZE, SIZES, Scenes, nouns, vocabulary
from pretrain import loop
from pretrain.clip import MEAN, disturb, disturb_latents, normalise
from pretrain.clip import STD as PIXEL_STD
from pretrain.data import ZOO
from pretrain.lettering import inked, letters, random_text, shapes

SPECIAL = ("<pad>", "<unk>", "<image>", "<answer>", "<end>")
PAD, UNKNOWN, IMAGE, ANSWER, END = SPECIAL
PATCH = 8
WIDTH = 128
NAMES = {SIZE: "captioner", 2 * SIZE: "captioner-128"}  # jobs by the side of the images
MORE_LAYERS = 2  # of the image tower of the larger one
AUTOENCODERS = {SIZE: ("emoji-sd",), 2 * SIZE: ("emoji-sd", "emoji-flow")}
DISTURBED = 4  # one image in so many goes through each autoencoder of its size
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{{ '<end>' if message['role'] == 'assistant' else '<answer>' }}{% endfor %}"
)
KINDS_OF_SCENES = {"single": 0.35, "count": 0.2, "pair": 0.45}
WRITTEN = 0.35  # share of images with words on them
SHAPED = 0.15  # share of images with shapes on them that are no letters
EMPTY = 0.06  # share of images without a scene
ALWAYS = (
    3  # each image gets the first three kinds of questions and the last, then one of the others
)
UNSEEN = 10**6  # seed of scenes that no training draws
# of the new weights: about 1 / sqrt(width). With Llama's own 0.02 nouns are learned five times
# later
STD = 0.08


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


def tokenizer(size: int = SIZE) -> PreTrainedTokenizerFast:
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
        model_max_length=_longest(size),
        padding_side="left",
    )


def image_tokens(size: int) -> int:
    """Return the number of tokens of an image: its patches, and CLIP's summary."""
    return (size // PATCH) ** 2 + 1


def _longest(size: int) -> int:
    """Return the most tokens of an image of this size and what is asked about it."""
    return 256 if size == SIZE else 512


def processor(text: PreTrainedTokenizerFast, size: int) -> LlavaProcessor:
    """Return the processor that turns an image and a question into tokens."""
    images = CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
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


def build(
    text: PreTrainedTokenizerFast, size: int = SIZE, warm: bool = False
) -> LlavaForConditionalGeneration:
    """Return a new model for images of this size, or with `warm` the package's own.

    For 64 px it has 1.5 M parameters: an image tower of 0.8, a projector, and a Llama of 0.7. That
    for 128 px has 2.0 M and is `enlarged` from the package's for 64.
    """
    if warm:
        return _of_package(NAMES[size])
    if size > SIZE:
        return enlarged(_of_package(NAMES[SIZE]), size)

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
        image_seq_length=image_tokens(SIZE),
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


def _of_package(job: str) -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration.from_pretrained(ZOO / f"emoji-{job}", dtype=torch.float32)


def enlarged(old: LlavaForConditionalGeneration, size: int) -> LlavaForConditionalGeneration:
    """Return a model for larger images, of as large patches, that knows what `old` does.

    Places of patches are interpolated. The image tower has more layers before its own, which change
    nothing yet: their last matrices are zero.
    """
    config = deepcopy(old.config)
    vision = config.vision_config
    before = vision.image_size // PATCH
    after = size // PATCH
    vision.image_size = size
    vision.num_hidden_layers += MORE_LAYERS
    config.image_seq_length = image_tokens(size)
    config.text_config.max_position_embeddings = _longest(size)
    new = LlavaForConditionalGeneration(config)
    weights = {_layers_later(name): weight for name, weight in old.state_dict().items()}

    name = next(name for name in weights if name.endswith("position_embedding.weight"))
    summary, patches = weights[name].split([1, before**2])
    places = patches.T.reshape(1, -1, before, before)
    places = F.interpolate(places, (after, after), mode="bicubic")
    weights[name] = torch.cat([summary, places.reshape(-1, after**2).T])
    new.load_state_dict(weights, strict=False)
    new.generation_config = old.generation_config

    for layer in new.model.vision_tower.encoder.layers[:MORE_LAYERS]:
        for last in (layer.self_attn.out_proj, layer.mlp.fc2):
            torch.nn.init.zeros_(last.weight)
            torch.nn.init.zeros_(last.bias)

    return new


def _layers_later(name: str) -> str:
    """Return the name that a weight of an image tower's layer has behind `MORE_LAYERS` others."""
    before, mark, after = name.partition("vision_tower.encoder.layers.")
    if not mark:
        return name
    index, rest = after.split(".", 1)
    return f"{before}{mark}{int(index) + MORE_LAYERS}.{rest}"


@dataclass(frozen=True)
class Pack:
    """Images with questions and answers behind each, in one row; T tokens, the longest row's."""

    pixels: Tensor  # (B, 3, size, size), as the processor normalises them
    ids: Tensor  # (B, T) questions and answers
    segment: Tensor  # (B, T) number of the question that a token belongs to; -1: padding
    position: Tensor  # (B, T) index in its own question and answer
    target: Tensor  # (B, T) the token to predict next, -100 where none is


def question_table(rows: Sequence[Sequence[Question]], text: PreTrainedTokenizerFast) -> np.ndarray:
    """Return the questions and answers of B images, int64 (B, T, 4): all but a `Pack`'s pixels."""
    flat = [question for row in rows for question in row]
    questions = iter(text([q + ANSWER for q, _ in flat], add_special_tokens=False)["input_ids"])
    answers = iter(text([a + END for _, a in flat], add_special_tokens=False)["input_ids"])
    tokens = [_row_tokens([(next(questions), next(answers)) for _ in row]) for row in rows]

    longest = max(map(len, tokens))
    padding = (text.pad_token_id, -1, 0, -100)
    return np.array([[*row, *[padding] * (longest - len(row))] for row in tokens])


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
    rows, length, _ = x.shape
    seen = image.shape[1]

    # a token attends to the image, which is segment -2, and to its own question
    segment = F.pad(pack.segment, (seen, 0), value=-2)
    attends = (segment[:, :, None] == segment[:, None]) | (segment[:, None] == -2)
    mask = attends & torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
    bias = torch.zeros(rows, 1, length, length, device=x.device)
    bias = bias.masked_fill(~mask[:, None], -1e4).to(x.dtype)
    places = torch.arange(seen, device=x.device).expand(rows, -1)
    position = torch.cat([places, pack.position + seen], 1)

    state = core.language_model(
        inputs_embeds=x, attention_mask=bias, position_ids=position
    ).last_hidden_state
    has_target = pack.target != -100
    logits = model.lm_head(state[:, seen:][has_target]).float()
    target = pack.target[has_target]

    return F.cross_entropy(logits, target, reduction="none"), logits.argmax(1) == target


def empty_image(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return an image without a thing: a plain ground, a ramp, stripes, noise of any grain."""
    kind = rng.integers(4)
    grain = int(rng.choice([1, 2, 4, 8, 16]))
    colours = np.array(list(vocabulary()["colours"].values()))

    if kind == 0:
        colour = rng.choice(colours) if rng.random() < 0.5 else rng.integers(0, 256, 3)
        return np.broadcast_to(colour, (size, size, 3))

    if kind == 3:
        noise = rng.integers(0, 256, (size // grain, size // grain, 3))
        coarse = noise.repeat(grain, 0).repeat(grain, 1)
        return 128 + (coarse - 128) * rng.random()

    first = rng.integers(0, 256, 3)
    second = rng.integers(0, 256, 3)
    if kind == 1:
        line = np.linspace(first, second, size)[np.arange(size) // grain * grain]
    else:
        line = np.where((np.arange(size) // grain % 2)[:, None], first, second)

    image = np.broadcast_to(line, (size, size, 3))
    return image if rng.random() < 0.5 else image.swapaxes(0, 1)


@dataclass(frozen=True)
class Drawn:
    """Scenes of one size, n of them, and strokes to be laid over them; nothing is disturbed yet."""

    images: np.ndarray  # (n, size, size, 3) uint8
    strokes: np.ndarray  # (n, size, size) uint8
    contents: list[Content]


def draw(scenes: Scenes, count: int) -> Drawn:
    """Return `count` images with or without text, shapes and scenes."""
    rng = scenes.rng
    size = scenes.size
    images = np.empty((count, size, size, 3), np.uint8)
    strokes = np.zeros((count, size, size), np.uint8)
    contents = []
    kinds = rng.choice(list(KINDS_OF_SCENES), count, p=list(KINDS_OF_SCENES.values()))

    for row, kind in enumerate(kinds):
        scene = None
        if rng.random() < EMPTY:
            images[row] = np.asarray(empty_image(size, rng)).round().astype(np.uint8)
        else:
            drawn, (scene,) = scenes.draw(1, str(kind))
            images[row] = drawn[0].numpy()

        part = rng.random()
        text = random_text(rng) if part < WRITTEN else ""
        if text:
            strokes[row] = letters(text, size, rng)
        elif part < WRITTEN + SHAPED:
            strokes[row] = shapes(size, rng)

        contents.append(Content(scene, text))

    return Drawn(images, strokes, contents)


def ask(content: Content, rng: np.random.Generator) -> list[Question]:
    """Return five questions: for a caption, a count, names, text, and one of the other kinds."""
    kinds = [*KINDS[:ALWAYS], ask_text, KINDS[int(rng.integers(ALWAYS, len(KINDS) - 1))]]
    return [kind(content, rng) for kind in kinds]


def source(
    batch: int, size: int, text: PreTrainedTokenizerFast, seed: int
) -> Iterator[tuple[list[Drawn], np.ndarray]]:
    """Yield drawn scenes of each size up to `size`, and a table of their questions."""
    sizes = [side for side in SIZES if side <= size]
    sources = [
        Scenes(seed, tuple(vocabulary()["sets"]) if side == SIZE else None, size=side)
        for side in sizes
    ]

    while True:
        groups = [draw(scenes, batch // len(sources)) for scenes in sources]
        rng = sources[0].rng
        questions = [ask(content, rng) for group in groups for content in group.contents]
        yield groups, question_table(questions, text)


def generated_look(drawn: Drawn, vaes: Mapping[str, AutoencoderKL], device: torch.device) -> Tensor:
    """Return the images (n, 3, size, size) with their strokes, disturbed, in about [-1, 1]."""
    size = drawn.images.shape[1]
    images = torch.from_numpy(drawn.images).to(device)
    strokes = torch.from_numpy(drawn.strokes).to(device)[:, None].float() / 255
    x = disturb(inked(images.permute(0, 3, 1, 2).float() / 255, strokes) * 2 - 1)

    for first, name in enumerate(AUTOENCODERS[size]):
        disturb_latents(vaes[name], x, DISTURBED, first)

    return x


def resized(x: Tensor, size: int) -> Tensor:
    """Return images of at least half this size as the processor enlarges them."""
    if x.shape[-1] == size:
        return x
    return F.interpolate(x, (size, size), mode="bicubic", antialias=True)


def batches(
    options: argparse.Namespace,
    text: PreTrainedTokenizerFast,
    vaes: Mapping[str, AutoencoderKL],
    device: torch.device,
) -> Callable[[int], Iterator[Pack]]:
    """Return a function of a seed to endless packs of `options.batch` images."""

    def endless(seed: int) -> Iterator[Pack]:
        drawing = partial(source, options.batch, options.size, text)
        for groups, table in loop.in_workers(drawing, seed, options.workers):
            parts = [generated_look(group, vaes, device) for group in groups]
            x = torch.cat([resized(part, options.size) for part in parts])
            yield Pack(x, *torch.from_numpy(table).to(device).unbind(-1))

    return endless


@torch.no_grad()
def answers(
    model: LlavaForConditionalGeneration,
    text: PreTrainedTokenizerFast,
    x: Tensor,
    question: str,
) -> list[str]:
    """Return the model's answer to one question about each normalised image (B, 3, H, W)."""
    config = model.config
    pixels = resized(x, config.vision_config.image_size).to(model.device)
    prompt = IMAGE * config.image_seq_length + question + ANSWER
    ids = text([prompt] * len(x), return_tensors="pt", add_special_tokens=False).to(model.device)
    tokens = model.generate(**ids, pixel_values=pixels, max_new_tokens=16)

    length = ids["input_ids"].shape[1]
    return text.batch_decode(tokens[:, length:], skip_special_tokens=True)


def report(
    model: LlavaForConditionalGeneration,
    text: PreTrainedTokenizerFast,
    vaes: Mapping[str, AutoencoderKL],
    count: int,
) -> Image.Image:
    """Print how often answers are right on fresh scenes in the generator's styles, by their size.

    There are `count` images of each kind.

    Returns:
        Some of the images.
    """
    sides = [side for side in SIZES if side <= model.config.vision_config.image_size]

    for size in sides:
        print(
            f"{size} px, whole captions right:",
            captions_right(model, text, size, count),
            flush=True,
        )
        print(f"{size} px, text seen:", text_seen(model, text, size, vaes, count), flush=True)

    drawn = draw(Scenes(UNSEEN, size=sides[-1]), 48)
    x = generated_look(drawn, vaes, model.device)
    captions = answers(model, text, x[:12], CAPTION)
    pairs = zip(drawn.contents[:12], captions, strict=True)
    print(" | ".join(f"{content.caption} -> {answer}" for content, answer in pairs), flush=True)

    return loop.grid(x / 2 + 0.5, 16, 2 * SIZE // sides[-1])


def captions_right(
    model: LlavaForConditionalGeneration,
    text: PreTrainedTokenizerFast,
    size: int,
    count: int,
) -> dict[str, float]:
    """Return the fraction of whole captions that are right, by the kind of scene."""
    scenes = Scenes(UNSEEN, size=size)
    right = {}

    for kind in KINDS_OF_SCENES:
        drawn, shown = scenes.draw(count, kind)
        captions = answers(model, text, normalise(drawn), CAPTION)
        hits = [a == Content(s).caption for a, s in zip(captions, shown, strict=True)]
        right[kind] = round(sum(hits) / count, 3)

    return right


def text_seen(
    model: LlavaForConditionalGeneration,
    text: PreTrainedTokenizerFast,
    size: int,
    vaes: Mapping[str, AutoencoderKL],
    count: int,
) -> dict[str, float]:
    """Return the fraction of images in which text is seen, of images with and without it.

    There are `count` scenes of every kind: with a number in plain letters, with text as in
    training, with shapes, with nothing; and the last three through each autoencoder of their size.
    Last, if there are any, images of the embedded generator of this size, which draws no letters.
    """
    scenes = Scenes(UNSEEN + 1, size=size)
    rng = scenes.rng
    bare, _ = scenes.draw(count)
    numbers = rng.choice(NUMBERS[1:], count)
    plain = [write(*pair, rng) for pair in zip(bare.numpy(), map(str, numbers), strict=True)]
    over = bare.permute(0, 3, 1, 2).float() / 255

    def with_strokes(strokes: list[np.ndarray]) -> Tensor:
        return inked(over, torch.from_numpy(np.stack(strokes))[:, None].float() / 255) * 2 - 1

    kinds = {
        "plain number": normalise(torch.from_numpy(np.stack(plain))),
        "text": with_strokes([letters(random_text(rng), size, rng) for _ in range(count)]),
        "shapes": with_strokes([shapes(size, rng) for _ in range(count)]),
        "none": normalise(bare),
    }

    for name in AUTOENCODERS[size]:
        for kind in ("text", "shapes", "none"):
            x = kinds[kind].to(model.device).clone()
            disturb_latents(vaes[name], x, 1)
            kinds[f"{kind}, {name}'s autoencoder"] = x

    kinds["none, generated"] = generated(size, count) * 2 - 1
    seen = {kind: answers(model, text, x, TEXT) for kind, x in kinds.items()}
    return {kind: round(replies.count("yes") / len(replies), 3) for kind, replies in seen.items()}


@cache
def generated(size: int, count: int) -> Tensor:
    """Return images (count, 3, size, size) in [0, 1] of the embedded generator of this size."""
    sampler = Sampler(DDIM(), 12, CFG(4.0)) if size == SIZE else Sampler(ODE(), 8, CFG(4.0))
    policy = Policy.load(f"zoo:{AUTOENCODERS[size][-1]}", train="none")
    prompts = [Prompt(scene.caption) for scene in Scenes(UNSEEN).draw(count)[1]]
    return sampler.images(policy, prompts, torch.Generator().manual_seed(0), 32)


def main() -> None:
    parser = loop.arguments(__doc__, minutes=27, batch=32, lr=1e-3)
    loop.add_workers(parser)
    parser.add_argument("--measured", type=int, default=128, help="images a measure is taken of")
    parser.add_argument("--size", type=int, default=SIZE, choices=SIZES, help="of images, in px")
    parser.add_argument("--warm", action="store_true", help="go on from the weights in the package")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    name = NAMES[options.size]
    text = tokenizer(options.size)
    model = build(text, options.size, options.warm).to(device)

    if device.type == "cpu":
        # the fused kernel's backward is slow on CPU for so few tokens
        model.set_attn_implementation("eager")

    vaes = {
        generator: AutoencoderKL.from_pretrained(ZOO / generator / "vae", dtype=torch.float32)
        .eval()
        .to(device)
        for generator in AUTOENCODERS[options.size]
    }
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(text)} words, {parameters / 1e6:.2f} M parameters", flush=True)

    def loss_of(batch: Pack) -> tuple[Tensor, dict[str, float]]:
        with loop.autocast(device):
            loss, right = losses(model, batch)
        return loss.mean(), {"tokens right": right.float().mean().item()}

    def finish() -> None:
        folder = options.build / name / "model"
        model.save_pretrained(folder)
        processor(text, options.size).save_pretrained(folder)

    loop.train(
        name,
        model.model,  # with all weights: the output layer is the table of input embeddings
        batches(options, text, vaes, device),
        loss_of,
        options,
        preview=lambda: report(model, text, vaes, options.measured),
        finish=finish,
        decay=0.99 if device.type == "cpu" else 0.998,  # of a GPU's more steps
        weight_decay=0.05,
    )


if __name__ == "__main__":
    main()
