"""The answers of a vision-language model, remembered by image and question."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock
from typing import TypeVar

import numpy as np

F = TypeVar("F")  # what stands for an answer that failed
Key = tuple[bytes, str]  # the hash of an image, its question


class AnswerCache:
    """The answers used last; failures are not remembered, so they are tried again."""

    def __init__(self, capacity: int = 10_000) -> None:
        self.capacity = capacity
        self._answers: OrderedDict[Key, str] = OrderedDict()  # the longest unused first
        self._lock = Lock()  # a call that took too long may still be under way beside the next one

    def answer(
        self,
        pixels: np.ndarray,
        questions: Sequence[str],
        ask: Callable[[list[int]], Sequence[str | F]],
    ) -> list[str | F]:
        """Return one answer an image; the model is called only for those that are not known.

        Args:
            pixels: (B, H, W, 3) bytes.
            questions: B of them.
            ask: returns the model's answers for some rows, or what stands for a failure. Equal
                images with equal questions are one row.

        Raises:
            ValueError: the number of questions is not that of the images.
        """
        check_questions(len(pixels), questions)
        keys = [(_digest(image), text) for image, text in zip(pixels, questions, strict=True)]
        answers: dict[Key, str | F] = dict(self._recall(keys))

        rows = {key: row for row, key in enumerate(keys) if key not in answers}
        if rows:
            new = dict(zip(rows, ask(list(rows.values())), strict=True))
            self._remember({key: text for key, text in new.items() if isinstance(text, str)})
            answers |= new

        return [answers[key] for key in keys]

    def _recall(self, keys: Sequence[Key]) -> dict[Key, str]:
        with self._lock:
            known = {key: self._answers[key] for key in keys if key in self._answers}
            for key in known:
                self._answers.move_to_end(key)

        return known

    def _remember(self, answers: dict[Key, str]) -> None:
        with self._lock:
            self._answers |= answers
            while len(self._answers) > self.capacity:
                self._answers.popitem(last=False)


def check_questions(count: int, questions: Sequence[str]) -> None:
    """Refuse a number of questions other than that of the images.

    Raises:
        ValueError: they differ; the message has both numbers.
    """
    if len(questions) != count:
        raise ValueError(
            f"{count} images but {len(questions)} questions; ask one question an image"
        )


def _digest(image: np.ndarray) -> bytes:
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()
