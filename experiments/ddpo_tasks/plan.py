"""What is compared: the paper's tasks and algorithms, RLCM beside them, at equal numbers of scored
pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

from experiments.running import Trial

SEEDS = (0, 1, 2)
QUERIES = 512  # scored pictures of a run
EVALUATIONS = 2  # of a run, after the one before training
PAIRS = {  # of an animal and an object: what is trained on, and what is not
    "prompts": (["cat", "bear", "fox", "dog"], ["guitar", "car"]),
    "evaluation.unseen": (["pig", "lion", "frog", "horse"], ["violin", "apple"]),
}
"""Few, because what is learned of one pair says little of another: of 45 pairs each would be drawn
eleven times.
"""
RATES = {"caption": 0.4}
"""What learning rates are multiplied with on a task: pictures of pairs fall apart sooner than those
of one animal.
"""


def pairs(where: str) -> str:
    """The prompts of the caption task."""
    animals, objects = PAIRS[where]
    return f'{where}={{use="template",text="a {{animal}} and a {{object}}",animal={animals},object={objects}}}'


TASKS: dict[str, tuple[str, ...]] = {
    "compressibility": (),
    "incompressibility": ("rewards.0.use=incompressibility",),
    "aesthetic": ('rewards=[{use="aesthetic",model="zoo:emoji-clip",head="zoo:emoji-aesthetic"}]',),
    "caption": (
        'rewards=[{use="caption",model="zoo:emoji-captioner",encoder="zoo:emoji-clip",batch=64,'
        'reference="{animal} {object}"}]',
        *map(pairs, PAIRS),
        "evaluation.images_per_prompt=8",
    ),
}
COMMON = (
    "batch.baseline=",  # they would be further queries, and the paper has none
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
        return QUERIES // self.images

    @property
    def every(self) -> int:
        """Iterations between two evaluations."""
        return max(1, self.iterations // EVALUATIONS)


# of the diffusion model; it draws what is asked for as often as with ten (judged 100 %)
FEW = ("sampler.steps=5",)
# three of the five, like the consistency model's three
MOVES = (*FEW, "batch.transitions=0", "batch.least_noise=0.1")
IMITATE = (
    *FEW,
    "objective.use=rwr",
    "batch.prompts=16",
    "batch.transitions=4",
    "optimizer.warmup=4",
)
ARMS: dict[str, Arm] = {
    "ddpo_is": Arm("demo", 64, 5e-3, MOVES),
    "ddpo_sf": Arm("demo", 64, 5e-3, (*MOVES, "objective.use=reinforce", "batch.minibatches=1")),
    "rwr": Arm(
        "demo",
        128,
        1e-3,
        (*IMITATE, 'advantage={use="softmax",beta=2.0,standardise=true}', "batch.minibatches=8"),
    ),
    "rwr_sparse": Arm(
        "demo",
        128,
        1e-3,
        (
            *IMITATE,
            'advantage={use="top_fraction",fraction=0.25}',
            "batch.epochs=4",
            "batch.minibatches=2",
        ),
    ),
    # all weights equal: what imitation does without any reward, so what the two above must beat
    "rwr_control": Arm(
        "demo",
        128,
        1e-3,
        (*IMITATE, 'advantage={use="softmax",beta=0.0}', "batch.minibatches=8"),
        ("compressibility",),
    ),
    "awm": Arm(  # a policy gradient on the forward process
        "demo",
        64,
        5e-3,
        (*FEW, 'objective={use="awm",clip=5.0}', "batch.transitions=4"),
        ("compressibility",),
    ),
    "rlcm": Arm("emoji-lcm-compressibility", 64, 4e-3),
}
# the algorithms compared; the others explain
PAPERS = ("ddpo_is", "ddpo_sf", "rwr", "rwr_sparse", "rlcm")
BORROWED = ("incompressibility", "aesthetic")
"""Tasks on which the control is the very run of compressibility, seen by another reward: it has the
same prompts, and with equal weights no reward has a say.
"""


def arms(task: str) -> tuple[str, ...]:
    """The arms that have figures on a task."""
    return tuple(
        name
        for name, arm in ARMS.items()
        if task in arm.tasks or (name == "rwr_control" and task in BORROWED)
    )


def jobs() -> list[Trial]:
    """All runs, seed by seed, the papers' algorithms first, so that an interrupted experiment has
    whole seeds.
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
    """One run."""
    arm = ARMS[name]
    settings = (
        *COMMON,
        *TASKS[task],
        *arm.changes,
        f"optimizer.lr={arm.rate * RATES.get(task, 1.0):g}",
    )
    return Trial(task, name, seed, arm.recipe, arm.iterations, arm.every, settings)
