"""Annotations as rules: whether a value fits one, and what to call it in a message.

Standard library only.
"""

from __future__ import annotations

import typing
from types import UnionType
from typing import Any


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value, such as one from TOML, fits an annotation.

    Annotations beyond the types of TOML accept everything.
    """
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)

    if origin in (typing.Union, UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments

    if origin in (list, tuple) or hint in (list, tuple):
        inner = arguments[0] if arguments else Any
        return isinstance(value, (list, tuple)) and all(fits(item, inner) for item in value)
    if origin is dict or hint is dict:
        return isinstance(value, dict)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)

    return isinstance(value, hint) if hint in (str, bool, type(None)) else True


def readable(hint: Any) -> str:
    """Return an annotation in a word that a reader of TOML knows."""
    words = {
        int: "a whole number",
        float: "a number",
        str: "a text",
        bool: "true or false",
        list: "a list",
        tuple: "a list",
        dict: "a table",
    }

    if typing.get_origin(hint) in (list, tuple) and typing.get_args(hint):
        inner = words.get(typing.get_args(hint)[0], "").split(" ", 1)[-1]
        return f"a list of {inner}s" if inner else "a list"

    return words.get(typing.get_origin(hint) or hint, str(hint))
