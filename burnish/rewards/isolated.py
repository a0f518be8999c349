"""A model that fails on one image or text costs that one its score, and no other.

A library may raise for one image or one answer alone, and trying again would not help. Then the
items are tried one by one, and only those that fail are missing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from burnish.errors import type_and_message

T = TypeVar("T")
R = TypeVar("R")

FATAL = (MemoryError, torch.OutOfMemoryError, NotImplementedError, NameError, ImportError)
"""Errors that are not about an item: they are raised at once."""


def isolated(
    call: Callable[[Sequence[T]], Sequence[R]],
    items: Sequence[T],
    missing: R,
    what: str,
    *,
    all_may_fail: bool = False,
) -> list[R]:
    """Return one result an item of `call(items)`; where that raises, of each item alone.

    Args:
        call: returns one result an item.
        items: at least one.
        missing: stands for the result of an item for which `call` raises.
        what: the items are, for the warning.
        all_may_fail: do not raise if every item fails: they may be one of many.

    Raises:
        Exception: that of `call`, if every item fails or if it is not about an item.
    """
    try:
        return list(call(items))
    except FATAL:
        raise
    except Exception as error:
        failure = error

    results: list[R] = []
    failed = 0

    for item in items:
        try:
            results += call([item])
        except FATAL:
            raise
        except Exception as error:
            failure = error
            failed += 1
            results.append(missing)

    if failed == len(items) and not all_may_fail:
        raise failure
    if failed:
        warnings.warn(
            f"{failed} of {len(items)} {what} failed and have no score; the last reason: "
            f"{type_and_message(failure)}",
            stacklevel=3,
        )

    return results
