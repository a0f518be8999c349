"""The plan: a reader's answers about counts as the reward, for long; what does it stand for then?

One call draws an image: that is quick, and leaves room for the count. The settings were chosen on
seed 10, which is not reported, and after eight iterations of seed 0 at 1e-2; docs/vlm.md has them.

Besides, a reward for letters alone, on images of 128 px with four calls: can the generator write?
"""

from __future__ import annotations

from experiments.running import Trial

SEEDS = (0, 1, 2)
TASK = "runs"
RECIPE = "emoji-lcm-compressibility"
ITERATIONS = 28
EVERY = 4
READER = "zoo:emoji-captioner"  # answers about counts; its answers are the reward
OTHER_READER = "zoo:emoji-captioner-128"  # sees letters, and is in no reward
SIZE = 128  # px of the scenes with a written number
SCENES = 256  # with a written number
ANIMALS = [
    *("cats", "dogs", "bears", "foxes", "frogs", "lions"),
    *("rabbits", "monkeys", "elephants", "tigers", "owls", "penguins"),
]
MORE_ANIMALS = [
    *("cows", "pigs", "horses", "mice", "wolves", "sheep"),
    *("ducks", "whales", "snakes", "goats", "koalas", "pandas"),
]
PANEL = (
    '{use="clip_similarity",model="zoo:emoji-clip"},'
    f'{{use="question",name="other_reader",model="{OTHER_READER}",writing="keep"}},'
    '{use="experiments.counting.truth:Text",name="text"}'
)


def prompts(section: str, animals: list[str]) -> str:
    """Return the setting of a section's prompts: "two cats", "three cats", "two dogs", ..."""
    fields = f'number=["two","three"],animals={animals}'
    return f'{section}={{use="template",text="{{number}} {{animals}}",{fields}}}'


COMMON = (
    "sampler.steps=1",
    f'rewards=[{{use="question",model="{READER}",writing="keep"}}]',
    prompts("prompts", ANIMALS),
    prompts("evaluation.unseen", MORE_ANIMALS),
    "objective={use='ram',strength=40.0}",
    "batch.transitions=4",
    "batch.minibatches=4",
    "evaluation.images_per_prompt=4",
    "run.sample_every=28",
    'guard.action="warn"',  # everything is measured, nothing is done
    f"guard.panel=[{PANEL}]",
)
LETTERS_TASK = "letters"
GENERATOR = "zoo:emoji-lcm-128"  # letters have more room at 128 px
LETTERS_ITERATIONS = 24
LETTERS_RATE = 2e-3  # at 4e-3 images fall apart within twelve iterations
LETTERS = (
    f"model.id='{GENERATOR}'",
    'rewards=[{use="experiments.counting.letters:Letters",name="letters"}]',
    prompts("prompts", ANIMALS),
    prompts("evaluation.unseen", MORE_ANIMALS),
    "objective={use='rvm'}",
    "batch.transitions=4",
    "batch.minibatches=4",
    "evaluation.images_per_prompt=4",
    "run.sample_every=4",
    'guard.action="warn"',
    'guard.panel=[{use="clip_similarity",model="zoo:emoji-clip"},'
    '{use="experiments.counting.truth:Text",name="text"}]',
)
RATES = {"long": 4e-3, "control": 0.0}
"""The learning rate of each arm that is rewarded for counts."""


def jobs() -> list[Trial]:
    """Return all runs, seed by seed, and the controls, which change no weight."""
    both = (trial, letters_trial)
    long = [make("long", seed) for make in both for seed in SEEDS]
    return [*long, *(make("control", SEEDS[0]) for make in both)]


def trial(arm: str, seed: int) -> Trial:
    """Return the run of an arm with a seed, rewarded for counts."""
    iterations = EVERY if arm == "control" else ITERATIONS
    settings = (*COMMON, f"optimizer.lr={RATES[arm]:g}")
    return Trial(TASK, arm, seed, RECIPE, iterations, EVERY, settings)


def letters_trial(arm: str, seed: int) -> Trial:
    """Return the run of an arm with a seed, rewarded for letters."""
    iterations = EVERY if arm == "control" else LETTERS_ITERATIONS
    rate = LETTERS_RATE if RATES[arm] else 0.0
    settings = (*LETTERS, f"optimizer.lr={rate:g}")
    return Trial(LETTERS_TASK, arm, seed, RECIPE, iterations, EVERY, settings)
