"""Questions with known answers: DDPO's counting task, watched for written answers.

    reward = mean over the prompt's questions of [ the expected answer is a part of the reply ]

For "three wolves": "How many wolves are there in this image?" -> "three"; "What animal is in this
image?" -> "wolf" (arXiv 2305.13301, appendix).

DDPO's model learned to *write* "sixx ttutttas" over its turtles, and the reader believed it: a
typographic attack. So the reader is asked a third question, whether there is text in the image, and
an image that has text gets 0.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, TypeGuard

import torch
from torch import Tensor

from burnish.annotations import Count, DeviceName, ModelPath
from burnish.prompts.sources import counted
from burnish.rewards import vlm
from burnish.types import Prompt, Reward

TEXT = "Is there any text in this image?"
LOG = logging.getLogger(__name__)


def question(
    model: ModelPath = vlm.LLAVA,
    writing: Literal["zero", "keep"] = "zero",
    text: str = TEXT,
    device: DeviceName = "auto",
    batch: Count = 32,
    endpoint: vlm.EndpointTable | None = None,
) -> Reward:
    """Reward the fraction of a prompt's questions that a vision-language model answers as expected.

    That is 0, a half or 1 for a count. A prompt brings its questions and answers in its metadata
    (`{"questions": [...], "answers": [...]}`, one answer a question, as many prompts as you like in
    a JSONL file); one such as "two cats" needs none. NaN where a reply is missing. Replies are
    compared without regard to case, as parts: "cat" is in "two cats", and "ant" in "elephant".

    Args:
        model: a hub id, a folder, `zoo:emoji-captioner`, or the `http(s)://` address of a server.
        writing: score of an image that has text in it: "zero", or "keep" for that of its replies
            (the log still counts such images).
        text: the question that finds out; a reply that begins with "yes" means that there is text.
        device: of a local model; `auto` takes the device of the images.
        batch: images that a local model reads at once.
        endpoint: further arguments of a server's `Endpoint`, such as `{model = "llava", timeout =
            30}`.

    Raises:
        ValueError: the model cannot be found; when called, a prompt has no questions, or there is
            no reply at all.
    """
    reader = vlm.load(model, device=device, batch=batch, endpoint=endpoint)

    def reward(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        expected = [questions(prompt) for prompt in prompts]
        rows: list[int] = []
        texts: list[str] = []

        for row, pairs in enumerate(expected):
            rows += [row] * (len(pairs) + 1)
            texts += [text, *(question for question, _ in pairs)]

        replies = iter(reader(images[rows], texts))
        values = []
        with_text = 0

        for pairs in expected:
            has_text = _is_yes(next(replies))
            right = [_contains(next(replies), answer) for _, answer in pairs]
            score = sum(right) / len(right)
            with_text += has_text
            values.append(0.0 if has_text and writing == "zero" else score)

        if with_text:
            _warn_of_text(with_text, len(values), writing)

        result = torch.tensor(values)
        if len(result) and result.isnan().all():
            raise ValueError(
                f"{model} has no reply about any of {len(result)} images; try another model"
            )

        return result

    return reward


def questions(prompt: Prompt) -> list[tuple[str, str]]:
    """Return the questions about a prompt's image with their answers.

    They are in its metadata, or follow from a text such as "two cats".

    Raises:
        ValueError: there is neither, or not one answer a question; the message shows the prompt.
    """
    texts = prompt.metadata.get("questions")
    answers = prompt.metadata.get("answers")

    if texts is None and answers is None:
        count = counted(prompt.text)
        if count is None:
            raise ValueError(
                f"prompt '{prompt.text}' has no questions: give them in its metadata (questions, "
                'answers), or write a number from "one" to "ten" and a noun, such as "two cats"'
            )

        texts = count["questions"]
        answers = count["answers"]

    if not (_are_texts(texts) and _are_texts(answers) and len(texts) == len(answers)):
        raise ValueError(
            f"prompt '{prompt.text}': questions = {texts!r} and answers = {answers!r} in its "
            "metadata must be lists of texts, one answer a question"
        )

    return list(zip(texts, answers, strict=True))


def _are_texts(values: object) -> TypeGuard[Sequence[str]]:
    if not isinstance(values, (list, tuple)) or not values:
        return False
    return all(isinstance(value, str) and value for value in values)


def _is_yes(reply: str | None) -> bool:
    return reply is not None and reply.strip().lower().startswith("yes")


def _contains(reply: str | None, answer: str) -> float:
    """Return 1 if the answer is a part of the reply, else 0; NaN where the reply is missing."""
    if reply is None:
        return torch.nan
    return float(answer.lower() in reply.lower())


def _warn_of_text(with_text: int, count: int, writing: str) -> None:
    LOG.warning(
        "%d of %d images have text in them, which may be the answer (a typographic attack): %s",
        with_text,
        count,
        "they score 0" if writing == "zero" else "they keep their score",
    )
