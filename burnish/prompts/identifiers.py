"""Reward identifiers (Parrot, arXiv 2401.05675): words before a prompt that say which reward a
picture shall please.

    training     "<reward 2> a cat"                  one of them, whose reward alone is the picture's advantage
    afterwards   "<reward 1> <reward 2> a cat"       all of them, or some: a trade-off that is chosen when it is drawn

The paper has commas between them. Training, with one a picture, never sees a comma, and to a text
encoder it is a word: it can change pictures more than the identifiers do.

The n-th identifier stands for the n-th reward of the configuration. Only the generator reads it
(``Prompt.template``): rewards, judges and logs have the text alone. Of a drawn prompt's images each
identifier gets an equal share, and they are a group of their own, because asked otherwise they come
from another distribution.

They are ordinary ``words``, as in the paper, or ``tokens``, one for each, where words would leave
no room for the prompt. The text encoder stays frozen, so a token never learns anything: it gets a
place of its own, and the network learns what to do when it is told of it. That place is the
padding's, which a network is used to find behind any prompt, so that the untrained one hardly
minds, plus a random deviation `FAR` times as long as the words' from their mean: small ones would
be nearly the same to a frozen encoder. The draw depends on the model and the token's number alone,
so a resumed run needs no file of it; for stock diffusers it is written as textual inversions
(``save``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from burnish.seeds import generator
from burnish.types import Prompt

FAR = 2.0
"""An identifier's distance from the padding, in standard deviations of the words: the farther, the
more the states of two identifiers differ in a frozen encoder, and the more an untrained network
minds them.
"""
OLD_END = 2
"""What old CLIP configurations call a text's end; its largest token is then taken for it, but new
ones are larger.
"""


def identifier(place: int) -> str:
    """What stands for the reward at ``place``, the first being 0."""
    return f"<reward {place + 1}>"


def template(places: Iterable[int], after: bool = False) -> str:
    """A text, {}, and before it or ``after`` it what asks for the rewards at these places; "{}"
    alone for none.
    """
    words = " ".join(map(identifier, places))
    if not words:
        return "{}"
    return f"{{}} {words}" if after else f"{words} {{}}"


def with_template(prompts: Sequence[Prompt], template: str) -> list[Prompt]:
    """The prompts with ``template`` around their texts."""
    return [replace(prompt, template=template) for prompt in prompts]


def target_rewards(images: int, each: int, rewards: int) -> Tensor:
    """The place (images,) int64 of the reward that each image is asked for; ``each`` neighbours
    have one prompt.
    """
    return torch.arange(images) % each // (each // rewards)


@torch.no_grad()
def add_tokens(pipe: Any, rewards: int) -> None:
    """Gives the pipeline's tokenizers a token for each identifier they lack, and its text encoders
    a place for it.
    """
    for tokenizer, encoder in _readers(pipe).values():
        lacking = [
            place for place in range(rewards) if identifier(place) not in tokenizer.get_vocab()
        ]

        if not lacking:
            continue

        # none that was added
        words = encoder.get_input_embeddings().weight[: tokenizer.vocab_size].float().cpu()
        std = words.std(0)
        tokenizer.add_tokens([identifier(place) for place in lacking])

        if len(tokenizer) > len(encoder.get_input_embeddings().weight):
            encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            encoder.requires_grad_(False)  # the larger table is a new parameter

        table = encoder.get_input_embeddings().weight
        padding = table[tokenizer.pad_token_id].float().cpu()

        for place in lacking:
            noise = torch.randn(len(std), generator=generator("identifier", place))
            table[tokenizer.convert_tokens_to_ids(identifier(place))] = (
                padding + FAR * std * noise
            ).to(table)

        for part in encoder.modules():
            if getattr(part, "eos_token_id", None) == OLD_END:
                part.eos_token_id = tokenizer.eos_token_id


def save_tokens(pipe: Any, rewards: int, folder: Path) -> None:
    """Writes each token as a textual inversion that diffusers' ``pipe.load_textual_inversion``
    reads.

    ``folder/reward-1.safetensors`` is the first one's place in ``text_encoder``, ``reward-1-2``
    that in ``text_encoder_2``.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)

    for ending, (tokenizer, encoder) in _readers(pipe).items():
        table = encoder.get_input_embeddings().weight

        for place in range(rewards):
            row = (
                table[tokenizer.convert_tokens_to_ids(identifier(place))]
                .detach()
                .float()
                .cpu()
                .contiguous()
            )
            save_file({identifier(place): row}, folder / f"reward-{place + 1}{ending}.safetensors")


def longest_prompt(pipe: Any, prompts: Iterable[Prompt]) -> tuple[int, int]:
    """The tokens of the longest prompt with its identifiers, its two ends included, and how many an
    encoder reads.
    """
    tokenizer, _ = next(iter(_readers(pipe).values()))
    texts = [prompt.generator_text for prompt in prompts]
    return max(len(tokenizer(text).input_ids) for text in texts), tokenizer.model_max_length


def fits(pipe: Any, prompt: Prompt) -> bool:
    """Whether the pipeline's text encoder reads a prompt, its identifiers included, to its end."""
    length, most = longest_prompt(pipe, [prompt])
    return length <= most


def _readers(pipe: Any) -> dict[str, tuple[Any, Any]]:
    """Tokenizer and text encoder of each kind that the pipeline has, by the ending of their files."""
    names = {"": ("tokenizer", "text_encoder"), "-2": ("tokenizer_2", "text_encoder_2")}
    parts = {
        ending: (getattr(pipe, a, None), getattr(pipe, b, None)) for ending, (a, b) in names.items()
    }
    return {ending: both for ending, both in parts.items() if None not in both}
