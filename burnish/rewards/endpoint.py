"""A vision-language model behind an OpenAI-compatible server answers questions about images.

    POST {url}/chat/completions
    {"model": ..., "temperature": 0, "max_tokens": 64, "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}},
        {"type": "text", "text": question}]}]}

The server may be vLLM, llama.cpp, Ollama or a hosted one. The protocol is OpenAI's chat completions
with image input. DDPO's server (arXiv 2305.13301) asked LLaVA greedily for at most 64 tokens about
JPEG files of quality 80; PNG is the default here, so that the image scored is exactly the image
made.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
from torch import Tensor

from burnish.annotations import Count, CountOrZero, Positive, PositiveOrZero
from burnish.images import eight_bit
from burnish.redaction import excerpt
from burnish.rewards.compressibility import Quality
from burnish.rewards.vlm_cache import AnswerCache
from burnish.rewards.wire import (
    NoAnswer,
    Wire,
    encode_image,
    read_api_key,
    redact_url,
    report_failures,
)

KEY_VARIABLE = "OPENAI_API_KEY"


class Endpoint:
    """A model behind a server; `endpoint(images, questions)` sends one question an image."""

    def __init__(
        self,
        url: str,
        model: str = "default",
        *,
        key_variable: str = KEY_VARIABLE,
        timeout: Positive = 60.0,
        retries: CountOrZero = 3,
        workers: Count = 8,
        backoff: PositiveOrZero = 0.5,
        image: Literal["png", "jpeg"] = "png",
        quality: Quality = 80,
        temperature: PositiveOrZero = 0.0,
        max_tokens: Count = 64,
        cache: CountOrZero = 10_000,
    ) -> None:
        """Prepare requests to a server; nothing is sent yet.

        Args:
            url: the server, such as `http://localhost:8000`; `/v1` and `/chat/completions` are
                added where missing.
            model: the name under which the server knows the model.
            key_variable: the environment variable that holds the API key; if it is not set no key
                is sent, and "" never sends one. The key is kept out of files, messages and logs.
            timeout: seconds until the whole answer is there.
            retries: tries after the first one.
            workers: requests under way at once, each about one image.
            backoff: seconds of the first wait before another try.
            image: file format in which images are sent.
            quality: of a JPEG file.
            temperature: of the answers; 0 is greedy.
            max_tokens: of an answer.
            cache: answers kept, so that the same question about the same image is sent once.

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
            token=read_api_key(key_variable, required=key_variable != KEY_VARIABLE),
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
        self._cache = AnswerCache(cache)

    def __call__(self, images: Tensor, questions: Sequence[str]) -> list[str | None]:
        """Return one answer an image.

        Args:
            images: (B, 3, H, W) float in [0, 1].
            questions: B of them.

        Returns:
            B texts without space around them; None where there is no answer: all tries failed, or
            it was empty. A warning gives their number and the last reason.

        Raises:
            ValueError: the number of questions is not that of the images.
            NoAnswer: there is no answer for any image; one sentence with the URL and the last
                reason.
        """
        pixels = eight_bit(images)

        def ask(rows: list[int]) -> list[str | NoAnswer]:
            return self.wire.map(lambda row: self._ask(pixels[row], questions[row]), rows)

        answers = self._cache.answer(pixels, questions, ask)
        report_failures([a for a in answers if isinstance(a, NoAnswer)], len(answers))

        return [None if isinstance(answer, NoAnswer) else answer for answer in answers]

    def _ask(self, pixels: np.ndarray, question: str) -> str:
        file = encode_image(pixels, self.image, self.quality)
        content = [
            {"type": "image_url", "image_url": {"url": f"data:image/{self.image};base64,{file}"}},
            {"type": "text", "text": question},
        ]
        response = self.wire.post(
            {
                "model": self.model,
                "messages": [{"role": "user", "content": content}],
                "temperature": self.temperature,
                "max_tokens": self.max_tokens,
            }
        )

        return _text(response, self.wire.redacted_url)


def completions(url: str) -> str:
    """Return the full address of a server's chat completions.

    `http://host`, `http://host/v1` and the full address all mean the same.

    Raises:
        ValueError: `url` is none.
    """
    redact_url(url)  # raises if it is none
    parts = urlsplit(url)
    path = parts.path.rstrip("/")

    if not path.endswith("/chat/completions"):
        has_version = re.search(r"/v\d", path)
        path += "/chat/completions" if has_version else "/v1/chat/completions"

    return parts._replace(path=path).geturl()


def _text(response: Any, url: str) -> str:
    """Return the text of the first choice; raise a NoAnswer if it is missing or empty."""
    try:
        choice = response["choices"][0]
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise NoAnswer(
            f"{url} answered without choices[0].message.content; is it an OpenAI-compatible server?"
        ) from None

    if not isinstance(text, str) or not text.strip():
        reason = choice.get("finish_reason")
        raise NoAnswer(
            f"{url} answered with an empty text (finish_reason {excerpt(str(reason), 50)}); "
            "raise max_tokens or take another model"
        )

    return text.strip()
