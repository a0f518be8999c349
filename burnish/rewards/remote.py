"""Any reward in another process or on another machine, over HTTP.

`examples/reward_server.py` is the other end.

    request     {"version": 1, "images": [PNG file in base64, ...],
                 "prompts": [text, ...], "metadata": [object, ...]}
    response    {"scores": [number or null, ...]}

There is one score an image, in their order; null means no score, which is not 0.

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

from burnish.annotations import Count, CountOrZero, Positive, PositiveOrZero
from burnish.images import eight_bit
from burnish.redaction import excerpt, one_line, redact
from burnish.rewards.wire import NoAnswer, Wire, encode_image, read_api_key, report_failures
from burnish.types import Prompt, Reward

VERSION = 1


def remote(
    url: str,
    timeout: Positive = 60.0,
    retries: CountOrZero = 3,
    batch: Count = 8,
    workers: Count = 4,
    key_variable: str = "",
    backoff: PositiveOrZero = 0.5,
) -> Reward:
    """Reward the scores that a server gives: any reward behind HTTP.

    The server has its own environment or its own GPU. Costs a PNG file an image and the time of
    the server. NaN for an image of a request that failed for good, or that the server has no score
    for; a warning gives their number and the last reason.

    Args:
        url: address for POST requests, such as `http://localhost:8000`; `${NAME}` in it is the
            value of an environment variable.
        timeout: seconds until the whole answer is there.
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
        token=read_api_key(key_variable),
        timeout=timeout,
        retries=retries,
        workers=workers,
        backoff=backoff,
    )

    def reward(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        pixels = eight_bit(images)
        metadata = [_json_metadata(row, prompt) for row, prompt in enumerate(prompts)]

        def request(first: int) -> list[float]:
            rows = slice(first, first + batch)
            response = wire.post(
                {
                    "version": VERSION,
                    "images": [encode_image(image) for image in pixels[rows]],
                    "prompts": [prompt.text for prompt in prompts[rows]],
                    "metadata": metadata[rows],
                }
            )
            return read_scores(response, len(pixels[rows]), first, wire.redacted_url)

        starts = range(0, len(pixels), batch)
        scores = torch.full((len(pixels),), math.nan, dtype=torch.float64)
        failures = []

        for first, result in zip(starts, wire.map(request, starts), strict=True):
            count = len(scores[first : first + batch])
            if isinstance(result, NoAnswer):
                failures += [result] * count
            else:
                scores[first : first + batch] = torch.tensor(result, dtype=torch.float64)
                no_score = NoAnswer(f"{wire.redacted_url} gave null")
                failures += [no_score] * sum(map(math.isnan, result))

        report_failures(failures, len(pixels))
        return scores

    return reward


def read_scores(response: Any, count: int, first: int, url: str) -> list[float]:
    """Return the scores of a response; NaN for null.

    Args:
        response: its JSON.
        count: number of images of the request.
        first: row of the first of them in the batch.
        url: for messages.

    Raises:
        ValueError: the response does not follow the protocol; the message names the URL and the
            row.
    """
    if not isinstance(response, dict) or not isinstance(response.get("scores"), list):
        raise ValueError(
            f'{url} answered without a list "scores"; '
            'it must answer {"scores": [number or null, ...]}'
        )

    version = response.get("version", VERSION)
    if version != VERSION:
        raise ValueError(
            f"{url} answers in version {excerpt(repr(version), 50)} of the protocol; "
            f"this is version {VERSION}"
        )

    scores = response["scores"]
    if len(scores) != count:
        raise ValueError(
            f"{url} gave {len(scores)} scores for {count} images; it must give one an image"
        )

    for row, value in enumerate(scores, first):
        if value is not None and not _is_finite_number(value):
            raise ValueError(
                f"{url} gave {one_line(redact(repr(value)))[:50]} as the score of image {row}; "
                "it must give a finite number, or null"
            )

    return [math.nan if value is None else float(value) for value in scores]


def _is_finite_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False

    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float holds
        return False


def _json_metadata(row: int, prompt: Prompt) -> dict[str, Any]:
    """Return a prompt's metadata as JSON has it."""
    try:
        return json.loads(json.dumps(dict(prompt.metadata), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the metadata of prompt {row} ('{prompt.text}') cannot be sent as JSON: {error}; "
            "keep to texts and finite numbers"
        ) from None
