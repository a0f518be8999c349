"""Prompt-image alignment: a model describes the image; its answer is compared with the prompt.

This is DDPO's reward (arXiv 2305.13301, section 5.1):

    reward = BERTScore recall(answer, "The image contains " + prompt)
           = mean over tokens r of the reference, max over tokens c of the answer, of cos(state(r),
           state(c))

BERTScore (arXiv 1904.09675) without idf weights and without baseline rescaling. Recall asks whether
every detail of the prompt is in the answer; further details in the answer cost nothing. As in the
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
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from burnish import pretrained, zoo
from burnish.annotations import Count, CountOrZero, DeviceName, ModelPath
from burnish.errors import first_line
from burnish.rewards import vlm
from burnish.rewards.isolated import isolated
from burnish.types import Prompt, Reward

QUESTION = "Answer concisely: what is going on in this image?"
LAYERS = {"microsoft/deberta-xlarge-mnli": 40, "zoo:emoji-clip": 0}
MAX_LENGTH = 512  # tokens of a text
FIELD = re.compile(r"{(\w+)}")
CHUNK = 64

States = tuple[Tensor, Tensor]
"""The states (L, D) of a text's tokens, of length 1, and the mask of its words (L,)."""


def caption(
    model: ModelPath = vlm.LLAVA,
    question: str = QUESTION,
    encoder: ModelPath = "microsoft/deberta-xlarge-mnli",
    layer: CountOrZero | None = None,
    reference: str = "The image contains {prompt}",
    device: DeviceName = "auto",
    batch: Count = 32,
    endpoint: vlm.EndpointTable | None = None,
) -> Reward:
    """Reward how much of the prompt a model's description of the image covers, at most 1.

    NaN where there is no description. Costs one answer of the model an image.

    Args:
        model: a hub id, a folder, `zoo:emoji-captioner`, or the `http(s)://` address of a server.
        question: asked about every image.
        encoder: the language model whose states compare the texts: a hub id, a folder or
            `zoo:emoji-clip`.
        layer: the states after this layer; 0 means the word embeddings alone. By default 40 for
            deberta-xlarge-mnli, 0 for zoo:emoji-clip, and the last of any other.
        reference: the text that the description is compared with; {prompt} stands for the prompt,
            and other names for its metadata: "{animal} {object}" of a template leaves out the words
            that every description has.
        device: of both models; `auto` takes the device of the images.
        batch: images that a local model reads at once.
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

    captioner = vlm.load(model, device=device, batch=batch, endpoint=endpoint)
    text_encoder = Encoder.load(encoder, layer, device)

    def reward(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        answers = captioner(images, [question] * len(images))
        rows = [row for row, answer in enumerate(answers) if answer]

        if answers and not rows:
            raise ValueError(
                f"{model} has no answer for any of {len(answers)} images; "
                "try another question or model"
            )

        texts = [str(answers[row]) for row in rows]
        references = [_fill_in(reference, prompts[row]) for row in rows]
        values = torch.full((len(prompts),), torch.nan)
        values[rows] = text_encoder.recall(texts, references, images.device)

        return values

    return reward


def _fill_in(reference: str, prompt: Prompt) -> str:
    """Return the reference with the prompt and its metadata in place of their names."""
    known = {**prompt.metadata, "prompt": prompt.text}

    for name in FIELD.findall(reference):
        if name not in known:
            raise ValueError(
                f"reference = \"{reference}\": the prompt '{prompt.text}' has no {{{name}}}; "
                f"it has {', '.join(known)}"
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
        """Return a language model from a hub id, a folder or the zoo.

        Of a model with two towers it is the text tower.

        Raises:
            ValueError: it cannot be found, or has no such layer.
        """
        from transformers import AutoModel, AutoTokenizer

        source = pretrained.find(name, "encoder")

        try:
            # the heads on top of the states, in the file or in the model, have no part in them
            model = pretrained.load(
                AutoModel,
                source,
                unused=".",
                unset="pooler",
                dtype=torch.float32,
                trust_remote_code=False,
            )
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except Exception as error:  # a damaged file makes the libraries below raise anything
            problem = zoo.load_problem(name, "a language model and its tokenizer")
            raise ValueError(f"{problem}: {first_line(error)}") from error

        model = getattr(model.eval().requires_grad_(False), "text_model", model)
        last_layer = int(model.config.num_hidden_layers)
        if layer is None:
            layer = LAYERS.get(name, last_layer)

        if not 0 <= layer <= last_layer:
            raise ValueError(
                f"layer = {layer}: {name} has layers 1 to {last_layer}, "
                "and 0 for its word embeddings"
            )

        return cls(model, tokenizer, layer, device)

    def recall(
        self, answers: Sequence[str], references: Sequence[str], device: Any = "cpu"
    ) -> Tensor:
        """Return the BERTScore recall of N answers, each against its own reference.

        A text is cut off at the encoder's length; an answer without a token gives NaN.

        Args:
            answers: N texts.
            references: N texts.
            device: of the images, for an encoder on `auto`.

        Returns:
            (N,) float32 on the CPU.
        """
        self.model.to(device if self.device == "auto" else self.device)
        texts = list(dict.fromkeys([*answers, *references]))  # every text once: answers repeat
        states = dict(zip(texts, self._states(texts), strict=True))
        return torch.stack(
            [
                _recall(states[answer], states[reference])
                for answer, reference in zip(answers, references, strict=True)
            ]
        )

    @torch.no_grad()
    def _states(self, texts: Sequence[str]) -> list[States | None]:
        """Return the states of each text; None for one that the model fails on."""
        result: list[States | None] = []
        for start in range(0, len(texts), CHUNK):
            result += isolated(self._chunk_states, texts[start : start + CHUNK], None, "texts")
        return result

    def _chunk_states(self, texts: Sequence[str]) -> list[States | None]:
        longest = min(
            self.tokenizer.model_max_length,
            self.model.config.max_position_embeddings,
            MAX_LENGTH,
        )
        tokens = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=int(longest),
            return_special_tokens_mask=True,
            return_tensors="pt",
        )
        states = self._forward(tokens["input_ids"], tokens["attention_mask"])
        valid = tokens["attention_mask"].bool()
        words = ~tokens["special_tokens_mask"].bool()
        return [(states[row, valid[row]], words[row, valid[row]]) for row in range(len(states))]

    def _forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the states (N, L, D) of length 1, on the CPU."""
        ids = ids.to(self.model.device)
        mask = mask.to(self.model.device)

        with torch.autocast(self.model.device.type, enabled=False):
            if self.layer == 0:
                states = self.model.get_input_embeddings()(ids)
            else:
                output = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
                states = output.hidden_states[self.layer]

        return functional.normalize(states.float(), dim=-1).cpu()


def _recall(answer: States | None, reference: States | None) -> Tensor:
    """Return the recall of one answer; NaN where either is missing."""
    if answer is None or reference is None or not answer[1].any():
        return torch.tensor(torch.nan)

    answer_states, _ = answer
    reference_states, reference_words = reference
    similarity = reference_states[reference_words] @ answer_states.T
    return similarity.amax(1).mean()
