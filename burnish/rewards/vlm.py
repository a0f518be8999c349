"""Vision-language models: what answers a question about each of some pictures.

    ask(images (B, 3, H, W) in [0, 1], B questions) -> B answers; None where there is none, which is
    missing, not wrong

`Local` is any image-text-to-text model of transformers in this process; `Endpoint` one behind an
OpenAI-compatible server. `load` opens either from its name. Answers are greedy and have at most 64
tokens, as in DDPO (arXiv 2305.13301); pictures reach a local model as they are, while DDPO sent
them as JPEG files of quality 80.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from burnish import zoo
from burnish.errors import first_line
from burnish.images import eight_bit
from burnish.rewards.endpoint import Endpoint

Vlm = Callable[[Tensor, Sequence[str]], list[str | None]]
LLAVA = "llava-hf/llava-1.5-13b-hf"  # RLCM's README: the 13B, as the 7B gives empty answers
MAX_TOKENS = 64


def load(
    model: str = LLAVA,
    *,
    device: str = "auto",
    batch: int = 32,
    endpoint: Mapping[str, Any] | None = None,
) -> Vlm:
    """What `model` names, ready to be asked; answers are remembered by picture and question.

    Args:
        model: a hub id, a folder, `zoo:emoji-captioner`, or the `http://` or `https://` address of
            a server.
        device: of a local model; `auto` takes the device of the images.
        batch: pictures that a local model is asked about at once.
        endpoint: further arguments of `Endpoint`, such as `{model = "llava", timeout = 30}`; for an
            address only.

    Raises:
        ValueError: the model cannot be found or is none that answers questions about images, or the
            address is none.
    """
    if model.startswith(("http://", "https://")):
        return Endpoint(model, **{"model": "default", **(endpoint or {})})
    if endpoint:
        raise ValueError(
            f"endpoint = ... is for a model behind an address, and '{model}' is none; leave it out"
        )

    return CachedVlm(Local.load(model, device, batch))


@dataclass(frozen=True)
class Local:
    """An image-text-to-text model of transformers with its processor; `local(images, questions)`
    asks it.
    """

    model: Any  # frozen, in evaluation mode
    processor: Any
    device: str
    batch: int

    @classmethod
    def load(cls, name: str, device: str = "auto", batch: int = 32) -> Local:
        """From a hub id, a folder or the zoo: in float32, or where there is a GPU in the precision
        it was saved in.

        Raises:
            ValueError: it cannot be found or cannot be asked about images, or `batch` is less than
                1.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        if batch < 1:
            raise ValueError(f"batch = {batch}: at least one picture must be asked about at once")

        source = zoo.resolve(name)
        dtype = "auto" if torch.cuda.is_available() else torch.float32

        try:
            processor = AutoProcessor.from_pretrained(source)
            model = (
                AutoModelForImageTextToText.from_pretrained(source, dtype=dtype)
                .eval()
                .requires_grad_(False)
            )
        except (OSError, ValueError, KeyError, ImportError, TypeError, AttributeError) as error:
            reason = first_line(error)
            raise ValueError(f"{_called(name, source)}: {reason}") from error

        if not hasattr(processor, "image_processor"):
            raise ValueError(f"{_called(name, source)}: there is no image processor")

        processor.tokenizer.padding_side = "left"  # answers go on where questions end
        return cls(model, processor, device, batch)

    @torch.no_grad()
    def __call__(self, images: Tensor, questions: Sequence[str]) -> list[str | None]:
        """One answer an image.

        Args:
            images: (B, 3, H, W) float in [0, 1].
            questions: B of them.

        Returns:
            B texts without space around them; None where the model said nothing.

        Raises:
            ValueError: not as many questions as images.
        """
        if len(questions) != len(images):
            raise ValueError(
                f"{len(images)} images but {len(questions)} questions; ask one question an image"
            )

        self.model.to(images.device if self.device == "auto" else self.device)
        pixels = eight_bit(images)
        answers = [""] * len(questions)
        # alike beside alike: less padding
        order = sorted(range(len(questions)), key=lambda row: len(questions[row]))

        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            for row, answer in zip(
                rows, self._ask(pixels[rows], [questions[row] for row in rows]), strict=True
            ):
                answers[row] = answer

        return [answer or None for answer in answers]

    def _ask(self, pixels: np.ndarray, questions: Sequence[str]) -> list[str]:
        from PIL import Image

        inputs = self.processor(
            images=[Image.fromarray(one) for one in pixels],
            text=[self._message(question) for question in questions],
            padding=True,
            return_tensors="pt",
        ).to(self.model.device, self.model.dtype)

        with torch.autocast(self.model.device.type, enabled=False):
            out = self.model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)

        asked = inputs["input_ids"]
        if out.shape[1] >= asked.shape[1] and torch.equal(out[:, : asked.shape[1]], asked):
            out = out[:, asked.shape[1] :]

        texts = self.processor.batch_decode(out, skip_special_tokens=True)
        # models that continue a text, such as BLIP, repeat the question
        return [
            text.strip().removeprefix(question.lower()).strip()
            for text, question in zip(texts, questions, strict=True)
        ]

    def _message(self, question: str) -> str:
        if not getattr(self.processor, "chat_template", None):
            return f"{getattr(self.processor, 'image_token', None) or ''}{question}"

        content = [{"type": "image"}, {"type": "text", "text": question}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )


class CachedVlm:
    """A model that is not asked twice: the last `room` answers, by picture and question. What
    failed is asked again.
    """

    def __init__(self, ask: Vlm, room: int = 10_000) -> None:
        self.ask = ask
        self.room = room
        self._known: OrderedDict[tuple[bytes, str], str] = OrderedDict()  # the longest unused first
        self._lock = Lock()  # a call that took too long may still be under way beside the next one

    def __call__(self, images: Tensor, questions: Sequence[str]) -> list[str | None]:
        """As the model's own."""
        if len(questions) != len(images):
            raise ValueError(
                f"{len(images)} images but {len(questions)} questions; ask one question an image"
            )

        digests = [
            hashlib.sha256(repr(one.shape).encode() + one.tobytes()).digest()
            for one in eight_bit(images)
        ]
        keys = list(zip(digests, questions, strict=True))
        answers: dict[tuple[bytes, str], str | None] = {}

        with self._lock:
            for key in keys:
                if key in self._known:
                    answers[key] = self._known[key]
                    self._known.move_to_end(key)

        # of equal ones the last
        rows = {key: row for row, key in enumerate(keys) if key not in answers}
        new = (
            self.ask(images[list(rows.values())], [question for _, question in rows])
            if rows
            else []
        )
        answers |= zip(rows, new, strict=True)

        with self._lock:
            self._known |= {
                key: answer for key, answer in zip(rows, new, strict=True) if answer is not None
            }
            while len(self._known) > self.room:
                self._known.popitem(last=False)

        return [answers[key] for key in keys]


def _called(name: str, source: str) -> str:
    kind = "folder" if Path(source).is_dir() else "model id"
    return f"'{name}' is not a {kind} with an image-text-to-text model and its processor"
