"""The border: parts that a user writes are checked when they are built and each time they return.

A part from outside the package is wrapped: attributes that it does not have take the default of its
protocol in `types`, a misspelt one is refused by name, and each returned value is checked for type,
shape and finiteness, so that a mistake is reported where it is made and not ten functions later.
Parts of the package itself are tested and pass unwrapped.
"""

from __future__ import annotations

import inspect
import math
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

LIKELY_SLIP = 0.75
"""An attribute whose name is at least this similar to one of the protocol is taken for a slip."""


def checked_part(kind: str, part: Any, use: str) -> Any:
    """Return a part that follows its protocol: itself if it is the package's own, else wrapped.

    Args:
        kind: "kernel", "guidance", "advantage", "objective" or "curriculum"; others pass.
        part: the object or function.
        use: its name in the configuration, for messages.

    Raises:
        ValueError: an attribute is misspelt, or has a value that the protocol does not know.
    """
    if kind not in WRAPPERS or _is_built_in(part):
        return part
    if not callable(part):
        raise ValueError(f"{kind} {use} cannot be called: give it a __call__ method")

    protocol, wrapper = WRAPPERS[kind]
    attributes = typing.get_type_hints(protocol)
    _refuse_misspelt(kind, part, use, _protocol_names(protocol))

    wrapped = wrapper()
    wrapped.part = part
    wrapped.name = f"{kind} {use}"

    for name, hint in attributes.items():
        value = getattr(part, name, getattr(protocol, name))
        _check_value(kind, use, name, value, hint)
        setattr(wrapped, name, value)

    return wrapped


def checked_prompts(drawn: Any, count: int, source: Callable[..., Any]) -> list[Prompt]:
    """Return the prompts that a user's function drew, if they are `count` prompts.

    Raises:
        ValueError: it returned something else; the message names the function and the row.
    """
    name = name_of(source)
    if isinstance(drawn, (str, Mapping)) or not isinstance(drawn, Iterable):
        raise ValueError(
            f"the prompt function {name} returned {describe_value(drawn)}; "
            f"return a list of {count} burnish.Prompt"
        )

    prompts = list(drawn)
    if len(prompts) != count:
        raise ValueError(
            f"the prompt function {name} returned {len(prompts)} prompts, but {count} were wanted"
        )

    for row, prompt in enumerate(prompts):
        if not isinstance(prompt, Prompt):
            raise ValueError(
                f"the prompt function {name} returned {describe_value(prompt)} in row {row}; "
                "return burnish.Prompt(text, metadata)"
            )
        if not isinstance(prompt.text, str) or not prompt.text.strip():
            raise ValueError(f"the prompt function {name} returned an empty text in row {row}")

    return prompts


def check_objective(objective: Any, images: int = 6) -> list[str]:
    """Try an objective on made-up log-probabilities and return what is wrong with it.

    Looked for: a misspelt attribute, raising, a result that is no Loss, a loss that is not one
    finite number, no gradient, a gradient that is not finite, and writing into its input.

    Args:
        objective: a callable (replay, adv) -> Loss, or an object of that kind.
        images: how many images, and as many transitions, are made up.

    Returns:
        One sentence a finding; an empty list means that nothing was found.

    Example:
        >>> from burnish.rl.objectives import Clipped
        >>> check_objective(Clipped())
        []
    """
    name = name_of(objective)
    generator = torch.Generator().manual_seed(0)

    try:
        part = objective if _is_built_in(objective) else checked_part("objective", objective, name)
    except ValueError as error:
        return [str(error)]

    old = 0.01 * torch.randn(images, 1, generator=generator)
    logp = (old + 0.001 * torch.randn(images, 1, generator=generator)).requires_grad_()
    adv = torch.randn(images, generator=generator)
    if part.imitates:
        adv = adv.abs()

    before = (logp.detach().clone(), old.clone(), adv.clone())
    kl = 0.1 * (logp - old).square() if part.kl > 0 else None
    replay = Replay(logp, old, dims=256, logp_ref=old if part.kl > 0 else None, kl=kl)

    try:
        loss = part(replay, adv)
        check_loss(loss, f"objective {name}")
        loss.value.backward()
    except Exception as error:
        return [type_and_message(error)]

    findings = []
    if logp.grad is None or not bool(logp.grad.any()):
        findings.append("the loss has no gradient: use replay.logp, and do not detach it")
    elif not bool(logp.grad.isfinite().all()):
        findings.append("the gradient is not finite")
    if not all(torch.equal(a, b) for a, b in zip(before, (logp.detach(), old, adv), strict=True)):
        findings.append("it changes the tensors that it is given: work on copies (tensor.clone())")

    return findings


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
    if tensor.is_complex() or not bool(tensor.isfinite().all()):
        row = 0
        if not tensor.is_complex():
            row = int((~tensor.isfinite()).flatten().nonzero()[0])
        raise ValueError(f"{name} returned a number that is not finite (first: row {row})")

    return tensor


def check_loss(loss: Any, name: str) -> Loss:
    """Return the loss, if it is a `Loss` with one finite number.

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
    if not bool(loss.value.detach().isfinite()):
        raise ValueError(f"{name} returned the loss {float(loss.value.detach())}")

    return loss


def name_of(part: Any) -> str:
    """Return the name of a function or of an object's class, with its file's or module's name."""
    if isinstance(part, partial):
        return name_of(part.func)

    named = part if hasattr(part, "__qualname__") else type(part)
    module = str(named.__module__).rpartition(".")[2]
    return f"{module}.{named.__qualname__}"


# The wrappers -----------------------------------------------------------------------------------


class CheckedKernel(Kernel):
    """A user's kernel."""

    part: Any
    name: str

    def __call__(self, x_t: Tensor, x0: Tensor, level_t: Level, level_s: Level) -> Gaussian:
        """Return its Gaussian, checked.

        Raises:
            ValueError: it is no Gaussian, or its mean has another shape.
        """
        gaussian = self.part(x_t, x0, level_t, level_s)
        if not isinstance(gaussian, Gaussian):
            raise ValueError(
                f"{self.name} returned {describe_value(gaussian)}; "
                "return burnish.Gaussian(mean, std)"
            )
        if gaussian.mean.shape != x0.shape:
            raise ValueError(
                f"{self.name} returned a mean of shape {tuple(gaussian.mean.shape)}; it must have "
                f"the latents' shape {tuple(x0.shape)}"
            )
        return gaussian


class CheckedGuidance(Guidance):
    """A user's guidance."""

    part: Any
    name: str

    def __call__(self, raw: Network, x: Tensor, t: Tensor, cond: Cond, null: Cond) -> Tensor:
        """Return its output, checked.

        Raises:
            ValueError: it is no tensor of the shape of `x`.
        """
        out = self.part(raw, x, t, cond, null)
        if not isinstance(out, Tensor) or out.shape != x.shape:
            raise ValueError(
                f"{self.name} returned {describe_value(out)}; it must return the network's output "
                f"of shape {tuple(x.shape)}"
            )
        return out


class CheckedAdvantage(Advantage):
    """A user's advantage."""

    part: Any
    name: str

    def __call__(self, scores: Scores, weights: Tensor, group: Tensor) -> Tensor:
        """Return its advantages (B,) float32, checked.

        Raises:
            ValueError: they are not B finite numbers, or a weight is below 0.
        """
        adv = self.part(_copied(scores), weights.clone(), group.clone())
        adv = check_tensor(adv, (len(group),), self.name).detach().float().cpu()
        if self.imitates and bool((adv < 0).any()):
            raise ValueError(f"{self.name} imitates, but returned a weight below 0")
        return adv

    def front(self, scores: Scores, weights: Tensor, group: Tensor) -> Tensor:
        """Return its selected images (B,) bool, checked.

        Raises:
            ValueError: they are not B booleans.
        """
        if not hasattr(self.part, "front"):
            return scores.valid
        front = self.part.front(_copied(scores), weights.clone(), group.clone())
        return check_tensor(front, (len(group),), f"{self.name}.front", boolean=True).cpu()

    def state_dict(self) -> dict[str, Any]:
        """Return its memory."""
        return _state_of(self.part, self.name)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore its memory."""
        self.part.load_state_dict(state)


class CheckedObjective(Objective):
    """A user's objective."""

    part: Any
    name: str

    def __call__(self, replay: Replay, adv: Tensor) -> Loss:
        """Return its loss, checked.

        Raises:
            ValueError: it is no `Loss` with one finite number.
        """
        loss = self.part(replay, adv)
        if isinstance(loss, Loss) and not bool(replay.logp.detach().isfinite().all()):
            return loss  # the weights have diverged, which the optimizer step reports
        return check_loss(loss, self.name)

    def targets(self, change: Tensor, adv: Tensor, group: Tensor, transitions: int) -> Tensor:
        """Return its targets (b,), checked.

        Raises:
            ValueError: they are not b finite numbers.
        """
        targets = self.part.targets(change, adv, group, transitions)
        return check_tensor(targets, (len(adv),), f"{self.name}.targets").to(adv)


class CheckedCurriculum(Curriculum):
    """A user's curriculum."""

    part: Any
    name: str

    def __call__(self, progress: float, generator: torch.Generator) -> float:
        """Return its control scale, checked.

        Raises:
            ValueError: it is no finite number, at least 0.
        """
        scale = self.part(progress, generator)
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
        """Let it take in the rewards, if it wants to."""
        if hasattr(self.part, "observe"):
            self.part.observe(_copied(scores))

    def state_dict(self) -> dict[str, Any]:
        """Return its memory."""
        return _state_of(self.part, self.name)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore its memory."""
        self.part.load_state_dict(state)


WRAPPERS: dict[str, tuple[type, type]] = {
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


def _state_of(part: Any, name: str) -> dict[str, Any]:
    if not hasattr(part, "state_dict"):
        return {}

    state = part.state_dict()
    if not isinstance(state, dict):
        raise ValueError(f"{name}.state_dict returned {describe_value(state)}; return a dict")
    return state


def _is_built_in(part: Any) -> bool:
    """Return whether a part, or what it binds arguments to, is defined in this package."""
    if isinstance(part, partial):
        return _is_built_in(part.func)

    named = part if hasattr(part, "__qualname__") else type(part)
    return str(getattr(named, "__module__", "")).startswith("burnish.")


def _protocol_names(protocol: type) -> list[str]:
    methods = [name for name, value in vars(protocol).items() if callable(value)]
    names = {*typing.get_type_hints(protocol), *methods}
    return sorted(name for name in names if not name.startswith("_"))


def _refuse_misspelt(kind: str, part: Any, use: str, known: Sequence[str]) -> None:
    """Refuse an attribute of a user's class whose name is nearly one of the protocol's."""
    classes = [base for base in type(part).__mro__ if not _is_foreign(base)]
    names = {name for base in classes for name in (*vars(base), *inspect.get_annotations(base))}

    for name in sorted(names):
        if name.startswith("_") or name in known:
            continue
        if close := get_close_matches(name, known, n=1, cutoff=LIKELY_SLIP):
            raise ValueError(
                f"{kind} {use} has the attribute '{name}', which a {kind} does not have; did you "
                f"mean '{close[0]}'?"
            )


def _is_foreign(base: type) -> bool:
    """Return whether a base class is not the user's: of the package or of Python."""
    return base.__module__.split(".")[0] in ("burnish", "builtins", "typing", "functools", "abc")


def _check_value(kind: str, use: str, name: str, value: Any, hint: Any) -> None:
    """Refuse an attribute whose value is none that its protocol knows."""
    if fits(value, hint):
        return

    advice = f"it must be {readable(hint)}"
    if typing.get_origin(hint) is typing.Literal:
        known = typing.get_args(hint)
        close = get_close_matches(str(value), known, n=1)
        advice = f"did you mean '{close[0]}'?" if close else f"take one of {', '.join(known)}"

    raise ValueError(f"{kind} {use} has {name} = {value!r}; {advice}")
