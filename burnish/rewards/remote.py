"""Any reward in another process or on another machine, asked over HTTP. `examples/reward_server.py`
is the other end.

    request     {"version": 1, "images": [PNG file in base64, ...], "prompts": [text, ...], "metadata": [object, ...]}
    response    {"scores": [number or null, ...]}        one an image, in their order; null: no score, which is not 0

The images are 8-bit RGB, all of one size. A server may add keys to its response; its errors are any
other HTTP status with a text that says what is wrong. 429 and 5xx are tried again, any other is
final.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from burnish.images import eight_bit
from burnish.rewards.wire import NoAnswer, Wire, encode, report_failures, token
from burnish.types import Prompt, Reward

VERSION = 1


def remote(
    url: str,
    timeout: float = 60.0,
    retries: int = 3,
    batch: int = 8,
    workers: int = 4,
    key_variable: str = "",
    backoff: float = 0.5,
) -> Reward:
    """The scores that a server gives: any reward behind HTTP, with its own environment or on its
    own GPU.

    Costs a PNG file an image and what the server takes. NaN for an image of a request
    that failed for good, or that the server has no score for; a warning tells how many and why.

    Args:
        url: where to POST, such as `http://localhost:8000`.
        timeout: seconds until the connection stands, and the longest silence after that.
        retries: tries after the first one.
        batch: images in a request.
        workers: requests under way at once.
        key_variable: the environment variable with an API key to send as `Authorization: Bearer
            ...`; "" for none.
        backoff: seconds before the second try; they double with each.

    Raises:
        ValueError: an argument is out of range; later: the server's answer does not follow the
            protocol.
        NoAnswer: later: there is no score for any image; one sentence with the URL and the last
            reason.
    """
    if batch < 1:
        raise ValueError(f"batch = {batch}: give at least 1")

    wire = Wire(
        url,
        token=token(key_variable),
        timeout=timeout,
        retries=retries,
        workers=workers,
        backoff=backoff,
    )

    def reward(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        pixels = eight_bit(images)
        metadata = [_plain(row, prompt) for row, prompt in enumerate(prompts)]

        def ask(first: int) -> list[float]:
            rows = slice(first, first + batch)
            answer = wire.post(
                {
                    "version": VERSION,
                    "images": [encode(image) for image in pixels[rows]],
                    "prompts": [prompt.text for prompt in prompts[rows]],
                    "metadata": metadata[rows],
                }
            )
            return read_scores(answer, len(pixels[rows]), first, wire.shown)

        starts = range(0, len(pixels), batch)
        scores = torch.full((len(pixels),), math.nan, dtype=torch.float64)
        failed = []

        for first, result in zip(starts, wire.each(ask, starts), strict=True):
            count = len(scores[first : first + batch])
            if isinstance(result, NoAnswer):
                failed += [result] * count
            else:
                scores[first : first + batch] = torch.tensor(result, dtype=torch.float64)
                failed += [NoAnswer(f"{wire.shown} gave null")] * sum(map(math.isnan, result))

        report_failures(failed, len(pixels))
        return scores

    return reward


def read_scores(answer: Any, count: int, first: int, url: str) -> list[float]:
    """The scores of a response to `count` images, the first of them image `first`; NaN for null.

    Raises:
        ValueError: it does not follow the protocol; the message names the URL and the row.
    """
    if not isinstance(answer, dict) or not isinstance(answer.get("scores"), list):
        raise ValueError(
            f'{url} answered without a list "scores"; it must answer {{"scores": [number or null, ...]}}'
        )
    if answer.get("version", VERSION) != VERSION:
        raise ValueError(
            f"{url} answers in version {answer['version']!r} of the protocol; this is version {VERSION}"
        )

    scores = answer["scores"]
    if len(scores) != count:
        raise ValueError(
            f"{url} gave {len(scores)} scores for {count} images; it must give one an image"
        )

    for row, value in enumerate(scores, first):
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, (int, float)) or not _finite(value)
        ):
            said = repr(value)[:50]
            raise ValueError(
                f"{url} gave {said} as the score of image {row}; it must give a finite number, or null"
            )

    return [math.nan if value is None else float(value) for value in scores]


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float holds
        return False


def _plain(row: int, prompt: Prompt) -> dict[str, Any]:
    """A prompt's metadata as JSON has it."""
    try:
        return json.loads(json.dumps(dict(prompt.metadata), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the metadata of prompt {row} ('{prompt.text}') cannot be sent as JSON: {error}; keep to texts and finite "
            "numbers"
        ) from None
