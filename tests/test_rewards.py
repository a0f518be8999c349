"""Rewards against brute force, the checker against broken rewards, CLIP against its processor."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from burnish import catalog
from burnish.images import open_image
from burnish.qr.layout import fit
from burnish.rewards import check_reward, score
from burnish.rewards.aesthetic import aesthetic
from burnish.rewards.clip import Clip, clip_similarity, prepare
from burnish.rewards.code_distance import code_distance, code_similarity
from burnish.rewards.compressibility import compressibility, incompressibility
from burnish.rewards.picture_similarity import picture_similarity
from burnish.rewards.preference import preference
from burnish.rewards.sentiment import BRIGHT, CHEERFUL, DARK, GLOOMY, sentiment
from burnish.types import Prompt
from burnish.zoo.scenes import Scenes

if TYPE_CHECKING:
    from conftest import LocalServer

CATS = [Prompt("a cat")] * 4


def redness(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


def test_jpeg_size_is_the_size_of_the_file() -> None:
    images = torch.rand(4, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    expected = []

    for image in images:
        buffer = io.BytesIO()
        pixels = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
        expected.append(len(buffer.getvalue()) / 1000)

    assert incompressibility()(images, CATS).tolist() == expected
    assert compressibility()(images, CATS).tolist() == [-size for size in expected]


def test_many_pixels_take_the_threaded_way_and_agree() -> None:
    images = torch.rand(2, 3, 640, 640, generator=torch.Generator().manual_seed(0))
    reward = incompressibility()
    both = reward(images, CATS[:2])
    assert both.tolist() == [reward(images[i : i + 1], CATS[:1]).item() for i in range(2)]


def test_jpeg_quality_out_of_range_names_it() -> None:
    with pytest.raises(ValueError, match="quality = 0"):
        compressibility(quality=0)


def test_a_good_reward_passes_the_check() -> None:
    assert check_reward(redness) == []


def _writes(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    values = images.mean((1, 2, 3))
    images.mul_(0.5)
    return values


def _fails_alone(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    return images.mean((2, 3)).squeeze().mean(1)


def _raises(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    raise KeyError("nothing here")


BROKEN: dict[str, tuple[Callable[..., object], str]] = {
    "raises": (_raises, "raised KeyError"),
    "one number": (lambda images, prompts: images.mean(), r"shape \(\)"),
    "a column": (lambda images, prompts: images.mean((1, 2, 3))[:, None], r"shape \(8, 1\)"),
    "text": (lambda images, prompts: "good", "returned a str"),
    "NaN": (lambda images, prompts: images.mean((1, 2, 3)).log() * float("nan"), "nan for 8 of 8"),
    "constant": (lambda images, prompts: torch.ones(len(images)), "nothing to learn"),
    "random": (lambda images, prompts: torch.rand(len(images)), "second time"),
    "ranks": (
        lambda images, prompts: images.mean((1, 2, 3)) * torch.arange(1, len(images) + 1),
        "another order",
    ),
    "other images": (
        lambda images, prompts: images.mean((1, 2, 3)) - images.mean(),
        "alone in its batch",
    ),
    "writes": (_writes, "images.clone"),
    "batch of one": (_fails_alone, "then failed on 1"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rewards_are_caught(name: str) -> None:
    reward, words = BROKEN[name]
    findings = check_reward(reward)  # type: ignore[arg-type]
    assert any(re.search(words, finding) for finding in findings), findings


def test_score_makes_one_float64_column_a_reward() -> None:
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    scores = score({"red": redness, "rank": lambda images, prompts: [1, 2, 3, 4]}, images, CATS)  # type: ignore[dict-item,return-value]
    assert scores.names == ("red", "rank")
    assert scores.parts.dtype == torch.float64
    assert scores.parts.shape == (4, 2)
    assert scores.parts[:, 1].tolist() == [1, 2, 3, 4]


def test_score_names_the_reward_the_row_and_the_prompt() -> None:
    def holes(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return torch.tensor([1.0, 2.0, float("nan"), 3.0])

    with pytest.raises(
        ValueError, match=r"'holes' returned nan for 1 of 4 images \(first: row 2, prompt 'a cat'\)"
    ):
        score({"holes": holes}, torch.rand(4, 3, 8, 8), CATS)


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a random CLIP of a few thousand parameters with a word tokenizer; return its folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("clip")
    words = {
        word: i
        for i, word in enumerate(["<pad>", "<s>", "<e>", "<unk>", "a", "cat", "dog", "red", "ball"])
    }
    text = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    text.pre_tokenizer = pre_tokenizers.Whitespace()
    text.post_processor = processors.TemplateProcessing(
        single="<s> $A <e>", special_tokens=[("<s>", words["<s>"]), ("<e>", words["<e>"])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=text,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<e>",
        unk_token="<unk>",
        model_max_length=8,
    ).save_pretrained(folder)
    tower = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    torch.manual_seed(0)
    CLIPModel(
        CLIPConfig(
            text_config={
                **tower,
                "vocab_size": 9,
                "max_position_embeddings": 8,
                "eos_token_id": 2,
                "pad_token_id": 0,
            },
            vision_config={**tower, "image_size": 16, "patch_size": 8},
            projection_dim=8,
        )
    ).save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    ).save_pretrained(folder)

    return folder


def test_clip_similarity_is_the_cosine_of_the_two_towers(tiny_clip: Path) -> None:
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    reward = clip_similarity(str(tiny_clip))
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    prompts = [Prompt("a cat"), Prompt("a red ball"), Prompt("a cat")]
    values = reward(images, prompts)

    model = CLIPModel.from_pretrained(tiny_clip).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_clip)
    processor = CLIPImageProcessor.from_pretrained(tiny_clip)
    arrays = [image.permute(1, 2, 0).numpy() for image in images]
    pixels = processor(images=arrays, do_rescale=False, do_resize=False, return_tensors="pt")
    tokens = tokenizer(
        [p.text for p in prompts], padding="max_length", max_length=8, return_tensors="pt"
    )

    with torch.no_grad():
        output = model(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            pixel_values=pixels["pixel_values"],
        )

    torch.testing.assert_close(
        values, (output.image_embeds * output.text_embeds).sum(-1), rtol=1e-5, atol=1e-6
    )
    assert values.abs().max() <= 1


def test_clip_similarity_of_the_original_of_an_expanded_prompt(tiny_clip: Path) -> None:
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expanded = [
        Prompt("a red cat", {"original": "a cat"}),
        Prompt("a red ball", {"original": "ball"}),
        Prompt("a dog"),
    ]
    plain = [Prompt("a cat"), Prompt("ball"), Prompt("a dog")]
    text = clip_similarity(str(tiny_clip))
    assert torch.equal(
        clip_similarity(str(tiny_clip), of="original")(images, expanded), text(images, plain)
    )
    as_it_is = text(images, expanded)
    assert torch.equal(as_it_is, text(images, [Prompt(prompt.text) for prompt in expanded]))
    assert not torch.allclose(as_it_is[:2], text(images, plain)[:2])

    with pytest.raises(ValueError, match="the original of the prompt 'a cat' is 3; give a text"):
        clip_similarity(str(tiny_clip), of="original")(
            images[:1], [Prompt("a cat", {"original": 3})]
        )

    with pytest.raises(ValueError, match='of must be "text" or "original", not "first"'):
        clip_similarity(str(tiny_clip), of="first")  # type: ignore[arg-type]


def test_sentiment_is_the_softmax_between_two_sets_of_texts(tiny_clip: Path) -> None:
    clip = Clip.load(str(tiny_clip))
    words = ("a red ball", "a ball", "a cat", "a dog", "red dog")
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    scale = clip.model.logit_scale.exp().item() / 0.5
    expected = []

    for image in clip.images(images).tolist():
        terms = [
            np.exp(scale * sum(a * b for a, b in zip(image, text, strict=True)))
            for text in clip.texts(words).tolist()
        ]
        liked = sum(terms[:2]) / 2
        disliked = sum(terms[2:]) / 3
        expected.append(liked / (liked + disliked))

    reward = sentiment(str(tiny_clip), words[:2], words[2:], temperature=0.5)
    values = reward(images, CATS)
    torch.testing.assert_close(
        values, torch.tensor(expected, dtype=torch.float32), rtol=1e-4, atol=1e-5
    )
    assert torch.equal(values, reward(images, [Prompt("a dog")] * 4)), "prompts do not matter"
    other = sentiment(str(tiny_clip), words[2:], words[:2], temperature=0.5)(images, CATS)
    torch.testing.assert_close(values + other, torch.ones(4), rtol=1e-5, atol=1e-5)
    doubled = sentiment(str(tiny_clip), words[:2], words[2:] * 2, temperature=0.5)(images, CATS)
    torch.testing.assert_close(doubled, values, rtol=1e-4, atol=1e-5)


def test_sentiment_has_texts_of_its_own_for_each_kind_of_model(
    tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = Clip.load(str(tiny_clip))
    embedded = []

    def record(self: Clip, texts: Sequence[str]) -> Tensor:
        embedded.append(tuple(texts))
        return torch.eye(len(texts), 8)

    monkeypatch.setattr(Clip, "load", lambda name: clip)
    monkeypatch.setattr(Clip, "texts", record)

    for model in ("zoo:emoji-clip", "some/model"):
        sentiment(model)(torch.rand(1, 3, 16, 16), CATS[:1])

    assert embedded == [BRIGHT + DARK, CHEERFUL + GLOOMY]


def test_sentiment_of_emoji_tells_bright_grounds_from_dark_ones() -> None:
    scenes = Scenes(92)
    reward = sentiment("zoo:emoji-clip")
    means = {}

    for colour in ("yellow", "pink", "gray", "black"):
        images, drawn = scenes.draw(12, "single", background=colour)
        means[colour] = reward(
            images.permute(0, 3, 1, 2).float() / 255, [Prompt(s.caption) for s in drawn]
        ).mean()

    assert min(means["yellow"], means["pink"]) > 0.9 > 0.1 > max(means["gray"], means["black"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"positive": ["a cat"]}, "give both positive and negative"),
        ({"negative": ["a cat"]}, "give both positive and negative"),
        ({"positive": ["a cat", " "], "negative": ["a dog"]}, "has an empty text"),
        ({"temperature": 0.0}, "temperature = 0.0; it must be more than 0"),
        ({"positive": "happy", "negative": "sad"}, "positive = 'happy' is of the wrong type"),
    ],
)
def test_sentiment_names_a_wrong_argument(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        catalog.build("reward", {"use": "sentiment", "model": "zoo:emoji-clip", **arguments})


def laion_head(path: Path, width: int) -> Path:
    """Save a random head in the form of LAION's file: five layers, counted with the dropouts."""
    noise = torch.Generator().manual_seed(3)
    widths = (width, 10, 7, 5, 3, 1)
    names = (0, 2, 4, 6, 7)
    state = {}

    for number, into, out in zip(names, widths, widths[1:], strict=False):
        state[f"layers.{number}.weight"] = torch.randn(out, into, generator=noise)
        state[f"layers.{number}.bias"] = torch.randn(out, generator=noise)

    torch.save(state, path)
    return path


def test_aesthetic_is_the_stack_on_the_unit_embedding(tiny_clip: Path, tmp_path: Path) -> None:
    from transformers import CLIPModel

    path = laion_head(tmp_path / "aesthetic-model.pth", 8)
    state = torch.load(path, weights_only=True)
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    model = CLIPModel.from_pretrained(tiny_clip).eval()

    with torch.no_grad():
        output = model.get_image_features(pixel_values=pixels)

    x = torch.nn.functional.normalize(
        output if isinstance(output, torch.Tensor) else output.pooler_output, dim=-1
    )

    for number in (0, 2, 4, 6, 7):
        x = x @ state[f"layers.{number}.weight"].T + state[f"layers.{number}.bias"]

    prompts = [Prompt("a cat")] * 3
    torch.testing.assert_close(
        aesthetic(str(tiny_clip), str(path))(images, prompts), x[:, 0], rtol=1e-4, atol=1e-5
    )
    folder = aesthetic(str(tiny_clip), str(tmp_path))
    torch.testing.assert_close(folder(images, prompts), x[:, 0], rtol=1e-4, atol=1e-5)


def test_aesthetic_says_what_is_wrong_with_a_head(tiny_clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="takes 6 numbers, but .* gives 8"):
        aesthetic(str(tiny_clip), str(laion_head(tmp_path / "narrow.pth", 6)))
    with pytest.raises(ValueError, match=r"has no aesthetic-model\.pth"):
        aesthetic(str(tiny_clip), str(tmp_path))

    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="is no head of linear layers"):
        aesthetic(str(tiny_clip), str(tmp_path / "cut.safetensors"))

    torch.save(
        {"layers.0.weight": torch.ones(2, 8), "layers.0.bias": torch.ones(2)}, tmp_path / "two.pth"
    )

    with pytest.raises(ValueError, match="end in one number"):
        aesthetic(str(tiny_clip), str(tmp_path / "two.pth"))


def test_a_head_cannot_run_code(tiny_clip: Path, tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "harmed",))

    torch.save({"layers.0.weight": Harmful()}, tmp_path / "harmful.pth")
    with pytest.raises(ValueError, match="is no head of linear layers"):
        aesthetic(str(tiny_clip), str(tmp_path / "harmful.pth"))

    assert not (tmp_path / "harmed").exists()


def test_preference_is_the_models_own_logit_of_each_pair(tiny_clip: Path, tmp_path: Path) -> None:
    """With the weights in one folder and the processor in another, as PickScore's are."""
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    model = CLIPModel.from_pretrained(tiny_clip).eval()
    model.logit_scale.data.fill_(np.log(37.0))
    model.save_pretrained(tmp_path / "weights")
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    prompts = [Prompt("a cat"), Prompt("a red ball"), Prompt("a dog")]
    values = preference(str(tmp_path / "weights"), str(tiny_clip))(images, prompts)

    tokens = AutoTokenizer.from_pretrained(tiny_clip)(
        [p.text for p in prompts], padding=True, return_tensors="pt"
    )
    arrays = [image.permute(1, 2, 0).numpy() for image in images]
    processor = CLIPImageProcessor.from_pretrained(tiny_clip)
    pixels = processor(images=arrays, do_rescale=False, do_resize=False, return_tensors="pt")[
        "pixel_values"
    ]

    with torch.no_grad():
        output = model(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            pixel_values=pixels.float(),
        )

    torch.testing.assert_close(values, output.logits_per_image.diagonal(), rtol=1e-5, atol=1e-5)
    assert values.abs().max() > 1, "the scale is in it"


def test_preference_knows_where_pickscores_processor_is(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def load(name: str, processor: str = "") -> Clip:
        loaded.append((name, processor))
        raise LookupError

    monkeypatch.setattr(Clip, "load", load)
    for arguments in ({}, {"model": "mine"}, {"model": "mine", "processor": "other"}):
        with pytest.raises(LookupError):
            preference(**arguments)

    pickscore = ("yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K")
    assert loaded == [pickscore, ("mine", ""), ("mine", "other")]


def test_preference_without_its_processor_says_so(tiny_clip: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=rf"clip0' is not a folder with .* \(these two in '{tmp_path}'\)"
    ):
        preference(str(tiny_clip), str(tmp_path))


# of images that were preferred: see test_taste, test_pairs and test_voting
OF_PAIRS = ("taste", "votes", "chosen")


@pytest.mark.parametrize("name", [n for n in catalog.BUILTIN["reward"] if n not in OF_PAIRS])
def test_every_listed_reward_passes_the_check(
    name: str, tiny_clip: Path, server: LocalServer, tmp_path: Path
) -> None:
    server.answer = lambda body: (200, {"scores": [len(file) for file in body["images"]]})
    needed = {
        "preference": {"model": str(tiny_clip)},
        "sentiment": {
            "model": str(tiny_clip),
            "positive": ["a red ball"],
            "negative": ["a cat", "a dog"],
        },
        "remote": {"url": server.url},
        "clip_similarity": {"model": str(tiny_clip)},
        "clip_contrast": {"model": str(tiny_clip), "others": ["a cat", "a dog", "ball"]},
        "clip_retrieval": {"model": str(tiny_clip), "others": ["a cat", "a dog", "ball"]},
        "picture_similarity": {"model": str(tiny_clip)},
        "code_distance": {"model": str(tiny_clip)},
        "aesthetic": {
            "model": str(tiny_clip),
            "head": str(laion_head(tiny_clip.parent / "head.pth", 8)),
        },
        "caption": {"model": "zoo:emoji-captioner", "encoder": "zoo:emoji-clip"},
        "question": {"model": "zoo:emoji-captioner"},
    }
    Image.new("RGB", (30, 20), "red").save(tmp_path / "base.png")
    coded = [
        Prompt("a cat", {"payload": payload, "base": str(tmp_path / "base.png")})
        for payload in ("AB12C", "12345")
    ]
    reward = catalog.build("reward", {"use": name, **needed.get(name, {})})
    prompts: dict[str, list] = {
        # "What animal is in this image?" "none", as these show no animal
        "question": ["two cats", "ten none"],
        **dict.fromkeys(("qr_scan", "qr_modules", "picture_similarity", "code_distance"), coded),
    }
    size = 64 if prompts.get(name) is coded else 24  # px: the least that holds a code
    assert check_reward(reward, size=size, prompts=prompts.get(name, ["a cat", "a dog"])) == []


def test_picture_similarity_is_the_cosine_with_the_named_image(
    tiny_clip: Path, tmp_path: Path
) -> None:
    clip = Clip.load(str(tiny_clip))
    noise = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    bases = noise.mul(255).round() / 255
    prompts = []

    for row, base in enumerate(bases):
        path = tmp_path / f"{row}.png"
        Image.fromarray(base.mul(255).round().byte().permute(1, 2, 0).numpy()).save(path)
        prompts.append(Prompt("a cat", {"like": str(path)}))

    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    reward = picture_similarity(str(tiny_clip), key="like")
    expected = (clip.images(images) * clip.images(bases)).sum(-1)
    torch.testing.assert_close(reward(images, prompts), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(reward(bases, prompts), torch.ones(2), rtol=1e-5, atol=1e-6)

    (tmp_path / "0.png").unlink()  # it was embedded once, and that is remembered
    torch.testing.assert_close(reward(images, prompts), expected, rtol=1e-5, atol=1e-6)


def test_picture_similarity_names_the_image_that_is_missing(
    tiny_clip: Path, tmp_path: Path
) -> None:
    reward = picture_similarity(str(tiny_clip))
    images = torch.rand(1, 3, 16, 16)
    (tmp_path / "text.png").write_text("no image")

    for metadata, words in (
        (
            {},
            "the prompt 'a cat' names no image to be compared with; "
            "give its metadata a path as 'base'",
        ),
        (
            {"base": str(tmp_path / "none.png")},
            r"of the prompt 'a cat' \(base\): .*none.png: no such image",
        ),
        (
            {"base": str(tmp_path / "text.png")},
            r"of the prompt 'a cat' \(base\): .*text.png: not an image",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            reward(images, [Prompt("a cat", metadata)])


def test_code_distance_falls_as_an_image_becomes_its_bare_code(tiny_clip: Path) -> None:
    layouts = [fit("AB12C", 64), fit("12345", 64)]
    code = torch.stack([layout.draw() for layout in layouts])
    noise = torch.rand(2, 3, 64, 64)
    clip = Clip.load(str(tiny_clip))
    prompts = [Prompt("a cat", {"payload": layout.payload}) for layout in layouts]

    for share, images in ((0, noise), (1, code), (0.5, (code + noise) / 2)):
        similarity = (clip.images(images) * clip.images(code)).sum(-1)
        torch.testing.assert_close(
            code_similarity(clip, images, layouts), similarity, rtol=1e-5, atol=1e-6
        )
        torch.testing.assert_close(
            code_distance(str(tiny_clip))(images, prompts), 1 - similarity, rtol=1e-5, atol=1e-5
        )
        assert share < 1 or similarity.min() > 0.9999


def test_opened_images_are_upright_and_on_white(tmp_path: Path) -> None:
    half = Image.new("RGBA", (4, 2), (255, 0, 0, 255))
    half.paste((0, 0, 255, 0), (0, 0, 2, 2))
    half.save(tmp_path / "half.png")
    assert open_image(tmp_path / "half.png")[:, 0].T.tolist() == [
        [1, 1, 1],
        [1, 1, 1],
        [1, 0, 0],
        [1, 0, 0],
    ]
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").shape == (3, 40, 20)
    Image.new("I;16", (3, 3), 40000).save(tmp_path / "deep.png")
    assert open_image(tmp_path / "deep.png").shape == (3, 3, 3)


def test_prepare_normalises_once_and_crops_the_middle() -> None:
    images = torch.rand(1, 3, 16, 20)
    out = prepare(images, 16, [0.5] * 3, [0.25] * 3)
    np.testing.assert_allclose(out, (images[..., 2:18] - 0.5) / 0.25, rtol=1e-6)
    assert prepare(images, 8, [0.5] * 3, [0.25] * 3).shape == (1, 3, 8, 8)


def test_clip_similarity_without_a_model_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(ValueError, match="is not a folder with a CLIPModel"):
        clip_similarity(str(tmp_path))
