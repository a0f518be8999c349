"""The plan: a reader's answers about counts as the reward, for too long; and with the guard."""

from __future__ import annotations

from experiments.running import Trial

SEEDS = (0, 1, 2)
TASK = "runs"
RECIPE = "emoji-lcm-compressibility"
ITERATIONS = 20
EVERY = 2
READER = "zoo:emoji-captioner-128"  # sees letters, but a written number changes none of its answers
SIZE = 128  # px
SCENES = 256  # with a written number
ANIMALS = ["cats", "dogs", "bears", "foxes", "frogs", "lions"]
MORE_ANIMALS = ["cows", "pigs", "horses", "rabbits", "monkeys", "mice"]
TEXT = '{use="experiments.counting.truth:Text",name="text"}'
SIMILARITY = '{use="clip_similarity",model="zoo:emoji-clip"}'


def prompts(section: str, animals: list[str]) -> str:
    """Return the setting of a section's prompts: "two cats", "three cats", "two dogs", ..."""
    fields = f'number=["two","three"],animals={animals}'
    return f'{section}={{use="template",text="{{number}} {{animals}}",{fields}}}'


COMMON = (
    'model.id="zoo:emoji-lcm-128"',
    f"model.size={SIZE}",
    f'rewards=[{{use="question",model="{READER}",writing="keep"}}]',
    prompts("prompts", ANIMALS),
    prompts("evaluation.unseen", MORE_ANIMALS),
    "objective={use='rvm'}",
    "batch.transitions=4",
    "batch.minibatches=4",
    "optimizer.lr=5e-3",
    "evaluation.images_per_prompt=4",
    "run.sample_every=10",
)
ARMS: dict[str, tuple[str, ...]] = {
    # everything is measured, nothing is done
    "free": ('guard.action="warn"', f"guard.panel=[{SIMILARITY},{TEXT}]"),
    # the guard's measure has no part in the truth, which is the judge's
    "guarded": ('guard.action="rollback"', f"guard.panel=[{SIMILARITY}]", 'evaluation.judge=""'),
}


def jobs() -> list[Trial]:
    """Return all runs, seed by seed."""
    return [trial(arm, seed) for seed in SEEDS for arm in ARMS]


def trial(arm: str, seed: int) -> Trial:
    """Return the run of an arm with a seed."""
    settings = (*COMMON, *ARMS[arm])
    return Trial(TASK, arm, seed, RECIPE, ITERATIONS, EVERY, settings)
