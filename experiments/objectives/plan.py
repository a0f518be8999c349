"""The plan: models, tasks, arms and seeds; each run is a recipe with changes.

Settings were chosen on seed 10 and tasks that are not reported: `incompressibility`, and for
`RATES` other pairs of nouns. Runs of the search, of 192 to 512 images: on emoji-sd ddpo_is 3,
dppo 1, awm 2, rvm 9, ram 5, nft 5, dgpo 2; on emoji-flow flow_grpo 2, rvm 2, ram 1, the others
with what these had; on emoji-lcm none (rlcm as in `experiments/rlcm_vs_ddpo`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from experiments.noun_pairs import noun_pairs
from experiments.running import Trial

SEEDS = (0, 1, 2)
PAIRS = {  # animals and objects: prompts that are trained on, and prompts that are not
    "prompts": (["cat", "bear", "fox", "dog"], ["guitar", "car", "rocket", "umbrella"]),
    "evaluation.unseen": (["pig", "lion", "frog", "horse"], ["violin", "apple", "bus", "key"]),
}

TASKS: dict[str, tuple[str, ...]] = {
    "compressibility": ("rewards.0.use=compressibility",),
    "aesthetic": ('rewards=[{use="aesthetic",model="zoo:emoji-clip",head="zoo:emoji-aesthetic"}]',),
    "alignment": (
        'rewards=[{use="clip_similarity",model="zoo:emoji-clip"}]',
        *noun_pairs(PAIRS),
        "evaluation.images_per_prompt=4",
    ),
}
COMMON = (
    "batch.baseline=",  # x0 previews would be further queries, and forward objectives have none
    "evaluation.images_per_prompt=1",
    "evaluation.max_prompts=32",
    "run.sample_every=0",
    "run.checkpoint_every=1",
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
SLOW = {"alignment": 2}
"""Factors of the iterations: of pairs the generator knows half, and little is gained in a few."""
RATES = {"alignment": 0.4}
"""Factors of the learning rates: images of pairs fall apart sooner than those of one animal."""


# most of the transitions have the noise to learn from
TRANSITIONS = ("batch.transitions=0", "batch.least_noise=0.1", "batch.minibatches=2")
CLIPPED = "objective={use='clipped',clip=1.64}"
DPPO = "objective={use='dppo',divergence=1.0}"
FORWARD = {  # updates an iteration, objective
    "awm": (4, "{use='awm',clip=5.0}"),
    "rvm": (4, "{use='rvm'}"),
    "ram": (4, "{use='ram',strength=10.0}"),
    "nft": (2, "{use='nft',most=1.0}"),
    "dgpo": (4, "{use='dgpo'}"),
}
"""Objectives on images noised again; the learning rate is the model's."""


def forward(name: str, rate: float, iterations: int) -> Arm:
    """Return an arm that learns from images noised again, four times each."""
    minibatches, objective = FORWARD[name]
    changes = ("batch.transitions=4", f"batch.minibatches={minibatches}", f"objective={objective}")
    return Arm(rate, iterations, 1, changes)


def flow_transitions(kernel: str, objective: str, tasks: tuple[str, ...] = tuple(TASKS)) -> Arm:
    """Return an arm that learns from five of the flow model's six transitions, by a kernel.

    The last leads to the image. With a window, evaluations follow the ODE, as those of all others.
    """
    window = "sampler.window={size=5,placement='fixed'}"
    changes = (f"sampler.kernel={{use='{kernel}'}}", window, objective, *TRANSITIONS)
    return Arm(5e-3, 4, 2, changes, tasks)


SINGLE_NOUNS = ("compressibility", "aesthetic")
MODELS: dict[str, Model] = {
    "emoji-sd": Model(
        "demo",
        "ddpo_is",
        ("sampler.steps=5",),  # its images show what the prompt names as often as with ten
        {
            "ddpo_is": Arm(5e-3, 8, 2, (*TRANSITIONS, CLIPPED)),
            "dppo": Arm(5e-3, 8, 2, (*TRANSITIONS, DPPO)),
            **{name: forward(name, 5e-3, 4) for name in FORWARD},
        },
    ),
    "emoji-flow": Model(
        "emoji-flow",
        "flow_grpo",
        ("sampler.steps=6",),
        {
            "flow_grpo": flow_transitions("flow_grpo", CLIPPED),
            "cps": flow_transitions("cps", CLIPPED, SINGLE_NOUNS),
            "precise": flow_transitions("precise", CLIPPED, SINGLE_NOUNS),
            "dppo": flow_transitions("precise", DPPO, SINGLE_NOUNS),
            **{name: forward(name, 3e-3, 3) for name in ("awm", "rvm", "ram", "nft")},
        },
    ),
    "emoji-lcm": Model(
        "emoji-lcm-compressibility",
        "rlcm",
        (),
        {
            "rlcm": Arm(4e-3, 8, 2, ("batch.transitions=2",)),
            "rvm": forward("rvm", 5e-3, 4),
            "ram": forward("ram", 5e-3, 4),
            "dgpo": forward("dgpo", 5e-3, 4),
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
        f"optimizer.lr={arm.rate * RATES.get(task, 1):g}",
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
