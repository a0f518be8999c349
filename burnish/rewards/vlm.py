"""Vision-language models: one answer to a question about each image.

    ask(images (B, 3, H, W) in [0, 1], B questions) -> B answers; None where there is none, which is
    missing, not wrong

`Local` is any image-text-to-text model of transformers in this process; `Endpoint` one behind an
OpenAI-compatible server. `load` opens either from its name. Answers are greedy and have at most 64
tokens, as in DDPO (arXiv 2305.13301); images reach a local model as they are, while DDPO sent them
as JPEG files of quality 80.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from burnish import pretrained, zoo
from burnish.annotations import ArgumentsOf
from burnish.errors import first_line
from burnish.images import eight_bit
from burnish.rewards.endpoint import Endpoint
from burnish.rewards.isolated import isolated
from burnish.rewards.vlm_cache import check_questions

Vlm = Callable[[Tensor, Sequence[str]], list[str | None]]
LLAVA = "llava-hf/llava-1.5-13b-hf"  # RLCM's README: the 13B, as the 7B gives empty answers
MAX_TOKENS = 64


EndpointTable = Annotated[dict[str, Any], ArgumentsOf("burnish.rewards.endpoint:Endpoint", bound=1)]
"""Further arguments of a server's `Endpoint`, as a table."""


def load(
    model: str = LLAVA,
    *,
    device: str = "auto",
    batch: int = 32,
    endpoint: Mapping[str, Any] | None = None,
) -> Vlm:
    """Return a vision-language model; a server's answers are remembered by image and question.

    Those of a local model are not: beside which other images one is read decides the last bit, so
    a resumed run, which remembers less, would differ.

    Args:
        model: a hub id, a folder, `zoo:emoji-captioner`, or the `http://` or `https://` address of
            a server.
        device: of a local model; `auto` takes the device of the images.
        batch: images that a local model reads at once.
        endpoint: further arguments of `Endpoint`, such as `{model = "llava", timeout = 30}`; for an
            address only.

    Raises:
        ValueError: the model cannot be found or is none that answers questions about images, or the
            address is none.
    """
    if model.startswith(("http://", "https://")):
        return Endpoint(model, **(endpoint or {}))
    if endpoint:
        raise ValueError(
            f"endpoint = ... is for a model behind an address, and '{model}' is none; leave it out"
        )

    return Local.load(model, device, batch)


@dataclass(frozen=True)
class Local:
    """An image-text-to-text model of transformers; `local(images, questions)` calls it."""

    model: Any  # frozen, in evaluation mode
    processor: Any
    device: str
    batch: int

    @classmethod
    def load(cls, name: str, device: str = "auto", batch: int = 32) -> Local:
        """Return a model and its processor from a hub id, a folder or the zoo.

        Weights are float32, or where there is a GPU of the precision they were saved in.

        Raises:
            ValueError: it cannot be found or does not read images, or `batch` is less than 1.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        if batch < 1:
            raise ValueError(f"batch = {batch}: at least one image must be asked about at once")

        source = pretrained.find(name, "model")
        problem = zoo.load_problem(name, "an image-text-to-text model and its processor")
        dtype = "auto" if torch.cuda.is_available() else torch.float32

        try:
            processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
            model = pretrained.load(
                AutoModelForImageTextToText, source, dtype=dtype, trust_remote_code=False
            )
        except Exception as error:  # a damaged file makes the libraries below raise anything
            raise ValueError(f"{problem}: {first_line(error)}") from error

        if not hasattr(processor, "image_processor"):
            raise ValueError(f"{problem}: there is no image processor")

        model.eval().requires_grad_(False)
        processor.tokenizer.padding_side = "left"  # answers go on where questions end
        return cls(model, processor, device, batch)

    @torch.no_grad()
    def __call__(self, images: Tensor, questions: Sequence[str]) -> list[str | None]:
        """Return one answer an image.

        Args:
            images: (B, 3, H, W) float in [0, 1].
            questions: B of them.

        Returns:
            B texts without space around them; None where the model returned no text.

        Raises:
            ValueError: the number of questions is not that of the images.
        """
        check_questions(len(images), questions)
        self.model.to(images.device if self.device == "auto" else self.device)
        pixels = eight_bit(images)
        answers = [""] * len(questions)
        # questions of one length beside each other: less padding
        order = sorted(range(len(questions)), key=lambda row: len(questions[row]))

        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]

            def ask(chosen: Sequence[int]) -> list[str]:
                return self._generate(pixels[list(chosen)], [questions[row] for row in chosen])

            for row, text in zip(rows, isolated(ask, rows, "", "images"), strict=True):
                answers[row] = text

        return [answer or None for answer in answers]

    def _generate(self, pixels: np.ndarray, questions: Sequence[str]) -> list[str]:
        inputs = self.processor(
            images=[Image.fromarray(image) for image in pixels],
            text=[self._message(question) for question in questions],
            padding=True,
            return_tensors="pt",
        ).to(self.model.device, self.model.dtype)

        with torch.autocast(self.model.device.type, enabled=False):
            tokens = self.model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)

        # most models return the question's tokens before those of the answer
        length = inputs["input_ids"].shape[1]
        if tokens.shape[1] >= length and torch.equal(tokens[:, :length], inputs["input_ids"]):
            tokens = tokens[:, length:]

        texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
        # models that continue a text, such as BLIP, repeat the question
        return [
            text.strip().removeprefix(question.lower()).strip()
            for text, question in zip(texts, questions, strict=True)
        ]

    def _message(self, question: str) -> str:
        """Return the model's input text for a question about one image."""
        if not getattr(self.processor, "chat_template", None):
            mark = getattr(self.processor, "image_token", None) or ""
            return f"{mark}{question}"

        content = [{"type": "image"}, {"type": "text", "text": question}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
