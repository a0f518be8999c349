"""A vision-language model behind an OpenAI-compatible server (vLLM, llama.cpp, Ollama, hosted),
asked about images.

    POST {url}/chat/completions
    {"model": ..., "messages": [{"role": "user", "content": [{"type": "image_url", "image_url":
    {"url":
     "data:image/png;base64,..."}}, {"type": "text", "text": question}]}], "temperature": 0,
     "max_tokens": 64}

The protocol is OpenAI's chat completions with image input. DDPO's server (arXiv 2305.13301) asked
LLaVA greedily for at most 64 tokens about JPEG files of quality 80; PNG is the default here, as the
picture scored is then the picture made.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
from torch import Tensor

from burnish.images import eight_bit
from burnish.rewards.wire import NoAnswer, Wire, encode, redact_url, report_failures, token

KEY_VARIABLE = "OPENAI_API_KEY"
Key = tuple[bytes, str]  # the hash of an image, its question


class Endpoint:
    """`endpoint(images, questions)` asks one question about each image and returns the answers as
    texts.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_variable: str = KEY_VARIABLE,
        timeout: float = 60.0,
        retries: int = 3,
        workers: int = 8,
        backoff: float = 0.5,
        image: Literal["png", "jpeg"] = "png",
        quality: int = 80,
        temperature: float = 0.0,
        max_tokens: int = 64,
        cache: int = 10_000,
    ) -> None:
        """
        Args:
            url: the server, such as `http://localhost:8000`; `/v1` and `/chat/completions` are
                added where missing.
            model: the name under which the server knows the model.
            key_variable: the environment variable that holds the API key; if it is not set none is
                sent, and ""
                sends none ever. The key is kept out of files, messages and logs.
            timeout, retries, workers, backoff: as for `Wire`; at most `workers` images are asked
                about at once.
            image: how images travel. `quality` is that of a JPEG file.
            temperature, max_tokens: of the answers; 0 is greedy.
            cache: answers kept, so that the same question about the same image is asked once.

        Raises:
            ValueError: the URL is none, or an argument is out of range.
        """
        if image not in ("png", "jpeg"):
            raise ValueError(f'image = "{image}" is unknown; use "png" or "jpeg"')
        if cache < 0:
            raise ValueError(f"cache = {cache}: give the number of answers to keep, 0 for none")
        if not 1 <= quality <= 95:
            raise ValueError(f"quality = {quality}: a JPEG quality lies between 1 and 95")

        self.wire = Wire(
            completions(url),
            token=token(key_variable, needed=key_variable != KEY_VARIABLE),
            timeout=timeout,
            retries=retries,
            workers=workers,
            backoff=backoff,
        )
        self.model = model
        self.image = image
        self.quality = quality
        self.temperature = temperature
        self.max_tokens = max_tokens
        self._known: OrderedDict[Key, str] = OrderedDict()  # the longest unused first
        self._room = cache
        self._lock = Lock()

    def __call__(self, images: Tensor, questions: Sequence[str]) -> list[str | None]:
        """One answer an image.

        Args:
            images: (B, 3, H, W) float in [0, 1].
            questions: B of them.

        Returns:
            B texts without space around them; None where there is no answer: all tries failed, or
            it was empty. A warning tells how many and why.

        Raises:
            ValueError: not as many questions as images.
            NoAnswer: there is no answer for any image; one sentence with the URL and the last
                reason.
        """
        if len(questions) != len(images):
            raise ValueError(
                f"{len(images)} images but {len(questions)} questions; ask one question an image"
            )

        pixels = eight_bit(images)
        digests = (
            hashlib.sha256(b"%d %d " % image.shape[:2] + image.tobytes()).digest()
            for image in pixels
        )
        keys = list(zip(digests, questions, strict=True))
        rows = {key: row for row, key in enumerate(keys)}  # of equal ones the last
        answers: dict[Key, str | NoAnswer] = dict(self._recall(rows))
        asked = [key for key in rows if key not in answers]
        answers |= zip(
            asked,
            self.wire.each(lambda key: self._ask(pixels[rows[key]], key[1]), asked),
            strict=True,
        )
        failed = [answer for key in keys if isinstance(answer := answers[key], NoAnswer)]
        self._remember({key: answer for key, answer in answers.items() if isinstance(answer, str)})
        report_failures(failed, len(keys))

        return [None if isinstance(answer := answers[key], NoAnswer) else answer for key in keys]

    def _ask(self, pixels: np.ndarray, question: str) -> str:
        file = encode(pixels, self.image, self.quality)
        content = [
            {"type": "image_url", "image_url": {"url": f"data:image/{self.image};base64,{file}"}},
            {"type": "text", "text": question},
        ]
        answer = self.wire.post(
            {
                "model": self.model,
                "messages": [{"role": "user", "content": content}],
                "temperature": self.temperature,
                "max_tokens": self.max_tokens,
            }
        )

        return _text(answer, self.wire.shown)

    def _recall(self, keys: Sequence[Key] | dict[Key, int]) -> dict[Key, str]:
        with self._lock:
            found = {key: self._known[key] for key in keys if key in self._known}
            for key in found:
                self._known.move_to_end(key)

        return found

    def _remember(self, answers: dict[Key, str]) -> None:
        with self._lock:
            self._known |= answers
            while len(self._known) > self._room:
                self._known.popitem(last=False)


def completions(url: str) -> str:
    """The address to ask: `http://host`, `http://host/v1` and the whole of it all mean the same."""
    redact_url(url)  # says so if it is none
    parts = urlsplit(url)
    path = parts.path.rstrip("/")

    if not path.endswith("/chat/completions"):
        path += "/chat/completions" if re.search(r"/v\d", path) else "/v1/chat/completions"

    return parts._replace(path=path).geturl()


def _text(answer: Any, url: str) -> str:
    """The first choice's text; a NoAnswer if it is missing or empty."""
    try:
        choice = answer["choices"][0]
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise NoAnswer(
            f"{url} answered without choices[0].message.content; is it an OpenAI-compatible server?"
        ) from None

    if not isinstance(text, str) or not text.strip():
        why = choice.get("finish_reason")
        raise NoAnswer(
            f"{url} answered with an empty text (finish_reason {why}); raise max_tokens or take another model"
        )

    return text.strip()
