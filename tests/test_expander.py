"""The prompt expander: log-probabilities against transformers' own, truncation, and its words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import generator, perturb

from burnish import config as configuration
from burnish.annotations import EMOJI_ENDINGS
from burnish.prompts.expander import Expander
from burnish.prompts.imitation import imitate, read_pairs
from burnish.prompts.sources import template
from burnish.types import Prompt

WORDS = "<pad> <unk> <end> a cat dog ox fox bee in on red blue big , old".split()
PROMPTS = [
    Prompt("a cat"),
    Prompt("a big red old dog", {"tag": 1}, "<reward 1> {}"),
    Prompt("an ox"),
]


def build_language(seed: int = 0, ends: int | None = 2) -> tuple[Any, Any]:
    """Return a tiny Llama with random weights, and a tokenizer with a token a word."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    text = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    text.pre_tokenizer = pre_tokenizers.Whitespace()
    text.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=text,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        clean_up_tokenization_spaces=False,
    )
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=ends,
        tie_word_embeddings=True,
    )

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        for weight in model.parameters():
            if weight.ndim == 2:
                torch.nn.init.normal_(weight, std=0.5)

    return model, tokenizer


@pytest.fixture(scope="session")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny language model. Shared: do not write into it."""
    folder = tmp_path_factory.mktemp("language")
    model, tokenizer = build_language()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def test_the_log_probability_is_that_of_the_model_token_by_token() -> None:
    model, tokenizer = build_language()
    expander = Expander(model.double(), tokenizer, temperature=0.7, tokens=6)
    drawn = expander.draw(PROMPTS * 4, generator())
    replayed = expander.replay(drawn, torch.arange(12)).logp
    start = drawn.ids.shape[1] - drawn.action_mask.shape[1]
    assert drawn.action_mask.any(1).all()
    assert not drawn.action_mask.all(), "some texts end early"

    for row, prompt in enumerate(PROMPTS * 4):
        prompt_ids = tokenizer(prompt.text)["input_ids"]
        words = drawn.ids[row, start:][drawn.action_mask[row]].tolist()

        for index, word in enumerate(words):  # alone, without padding, and one token at a time
            logits = model(torch.tensor([prompt_ids + words[:index]])).logits[0, -1]
            expected = pytest.approx(float((logits / 0.7).log_softmax(0)[word]), abs=1e-12)
            assert float(replayed[row, index]) == expected
            assert float(drawn.logp[row, index]) == expected, "drawn with a cache"

        assert 2 not in words[:-1], "the end is the last action"
        assert len(words) == 6 or words[-1] == 2
        assert (replayed[row, len(words) :] == 0).all()
        assert (drawn.logp[row, len(words) :] == 0).all()


def test_before_an_update_the_ratio_is_one_and_the_kl_zero_after_it_neither() -> None:
    model, tokenizer = build_language()
    expander = Expander(model, tokenizer, "full", tokens=6)
    expander.remember()
    drawn = expander.draw(PROMPTS, generator())
    before = expander.replay(drawn, torch.arange(3), reference=True)
    assert before.kl is not None and before.kl.abs().max() < 1e-6
    assert (before.logp - drawn.logp).sum(1).expm1().abs().max() < 1e-5
    perturb(expander, 0.1)
    after = expander.replay(drawn, torch.arange(3), reference=True)
    assert after.kl is not None
    assert after.kl[drawn.action_mask].mean() > 1e-4
    assert (after.kl[~drawn.action_mask] == 0).all()

    with expander.reference(), torch.no_grad():
        reference = expander.replay(drawn, torch.arange(3))
        torch.testing.assert_close(reference.logp, before.logp.detach())

    again = expander.replay(drawn, torch.arange(3)).logp
    assert (again - drawn.logp).abs().max() > 1e-3, "the weights are the changed ones again"


def test_the_kl_is_that_of_the_full_distribution() -> None:
    model, tokenizer = build_language()
    expander = Expander(model.double(), tokenizer, "full", tokens=3, temperature=1.3)
    expander.remember()
    drawn = expander.draw(PROMPTS[:1], generator(3))
    prompt_ids = tokenizer("a cat")["input_ids"]
    words = drawn.ids[0, 2:][drawn.action_mask[0]].tolist()
    before = (model(torch.tensor([prompt_ids + words])).logits[0] / 1.3).log_softmax(-1).detach()
    perturb(expander, 0.1)
    after = (model(torch.tensor([prompt_ids + words])).logits[0] / 1.3).log_softmax(-1).detach()
    expected = [
        float((after[i].exp() * (after[i] - before[i])).sum()) for i in range(1, 1 + len(words))
    ]
    kl = expander.replay(drawn, torch.arange(1), reference=True).kl
    assert kl is not None
    assert kl.detach()[0, : len(words)].tolist() == pytest.approx(expected, abs=1e-12)


def test_text_that_does_not_fit_is_truncated_and_has_no_log_probability() -> None:
    model, tokenizer = build_language(ends=None)  # it never ends by itself
    tokenizer.eos_token = "<pad>"

    def fits(prompt: Prompt) -> bool:
        return len(prompt.generator_text.split()) <= 8

    free = Expander(model, tokenizer, tokens=10).draw(PROMPTS, generator())
    short = Expander(model, tokenizer, tokens=10, fits=fits).draw(PROMPTS, generator())

    for row, (full, short_prompt) in enumerate(zip(free.prompts, short.prompts, strict=True)):
        assert full.text.startswith(short_prompt.text) and fits(short_prompt)
        count = int(short.action_mask[row].sum())
        assert short.action_mask[row, :count].all(), "a beginning"
        assert torch.equal(short.logp[row, :count], free.logp[row, :count])
        assert (short.logp[row, count:] == 0).all()
        assert bool(short.truncated[row]) == (full.text != short_prompt.text)

    assert short.truncated.any()
    replayed = Expander(model, tokenizer).replay(short, torch.arange(3)).logp
    torch.testing.assert_close(replayed.detach(), short.logp, atol=1e-5, rtol=1e-5)
    never = Expander(model, tokenizer, tokens=4, fits=lambda prompt: False).draw(
        PROMPTS, generator()
    )
    assert [new.text for new in never.prompts] == [old.text for old in PROMPTS]


def test_the_prompt_stays_and_is_remembered() -> None:
    expander = Expander(*build_language(), tokens=5)
    drawn = expander.draw(PROMPTS, generator())

    for old, new in zip(PROMPTS, drawn.prompts, strict=True):
        assert new.text.startswith(old.text)
        assert new.metadata["original"] == old.text
        assert new.template == old.template
        separated = new.text == old.text or new.text[len(old.text)] in " ,"
        assert separated, "words do not touch the prompt"

    assert drawn.prompts[1].metadata["tag"] == 1
    strange = [new.text for new in expander.draw([Prompt("capybara")] * 8, generator()).prompts]
    assert all(text[8:9] in ("", " ") for text in strange) and any(text[8:] for text in strange)
    again = expander.draw(PROMPTS, generator())
    assert again.prompts == drawn.prompts != expander.draw(PROMPTS, generator(5)).prompts


def test_a_model_with_a_chat_template_is_instructed() -> None:
    model, tokenizer = build_language()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} on{% endfor %}"
    expander = Expander(model, tokenizer, instruction="big {prompt} in", tokens=4)
    drawn = expander.draw([Prompt("a cat")], generator())
    read = drawn.ids[0, : -drawn.action_mask.shape[1]].tolist()
    assert [WORDS[i] for i in read] == "big a cat in on".split()
    assert drawn.prompts[0].text.startswith("a cat")
    assert "big a cat in on" not in drawn.prompts[0].text


def test_a_step_makes_rewarded_words_likelier_and_no_advantage_gives_no_gradient() -> None:
    model, tokenizer = build_language()
    expander = Expander(model.double(), tokenizer, "full", tokens=5)
    drawn = expander.draw(PROMPTS * 2, generator())
    adv = torch.tensor([1.0, -1.0, 0.5, -0.5, 2.0, -2.0], dtype=torch.float64)
    before = expander.replay(drawn, torch.arange(6)).logp.sum(1)
    (-(adv * before).sum()).backward()

    with torch.no_grad():
        for parameter in expander.trainable:
            assert parameter.grad is not None
            parameter -= 1e-5 * parameter.grad

    after = expander.replay(drawn, torch.arange(6)).logp.sum(1)
    assert (adv * (after - before)).sum() > 0
    model.zero_grad()
    (-(0 * adv * after).sum()).backward()
    assert all((p.grad == 0).all() for p in expander.trainable if p.grad is not None)


# of peft with a new transformers
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("train", ["lora", "full"])
def test_the_trained_expander_is_saved_for_the_stock_libraries(
    language: Path, tmp_path: Path, train: str
) -> None:
    from transformers import AutoModelForCausalLM

    expander = Expander.load(str(language), train=train, rank=2, tokens=4)
    fresh = Expander.load(str(language), train="none", tokens=4)
    drawn = expander.draw(PROMPTS, generator())
    # a new adapter is silent
    torch.testing.assert_close(drawn.logp, fresh.draw(PROMPTS, generator()).logp)
    perturb(expander)
    expander.save(tmp_path / "adapter")
    logp = expander.replay(drawn, torch.arange(3)).logp.detach()
    assert (logp - drawn.logp).abs().max() > 1e-3

    if train == "lora":
        from peft import PeftModel

        stock = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(language), tmp_path / "adapter"
        )
    else:
        stock = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")

    again = Expander(stock, fresh.tokenizer).replay(drawn, torch.arange(3)).logp.detach()
    torch.testing.assert_close(again, logp)
    continued = Expander.load(str(language), train=train, rank=2, adapter=tmp_path / "adapter")
    assert all(
        torch.equal(a, b) for a, b in zip(continued.trainable, expander.trainable, strict=True)
    )
    assert continued.state().keys() == expander.state().keys()
    assert not [
        path.name
        for path in (tmp_path / "adapter").iterdir()
        if path.suffix not in (".json", ".safetensors")
    ]


def test_the_endings_of_the_package_have_a_name(tmp_path: Path) -> None:
    """It stays a name where a configuration is written into another folder."""
    config = configuration.load("emoji-parrot")
    assert config.expander.start == EMOJI_ENDINGS
    assert configuration.dump(config, tmp_path).count(f'start = "{EMOJI_ENDINGS}"') == 1

    pairs = read_pairs(config.expander.start)
    ends = {words for _, words in pairs}
    assert len(ends) == 4 and len(pairs) == 4 * len({prompt for prompt, _ in pairs})
    arguments = {key: value for key, value in config.prompts.items() if key != "use"}
    trained = {prompt.text for prompt in template(**arguments)}
    assert trained and not trained & {prompt for prompt, _ in pairs}


def test_imitation_makes_given_expansions_likelier(language: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(
        '{"prompt": "a cat", "expansion": "a cat in blue"}\n'
        '{"prompt": "a dog", "expansion": "on red"}\n'
    )
    pairs = read_pairs(str(tmp_path / "pairs.jsonl"))
    assert pairs == [("a cat", " in blue"), ("a dog", " on red")]
    expander = Expander.load(str(language), train="full", tokens=4)
    imitate(expander, pairs, epochs=100, lr=1e-2, seed=0)
    assert all(parameter.grad is None for parameter in expander.trainable)
    drawn = expander.draw([Prompt("a cat"), Prompt("a dog")], generator())
    assert [prompt.text for prompt in drawn.prompts] == ["a cat in blue", "a dog on red"]


@pytest.mark.parametrize(
    ("prompt", "expansion", "words"),
    [
        ("a cat", "a cathedral in rain", " a cathedral in rain"),  # no prompt with words behind it
        ("a cat", "A cat in the rain", " in the rain"),
        ("a cat", "a cat, in\n  the rain ", ", in the rain"),
    ],
)
def test_words_behind_a_prompt_begin_where_it_ends(
    tmp_path: Path, prompt: str, expansion: str, words: str
) -> None:
    row = json.dumps({"prompt": prompt, "expansion": expansion})
    (tmp_path / "pairs.jsonl").write_text(row)
    assert read_pairs(str(tmp_path / "pairs.jsonl")) == [(prompt, words)]


def test_an_imitation_that_diverges_names_its_rate(language: Path) -> None:
    expander = Expander.load(str(language), train="full", tokens=4)
    with pytest.raises(ValueError, match=r"diverged in epoch \d+; set a lower expander.start_lr"):
        imitate(expander, [("a cat", " in blue")] * 40, epochs=20, lr=1e30, seed=0)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize(("saved", "train"), [("full", "lora"), ("lora", "full")])
def test_an_adapter_of_another_kind_is_refused(
    language: Path, tmp_path: Path, saved: str, train: str
) -> None:
    """A LoRA would be saved without the model below it, and a model on a LoRA would not learn."""
    Expander.load(str(language), train=saved, rank=2).save(tmp_path / "adapter")
    with pytest.raises(
        ValueError, match=rf"expander.adapter: .* or set expander.train = \"full|{saved}"
    ):
        Expander.load(str(language), train=train, rank=2, adapter=tmp_path / "adapter")

    if saved == "full":  # and it is drawn with in the precision in which it learned
        whole = Expander.load(
            str(language), train="none", dtype="bfloat16", adapter=tmp_path / "adapter"
        )
        assert whole.model.dtype == torch.float32


def test_errors_say_what_to_do(language: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="expander.train must be one of lora, full, none, not 'some'"
    ):
        Expander.load(str(language), train="some")

    with pytest.raises(ValueError, match="expander.model = '.*' is no causal language model"):
        Expander.load(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="holds no expander"):
        Expander.load(str(language), adapter=tmp_path)
    with pytest.raises(RuntimeError, match="remember"), Expander(*build_language()).reference():
        pass

    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "a cat", "expansion": 3}))
    with pytest.raises(ValueError, match='entry 1: no text under "expansion"'):
        read_pairs(str(tmp_path / "pairs.jsonl"))
