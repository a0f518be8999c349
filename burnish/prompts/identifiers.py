"""Reward identifiers (Parrot, arXiv 2401.05675): words before a prompt that name a reward.

    training     "<reward 2> a cat"               one of them, whose reward alone is the image's
                                                  advantage
    afterwards   "<reward 1> <reward 2> a cat"    all of them, or some: a trade-off that is chosen
                                                  when it is drawn

The paper has commas between them. Training, with one an image, never sees a comma, and to a text
encoder it is a word: it can change images more than the identifiers do.

The n-th identifier stands for the n-th reward of the configuration. Only the generator reads it
(`Prompt.template`): rewards, judges and logs have the text alone. Of a drawn prompt's images each
identifier gets equally many, and they are a group of their own, because with another identifier
they come from another distribution.

Identifiers are ordinary `words`, as in the paper, or `tokens`, one for each, where words would
leave no room for the prompt. The text encoder stays frozen, and so does a token's embedding, unless
it learns (`identifier_embeddings`): the network learns what to do when it reads that token. The
embedding is that of the padding, which a network is used to find behind any prompt, so that the
untrained one is hardly disturbed, plus a random deviation `FAR` times as long as the words' from
their mean: small deviations would be nearly the same to a frozen encoder. One that learns begins
`NEAR`. The draw depends on the model and the token's number alone, so a resumed run needs no file
of it; for stock diffusers it is written as textual inversions (`save_tokens`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from burnish.diffusion.families import family_of
from burnish.files import publishing
from burnish.seeds import generator
from burnish.types import Prompt

FAR = 2.0
"""An identifier's distance from the padding, in standard deviations of the words.

The farther, the more the states of two identifiers differ in a frozen encoder, and the more they
disturb an untrained network.
"""
NEAR = 1.0
"""The same of an embedding that learns, and goes from there where it is of use.

Two identifiers differ in proportion to it from the start: behind a prompt of zoo:emoji-lcm by 1.3 %
of what two prompts do, which changes the untrained network's x0 by 1.1 % of that.
"""
OLD_END = 2
"""The end token in old CLIP configurations.

An encoder with this number takes the largest token for the end of a text, but new tokens are
larger.
"""


def identifier(index: int) -> str:
    """Return the words that stand for the reward at `index`, the first being 0."""
    return f"<reward {index + 1}>"


def template(rewards: Iterable[int], after: bool = False) -> str:
    """Return a text, {}, with the identifiers of `rewards` before or `after` it.

    It is "{}" alone for no rewards.
    """
    words = " ".join(map(identifier, rewards))
    if not words:
        return "{}"
    return f"{{}} {words}" if after else f"{words} {{}}"


def with_template(prompts: Sequence[Prompt], template: str) -> list[Prompt]:
    """Return the prompts with `template` around their texts."""
    return [replace(prompt, template=template) for prompt in prompts]


def target_rewards(images: int, each: int, rewards: int) -> Tensor:
    """Return the index of each image's target reward, (images,) int64.

    Args:
        images: their number.
        each: neighbours that have one prompt.
        rewards: their number.
    """
    return torch.arange(images) % each // (each // rewards)


@torch.no_grad()
def add_tokens(pipe: Any, rewards: int, distance: float = FAR) -> None:
    """Give the pipeline's tokenizers and text encoders a token for each identifier they lack.

    Args:
        pipe: the diffusers pipeline.
        rewards: the number of identifiers.
        distance: of a new embedding from the padding, in standard deviations of the words.
    """
    for tokenizer, encoder in text_encoders(pipe).values():
        vocabulary = tokenizer.get_vocab()
        lacking = [index for index in range(rewards) if identifier(index) not in vocabulary]

        if not lacking:
            continue

        padding, std = words_spread(tokenizer, encoder)
        tokenizer.add_tokens([identifier(index) for index in lacking])

        if len(tokenizer) > len(encoder.get_input_embeddings().weight):
            encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            encoder.requires_grad_(False)  # the larger table is a new parameter

        table = encoder.get_input_embeddings().weight

        for index in lacking:
            noise = torch.randn(len(std), generator=generator("identifier", index))
            token = tokenizer.convert_tokens_to_ids(identifier(index))
            table[token] = (padding + distance * std * noise).to(table)

        for module in encoder.modules():
            if getattr(module, "eos_token_id", None) == OLD_END:
                module.eos_token_id = tokenizer.eos_token_id


@torch.no_grad()
def words_spread(tokenizer: Any, encoder: Any) -> tuple[Tensor, Tensor]:
    """Return the padding's embedding (width,) and the std (width,) of the words', on the CPU.

    Only the tokenizer's own words count, none that was added.
    """
    table = encoder.get_input_embeddings().weight
    dtype = torch.promote_types(table.dtype, torch.float32)
    words = table[: tokenizer.vocab_size].to("cpu", dtype)
    return table[tokenizer.pad_token_id].to("cpu", dtype), words.std(0)


def save_tokens(pipe: Any, rewards: int, folder: Path) -> None:
    """Write each token as a textual inversion for diffusers' `pipe.load_textual_inversion`.

    `folder/reward-1.safetensors` is the first one's embedding in `text_encoder`,
    `reward-1-2.safetensors` that in `text_encoder_2`, and so on.
    """
    from safetensors.torch import save_file

    with publishing(folder) as made:
        for ending, (tokenizer, encoder) in text_encoders(pipe).items():
            table = encoder.get_input_embeddings().weight

            for index in range(rewards):
                token = tokenizer.convert_tokens_to_ids(identifier(index))
                row = table[token].detach().float().cpu().contiguous()
                save_file({identifier(index): row}, made / _file_name(index, ending))


@torch.no_grad()
def load_tokens(pipe: Any, rewards: int, folder: Path) -> None:
    """Give the tokens, which the pipeline has, the embeddings that `save_tokens` wrote.

    A token without a file stays as it is.

    Raises:
        ValueError: a file is no such embedding, or of another model.
    """
    for ending, (tokenizer, encoder) in text_encoders(pipe).items():
        table = encoder.get_input_embeddings().weight

        for index in range(rewards):
            file = folder / _file_name(index, ending)
            if file.is_file():
                token = tokenizer.convert_tokens_to_ids(identifier(index))
                table[token] = _read_row(file, identifier(index), table.shape[1]).to(table)


def are_alone(adapter: Path) -> bool:
    """Return whether a folder such as RUN/adapter has embeddings, and no weights of a network."""
    weights = [*adapter.glob("*.safetensors"), *adapter.glob("controlnet/*.safetensors")]
    return any(adapter.glob("identifiers/*.safetensors")) and not weights


def _file_name(index: int, ending: str) -> str:
    return f"reward-{index + 1}{ending}.safetensors"


def _read_row(file: Path, name: str, width: int) -> Tensor:
    """Return the embedding (width,) called `name` in a file.

    Raises:
        ValueError: the file has none of this width.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        row = load_file(file).get(name)
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged, or no safetensors file ({error})") from error
    if row is None or row.shape != (width,):
        found = "nothing" if row is None else f"{tuple(row.shape)}"
        raise ValueError(
            f"{file}: the embedding of {name} is {found}, and this model's are ({width},); take an "
            "adapter of the same model"
        )
    return row


def longest_prompt(pipe: Any, prompts: Iterable[Prompt]) -> tuple[int, int]:
    """Return the tokens of the longest prompt, and how many a text encoder reads.

    Identifiers and the prompt's two end tokens count.
    """
    tokenizer = getattr(pipe, "tokenizer", None) or pipe.tokenizer_2
    texts = [prompt.generator_text for prompt in prompts]
    most = int(tokenizer.model_max_length)
    length = min(family_of(type(pipe).__name__).text_tokens(pipe) or most, most)
    return max(len(tokenizer(text).input_ids) for text in texts), length


def fits(pipe: Any, prompt: Prompt) -> bool:
    """Return True if the text encoder reads the prompt, with its identifiers, to its end."""
    length, limit = longest_prompt(pipe, [prompt])
    return length <= limit


def text_encoders(pipe: Any) -> dict[str, tuple[Any, Any]]:
    """Return the pipeline's (tokenizer, text encoder) pairs, by the ending of their files."""
    names = {
        ending: (f"tokenizer{number}", f"text_encoder{number}")
        for ending, number in (("", ""), ("-2", "_2"), ("-3", "_3"))
    }
    pairs = {
        ending: (getattr(pipe, tokenizer, None), getattr(pipe, encoder, None))
        for ending, (tokenizer, encoder) in names.items()
    }
    return {ending: pair for ending, pair in pairs.items() if None not in pair}
