"""BERTScore recall against brute force, and the reward `caption` with and without answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from burnish.rewards import vlm
from burnish.rewards.caption import Encoder, caption
from burnish.types import Prompt

WORDS = (
    "[PAD] [CLS] [SEP] [UNK] the image contains a cat dog and guitar on blue background two cats"
).split()
ANSWERS = [
    "a cat",
    "a dog and a guitar on a blue background",
    "two cats",
    "a cat and a guitar",
    "capybaras",
]
REFERENCES = ["The image contains a cat and a guitar", "The image contains two cats"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a random BERT of three layers with a word tokenizer; return its folder."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    text = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    text.normalizer = normalizers.Lowercase()
    text.pre_tokenizer = pre_tokenizers.Whitespace()
    text.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    marks = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=text, model_max_length=64, **marks).save_pretrained(
        folder
    )
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=64,
            initializer_range=0.5,  # so that states differ
        )
    ).save_pretrained(folder)

    return folder


def brute(model: torch.nn.Module, layer: int, answer: str, reference: str) -> float:
    """Return the recall token by token, one text at a time, without padding, in float64."""
    model = model.double()

    def states(text: str) -> list[Tensor]:
        numbers = [1, *(WORDS.index(w) if w in WORDS else 3 for w in text.lower().split()), 2]
        with torch.no_grad():
            out = model(torch.tensor([numbers]), output_hidden_states=True).hidden_states[layer]
        return list(out[0])

    # marks are not averaged over, but may be matched
    candidates = states(answer)
    tokens = states(reference)[1:-1]
    cosines = [max(float(r @ c / (r.norm() * c.norm())) for c in candidates) for r in tokens]

    return sum(cosines) / len(cosines)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_recall_is_brute_force(bert: Path, layer: int) -> None:
    from transformers import BertModel

    # of many lengths in one batch
    pairs = [(answer, reference) for answer in ANSWERS for reference in REFERENCES]
    values = Encoder.load(str(bert), layer).recall([a for a, _ in pairs], [r for _, r in pairs])
    exact = BertModel.from_pretrained(bert).eval()
    expected = torch.tensor([brute(exact, layer, *pair) for pair in pairs])
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
    assert expected.std() > 0.01, "the test could not tell pairs apart"


def test_layers(bert: Path) -> None:
    assert Encoder.load(str(bert)).layer == 3 and Encoder.load("zoo:emoji-clip").layer == 0
    with pytest.raises(
        ValueError, match="layer = 4: .* has layers 1 to 3, and 0 for its word embeddings"
    ):
        Encoder.load(str(bert), 4)


def test_word_embeddings_know_words_and_not_their_places() -> None:
    recall = Encoder.load("zoo:emoji-clip").recall
    prompt = "a cat and a guitar"
    same = recall(
        [prompt, "a guitar and a cat", "a cat and a guitar on a blue background"], [prompt] * 3
    )
    torch.testing.assert_close(same, torch.ones(3))
    half, wrong, empty = recall(
        ["a cat and a drum", "a dog and a drum", "nothing"], [prompt] * 3
    ).tolist()
    assert 0.95 > half > wrong > empty


def test_a_text_without_a_token_is_missing(bert: Path) -> None:
    assert recall_of(bert, [" ", "a cat"]) == [True, False]


def recall_of(folder: Path, answers: list[str]) -> list[bool]:
    return (
        Encoder.load(str(folder)).recall(answers, [REFERENCES[0]] * len(answers)).isnan().tolist()
    )


def answering(*answers: str | None) -> vlm.Vlm:
    """Return a model with these answers to any question."""

    def answer(images: Tensor, questions: Sequence[str]) -> list[str | None]:
        return list(answers)

    return answer


def test_missing_answers_are_missing_and_not_zero(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vlm, "load", lambda *_, **__: answering("a cat", None, "", "a dog"))
    reward = caption("anything", encoder=str(bert), layer=2)
    values = reward(torch.rand(4, 3, 8, 8), [Prompt("a cat")] * 4)
    assert values.isnan().tolist() == [False, True, True, False]
    expected = Encoder.load(str(bert), 2).recall(
        ["a cat", "a dog"], ["The image contains a cat"] * 2
    )
    torch.testing.assert_close(values[[0, 3]], expected)
    monkeypatch.setattr(vlm, "load", lambda *_, **__: answering(None, ""))

    with pytest.raises(ValueError, match="m has no answer for any of 2 images"):
        caption("m", encoder=str(bert))(torch.rand(2, 3, 8, 8), [Prompt("a cat")] * 2)


def test_the_prompt_stands_in_the_reference(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vlm, "load", lambda *_, **__: answering("the image contains {two} cats"))
    images = torch.rand(1, 3, 8, 8)
    prompts = [Prompt("{two} cats")]
    assert math.isclose(float(caption("m", encoder=str(bert))(images, prompts)), 1, abs_tol=1e-6)
    assert caption("m", encoder=str(bert), reference="a dog {prompt}")(images, prompts) < 0.999
    known = [Prompt(prompt.text, {"animal": "dog"}) for prompt in prompts]
    by_name = caption("m", encoder=str(bert), reference="a {animal} {prompt}")(images, known)
    assert by_name.equal(
        caption("m", encoder=str(bert), reference="a dog {prompt}")(images, prompts)
    )

    with pytest.raises(ValueError, match=r"has no \{animal\}; it has prompt"):
        caption("m", encoder=str(bert), reference="a {animal}")(images, prompts)
    with pytest.raises(ValueError, match=r'reference = "a cat" must contain \{prompt\}'):
        caption("m", encoder=str(bert), reference="a cat")


def test_a_model_that_is_no_encoder(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"is not a folder with a language model and its tokenizer"
    ):
        Encoder.load(str(tmp_path))

    with pytest.raises(
        ValueError, match="the zoo has no 'emoji-clop'; did you mean zoo:emoji-clip"
    ):
        Encoder.load("zoo:emoji-clop")
