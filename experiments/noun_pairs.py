"""Prompts of an animal and an object, such as "a cat and a guitar", as settings of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Words = tuple[Sequence[str], Sequence[str]]


def noun_pairs(words: Mapping[str, Words]) -> list[str]:
    """Return a setting for each section: every pair of its animals and objects.

    Args:
        words: (animals, objects) by section, such as "prompts" and "evaluation.unseen".
    """
    return [
        f'{section}={{use="template",text="a {{animal}} and a {{object}}",'
        f"animal={list(animals)},object={list(objects)}}}"
        for section, (animals, objects) in words.items()
    ]
