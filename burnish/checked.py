"""The border: parts that a user writes are checked when they are built and each time they return.

A part from outside the package is wrapped: attributes that it does not have take the default of its
protocol in `types`, a misspelt one is refused by name, and each returned value is checked for type,
shape and finiteness, so that a mistake is reported where it is made and not ten functions later.
Attributes are read each time they are needed, so a part may change them while it runs. Parts of the
package itself are tested and pass unwrapped.
"""

from __future__ import annotations

import inspect
import json
import math
import traceback
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import Tensor

from burnish.annotations import fits, readable
from burnish.errors import type_and_message
from burnish.types import (
    Advantage,
    Cond,
    Curriculum,
    Gaussian,
    Guidance,
    Kernel,
    Level,
    Loss,
    Network,
    Objective,
    Prompt,
    Replay,
    Scores,
    describe_value,
)

LIKELY_SLIP = 0.8
"""An attribute whose name is at least this similar to one of the protocol may be a slip."""

RECORD_KEYS = frozenset(
    "iteration images rewards control_scale pareto_front zero_advantage missing problems grad_norm "
    "lr explained_variance seconds_sampling seconds_scoring seconds_training".split()
)
"""Keys of a line of log.jsonl that the loop writes itself; a metric must have another name."""

RENAMED: Mapping[str, Mapping[str, str]] = {
    "objective": {"forward": 'process = "forward"'},
    "guidance": {"originals": "needs_original = True"},
    "curriculum": {"learn": "observe(scores)"},
}
"""Attributes of before 0.1.0, and their names now."""


def checked_part(kind: str, part: Any, use: str) -> Any:
    """Return a part that follows its protocol: itself if it is the package's own, else wrapped.

    Args:
        kind: "kernel", "guidance", "advantage", "objective" or "curriculum"; others pass.
        part: the object or function.
        use: its name in the configuration, for messages.

    Raises:
        ValueError: it cannot be called, an attribute is misspelt, or has a value that the protocol
            does not know.
    """
    if kind not in WRAPPERS:
        return part

    protocol, wrapper = WRAPPERS[kind]
    if isinstance(part, type):
        raise ValueError(
            f"{kind} {use} is a class; give an object of it, such as {part.__name__}()"
        )
    if is_built_in(part):
        if protocol not in type(part).__mro__:
            raise ValueError(f"{use} is no {kind}; burnish list shows which there are")
        return part

    inherited = protocol in type(part).__mro__ and type(part).__call__ is protocol.__call__
    if not callable(part) or inherited:
        raise ValueError(f"{kind} {use} cannot be called: give it a __call__ method of its own")

    _refuse_misspelt(kind, part, use, protocol)
    for name, hint in typing.get_type_hints(protocol).items():
        _check_value(kind, use, name, getattr(part, name, getattr(protocol, name)), hint)
    _check_methods(kind, part, use)

    wrapped = wrapper()
    wrapped.part = part
    wrapped.name = f"{kind} {use}"
    return wrapped


def checked_prompts(drawn: Any, name: str, count: int | None = None) -> list[Prompt]:
    """Return the prompts that a source or a function gave, if they are prompts.

    Args:
        drawn: what it returned.
        name: of the source, for messages.
        count: how many were wanted; None: any number but 0.

    Raises:
        ValueError: it returned something else; the message names the function and the row.
    """
    wanted = "a list of" if count is None else f"a list of {count}"
    if isinstance(drawn, (str, Mapping)) or not isinstance(drawn, Iterable):
        raise ValueError(
            f"the prompt function {name} returned {describe_value(drawn)}; "
            f"return {wanted} burnish.Prompt"
        )

    prompts = list(drawn)
    if not prompts:
        raise ValueError(f"the prompt function {name} returned no prompts")
    if count is not None and len(prompts) != count:
        raise ValueError(
            f"the prompt function {name} returned {len(prompts)} prompts, but {count} were wanted"
        )

    for row, prompt in enumerate(prompts):
        if not isinstance(prompt, Prompt) or not isinstance(prompt.text, str):
            wrong = prompt.text if isinstance(prompt, Prompt) else prompt
            raise ValueError(
                f"the prompt function {name} returned {describe_value(wrong)} in row {row}; "
                "return burnish.Prompt(text, metadata)"
            )

    return prompts


# What is returned -------------------------------------------------------------------------------


def check_tensor(value: Any, shape: tuple[int, ...], name: str, *, boolean: bool = False) -> Tensor:
    """Return a tensor of this shape whose values are all finite.

    Raises:
        ValueError: it is something else; the message begins with `name`.
    """
    if isinstance(value, Tensor):
        tensor = value
    else:
        try:
            tensor = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            wanted = "booleans" if boolean else "numbers"
            raise ValueError(
                f"{name} returned {describe_value(value)}; return a tensor of {wanted}"
            ) from None

    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} returned shape {tuple(tensor.shape)}; it must return {shape}")
    if boolean and tensor.dtype != torch.bool:
        raise ValueError(f"{name} returned {tensor.dtype}; it must return torch.bool")
    if tensor.is_complex():
        raise ValueError(f"{name} returned complex numbers; return real ones")

    if not bool(tensor.isfinite().all()):
        row = int((~tensor.isfinite()).flatten().nonzero()[0])
        raise ValueError(f"{name} returned a number that is not finite (first: row {row})")
    return tensor


def check_loss(loss: Any, name: str) -> Loss:
    """Return the loss, if it is a `Loss` with one finite number that has a gradient.

    Raises:
        ValueError: it is something else; the message begins with `name`.
    """
    if not isinstance(loss, Loss):
        raise ValueError(
            f"{name} returned {describe_value(loss)}; return burnish.Loss(value, metrics), where "
            "value is a tensor with one number"
        )
    if not isinstance(loss.value, Tensor) or loss.value.dim() != 0:
        raise ValueError(
            f"{name} returned a loss of {describe_value(loss.value)}; its value must be a tensor "
            "with one number, such as (...).mean()"
        )
    if not isinstance(loss.metrics, Mapping) or not all(
        isinstance(value, (int, float)) for value in loss.metrics.values()
    ):
        raise ValueError(f"{name} returned metrics that are no mapping from names to numbers")
    if taken := RECORD_KEYS.intersection(loss.metrics):
        raise ValueError(f'{name} returned the metric "{min(taken)}", a name that the loop uses')
    if not bool(loss.value.detach().isfinite()):
        raise ValueError(f"{name} returned the loss {float(loss.value.detach())}")
    if torch.is_grad_enabled() and not loss.value.requires_grad:
        raise ValueError(
            f"{name} returned a loss without a gradient: use replay.logp, and do not detach it"
        )

    return loss


def check_gaussian(gaussian: Any, x0: Tensor, name: str) -> Gaussian:
    """Return the Gaussian, if it is one over latents of the shape of `x0` (B, *latent).

    Raises:
        ValueError: it is something else; the message begins with `name`.
    """
    if not isinstance(gaussian, Gaussian):
        raise ValueError(
            f"{name} returned {describe_value(gaussian)}; return burnish.Gaussian(mean, std)"
        )

    column = (len(x0), *[1] * (x0.dim() - 1))
    for field, value, shapes in (
        ("mean", gaussian.mean, [tuple(x0.shape)]),
        ("std", gaussian.std, [column, (1, *column[1:])]),
    ):
        if not isinstance(value, Tensor) or tuple(value.shape) not in shapes:
            raise ValueError(
                f"{name} returned {describe_value(value)} as {field}; it must be a tensor of shape "
                f"{shapes[0]}"
            )

    if not bool(gaussian.std.isfinite().all()) or bool((gaussian.std < 0).any()):
        raise ValueError(f"{name} returned a std that is not finite or below 0")
    return gaussian


def name_of(part: Any) -> str:
    """Return the name of a function or of an object's class, with its file's or module's name."""
    if isinstance(part, partial):
        return name_of(part.func)

    named = part if hasattr(part, "__qualname__") else type(part)
    module = str(named.__module__).rpartition(".")[2]
    return f"{module}.{named.__qualname__}"


def is_built_in(part: Any) -> bool:
    """Return whether a part, or what it binds arguments to, is defined in this package."""
    if isinstance(part, partial):
        return is_built_in(part.func)

    named = part if hasattr(part, "__qualname__") else type(part)
    return str(getattr(named, "__module__", "")).startswith("burnish.")


# The wrappers -----------------------------------------------------------------------------------


class Checked:
    """A user's part with its name for messages.

    Attributes:
        part: the object or function.
        name: its kind and its name in the configuration.
    """

    part: Any
    name: str

    def _call(self, method: str, *arguments: Any) -> Any:
        """Return what the part returns; an exception in it is reported with its name and place."""
        function = self.part if method == "__call__" else getattr(self.part, method)
        try:
            return function(*arguments)
        except (torch.OutOfMemoryError, KeyboardInterrupt):
            raise
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            called = self.name if method == "__call__" else f"{self.name}.{method}"
            raise ValueError(
                f"{called} raised {type_and_message(error)} ({frame.filename}:{frame.lineno})"
            ) from error

    def _state(self) -> dict[str, Any]:
        if not hasattr(self.part, "state_dict"):
            return {}

        state = self._call("state_dict")
        try:
            same = json.loads(json.dumps(state)) == state
        except (TypeError, ValueError):
            same = False

        if not isinstance(state, dict) or not same:
            raise ValueError(
                f"{self.name}.state_dict must return a dict of texts, numbers, lists and dicts "
                "with texts as keys, because it is kept as JSON"
            )
        return state


def _with_attributes_of(protocol: type) -> Callable[[type], type]:
    """Return a class decorator: the protocol's attributes are read from the part each time."""

    def decorate(wrapper: type) -> type:
        for name in typing.get_type_hints(protocol):
            default = getattr(protocol, name)
            setattr(wrapper, name, property(_reader(name, default)))
        return wrapper

    return decorate


def _reader(name: str, default: Any) -> Callable[[Checked], Any]:
    return lambda checked: getattr(checked.part, name, default)


@_with_attributes_of(Kernel)
class CheckedKernel(Checked, Kernel):
    """A user's kernel."""

    def __call__(self, x_t: Tensor, x0: Tensor, level_t: Level, level_s: Level) -> Gaussian:
        """Return its Gaussian.

        Raises:
            ValueError: it raises, or returns no Gaussian over latents of this shape.
        """
        return check_gaussian(self._call("__call__", x_t, x0, level_t, level_s), x0, self.name)


@_with_attributes_of(Guidance)
class CheckedGuidance(Checked, Guidance):
    """A user's guidance."""

    def __call__(self, raw: Network, x: Tensor, t: Tensor, cond: Cond, null: Cond) -> Tensor:
        """Return its output.

        Raises:
            ValueError: it returns something of another shape.
        """
        out = self.part(raw, x, t, cond, null)
        if not isinstance(out, Tensor) or out.shape != x.shape:
            raise ValueError(
                f"{self.name} returned {describe_value(out)}; it must return the network's output "
                f"of shape {tuple(x.shape)}"
            )
        return out


@_with_attributes_of(Advantage)
class CheckedAdvantage(Checked, Advantage):
    """A user's advantage. It gets copies, and an iteration without a valid image is not its own."""

    def __call__(self, scores: Scores, weights: Tensor, group: Tensor) -> Tensor:
        """Return its advantages (B,) float32; 0 for images that lack a reward.

        Raises:
            ValueError: it raises, or returns no finite number for a valid image, or one below 0
                though it imitates.
        """
        valid = scores.valid
        if not bool(valid.any()):
            return torch.zeros(len(group))

        returned = self._call("__call__", _copied(scores), weights.clone(), group.clone())
        adv = check_tensor(_zero_where(returned, ~valid), (len(group),), self.name)
        adv = adv.detach().float().cpu()
        if not bool(adv.isfinite().all()):
            raise ValueError(f"{self.name} returned a number beyond float32")
        if self.imitates and bool((adv < 0).any()):
            raise ValueError(f"{self.name} imitates, but returned a weight below 0")
        if self.selects and bool(adv[~self.front(scores, weights, group)].any()):
            raise ValueError(f"{self.name} selects, but an image outside its front is not 0")
        return adv

    def front(self, scores: Scores, weights: Tensor, group: Tensor) -> Tensor:
        """Return its selected images (B,) bool.

        Raises:
            ValueError: it raises, or returns something else.
        """
        if not hasattr(self.part, "front"):
            return scores.valid

        front = self._call("front", _copied(scores), weights.clone(), group.clone())
        return check_tensor(front, (len(group),), f"{self.name}.front", boolean=True).cpu()

    def state_dict(self) -> dict[str, Any]:
        """Return its memory."""
        return self._state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore its memory."""
        self._call("load_state_dict", state)


@_with_attributes_of(Objective)
class CheckedObjective(Checked, Objective):
    """A user's objective."""

    def __call__(self, replay: Replay, adv: Tensor) -> Loss:
        """Return its loss.

        Raises:
            ValueError: it raises, or returns no loss.
        """
        loss = self._call("__call__", replay, adv)
        if isinstance(loss, Loss) and not bool(replay.logp.detach().isfinite().all()):
            return loss  # the weights have diverged, which the optimizer step reports
        return check_loss(loss, self.name)

    def targets(self, change: Tensor, adv: Tensor, group: Tensor, transitions: int) -> Tensor:
        """Return its targets (b,).

        Raises:
            ValueError: it raises, or returns something else.
        """
        targets = self._call("targets", change, adv, group, transitions)
        return check_tensor(targets, (len(adv),), f"{self.name}.targets").detach().to(adv)


@_with_attributes_of(Curriculum)
class CheckedCurriculum(Checked, Curriculum):
    """A user's curriculum."""

    def __call__(self, progress: float, generator: torch.Generator) -> float:
        """Return its control scale.

        Raises:
            ValueError: it raises, or returns no finite number of at least 0.
        """
        scale = self._call("__call__", progress, generator)
        try:
            number = float(scale)
        except (TypeError, ValueError):
            raise ValueError(
                f"{self.name} returned {describe_value(scale)}; return a control scale"
            ) from None

        if not (math.isfinite(number) and number >= 0):
            raise ValueError(f"{self.name} returned the control scale {number}; it must be >= 0")
        return number

    def observe(self, scores: Scores) -> None:
        """Let it take in the rewards, if it has a method for that."""
        if hasattr(self.part, "observe"):
            self._call("observe", _copied(scores))

    def state_dict(self) -> dict[str, Any]:
        """Return its memory."""
        return self._state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore its memory."""
        self._call("load_state_dict", state)


WRAPPERS: dict[str, tuple[Any, type]] = {
    "kernel": (Kernel, CheckedKernel),
    "guidance": (Guidance, CheckedGuidance),
    "advantage": (Advantage, CheckedAdvantage),
    "objective": (Objective, CheckedObjective),
    "curriculum": (Curriculum, CheckedCurriculum),
}


def _copied(scores: Scores) -> Scores:
    """Return scores of their own for user code, which must not spoil the loop's."""
    target = None if scores.target_reward is None else scores.target_reward.clone()
    return Scores(scores.parts.clone(), scores.names, scores.problems, target)


def _zero_where(value: Any, rows: Tensor) -> Any:
    """Return a tensor (B,) with 0 in these rows; anything else as it is."""
    if not isinstance(value, Tensor) or value.shape != rows.shape:
        return value
    return torch.where(rows.to(value.device), torch.zeros_like(value), value)


# The attributes ---------------------------------------------------------------------------------


def _protocol_names(protocol: type) -> list[str]:
    methods = [name for name, value in vars(protocol).items() if callable(value)]
    names = {*typing.get_type_hints(protocol), *methods}
    return sorted(name for name in names if not name.startswith("_"))


def own_names(part: Any) -> list[str]:
    """Return the names of the attributes that a user gave a part, in its classes and in itself."""
    if inspect.isfunction(part) or isinstance(part, partial):
        return sorted(vars(part))

    classes = [base for base in type(part).__mro__ if not _is_foreign(base)]
    names = {name for base in classes for name in (*vars(base), *inspect.get_annotations(base))}
    return sorted(names | set(getattr(part, "__dict__", {})))


def _is_foreign(base: type) -> bool:
    """Return whether a base class is not the user's: of the package, of Python or of torch."""
    library = base.__module__.split(".")[0]
    return library in ("burnish", "builtins", "typing", "functools", "abc", "torch")


def _refuse_misspelt(kind: str, part: Any, use: str, protocol: Any) -> None:
    """Refuse an attribute that is nearly one of the protocol's, or that was one before."""
    known = _protocol_names(protocol)
    hints = typing.get_type_hints(protocol)

    for name in own_names(part):
        if name.startswith("_") or name in known:
            continue

        value = getattr(part, name, None)
        renamed = RENAMED.get(kind, {}).get(name)
        if renamed and not (name == "forward" and callable(value)):
            raise ValueError(f"{kind} {use} has {name}, which is now {renamed}; rename it")

        close = get_close_matches(name, known, n=1, cutoff=LIKELY_SLIP)
        if close and _could_be(value, close[0], hints):
            raise ValueError(
                f"{kind} {use} has the attribute '{name}', which is none of a part of this kind; "
                f"did you mean '{close[0]}'?"
            )


def _could_be(value: Any, name: str, hints: Mapping[str, Any]) -> bool:
    """Return whether a value may have been meant for this attribute or method of a protocol."""
    if name not in hints:
        return callable(value)

    hint = hints[name]
    if typing.get_origin(hint) is typing.Literal:
        return isinstance(value, str)
    return fits(value, hint)


def _check_value(kind: str, use: str, name: str, value: Any, hint: Any) -> None:
    """Refuse a value that the protocol does not know."""
    if fits(value, hint):
        return

    if typing.get_origin(hint) is typing.Literal:
        known: Sequence[str] = typing.get_args(hint)
        close = get_close_matches(str(value), known, n=1)
        advice = f"did you mean '{close[0]}'?" if close else f"take one of {', '.join(known)}"
    else:
        advice = f"it must be {readable(hint)}"
    raise ValueError(f"{kind} {use} has {name} = {value!r}; {advice}")


def _check_methods(kind: str, part: Any, use: str) -> None:
    """Refuse methods that only make sense together, of which one is missing."""
    if hasattr(part, "state_dict") != hasattr(part, "load_state_dict"):
        raise ValueError(
            f"{kind} {use} has only one of state_dict and load_state_dict; give it both, or a run "
            "cannot go on where it was"
        )

    if kind == "objective":
        compares = bool(getattr(part, "compares_images", False))
        inherited = getattr(type(part), "targets", None) is Objective.targets
        has_targets = callable(getattr(part, "targets", None)) and not inherited
        if compares != has_targets:
            raise ValueError(
                f"objective {use} has only one of compares_images = True and a method targets; "
                "they go together"
            )
