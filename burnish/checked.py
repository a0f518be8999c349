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
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from burnish.annotations import fits, readable
from burnish.types import (
    MOST_PROMPTS,
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
from burnish.user_code import (
    NotNumbersError,
    call_user,
    check_signature,
    own_prompts,
    own_scores,
    to_column,
    to_number,
)

MOST_SPARE = 1000
"""Prompts beyond the wanted ones that are taken from a generator, to say how many it gives."""

LIKELY_SLIP = 0.8
"""An attribute whose name is at least this similar to one of the protocol may be a slip."""

RECORD_KEYS = frozenset(
    "iteration images rewards votes control_scale pareto_front zero_advantage missing problems "
    "grad_norm "
    "lr explained_variance seconds_sampling seconds_scoring seconds_training "
    "seconds_waiting".split()
)
"""Keys of a line of log.jsonl that the loop writes itself; a metric must have another name."""

RENAMED: Mapping[str, Mapping[str, str]] = {
    "objective": {"forward": 'process = "forward"'},
    "guidance": {"originals": "needs_original = True"},
    "curriculum": {"learn": "observe(scores)"},
}
"""Attributes of before 0.1.0, and their names now."""


def checked_part(kind: str, part: Any, use: str, called_with: Sequence[str] = ()) -> Any:
    """Return a part that follows its protocol: itself if it is the package's own, else wrapped.

    Args:
        kind: "kernel", "guidance", "advantage", "objective" or "curriculum"; a "reward" is only
            looked at, and others pass.
        part: the object or function.
        use: its name in the configuration, for messages.
        called_with: the names of the arguments that it is called with, if they are known.

    Raises:
        ValueError: it cannot be called, an attribute is misspelt, or has a value that the protocol
            does not know.
    """
    if kind not in WRAPPERS:
        if called_with and not is_built_in(part):
            check_signature(f"{kind} {use}", part, called_with)
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
    if called_with:
        check_signature(f"{kind} {use}", part, called_with)

    wrapped = wrapper()
    wrapped.part = part
    wrapped.name = f"{kind} {use}"
    return wrapped


def checked_prompts(drawn: Any, name: str, count: int | None = None) -> list[Prompt]:
    """Return the prompts that a source or a function gave, if they are prompts.

    A text, a row {"prompt": text, ...} and a pair (text, metadata) are prompts too.

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
            f"return {wanted} texts, rows or burnish.Prompt"
        )

    # a generator may never end
    limit = MOST_PROMPTS if count is None else count + MOST_SPARE
    prompts = call_user(f"the prompt function {name}", lambda: list(islice(drawn, limit + 1)))
    number = f"{len(drawn) if isinstance(drawn, Sized) else len(prompts):,}"
    if not prompts:
        raise ValueError(f"the prompt function {name} returned no prompts")
    if len(prompts) > limit:
        raise ValueError(
            f"the prompt function {name} returned {number} prompts or more, but "
            f"{f'{limit:,} at most' if count is None else count} were wanted"
        )
    if count is not None and len(prompts) != count:
        raise ValueError(
            f"the prompt function {name} returned {number} prompts, but {count} were wanted"
        )

    prompts = [_as_prompt(prompt) for prompt in prompts]
    for row, prompt in enumerate(prompts):
        _check_prompt(prompt, f"the prompt function {name}", row)
    return own_prompts(prompts)


def _as_prompt(value: Any) -> Any:
    """Return the prompt that a text, a row or a pair stands for; anything else as it is."""
    if isinstance(value, str):
        return Prompt(value)
    if isinstance(value, Mapping) and isinstance(value.get("prompt"), str):
        return Prompt(value["prompt"], {k: v for k, v in value.items() if k != "prompt"})
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        return Prompt(*value)
    return value


def _check_prompt(prompt: Any, name: str, row: int) -> None:
    """Refuse what is no prompt with a text and a mapping of metadata."""
    remedy = (
        'return a text, a row {"prompt": text, ...}, a pair (text, metadata) or '
        "burnish.Prompt(text, metadata)"
    )
    if not isinstance(prompt, Prompt) or not isinstance(prompt.text, str):
        wrong = prompt.text if isinstance(prompt, Prompt) else prompt
        raise ValueError(f"{name} returned {describe_value(wrong)} in row {row}; {remedy}")
    if not prompt.text.strip():
        raise ValueError(f"{name} returned an empty text in row {row}; {remedy}")
    if not isinstance(prompt.metadata, Mapping):
        raise ValueError(
            f"{name} returned {describe_value(prompt.metadata)} as metadata in row {row}; give a "
            "dict"
        )
    if not isinstance(prompt.template, str) or "{}" not in prompt.template:
        raise ValueError(
            f"{name} returned the template {prompt.template!r} in row {row}; it must have {{}} "
            "where the text belongs"
        )


# What is returned -------------------------------------------------------------------------------


def check_tensor(
    value: Any,
    shape: tuple[int],
    name: str,
    *,
    boolean: bool = False,
    counted: Tensor | None = None,
) -> Tensor:
    """Return a tensor (B,) of its own on the CPU whose values are all finite.

    Args:
        value: what a user's function returned: a tensor, or numbers in a row.
        shape: (B,).
        name: of the function, for messages.
        boolean: it must be of booleans, which are returned; otherwise float64.
        counted: (B,) bool, the rows that matter; the others become 0.

    Raises:
        ValueError: it is something else; the message begins with `name`.
    """
    wanted = "booleans" if boolean else "numbers"
    if isinstance(value, Tensor) and tuple(value.shape) != shape:
        raise ValueError(f"{name} returned shape {tuple(value.shape)}; it must return {shape}")
    if isinstance(value, Tensor) and value.is_complex():
        raise ValueError(f"{name} returned complex numbers; return real ones")
    if boolean and isinstance(value, Tensor) and value.dtype != torch.bool:
        raise ValueError(f"{name} returned {value.dtype}; it must return torch.bool")

    try:
        tensor: Tensor = call_user(name, to_column, value, shape[0])
    except NotNumbersError as error:
        raise ValueError(
            f"{name} returned {error}; return a tensor of {wanted} of shape {shape}"
        ) from None

    if counted is not None:
        tensor = torch.where(counted.cpu(), tensor, 0.0)
    if not bool(tensor.isfinite().all()):
        row = int((~tensor.isfinite()).nonzero()[0])
        raise ValueError(f"{name} returned a number that is not finite (first: row {row})")
    if boolean and not bool(((tensor == 0) | (tensor == 1)).all()):
        raise ValueError(f"{name} returned numbers other than 0 and 1; return booleans")
    return tensor.bool() if boolean else tensor


def check_targets(value: Any, shape: tuple[int, int], name: str) -> Tensor:
    """Return the targets (b,) of images, or (b, T) of their transitions, float64 on the CPU.

    Args:
        value: what a user's function returned.
        shape: (b, T).
        name: of the function, for messages.

    Raises:
        ValueError: it is something else; the message begins with `name`.
    """
    if isinstance(value, Tensor) and tuple(value.shape) == shape:
        return check_tensor(value.flatten(), (shape[0] * shape[1],), name).view(shape)
    return check_tensor(value, shape[:1], name)


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

    def numbers() -> dict[str, float]:
        if not hasattr(loss.metrics, "items"):
            raise NotNumbersError(describe_value(loss.metrics))
        return {str(key): to_number(value) for key, value in loss.metrics.items()}

    try:
        metrics = call_user(name, numbers)
    except NotNumbersError:
        raise ValueError(
            f"{name} returned metrics that are no mapping from names to numbers"
        ) from None
    if taken := RECORD_KEYS.intersection(metrics):
        raise ValueError(f'{name} returned the metric "{min(taken)}", a name that the loop uses')
    if not bool(loss.value.detach().isfinite()):
        raise ValueError(f"{name} returned the loss {float(loss.value.detach())}")
    if torch.is_grad_enabled() and not loss.value.requires_grad:
        raise ValueError(
            f"{name} returned a loss without a gradient: use replay.logp, and do not detach it"
        )

    return Loss(loss.value, metrics)


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
        if (
            not isinstance(value, Tensor)
            or tuple(value.shape) not in shapes
            or not value.is_floating_point()
        ):
            raise ValueError(
                f"{name} returned {describe_value(value)} as {field}; it must be a tensor of shape "
                f"{shapes[0]}, of floating-point numbers"
            )

    if not bool(gaussian.std.isfinite().all()) or bool((gaussian.std < 0).any()):
        raise ValueError(f"{name} returned a std that is not finite or below 0")
    # where x0 is not finite the weights have diverged, which the loop reports
    if bool(x0.isfinite().all()) and not bool(gaussian.mean.isfinite().all()):
        raise ValueError(f"{name} returned a mean that is not finite, though x0 is")
    return Gaussian(gaussian.mean.clone(), gaussian.std.clone())


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
        if method == "__call__":
            return call_user(self.name, self.part, *arguments)
        return call_user(f"{self.name}.{method}", getattr(self.part, method), *arguments)

    def _state(self) -> dict[str, Any]:
        if not hasattr(self.part, "state_dict"):
            return {}

        state = self._call("state_dict")
        try:
            copied = json.loads(json.dumps(state))
        except (TypeError, ValueError):
            copied = None

        if not isinstance(copied, dict) or copied != state:
            raise ValueError(
                f"{self.name}.state_dict must return a dict of texts, numbers, lists and dicts "
                "with texts as keys, because it is kept as JSON"
            )
        return copied


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
        returned = self._call("__call__", x_t.clone(), x0.clone(), level_t, level_s)
        return check_gaussian(returned, x0, self.name)


@_with_attributes_of(Guidance)
class CheckedGuidance(Checked, Guidance):
    """A user's guidance."""

    def __call__(self, raw: Network, x: Tensor, t: Tensor, cond: Cond, null: Cond) -> Tensor:
        """Return its output.

        Raises:
            ValueError: it raises, or returns something of another shape, or what is not finite
                though the network's output is.
        """
        return self._output("__call__", raw, x, t, cond, null)

    def unguided(self, raw: Network, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Return its output for the prompts alone.

        Without a method for it that is the guidance between the prompts and themselves, so that
        what it tells the network beside the prompt, such as a weight, is not lost.
        """
        if not hasattr(self.part, "unguided"):
            return self(raw, x, t, cond, cond)
        return self._output("unguided", raw, x, t, cond)

    def _output(self, method: str, raw: Network, x: Tensor, t: Tensor, *conds: Cond) -> Tensor:
        network = _WatchedNetwork(raw)
        try:
            given = [_cloned(cond) for cond in conds]
            out = self._call(method, network, x.clone(), t.clone(), *given)
        except ValueError:
            if network.error is not None:
                raise network.error from None
            raise

        if not isinstance(out, Tensor) or out.shape != x.shape or not out.is_floating_point():
            raise ValueError(
                f"{self.name} returned {describe_value(out)}; it must return the network's output "
                f"of shape {tuple(x.shape)}"
            )
        if network.finite and not bool(out.isfinite().all()):
            raise ValueError(
                f"{self.name} returned numbers that are not finite, though the network's are"
            )
        return out.clone()


class _WatchedNetwork:
    """A network as a guidance calls it, which remembers what is not the guidance's fault.

    It works on copies: what its gradient needs must stay as it was.
    """

    def __init__(self, raw: Network) -> None:
        self.raw = raw
        self.finite = True
        self.error: Exception | None = None

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        given = x.clone(), t.clone(), _cloned(cond)
        try:
            out = self.raw(*given)
        except Exception as error:
            self.error = error
            raise

        self.finite = self.finite and bool(out.isfinite().all())
        return out.clone()


def _cloned(cond: Cond) -> Cond:
    return {name: value.clone() for name, value in cond.items()}


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

        returned = self._call("__call__", own_scores(scores), weights.clone(), group.clone())
        adv = check_tensor(returned, (len(group),), self.name, counted=valid).float()
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

        front = self._call("front", own_scores(scores), weights.clone(), group.clone())
        return check_tensor(front, (len(group),), f"{self.name}.front", boolean=True)

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
            ValueError: it raises, or returns no loss; or, when its gradient is taken, that is not
                finite.
        """
        own = _own_replay(replay)
        diverged = not bool(replay.logp.detach().isfinite().all())
        if own.logp.requires_grad and not diverged:
            own.logp.register_hook(self._check_gradient)

        loss = self._call("__call__", own, adv.clone())
        if isinstance(loss, Loss) and diverged:
            return loss  # the weights have diverged, which the optimizer step reports
        return check_loss(loss, self.name)

    def _check_gradient(self, gradient: Tensor) -> None:
        if not bool(gradient.isfinite().all()):
            raise ValueError(
                f"{self.name} has a gradient that is not finite, such as that of a square root or "
                "a logarithm at 0"
            )

    def learns_from(self, adv: Tensor, group: Tensor) -> Tensor:
        """Return the images (b,) bool that its loss is about; all, if it does not say.

        Raises:
            ValueError: it raises, or returns something else.
        """
        if not hasattr(self.part, "learns_from"):
            return super().learns_from(adv, group)

        chosen = self._call("learns_from", adv.clone(), group.clone())
        return check_tensor(chosen, (len(adv),), f"{self.name}.learns_from", boolean=True)

    def targets(self, change: Tensor, adv: Tensor, group: Tensor, transitions: int) -> Tensor:
        """Return its targets (b,) or (b, T).

        Raises:
            ValueError: it raises, or returns something else.
        """
        targets = self._call("targets", change.clone(), adv.clone(), group.clone(), transitions)
        return check_targets(targets, (len(adv), change.shape[1]), f"{self.name}.targets").to(adv)


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
            number: float = call_user(self.name, to_number, scale)
        except NotNumbersError as error:
            raise ValueError(f"{self.name} returned {error}; return a control scale") from None

        if not (math.isfinite(number) and number >= 0):
            raise ValueError(f"{self.name} returned the control scale {number}; it must be >= 0")
        return number

    def observe(self, scores: Scores) -> None:
        """Let it take in the rewards, if it has a method for that."""
        if hasattr(self.part, "observe"):
            self._call("observe", own_scores(scores))

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


def tensors_of(replay: Replay) -> dict[str, Tensor]:
    """Return the tensors of a replay by name."""
    return {name: value for name, value in vars(replay).items() if isinstance(value, Tensor)}


def _own_replay(replay: Replay) -> Replay:
    """Return a replay whose tensors are copies; gradients go through to the original's."""
    copies: dict[str, Any] = {name: value.clone() for name, value in tensors_of(replay).items()}
    return replace(replay, **copies)


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
