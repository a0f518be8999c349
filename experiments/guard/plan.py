"""The plan: a learned aesthetic reward, trained on far too long; and the same with the guard."""

from __future__ import annotations

from dataclasses import dataclass

SEEDS = (0, 1, 2)
ITERATIONS = 18
EVERY = 2
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
CLIP = '{use="clip_similarity",model="zoo:emoji-clip"}'
TASTE = '{use="experiments.guard.truth:taste"}'
TRUTH = '{use="experiments.guard.truth:Truth",name="truth"}'
COMMON = (
    f"iterations={ITERATIONS}",
    f"evaluation.every={EVERY}",
    "evaluation.images_per_prompt=2",
    "evaluation.unseen={}",
    "run.sample_every=6",
    'guard.diversity="zoo:emoji-clip"',
)
ARMS: dict[str, tuple[str, ...]] = {
    # everything is measured, nothing is done: a budget that is never reached only has the KL
    # measured
    "free": ('guard.action="warn"', f"guard.panel=[{CLIP},{TASTE},{TRUTH}]", "guard.kl=1e9"),
    # the guard's measures have no part in the truth: neither the judge nor the taste
    "guarded": ('guard.action="rollback"', f"guard.panel=[{CLIP}]", 'evaluation.judge=""'),
}


@dataclass(frozen=True)
class Job:
    """One training run."""

    arm: str
    seed: int
    recipe = "emoji-lcm-aesthetic"
    iterations = ITERATIONS

    @property
    def name(self) -> str:
        """The run's folder, below the experiment's."""
        return f"{self.arm}-{self.seed}"

    def changes(self) -> list[str]:
        """Return the changes that its configuration makes to the recipe."""
        return [*COMMON, *ARMS[self.arm], f"seed={self.seed}"]


def jobs() -> list[Job]:
    """Return all runs, seed by seed."""
    return [Job(arm, seed) for seed in SEEDS for arm in ARMS]
