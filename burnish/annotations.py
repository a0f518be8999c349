"""Annotations as rules: whether a value fits one, and what to call it in a message.

An annotation is a type, or a type with rules: `Annotated[float, Bounds(0, 1)]`. What a TOML or JSON
file says is checked against the annotations of the dataclass, function or `TypedDict` that takes
it, so that there is one place to say what is allowed. Standard library only.
"""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar

LARGEST = 3.4e38
"""Numbers beyond this are infinite in float32."""

LARGEST_INT = 2**63 - 1
"""Whole numbers beyond this fit no tensor."""


R = TypeVar("R", bound="Rule")


class Rule:
    """A demand of an annotation beside the type."""

    def wanted(self, value: Any) -> str:
        """Return what the value must be, such as "at least 1"; "" if it is."""
        return ""


@dataclass(frozen=True)
class Bounds(Rule):
    """The range of a number; an open end does not belong to it."""

    least: float = -math.inf
    most: float = math.inf
    open_least: bool = False
    open_most: bool = False

    def wanted(self, value: Any) -> str:
        """Return the range in words; "" if the value lies in it."""
        above = value > self.least if self.open_least else value >= self.least
        below = value < self.most if self.open_most else value <= self.most
        if above and below:
            return ""

        words = []
        if self.least > -math.inf:
            words.append(f"{'more than' if self.open_least else 'at least'} {self.least:g}")
        if self.most < math.inf:
            words.append(f"{'less than' if self.open_most else 'at most'} {self.most:g}")
        return " and ".join(words)


@dataclass(frozen=True)
class Device(Rule):
    """A device by torch's name; whether this machine has it is another question."""

    def wanted(self, value: Any) -> str:
        """Return the names of devices; "" if the value is one."""
        return (
            ""
            if re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?|mps", value)
            else ('"auto", "cpu", "cuda", "cuda:1" or "mps"')
        )


@dataclass(frozen=True)
class IsPath(Rule):
    """Marks a text as a path, which is relative to the file it stands in.

    Attributes:
        hub: it may also be `zoo:NAME` or an id on the hub.
        names: it may also be one of these.
    """

    hub: bool = False
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class ArgumentsOf(Rule):
    """Marks a table whose keys are arguments of a function or class, named as "module:name".

    Attributes:
        bound: its first parameters that are given in another way.
    """

    function: str
    bound: int = 0


Count = Annotated[int, Bounds(1)]
CountOrZero = Annotated[int, Bounds(0)]
Positive = Annotated[float, Bounds(0, open_least=True)]
PositiveOrZero = Annotated[float, Bounds(0)]
DeviceName = Annotated[str, Device()]
FilePath = Annotated[str, IsPath()]
ModelPath = Annotated[str, IsPath(hub=True)]
EMOJI_ENDINGS = "emoji-endings"
"""The value of `expander.start` that names a file of the package."""
ExpansionsPath = Annotated[str, IsPath(names=(EMOJI_ENDINGS,))]


def marks(hint: Any, kind: type[R]) -> list[R]:
    """Return the rules of one kind in an annotation, also in the parts of a union."""
    annotated = (hint, *typing.get_args(hint))
    found = (rule for one in annotated for rule in getattr(one, "__metadata__", ()))
    return [rule for rule in found if isinstance(rule, kind)]


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value, such as one from TOML, has the type of an annotation.

    Annotations beyond the types of TOML accept everything.
    """
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)

    if origin is Annotated:
        return fits(value, arguments[0])
    if origin in (typing.Union, UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return any(value is one or (type(value) is type(one) and value == one) for one in arguments)

    if origin in (list, tuple) or hint in (list, tuple):
        return isinstance(value, (list, tuple)) and _items_fit(value, origin, arguments)
    if origin is dict or hint is dict or typing.is_typeddict(hint):
        return isinstance(value, Mapping)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (None, NoneType):
        return value is None

    return isinstance(value, hint) if hint in (str, bool) else True


def complaint(value: Any, hint: Any, name: str) -> str:
    """Return what is wrong with a value, with its name first; "" if it fits its annotation.

    Beside the type this checks that numbers are finite and in their range, and whatever lists,
    tables and `TypedDict`s have in them.

    Args:
        value: from TOML or JSON.
        hint: the annotation.
        name: of the value, such as "batch.prompts".
    """
    if type(value) in _plain_types(hint) and not number_complaint(value, name):
        return ""  # most of what there is in a log

    label = name or "the file"
    if typing.get_origin(hint) is typing.Literal and isinstance(value, str):
        return "" if fits(value, hint) else f"{label} = {shown(value)}; it must be {readable(hint)}"
    if not fits(value, hint):
        return f"{label} = {shown(value)} is of the wrong type; it wants {readable(hint)}" + (
            f", such as {int(value)}" if _is_whole(value) else ""
        )

    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)

    if origin is Annotated:
        base, *rules = arguments
        wrong = complaint(value, base, name)
        wanted = "" if wrong else _first_wanted(value, rules)
        return f"{label} = {shown(value)}; it must be {wanted}" if wanted else wrong
    if origin in (typing.Union, UnionType):
        found = [complaint(value, one, name) for one in arguments if fits(value, one)]
        return "" if "" in found else found[0]

    inner = _inner(value, hint, origin, arguments, name)
    if inner or isinstance(value, (Mapping, list, tuple, str, NoneType)):
        return inner
    return number_complaint(value, label)


def number_complaint(value: Any, name: str) -> str:
    """Return what is wrong with a number that no tensor can hold; "" otherwise."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{name} = {value}; it must be a finite number"
    if isinstance(value, int) and abs(value) > LARGEST_INT:
        return f"{name} is too large; it must be less than 2^63"
    if isinstance(value, float) and abs(value) > LARGEST:
        return f"{name} = {value} is too large; it must be less than {LARGEST}"
    return ""


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
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)

    if origin is Annotated:
        return readable(arguments[0])
    if origin in (typing.Union, UnionType):
        return " or ".join(readable(one) for one in arguments if one is not NoneType)
    if origin is typing.Literal:
        return " or ".join(f'"{one}"' if isinstance(one, str) else str(one) for one in arguments)
    if origin in (list, tuple) and arguments:
        inner = readable(arguments[0]).removeprefix("a ")
        fixed = origin is tuple and Ellipsis not in arguments
        many = f"{len(arguments)} " if fixed else ""
        simple = (typing.get_origin(arguments[0]) or arguments[0]) in words
        return f"a list of {many}{inner}s" if simple else "a list"
    if typing.is_typeddict(hint):
        return "a table"

    return words.get(origin or hint, str(hint))


def shown(value: Any) -> str:
    """Return a value as it may stand in a message: on one line, and not too long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of 5,000 digits
        return "a value of great length"
    return text if len(text) <= 100 else f"{text[:97]}..."


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer() and abs(value) < LARGEST_INT


def _items_fit(value: Any, origin: Any, arguments: tuple[Any, ...]) -> bool:
    if origin is tuple and arguments and Ellipsis not in arguments:
        return len(value) == len(arguments) and all(map(fits, value, arguments))

    inner = arguments[0] if arguments else Any
    return all(fits(item, inner) for item in value)


def _first_wanted(value: Any, rules: list[Any]) -> str:
    found = (rule.wanted(value) for rule in rules if isinstance(rule, Rule))
    return next((wanted for wanted in found if wanted), "")


def _inner(value: Any, hint: Any, origin: Any, arguments: tuple[Any, ...], name: str) -> str:
    """Return the first complaint about what is in a list or a table; "" if there is none."""
    found: typing.Iterable[str] = ()

    if typing.is_typeddict(hint):
        hints, required = _keys(hint)
        missing = [key for key in required if key not in value]
        if missing:
            return f"{name or 'the file'} has no {missing[0]}"

        names = [key for key in hints if key in value]
        found = (complaint(value[key], hints[key], _join(name, key)) for key in names)
    elif origin is dict and len(arguments) == 2:
        found = (complaint(item, arguments[1], _join(name, key)) for key, item in value.items())
    elif origin in (list, tuple) and arguments:
        fixed = origin is tuple and Ellipsis not in arguments
        hints_of = arguments if fixed else [arguments[0]] * len(value)
        found = (
            complaint(item, one, _join(name, index))
            for index, (item, one) in enumerate(zip(value, hints_of, strict=True))
        )

    return next((one for one in found if one), "")


@cache
def _keys(table: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the annotation of each key of a `TypedDict`, and the keys that it must have."""
    hints = typing.get_type_hints(table, include_extras=True)
    required = tuple(key for key, one in hints.items() if _is_required(table, one))
    return {key: _bare(one) for key, one in hints.items()}, required


def _plain_types(hint: Any) -> frozenset[type]:
    """Return the types whose values fit an annotation as they are, but for too large numbers."""
    try:
        return _cached_plain_types(hint)
    except TypeError:  # a rule that cannot be remembered
        return frozenset()


@cache
def _cached_plain_types(hint: Any) -> frozenset[type]:
    if typing.get_origin(hint) in (typing.Union, UnionType):
        return frozenset().union(*map(_plain_types, typing.get_args(hint)))
    if hint is float:
        return frozenset({float, int})
    if hint in (None, NoneType):
        return frozenset({NoneType})
    return frozenset({hint}) if hint in (int, str, bool) else frozenset()


def _bare(hint: Any) -> Any:
    """Return an annotation of a `TypedDict` without NotRequired."""
    wrapped = typing.get_origin(hint) in (typing.NotRequired, typing.Required)
    return typing.get_args(hint)[0] if wrapped else hint


def _is_required(table: Any, hint: Any) -> bool:
    """Return whether a key of a `TypedDict` must be there, by its annotation.

    `__required_keys__` is wrong where annotations are texts.
    """
    return table.__total__ and typing.get_origin(hint) is not typing.NotRequired


def _join(name: str, key: object) -> str:
    text = str(key)
    text = text if text.isprintable() and len(text) <= 100 else shown(text)
    return f"{name}.{text}" if name else text
