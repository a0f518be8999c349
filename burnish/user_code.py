"""Calls of functions that a user wrote: what they are given, what they change, what they return.

A user's function gets copies, so that what it writes into them is its own. What it changes of the
whole process (the current folder, torch's default dtype, ...) is put back. An exception is reported
with the function's name and the line of the user's file. Numbers are taken in every form in which
Python, numpy and torch have them, and copied, so that what is overwritten later is not the loop's.
"""

from __future__ import annotations

import copy
import inspect
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from itertools import islice
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from burnish.errors import place_of, type_and_message
from burnish.types import Prompt, Scores, describe_value


def _current_folder() -> str:
    """Return the current folder; "" where it was removed."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def _go_to(folder: str) -> None:
    if folder:
        os.chdir(folder)


def _record_gradients(enabled: bool) -> None:
    torch.set_grad_enabled(enabled)


def _determinism() -> tuple[bool, bool]:
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    return torch.are_deterministic_algorithms_enabled(), warns


def _set_determinism(settings: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(settings[0], warn_only=settings[1])


def _cudnn() -> tuple[bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return cudnn.enabled, cudnn.benchmark, cudnn.deterministic


def _set_cudnn(settings: tuple[bool, bool, bool]) -> None:
    cudnn = torch.backends.cudnn
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic = settings


SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "the current folder": (_current_folder, _go_to),
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch's default device": (torch.get_default_device, torch.set_default_device),
    "if torch records gradients": (torch.is_grad_enabled, _record_gradients),
    "the precision of torch's products": (
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    "torch's deterministic algorithms": (_determinism, _set_determinism),
    "torch's number of threads": (torch.get_num_threads, torch.set_num_threads),
    "the settings of cuDNN": (_cudnn, _set_cudnn),
}
"""What a function can change for the whole process: how to read it, and how to put it back."""


BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class NotNumbersError(ValueError):
    """A value is not the wanted number of numbers; the message says in a few words what it is."""


def call_user(name: str, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Return what a user's function returns.

    Args:
        name: of the function, for messages.
        function: to call.
        arguments: by position.
        keywords: by name.

    Raises:
        ValueError: it raises, with its name and the line of its file; or it is asynchronous.
    """
    try:
        return call_hook(name, function, *arguments, **keywords)
    except SystemExit as error:
        raise ValueError(f"{name} raised {described(error)}") from error


def call_hook(name: str, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Return what a user's function returns, as `call_user`; what ends programs stays as it is.

    Raises:
        ValueError: it raises, with its name and the line of its file; or it is asynchronous.
    """
    try:
        return run_user(name, function, *arguments, **keywords)
    except (torch.OutOfMemoryError, AsynchronousError, NotNumbersError):
        raise
    except Exception as error:
        raise ValueError(f"{name} raised {described(error)}") from error


def run_user(name: str, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Return what a user's function returns, as `call_user`; what it raises stays as it is.

    Raises:
        AsynchronousError: it has to be awaited.
        RuntimeError: it raises what is no `Exception`, as libraries written in Rust do.
    """
    with settings_kept(name):
        try:
            returned = function(*arguments, **keywords)
        except (Exception, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:
            failure = RuntimeError(type_and_message(error))
            raise failure.with_traceback(error.__traceback__) from error

    if inspect.iscoroutine(returned):
        returned.close()
        raise AsynchronousError(f"{name} is asynchronous; write it with def instead of async def")
    return returned


class AsynchronousError(ValueError):
    """A function has to be awaited, which nothing here does."""


@contextmanager
def settings_kept(name: str) -> Iterator[None]:
    """Put back what the code inside changes of the whole process, and say so in a warning."""
    before = {setting: read() for setting, (read, _) in SETTINGS.items()}
    changed = []

    try:
        yield
    finally:
        for setting, (read, write) in SETTINGS.items():
            if read() != before[setting]:
                write(before[setting])
                changed.append(setting)

    if changed:
        warnings.warn(
            f"{name} changed {' and '.join(changed)}; it was put back, because the whole run "
            "depends on it",
            stacklevel=4,
        )


def check_signature(name: str, function: Any, called_with: Sequence[str]) -> None:
    """Refuse what cannot be called with these arguments, by their places.

    Args:
        name: of the function, for messages.
        function: that a user gave.
        called_with: the names of the arguments.

    Raises:
        ValueError: it is no function, asynchronous, or takes other arguments.
    """
    wanted = ", ".join(called_with)
    if isinstance(function, type):
        raise ValueError(f"{name} is a class; give an object of it, such as {function.__name__}()")
    if not callable(function):
        raise ValueError(f"{name} is {describe_value(function)}; give a function of ({wanted})")
    if any(map(inspect.iscoroutinefunction, (function, type(function).__call__))):
        raise AsynchronousError(f"{name} is asynchronous; write it with def instead of async def")

    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a function in C
        return

    places = [one.name for one in signature.parameters.values() if one.kind in BY_PLACE]
    swapped = set(called_with) <= set(places) and places[: len(called_with)] != list(called_with)
    try:
        signature.bind(*called_with)
        fits = not swapped
    except TypeError:
        fits = False

    if not fits:
        taken = ", ".join(map(str, signature.parameters.values()))
        raise ValueError(
            f"{name} takes ({taken}), but it is called with ({wanted}), in this order; give it "
            "these parameters"
        )


def described(error: BaseException) -> str:
    """Return an error as its type, its message and the line of the user's file where it arose."""
    place = place_of(error)
    return f"{type_and_message(error)} ({place})" if place else type_and_message(error)


# What a function is given -----------------------------------------------------------------------


def own_prompts(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return copies of prompts; what was one object is one object among the copies."""
    copies: dict[int, Prompt] = {}
    for prompt in prompts:
        if id(prompt) not in copies:
            copies[id(prompt)] = replace(prompt, metadata=_own_metadata(prompt.metadata))
    return [copies[id(prompt)] for prompt in prompts]


def own_scores(scores: Scores) -> Scores:
    """Return a copy of scores."""
    target = None if scores.target_reward is None else scores.target_reward.clone()
    return Scores(scores.parts.clone(), scores.names, scores.problems, target)


def _own_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy; an object in it that cannot be copied, such as an open file, is shared."""
    try:
        return dict(copy.deepcopy(metadata))
    except Exception:  # an object's own __deepcopy__ may raise anything
        return dict(metadata)


# What it returns --------------------------------------------------------------------------------


def to_column(values: Any, count: int) -> Tensor:
    """Return `count` numbers as a new tensor (count,), float64 on the CPU; NaN for None.

    Args:
        values: a tensor or an array of shape (count,), or anything with `count` numbers in a row.
        count: how many there must be.

    Raises:
        NotNumbersError: it is something else.
    """
    if isinstance(values, Tensor):
        if values.is_complex() or tuple(values.shape) != (count,):
            raise NotNumbersError(describe_value(values))
        if values.layout != torch.strided:
            values = values.to_dense()
        # first to the CPU: an Apple GPU has no float64
        return values.detach().cpu().to(torch.float64, copy=True)

    shapeless = isinstance(values, np.ndarray) and values.shape != (count,)
    unordered = isinstance(values, (str, bytes, Mapping, Set))
    if shapeless or unordered or not isinstance(values, Iterable):
        raise NotNumbersError(describe_value(values))

    # a masked array's tolist has None for what is masked
    rows = values.tolist() if isinstance(values, np.ndarray) else list(islice(values, count + 1))
    if len(rows) != count:
        more = " or more" if len(rows) > count else ""
        raise NotNumbersError(f"{describe_value(values)} of {len(rows)} entries{more}")

    return torch.tensor(
        [_number_in_row(value, row) for row, value in enumerate(rows)], dtype=torch.float64
    )


def to_number(value: Any) -> float:
    """Return one number as Python's float; NaN for None.

    Args:
        value: a number of Python, numpy or torch.

    Raises:
        NotNumbersError: it is something else, such as a text.
    """
    if value is None:
        return float("nan")
    if isinstance(value, Tensor) and value.dim() == 0:
        value = value.detach().cpu().item()
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()

    if not isinstance(value, (Real, Decimal, np.bool_)):
        raise NotNumbersError(describe_value(value))
    try:
        return float(value)
    except (OverflowError, ValueError) as error:
        raise NotNumbersError(f"the number {str(value)[:20]}..., which no float holds") from error


def _number_in_row(value: Any, row: int) -> float:
    try:
        return to_number(value)
    except NotNumbersError as error:
        raise NotNumbersError(f"{error} in row {row}") from None
