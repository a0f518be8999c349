"""The plan: a simulated voter, 400 votes a run, and the taste itself as the ceiling.

A run is measured after 50, 100, 200 and 400 votes: each budget is the beginning of the next, so one
run serves all four. Settings were chosen on seed 10, which is not reported, from runs of 100 votes;
docs/votes.md has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from experiments.running import Trial

SEEDS = (0, 1, 2)
TASK = "runs"
RECIPE = "demo"
VOTES = 10  # an iteration
BUDGETS = (50, 100, 200, 400)
EVERY = BUDGETS[0] // VOTES
PASSES = (100, 200, 400)
"""Budgets up to which all runs are trained, one after the other, so that short ones come first."""
WRONG = 0.1  # share of the answers that are turned round
CEILINGS = ("taste", "taste_640")
"""The taste itself as reward: as many images as the preference head's runs draw, and 640."""
CLIP = "zoo:emoji-clip"
TRUTH = "experiments.guard.truth:taste"
VOTER = "experiments.votes.voter:voted"
COMMON = (
    "sampler.steps=5",  # its images show what the prompt names as often as with ten
    "batch.baseline=",
    "batch.minibatches=1",
    "batch.transitions=4",
    "optimizer.warmup=0",
    'scoring.missing="mask"',  # an image that was in no question
    "evaluation.images_per_prompt=1",
    "evaluation.max_prompts=32",
    "evaluation.unseen={}",
    "run.checkpoint_every=5",
    "run.sample_every=10",
    "run.sample_prompts=10",
    "run.thumbnails=0",
)


@dataclass(frozen=True)
class Arm:
    """One way to learn from votes, or a run to compare with.

    Attributes:
        label: in tables and in the figure.
        prompts: of an iteration.
        images: of each prompt.
        rate: learning rate.
        changes: of the common settings.
        last: iteration of a run, if it ends before the last budget.
        model: a CLIP model whose features a preference head reads; "": none.
        votes: the voter is asked; without it the taste itself is the reward.
    """

    label: str
    prompts: int
    images: int
    rate: float
    changes: tuple[str, ...]
    last: int = BUDGETS[-1] // VOTES
    model: str = ""
    votes: bool = True

    @property
    def drawn(self) -> int:
        """Images of an iteration."""
        return self.prompts * self.images

    def iterations(self, votes: int) -> int:
        """Return the iterations of a run up to a budget."""
        return min(self.last, votes // VOTES)


def forward(objective: str) -> tuple[str, ...]:
    """Return the changes of an arm that learns from images noised again."""
    return (f"objective={{use='{objective}'}}",)


RATE = 3e-3
ARMS: Mapping[str, Arm] = {
    "head": Arm("preference head, `rvm`", 8, 4, RATE, forward("rvm"), model=CLIP),
    "rvm": Arm("each vote as advantage, `rvm`", VOTES, 2, RATE, forward("rvm")),
    "dpo": Arm("online `dpo`", VOTES, 2, RATE, ("objective={use='dpo',beta=200}",)),
    "fdfo": Arm(
        "`fdfo`",
        VOTES,
        2,
        RATE,
        (
            "objective={use='fdfo',limit=1.0}",
            "sampler.kernel={use='churn',gamma=0.5}",
            "sampler.shared_noise=true",
            "batch.transitions=2",
        ),
    ),
    "taste": Arm("the taste itself, 32 images", 8, 4, RATE, forward("rvm"), last=10, votes=False),
    "taste_640": Arm(
        "the taste itself, 64 images", 8, 8, RATE, forward("rvm"), last=10, votes=False
    ),
    "control": Arm("learning rate 0, `rvm`", 2, 2, 0.0, forward("rvm"), last=EVERY),
}


FRESH_TASK = "fresh"
FRESH_SEEDS = (3, 4, 5)
FRESH: Mapping[str, Arm] = {
    "rvm_3e-3": replace(ARMS["rvm"], last=10),
    "rvm": replace(ARMS["rvm"], rate=3.5e-3, last=10),
    "dpo": replace(ARMS["dpo"], rate=4.5e-3, last=10),
    "rvm_4e-3": replace(ARMS["rvm"], rate=4e-3, last=10),
    "taste": ARMS["taste"],
}
"""Arms by rate, of which seeds 10 and 11 had chosen, and the ceiling: up to 100 votes."""


def rewards(arm: Arm, seed: int) -> str:
    """Return the setting of an arm's rewards: votes, with the true taste as a measure, or that."""
    if not arm.votes:
        return f'rewards=[{{use="{TRUTH}"}}]'
    head = f'model="{arm.model}",features="patches",' if arm.model else ""
    voter = f'use="{VOTER}",{head}seed={seed},wrong={WRONG},per_iteration={VOTES}'
    return f'rewards=[{{{voter}}},{{use="{TRUTH}",weight=0}}]'


def jobs(votes: int = BUDGETS[-1]) -> list[Trial]:
    """Return all runs up to a budget, arm by arm, so that a part of them has complete arms."""
    return [trial(name, seed, votes) for name in ARMS for seed in SEEDS]


def fresh_jobs() -> list[Trial]:
    """Return the runs of the arms whose rates were chosen anew."""
    return [
        _trial(FRESH_TASK, name, arm, seed, arm.last * VOTES)
        for name, arm in FRESH.items()
        for seed in FRESH_SEEDS
    ]


def trial(name: str, seed: int, votes: int = BUDGETS[-1]) -> Trial:
    """Return the run of an arm with a seed up to a budget; it can go on to a larger one."""
    return _trial(TASK, name, ARMS[name], seed, votes)


def _trial(task: str, name: str, arm: Arm, seed: int, votes: int) -> Trial:
    changes = (
        *COMMON,
        *arm.changes,
        rewards(arm, seed),
        f"batch.prompts={arm.prompts}",
        f"batch.images_per_prompt={arm.images}",
        f"optimizer.lr={arm.rate:g}",
    )
    return Trial(task, name, seed, RECIPE, arm.iterations(votes), EVERY, changes)
