"""The plan: models, tasks, arms and seeds; each run is a recipe with changes.

Settings were chosen on `incompressibility` with seed 10, which are not reported: for each arm at
most four runs, of its learning rate and of one setting of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from experiments.running import Trial

SEEDS = (0, 1, 2)
ANIMALS = {
    "prompts": ["cat", "dog", "fox", "bear", "horse", "lion", "frog", "pig"],
    "evaluation.unseen": ["wolf", "tiger", "rabbit", "monkey"],
}
OBJECTS = ["guitar", "car", "violin", "apple", "rocket", "umbrella"]


def pairs(section: str) -> str:
    """Return the pairs of nouns of the alignment task, as a setting of a section."""
    return (
        f'{section}={{use="template",text="a {{animal}} and a {{object}}",'
        f"animal={ANIMALS[section]},object={OBJECTS}}}"
    )


TASKS: dict[str, tuple[str, ...]] = {
    "compressibility": ("rewards.0.use=compressibility",),
    "aesthetic": ('rewards=[{use="aesthetic",model="zoo:emoji-clip",head="zoo:emoji-aesthetic"}]',),
    "alignment": (
        'rewards=[{use="clip_similarity",model="zoo:emoji-clip"}]',
        *map(pairs, ANIMALS),
        "evaluation.images_per_prompt=2",
    ),
}
COMMON = (
    "batch.baseline=",  # x0 previews would be further queries, and forward objectives have none
    "evaluation.images_per_prompt=1",
    "run.sample_every=0",
    "run.checkpoint_every=2",
)


@dataclass(frozen=True)
class Arm:
    """One objective with its settings.

    Attributes:
        rate: learning rate.
        iterations: of 64 images.
        every: iterations between two evaluations.
        changes: of the model's settings.
        tasks: that it has runs of.
    """

    rate: float
    iterations: int
    every: int
    changes: tuple[str, ...]
    tasks: tuple[str, ...] = tuple(TASKS)


@dataclass(frozen=True)
class Model:
    """A model with the arms that train it.

    Attributes:
        recipe: that its runs start from.
        baseline: the arm whose gain the others are to reach.
        settings: of all its arms.
        arms: by name.
    """

    recipe: str
    baseline: str
    settings: tuple[str, ...]
    arms: Mapping[str, Arm]


IMAGES = 64  # of an iteration, in every arm
SLOW = {"alignment": 3}
"""Factors of the iterations: of pairs the generator knows half, and little is gained in a few."""


def policy_gradient(rate: float, *changes: str) -> Arm:
    """Return an arm that learns from transitions."""
    return Arm(rate, 8, 2, changes)


def forward(rate: float, objective: str, *changes: str) -> Arm:
    """Return an arm that learns from images noised again, four times each."""
    return Arm(rate, 4, 1, (f"objective={objective}", "batch.transitions=4", *changes))


# three of the five transitions have the noise to learn from
TRANSITIONS = ("batch.transitions=0", "batch.least_noise=0.1")
FORWARD = {
    "awm": forward(5e-3, "{use='awm',clip=5.0}"),
    "rvm": forward(5e-3, "{use='rvm'}"),
    "ram": forward(5e-3, "{use='ram',strength=10.0}"),
    "nft": forward(5e-3, "{use='nft'}"),
    "dgpo": forward(5e-3, "{use='dgpo'}"),
}
"""Arms by objective; the learning rates are those of the diffusion model."""

MODELS: dict[str, Model] = {
    "emoji-sd": Model(
        "demo",
        "ddpo_is",
        ("sampler.steps=5",),  # its images show what the prompt names as often as with ten
        {
            "ddpo_is": policy_gradient(5e-3, *TRANSITIONS, "objective={use='clipped',clip=1.64}"),
            "dppo": policy_gradient(5e-3, *TRANSITIONS, "objective={use='dppo',divergence=1.0}"),
            **FORWARD,
        },
    ),
    "emoji-flow": Model(
        "emoji-flow",
        "flow_grpo",
        ("sampler.steps=8",),
        {
            "flow_grpo": policy_gradient(
                2e-3, "sampler.kernel={use='flow_grpo'}", "objective={use='clipped',clip=1.64}"
            ),
            "cps": policy_gradient(
                2e-3, "sampler.kernel={use='cps'}", "objective={use='clipped',clip=1.64}"
            ),
            "precise": policy_gradient(
                2e-3, "sampler.kernel={use='precise'}", "objective={use='clipped',clip=1.64}"
            ),
            "dppo": policy_gradient(
                2e-3, "sampler.kernel={use='precise'}", "objective={use='dppo',divergence=1.0}"
            ),
            **{name: FORWARD[name] for name in ("awm", "rvm", "ram", "nft")},
        },
    ),
    "emoji-lcm": Model(
        "emoji-lcm-compressibility",
        "rlcm",
        (),
        {
            "rlcm": policy_gradient(4e-3, "batch.transitions=2"),
            "ram": FORWARD["ram"],
        },
    ),
}
TASK_NAMES = tuple(f"{model}/{task}" for model in MODELS for task in TASKS)


def arms(model: str, task: str) -> tuple[str, ...]:
    """Return the arms of a model that have figures on a task."""
    return tuple(name for name, arm in MODELS[model].arms.items() if task in arm.tasks)


def jobs() -> list[Trial]:
    """Return all runs, seed by seed, so that an interrupted experiment has complete seeds."""
    return [
        trial(model, task, name, seed)
        for seed in SEEDS
        for model in MODELS
        for task in TASKS
        for name in arms(model, task)
    ]


def trial(model: str, task: str, name: str, seed: int) -> Trial:
    """Return the run of an arm on a task with a seed."""
    settings = MODELS[model]
    arm = settings.arms[name]
    longer = SLOW.get(task, 1)
    changes = (
        *COMMON,
        *settings.settings,
        *TASKS[task],
        *arm.changes,
        f"optimizer.lr={arm.rate:g}",
    )
    iterations = arm.iterations * longer
    every = arm.every * longer
    return Trial(f"{model}/{task}", name, seed, settings.recipe, iterations, every, changes)


COLOURS = {
    "ddpo_is": "#333333",
    "flow_grpo": "#333333",
    "rlcm": "#333333",
    "cps": "#777777",
    "precise": "#aaaaaa",
    "dppo": "#3a7d44",
    "awm": "#3060b0",
    "rvm": "#c0a0d0",
    "ram": "#b4501e",
    "nft": "#d0a000",
    "dgpo": "#20a0a0",
}
