"""`check_objective`: try an objective on made-up log-probabilities before hours are spent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from burnish.checked import check_loss, check_targets, checked_part, name_of, tensors_of
from burnish.errors import type_and_message
from burnish.types import Replay

DIMS = 256  # of the made-up latents


def check_objective(objective: Any, pairs: int = 6) -> list[str]:
    """Try an objective on made-up log-probabilities and return what is wrong with it.

    Looked for: a misspelt attribute, raising, a result that is no Loss, a loss that is not one
    finite number, no gradient, a gradient that is not finite, a loss that is not the mean over the
    pairs (as if `adv` were not made a column), `logp_old` used without `uses_ratio`, and writing
    into its input.

    Args:
        objective: a callable (replay, adv) -> Loss, or an object of that kind.
        pairs: how many (image, transition) pairs are made up.

    Returns:
        One sentence a finding; an empty list means that nothing was found.

    Example:
        >>> from burnish.rl.objectives import Clipped
        >>> check_objective(Clipped())
        []
    """
    name = name_of(objective)
    if isinstance(objective, type):
        return [f"{name} is a class; give an object of it, such as {objective.__name__}()"]

    try:
        part = checked_part("objective", objective, name)
    except ValueError as error:
        return [str(error)]

    replay, adv = _made_up(part, pairs)
    try:
        loss = check_loss(part(replay, adv), f"objective {name}")
        loss.value.backward()
        if part.compares_images:
            group = torch.arange(pairs) // 2
            targets = part.targets(torch.zeros(pairs, 3), adv.clone(), group, 3)
            check_targets(targets, (pairs, 3), f"objective {name}.targets")
    except Exception as error:
        return [type_and_message(error)]

    findings = _gradient_findings(replay.logp.grad)
    if _writes_into_its_input(objective, part, pairs):
        findings.append("it changes the tensors that it is given: work on copies (tensor.clone())")
    if not findings:
        findings = [*_mean_findings(part, replay, adv), *_ratio_findings(part, replay, adv)]

    return findings


def _made_up(part: Any, pairs: int) -> tuple[Replay, Tensor]:
    """Return log-probabilities (b, 1) and advantages (b,) from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    old = 0.01 * torch.randn(pairs, 1, generator=generator)
    logp = (old + 0.001 * torch.randn(pairs, 1, generator=generator)).requires_grad_()
    adv = torch.randn(pairs, generator=generator)
    if part.imitates:
        adv = adv.abs()

    replay = Replay(logp, old, DIMS)
    if part.process == "reverse":
        replay = replace(replay, std=torch.full((pairs, 1), 0.5))
    if part.uses_old_prediction:
        replay = replace(replay, kl_old=DIMS / 2 * (logp - old).square())
    if part.mixtures:
        replay = replace(replay, mixture_errors=torch.full((pairs, len(part.mixtures)), 0.1))
    if part.kl > 0 or part.compares_with_reference:
        replay = replace(replay, logp_ref=old.clone(), kl=0.1 * (logp - old).square())
    return replay, adv


@torch.no_grad()
def _writes_into_its_input(objective: Any, part: Any, pairs: int) -> bool:
    """Call the objective itself, which in training gets copies, and compare what it was given."""
    replay, adv = _made_up(part, pairs)
    before, adv_before = _made_up(part, pairs)
    objective(replay, adv)
    after = tensors_of(replay)
    unchanged = [torch.equal(value, after[name]) for name, value in tensors_of(before).items()]
    return not (all(unchanged) and torch.equal(adv_before, adv))


def _gradient_findings(gradient: Tensor | None) -> list[str]:
    if gradient is None or not bool(gradient.any()):
        return ["the loss has no gradient: use replay.logp, and do not detach it"]
    if not bool(gradient.isfinite().all()):
        return ["the gradient is not finite"]
    return []


@torch.no_grad()
def _mean_findings(part: Any, replay: Replay, adv: Tensor) -> list[str]:
    """Compare the loss of all pairs with the mean of the losses of each alone."""
    if part.compares_images:
        return []

    alone = [part(_rows(replay, slice(i, i + 1)), adv[i : i + 1]).value for i in range(len(adv))]
    mean = torch.stack(alone).mean()
    if torch.allclose(part(replay, adv).value, mean, rtol=1e-4, atol=1e-8):
        return []
    return [
        "the loss of several pairs is not the mean of their single losses: logp is (b, 1) and adv "
        "(b,), so write adv[:, None], and take the mean"
    ]


@torch.no_grad()
def _ratio_findings(part: Any, replay: Replay, adv: Tensor) -> list[str]:
    """Look whether `logp_old` is read without `uses_ratio`."""
    if part.uses_ratio or part.uses_old_prediction:
        return []

    other = replace(replay, logp_old=replay.logp_old + 1)
    if torch.equal(part(other, adv).value, part(replay, adv).value):
        return []
    if part.process == "forward":
        return ["it reads replay.logp_old: set uses_ratio = True, so that it is kept"]
    return [
        "it reads replay.logp_old: set uses_ratio = True, so that burnish check knows that several "
        "minibatches suit it"
    ]


def _rows(replay: Replay, rows: slice) -> Replay:
    """Return some of the pairs of a replay."""
    chosen: dict[str, Any] = {name: value[rows] for name, value in tensors_of(replay).items()}
    return replace(replay, **chosen)
