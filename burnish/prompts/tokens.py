"""The text side of an expander: prompts to tokens, and drawn tokens back to the words behind them.

A model with a chat template is given an instruction with the prompt in it; any other model
continues the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

INSTRUCTION = (
    "Here is a prompt for an image generator: {prompt}\n"
    "Write a few words to put behind it that make the picture more beautiful: style, light, place, "
    "details. Answer with these words alone, separated by commas."
)


class PromptTokens:
    """A tokenizer, and the way in which its model is prompted for the words behind a prompt.

    Attributes:
        tokenizer: of transformers.
        instruction: for models with a chat template, with `{prompt}` in it.
        end_ids: the tokens that end a text.
        pad_id: the token that fills up shorter rows.
    """

    def __init__(self, tokenizer: Any, model_end_ids: Any, instruction: str = "") -> None:
        """Take the model's own end tokens, a number, a list or None, before the tokenizer's."""
        self.tokenizer = tokenizer
        self.instruction = instruction or INSTRUCTION

        ends = tokenizer.eos_token_id if model_end_ids is None else model_end_ids
        ends = ends if isinstance(ends, list) else [ends]
        self.end_ids = {end for end in ends if end is not None}

        if tokenizer.pad_token_id is None:
            self.pad_id = next(iter(self.end_ids), 0)
        else:
            self.pad_id = tokenizer.pad_token_id

    def encode_prompts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the tokens (n, P) of what the model reads, padded on the left, and their mask."""
        rows = [self._encode(text) for text in texts]
        longest = max(map(len, rows))
        padding = torch.tensor([[longest - len(row)] for row in rows])

        padded = [
            pad(torch.tensor(row), (longest - len(row), 0), value=self.pad_id) for row in rows
        ]
        return torch.stack(padded), torch.arange(longest) >= padding

    def encode_words(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the tokens (n, G) of words behind a prompt, each with its end, and their mask."""
        if self.tokenizer.eos_token_id is None:
            end = sorted(self.end_ids)[:1]
        else:
            end = [self.tokenizer.eos_token_id]

        rows = [self.tokenizer(text, add_special_tokens=False)["input_ids"] + end for text in texts]
        longest = max(map(len, rows))
        lengths = torch.tensor([[len(row)] for row in rows])

        padded = [row + [self.pad_id] * (longest - len(row)) for row in rows]
        return torch.tensor(padded), torch.arange(longest) < lengths

    def decode_words(self, text: str, prompt_ids: list[int], drawn_ids: list[int]) -> str:
        """Return drawn tokens as words to put behind `text`, on one line."""
        decode = self.tokenizer.decode
        if self.tokenizer.chat_template is None:
            # decoded with what they continue, they know whether a space is due
            special = self.tokenizer.all_special_ids
            drawn_ids = [token for token in drawn_ids if token not in special]
            words = decode(prompt_ids + drawn_ids).removeprefix(decode(prompt_ids))
            return (" " if words[:1].isspace() else "") + " ".join(words.split())

        words = " ".join(decode(drawn_ids, skip_special_tokens=True).split()).strip(' "')
        if words.lower().startswith(text.lower()):
            words = words[len(text) :].strip()

        return words if not words or words[0] in ",.;:" else f" {words}"

    def _encode(self, text: str) -> list[int]:
        """Return the tokens that the model is given for one prompt."""
        if self.tokenizer.chat_template is not None:
            message = {"role": "user", "content": self.instruction.replace("{prompt}", text)}
            # models that think before they answer are instructed not to; other templates ignore it
            chat = self.tokenizer.apply_chat_template(
                [message], add_generation_prompt=True, tokenize=False, enable_thinking=False
            )
            return list(self.tokenizer(chat, add_special_tokens=False)["input_ids"])

        ids = list(self.tokenizer(text)["input_ids"])
        if len(ids) > 1 and ids[-1] in self.end_ids:
            return ids[:-1]

        return ids or [self.pad_id]
