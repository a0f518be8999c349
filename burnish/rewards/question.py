"""Questions with known answers: DDPO's counting task (arXiv 2305.13301, appendix), watched for
written answers.

    reward = mean over the prompt's questions of [ the expected answer is a part of the reply ]

For "three wolves": "How many wolves are there in this image?" -> "three"; "What animal is in this
image?" -> "wolf".

DDPO's model learned to *write* "sixx ttutttas" over its turtles, and the reader believed it: a
typographic attack. So the reader is asked a third question, whether there is text in the picture,
and one that has text gets 0.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from burnish.prompts.sources import counted
from burnish.rewards import vlm
from burnish.types import Prompt, Reward

TEXT = "Is there any text in this image?"
LOG = logging.getLogger(__name__)


def question(
    model: str = vlm.LLAVA,
    writing: Literal["zero", "keep"] = "zero",
    text: str = TEXT,
    device: str = "auto",
    batch: int = 32,
    endpoint: dict[str, Any] | None = None,
) -> Reward:
    """The share of a prompt's questions that a vision-language model answers as expected: 0, a half
    or 1 for a count.

    A prompt brings its questions and answers in its metadata (`{"questions": [...], "answers":
    [...]}`, one answer a question, as many prompts as you like in a JSONL file); one such as "two
    cats" needs none. NaN where a reply is missing. Replies are compared without regard to case, as
    parts: "cat" is in "two cats", and "ant" in "elephant".

    Args:
        model: what is asked: a hub id, a folder, `zoo:emoji-captioner`, or the `http(s)://` address
            of a server.
        writing: what becomes of a picture that has text in it: "zero", or "keep" its score (the log
            still counts them).
        text: the question that finds out; a reply that begins with "yes" means that there is.
        device: of a local model; `auto` takes the device of the images.
        batch: pictures that a local model is asked about at once.
        endpoint: further arguments of a server's `Endpoint`, such as `{model = "llava", timeout =
            30}`.

    Raises:
        ValueError: the model cannot be found; when called, a prompt has no questions, or there is
            no reply at all.
    """
    ask = vlm.load(model, device=device, batch=batch, endpoint=endpoint)

    def reward(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        expected = [questions(prompt) for prompt in prompts]
        rows = [row for row, pairs in enumerate(expected) for _ in range(len(pairs) + 1)]
        asked = [asked for pairs in expected for asked in (text, *(asked for asked, _ in pairs))]
        replies = iter(ask(images[rows], asked))
        values = []
        written = 0

        for pairs in expected:
            found = next(replies)
            right = [_right(next(replies), answer) for _, answer in pairs]
            has_text = found is not None and found.strip().lower().startswith("yes")
            written += has_text
            values.append(0.0 if has_text and writing == "zero" else sum(right) / len(right))

        if written:
            LOG.warning(
                "%d of %d images have text in them, which may be the answer (a typographic attack): %s",
                written,
                len(values),
                "they score 0" if writing == "zero" else "they keep their score",
            )

        result = torch.tensor(values)
        if len(result) and result.isnan().all():
            raise ValueError(
                f"{model} has no reply about any of {len(result)} images; try another model"
            )

        return result

    return reward


def questions(prompt: Prompt) -> list[tuple[str, str]]:
    """What to ask about a prompt's picture, with the answers; from its metadata, or read off "two
    cats".

    Raises:
        ValueError: there is neither, or not one answer a question; the message shows the prompt.
    """
    asked = prompt.metadata.get("questions")
    answers = prompt.metadata.get("answers")

    if asked is None and answers is None:
        found = counted(prompt.text)
        if found is None:
            raise ValueError(
                f"prompt '{prompt.text}' has no questions: give them in its metadata (questions, answers), or write a "
                'number from "one" to "ten" and a noun, such as "two cats"'
            )

        asked = found["questions"]
        answers = found["answers"]

    if not (_texts(asked) and _texts(answers) and len(asked) == len(answers)):  # type: ignore[arg-type]
        raise ValueError(
            f"prompt '{prompt.text}': questions = {asked!r} and answers = {answers!r} in its metadata must be lists of "
            "texts, one answer a question"
        )

    return list(zip(asked, answers, strict=True))  # type: ignore[arg-type]


def _texts(values: object) -> bool:
    return (
        isinstance(values, (list, tuple))
        and bool(values)
        and all(isinstance(v, str) and v for v in values)
    )


def _right(reply: str | None, answer: str) -> float:
    return torch.nan if reply is None else float(answer.lower() in reply.lower())
