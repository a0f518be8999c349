"""What is compared: tasks, arms, seeds, and how each run is configured, as changes of two recipes."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.running import Trial

SEEDS = (0, 1, 2)
CLIP = ("rewards.0.use=clip_similarity", "rewards.0.model=zoo:emoji-clip")
TASKS: dict[str, tuple[str, ...]] = {
    "compressibility": (),
    "incompressibility": ("rewards.0.use=incompressibility",),
    "alignment": CLIP,
}
STEPS = (2, 4, 8)  # network calls of an image after training
COMMON = ("evaluation.images_per_prompt=1", "run.sample_every=0", "run.checkpoint_every=4")


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    recipe: str
    calls: int  # network calls of an image while sampling
    rows: int  # network rows of a call: two with classifier-free guidance
    trained: int  # moves of an image that are trained
    iterations: int
    every: int  # iterations between two evaluations
    changes: tuple[str, ...] = ()
    tasks: tuple[str, ...] = tuple(TASKS)
    previews: bool = False  # whether each trained move is credited by a scored preview

    @property
    def queries(self) -> int:
        """Scored pictures for an image of an iteration: itself, and perhaps a preview for each
        trained move.
        """
        return 1 + self.previews * self.trained

    @property
    def network(self) -> int:
        """Network rows for an image of an iteration, sampling and training together."""
        return self.rows * (self.calls + self.trained)


def rlcm(calls: int, trained: int, every: int, tasks: tuple[str, ...] = tuple(TASKS)) -> Arm:
    """RLCM with so many network calls an image."""
    changes = (f"sampler.steps={calls}", f"batch.transitions={trained}")
    return Arm("emoji-lcm-compressibility", calls, 1, trained, 8, every, changes, tasks)


ARMS: dict[str, Arm] = {
    "ddpo": Arm("demo", calls=10, rows=2, trained=4, iterations=12, every=4, previews=True),
    "rlcm": rlcm(4, 2, 1),
    "rlcm-2": rlcm(2, 1, 4, ("compressibility",)),
    "rlcm-8": rlcm(8, 4, 4, ("compressibility",)),
}
IMAGES = 64  # of an iteration, in every arm


def jobs() -> list[Trial]:
    """All runs, seed by seed, so that an interrupted experiment has whole seeds."""
    return [
        Trial(
            task,
            name,
            seed,
            arm.recipe,
            arm.iterations,
            arm.every,
            (*COMMON, *TASKS[task], *arm.changes),
        )
        for seed in SEEDS
        for name, arm in ARMS.items()
        for task in arm.tasks
    ]
