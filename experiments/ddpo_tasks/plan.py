"""The plan: the DDPO paper's tasks and algorithms, with RLCM, at equal numbers of scored images."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.noun_pairs import noun_pairs
from experiments.running import Trial

SEEDS = (0, 1, 2)
QUERIES = 512  # scored images of a run
EVALUATIONS = 2  # of a run, after the one before training
PAIRS = {  # of an animal and an object: prompts that are trained on, and prompts that are not
    "prompts": (["cat", "bear", "fox", "dog"], ["guitar", "car"]),
    "evaluation.unseen": (["pig", "lion", "frog", "horse"], ["violin", "apple"]),
}
"""Few, because learning one pair changes little for another: of 45 pairs each would be drawn
eleven times.
"""
RATES = {"caption": 0.4}
"""Factors of the learning rates: images of pairs degrade sooner than those of one animal."""

TASKS: dict[str, tuple[str, ...]] = {
    "compressibility": (),
    "incompressibility": ("rewards.0.use=incompressibility",),
    "aesthetic": ('rewards=[{use="aesthetic",model="zoo:emoji-clip",head="zoo:emoji-aesthetic"}]',),
    "caption": (
        'rewards=[{use="caption",model="zoo:emoji-captioner",encoder="zoo:emoji-clip",batch=64,'
        'reference="{animal} {object}"}]',
        *noun_pairs(PAIRS),
        "evaluation.images_per_prompt=8",
    ),
}
COMMON = (
    "batch.baseline=",  # x0 previews would be further queries, and the paper has none
    "evaluation.images_per_prompt=1",
    "run.sample_every=0",
    "run.checkpoint_every=2",
)


@dataclass(frozen=True)
class Arm:
    """One algorithm."""

    recipe: str
    images: int  # of an iteration
    rate: float  # learning rate
    changes: tuple[str, ...] = ()
    tasks: tuple[str, ...] = tuple(TASKS)

    @property
    def iterations(self) -> int:
        """The number of iterations that use up the queries."""
        return QUERIES // self.images

    @property
    def every(self) -> int:
        """The number of iterations between two evaluations."""
        return max(1, self.iterations // EVALUATIONS)


# of the diffusion model; its images show what the prompt names as often as with ten (judged 100 %)
FEW_STEPS = ("sampler.steps=5",)
# three of the five, like the consistency model's three
POLICY_GRADIENT = (*FEW_STEPS, "batch.transitions=0", "batch.least_noise=0.1")
IMITATION = (
    *FEW_STEPS,
    "objective.use=rwr",
    "forward.guided=true",
    "batch.prompts=16",
    "batch.transitions=4",
    "optimizer.warmup=4",
)
ARMS: dict[str, Arm] = {
    "ddpo_is": Arm("demo", 64, 5e-3, POLICY_GRADIENT),
    "ddpo_sf": Arm(
        "demo",
        64,
        5e-3,
        (*POLICY_GRADIENT, "objective.use=reinforce", "batch.minibatches=1"),
    ),
    "rwr": Arm(
        "demo",
        128,
        1e-3,
        (*IMITATION, 'advantage={use="softmax",beta=2.0,standardise=true}', "batch.minibatches=8"),
    ),
    "rwr_sparse": Arm(
        "demo",
        128,
        1e-3,
        (
            *IMITATION,
            'advantage={use="top_fraction",fraction=0.25}',
            "batch.epochs=4",
            "batch.minibatches=2",
        ),
    ),
    # all weights equal: the effect of imitation without any reward, which the two above must beat
    "rwr_control": Arm(
        "demo",
        128,
        1e-3,
        (*IMITATION, 'advantage={use="softmax",beta=0.0}', "batch.minibatches=8"),
        ("compressibility",),
    ),
    # a policy gradient on the forward process
    "awm": Arm(
        "demo",
        64,
        5e-3,
        (
            *FEW_STEPS,
            'objective={use="awm",clip=5.0}',
            "forward.guided=true",
            "batch.transitions=4",
        ),
        ("compressibility",),
    ),
    "rlcm": Arm("emoji-lcm-compressibility", 64, 4e-3),
}
# the algorithms compared; the others explain
PAPERS = ("ddpo_is", "ddpo_sf", "rwr", "rwr_sparse", "rlcm")
SHARED_TASKS = ("incompressibility", "aesthetic")
"""Tasks on which the control is the very run of compressibility, scored by another reward.

It has the same prompts, and with equal weights no reward has a say.
"""


def arms(task: str) -> tuple[str, ...]:
    """Return the arms that have figures on a task."""
    return tuple(
        name
        for name, arm in ARMS.items()
        if task in arm.tasks or (name == "rwr_control" and task in SHARED_TASKS)
    )


def jobs() -> list[Trial]:
    """Return all runs, seed by seed, the papers' algorithms first.

    An interrupted experiment then has complete seeds.
    """
    names = sorted(ARMS, key=lambda name: name not in PAPERS)
    return [
        trial(task, name, seed)
        for group in (PAPERS, tuple(set(names) - set(PAPERS)))
        for seed in SEEDS
        for name in names
        if name in group
        for task in ARMS[name].tasks
    ]


def trial(task: str, name: str, seed: int) -> Trial:
    """Return the run of an arm on a task with a seed."""
    arm = ARMS[name]
    settings = (
        *COMMON,
        *TASKS[task],
        *arm.changes,
        f"optimizer.lr={arm.rate * RATES.get(task, 1.0):g}",
    )
    return Trial(task, name, seed, arm.recipe, arm.iterations, arm.every, settings)
