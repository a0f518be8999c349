"""Over-optimisation: the reward climbs while what it stands for falls. Found out, and undone.

A reward is a proxy, and a policy trained on it long enough finds what the reward likes and nobody
else does (DDPO, arXiv 2305.13301, section 6.4). So at each evaluation measures that are not trained
on are taken from the same
pictures: a panel of other rewards, the judge, diversity, the KL to the untrained model. A measure
has fallen if

    its paired change since before training lies below 0 with its whole 95 % interval, and
    the mean of that change is more than ``drop`` standard deviations that the measure had among the
    images before.

The guard trips when for ``patience`` evaluations in a row a measure has fallen while the reward has
risen, or the KL is over its budget. The best state is the last before, at which nothing had fallen.
All of this is read from the run directory, so a resumed run judges as an uninterrupted one does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from burnish.config import Config
from burnish.evaluation.paired import Evaluation, change, load_evaluation
from burnish.runs import Run, dumps, write


@dataclass(frozen=True)
class Verdict:
    """What the guard says after an evaluation."""

    iteration: int
    reasons: tuple[str, ...]  # why it is over-optimised; () if it is not
    best: int  # the last iteration without a reason
    tripped: bool


def verdict(run: Run, config: Config, weights: Tensor, before: Evaluation, until: int) -> Verdict:
    """What a run's evaluations amount to after iteration ``until``; ``before`` is the one before
    training.
    """
    best = 0
    streak = 0
    reasons: tuple[str, ...] = ()

    for iteration in sorted(int(path.stem) for path in run.measured(0).parent.glob("[0-9]*.json")):
        now = load_evaluation(run.measured(iteration)) if 0 < iteration <= until else None
        if now is not None:
            reasons = over_optimised(before, now["train"], weights, config)
            streak, best = (streak + 1, best) if reasons else (0, iteration)

    return Verdict(until, reasons, best, streak >= config.guard.patience)


def over_optimised(
    before: Evaluation, now: Evaluation, weights: Tensor, config: Config
) -> tuple[str, ...]:
    """The reasons to say so, one sentence each."""
    reasons = []
    old = before.measures()
    new = now.measures()
    budget = config.guard.kl
    spent = float(torch.tensor(new.pop("kl", []), dtype=torch.float64).nanmean())

    if budget and spent > budget:
        reasons.append(
            f"the KL to the untrained model is {spent:.3g} nats an image, over the budget of {budget:g}"
        )

    if float((now.total(weights) - before.total(weights)).nanmean()) <= 0:
        return tuple(reasons)

    for name in sorted(old.keys() & new.keys()):
        seen = change(old[name], new[name], now.images_per_prompt)

        if (
            seen
            and seen["ci95"][1] < 0
            and -seen["paired_mean"] > config.guard.drop * seen["spread"]
        ):
            reasons.append(
                f"{name} fell from {seen['before']:.3g} to {seen['after']:.3g} while the reward rose"
            )

    return tuple(reasons)


def remember(run: Run, said: Verdict, action: str) -> None:
    """Write what the guard did."""
    about = {
        "iteration": said.iteration,
        "best": said.best,
        "action": action,
        "reasons": list(said.reasons),
    }
    write(run.guard, dumps(about, indent=1))
