"""The guard against over-optimisation: the reward rises while what it stands for falls.

A reward is a proxy, and a policy that is trained on it for long enough finds images that the reward
likes and nobody else does (DDPO, arXiv 2305.13301, section 6.4). So each evaluation also takes
measures that are not trained on from the same images: a panel of other rewards, the judge,
diversity, and the KL to the untrained model. A measure has fallen if

    the 95 % interval of its paired change since before training lies below 0, and
    the mean of that change is more than `drop` standard deviations of the measure among the
    images before training.

The guard trips when, for `patience` evaluations in a row, a measure has fallen while the reward
has risen, or the KL is over its budget. The best state is that of the last evaluation at which
nothing had fallen. All of this is read from the run directory, so a resumed run decides as an
uninterrupted run does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from burnish.config import Config
from burnish.evaluation.paired import Evaluation, load_evaluation, paired_change
from burnish.files import dumps, write
from burnish.run_files import numbered
from burnish.runs import Run


@dataclass(frozen=True)
class GuardDecision:
    """The guard's decision after an evaluation."""

    iteration: int
    reasons: tuple[str, ...]  # why it is over-optimised; () if it is not
    best: int  # the last iteration without a reason
    tripped: bool


def decide(
    run: Run, config: Config, weights: Tensor, before: Evaluation, until: int
) -> GuardDecision:
    """Return the guard's decision from a run's evaluations up to iteration `until`.

    Args:
        run: the run directory with the evaluations.
        config: the configuration, with the guard's settings.
        weights: (K,) of the rewards.
        before: the evaluation of the training prompts before training.
        until: the last iteration that counts.
    """
    best = 0
    streak = 0
    reasons: tuple[str, ...] = ()

    for iteration in numbered(run.evaluation_file(0).parent, ".json"):
        if not 0 < iteration <= until:
            continue

        now = load_evaluation(run.evaluation_file(iteration))
        if now is None:
            continue

        reasons = over_optimised(before, now["train"], weights, config)
        if reasons:
            streak += 1
        else:
            streak = 0
            best = iteration

    return GuardDecision(until, reasons, best, streak >= config.guard.patience)


def over_optimised(
    before: Evaluation, now: Evaluation, weights: Tensor, config: Config
) -> tuple[str, ...]:
    """Return the reasons, one sentence each, why `now` is over-optimised; () if it is not."""
    reasons = []
    old = before.measures()
    new = now.measures()
    budget = config.guard.kl
    kl = float(torch.tensor(new.pop("kl", []), dtype=torch.float64).nanmean())

    if budget and kl > budget:
        reasons.append(
            f"the KL to the untrained model is {kl:.3g} nats an image, "
            f"over the budget of {budget:g}"
        )

    if float((now.total(weights) - before.total(weights)).nanmean()) <= 0:
        return tuple(reasons)

    rise = _rise(before, now)

    for name in sorted(old.keys() & new.keys()):
        change = paired_change(old[name], new[name], now.images_per_prompt)
        if not change:
            continue

        significant = change["ci95"][1] < 0
        large = -change["paired_mean"] > config.guard.drop * change["spread"]

        if significant and large:
            reasons.append(
                f"{name} fell from {change['before']:.3g} to {change['after']:.3g} while {rise}"
            )

    return tuple(reasons)


def _rise(before: Evaluation, now: Evaluation) -> str:
    """Return what rose: the reward, or the sum of several and what became of each."""
    if len(now.rewards) == 1:
        return "the reward rose"

    changes = []
    for name in now.rewards:
        if change := paired_change(before.reward(name), now.reward(name), now.images_per_prompt):
            changes.append(f"{name} {change['before']:.3g} to {change['after']:.3g}")

    return f"the weighted sum of the rewards rose ({', '.join(changes)})"


def remember(run: Run, decision: GuardDecision, action: str) -> dict[str, Any]:
    """Write what the guard did, and why, to the run's guard.json; return its contents."""
    content = {
        "iteration": decision.iteration,
        "best": decision.best,
        "action": action,
        "reasons": list(decision.reasons),
    }
    write(run.guard, dumps(content, indent=1))
    return content
