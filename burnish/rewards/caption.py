"""Prompt-image alignment as DDPO has it (arXiv 2305.13301, section 5.1): a model describes the
picture, and the description is compared with the prompt.

    reward = BERTScore recall(answer, "The image contains " + prompt)
           = mean over tokens r of the reference, max over tokens c of the answer, of cos(state(r),
           state(c))

BERTScore (arXiv 1904.09675) without idf weights and without baseline rescaling. Recall asks whether
every detail of the prompt is in the answer; what the answer says beyond it costs nothing. As in the
authors' package, the marks at the beginning and the end of a text are not averaged over, though a
token may match those of the answer.

The states are those of microsoft/deberta-xlarge-mnli after layer 40, the authors' choice for it.
Scores lie in a narrow band (RLCM's figures: about 0.76 to 0.78), so normalise them per prompt. For
the embedded models the word embeddings of `zoo:emoji-clip` stand in (layer 0): its contextual
states say more about a word's neighbours than about the word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from burnish import zoo
from burnish.errors import first_line
from burnish.rewards import vlm
from burnish.types import Prompt, Reward

QUESTION = "Answer concisely: what is going on in this image?"
LAYERS = {"microsoft/deberta-xlarge-mnli": 40, "zoo:emoji-clip": 0}
LONGEST = 512  # tokens of a text
FIELD = re.compile(r"{(\w+)}")
CHUNK = 64


def caption(
    model: str = vlm.LLAVA,
    question: str = QUESTION,
    encoder: str = "microsoft/deberta-xlarge-mnli",
    layer: int | None = None,
    reference: str = "The image contains {prompt}",
    device: str = "auto",
    batch: int = 32,
    endpoint: dict[str, Any] | None = None,
) -> Reward:
    """How much of the prompt a model's description of the picture covers; at most 1, and NaN where
    there is none.

    Costs one answer of the model an image.

    Args:
        model: what is asked: a hub id, a folder, `zoo:emoji-captioner`, or the `http(s)://` address
            of a server.
        question: asked about every picture.
        encoder: whose states compare the texts: a hub id, a folder or `zoo:emoji-clip`.
        layer: after which layer; 0 means the word embeddings alone. By default 40 for
            deberta-xlarge-mnli, 0 for
            zoo:emoji-clip, and the last of any other.
        reference: what the description is compared with; {prompt} stands for the prompt, and other
            names for its
            metadata: "{animal} {object}" of a template leaves out the words that every description
                has.
        device: of both models; `auto` takes the device of the images.
        batch: pictures that a local model is asked about at once.
        endpoint: further arguments of a server's `Endpoint`, such as `{model = "llava", timeout =
            30}`.

    Raises:
        ValueError: a model cannot be found, or an argument does not fit; when called, there is no
            answer at all.
    """
    if not FIELD.search(reference):
        raise ValueError(
            f'reference = "{reference}" must contain {{prompt}}; write for example "{{prompt}}"'
        )

    ask = vlm.load(model, device=device, batch=batch, endpoint=endpoint)
    compared = Encoder.load(encoder, layer, device)

    def reward(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        answers = ask(images, [question] * len(images))
        said = [row for row, answer in enumerate(answers) if answer]

        if answers and not said:
            raise ValueError(
                f"{model} has no answer for any of {len(answers)} images; try another question or model"
            )

        references = [_filled(reference, prompts[row]) for row in said]
        values = torch.full((len(prompts),), torch.nan)
        values[said] = compared.recall(
            [str(answers[row]) for row in said], references, images.device
        )

        return values

    return reward


def _filled(reference: str, prompt: Prompt) -> str:
    """The reference with the prompt, and what its source said about it, in place of the names."""
    known = {**prompt.metadata, "prompt": prompt.text}
    for name in FIELD.findall(reference):
        if name not in known:
            raise ValueError(
                f"reference = \"{reference}\": the prompt '{prompt.text}' has no {{{name}}}; it has {', '.join(known)}"
            )

    return FIELD.sub(lambda match: str(known[match[1]]), reference)


@dataclass(frozen=True)
class Encoder:
    """A language model whose token states compare texts."""

    model: Any  # float32, frozen
    tokenizer: Any
    layer: int
    device: str = "auto"

    @classmethod
    def load(cls, name: str, layer: int | None = None, device: str = "auto") -> Encoder:
        """From a hub id, a folder or the zoo; of a model with two towers the text tower.

        Raises:
            ValueError: it cannot be found, or has no such layer.
        """
        from transformers import AutoModel, AutoTokenizer

        source = zoo.resolve(name)

        try:
            model = (
                AutoModel.from_pretrained(source, dtype=torch.float32).eval().requires_grad_(False)
            )
            tokenizer = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError, KeyError, ImportError) as error:
            kind = "folder" if Path(source).is_dir() else "model id"
            reason = first_line(error)
            raise ValueError(
                f"'{name}' is not a {kind} with a language model and its tokenizer: {reason}"
            ) from error

        model = getattr(model, "text_model", model)
        deepest = int(model.config.num_hidden_layers)
        chosen = LAYERS.get(name, deepest) if layer is None else layer

        if not 0 <= chosen <= deepest:
            raise ValueError(
                f"layer = {chosen}: {name} has layers 1 to {deepest}, and 0 for its word embeddings"
            )

        return cls(model, tokenizer, chosen, device)

    def recall(
        self, answers: Sequence[str], references: Sequence[str], device: Any = "cpu"
    ) -> Tensor:
        """BERTScore recall of N answers, each against its own reference: (N,) float32 on the CPU.

        What does not fit the encoder's length is cut off; an answer without a token gives NaN.
        """
        self.model.to(device if self.device == "auto" else self.device)
        texts = dict.fromkeys([*answers, *references])  # every text once: answers repeat
        known = dict(zip(texts, self._states(list(texts)), strict=True))
        return torch.stack(
            [self._recall(*known[a], *known[r]) for a, r in zip(answers, references, strict=True)]
        )

    @staticmethod
    def _recall(answer: Tensor, own: Tensor, reference: Tensor, counted: Tensor) -> Tensor:
        return (
            (reference[counted] @ answer.T).amax(1).mean() if own.any() else torch.tensor(torch.nan)
        )

    @torch.no_grad()
    def _states(self, texts: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
        """For each text its tokens' states (L, D) of length 1, and which are its own (L,), not
        marks around it.
        """
        longest = int(
            min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings, LONGEST)
        )
        found = []

        for start in range(0, len(texts), CHUNK):
            tokens = self.tokenizer(
                list(texts[start : start + CHUNK]),
                padding=True,
                truncation=True,
                max_length=longest,
                return_special_tokens_mask=True,
                return_tensors="pt",
            )
            real = tokens["attention_mask"].bool()
            marks = tokens["special_tokens_mask"].bool()
            states = self._read(tokens["input_ids"], tokens["attention_mask"])
            found += [
                (row[there], ~mark[there])
                for row, there, mark in zip(states, real, marks, strict=True)
            ]

        return found

    def _read(self, ids: Tensor, mask: Tensor) -> Tensor:
        ids = ids.to(self.model.device)
        mask = mask.to(self.model.device)

        with torch.autocast(self.model.device.type, enabled=False):
            if self.layer == 0:
                states = self.model.get_input_embeddings()(ids)
            else:
                states = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
                states = states.hidden_states[self.layer]

        return functional.normalize(states.float(), dim=-1).cpu()
