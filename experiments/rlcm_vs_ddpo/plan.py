"""The plan: tasks, arms and seeds; each run is a recipe with changes."""

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
    trained: int  # transitions of an image that are trained
    iterations: int
    every: int  # iterations between two evaluations
    changes: tuple[str, ...] = ()
    tasks: tuple[str, ...] = tuple(TASKS)
    x0_preview: bool = False  # a scored x0 preview is the baseline of each trained transition

    @property
    def queries(self) -> int:
        """Scored images for an image of an iteration: itself and its x0 previews."""
        return 1 + self.x0_preview * self.trained

    @property
    def network(self) -> int:
        """Network rows for an image of an iteration, sampling and training together."""
        return self.rows * (self.calls + self.trained)


def rlcm(calls: int, trained: int, every: int, tasks: tuple[str, ...] = tuple(TASKS)) -> Arm:
    """Return the arm of RLCM with so many network calls an image."""
    changes = (f"sampler.steps={calls}", f"batch.transitions={trained}")
    return Arm("emoji-lcm-compressibility", calls, 1, trained, 8, every, changes, tasks)


ARMS: dict[str, Arm] = {
    "ddpo": Arm("demo", calls=10, rows=2, trained=4, iterations=12, every=4, x0_preview=True),
    "rlcm": rlcm(4, 2, 1),
    "rlcm-2": rlcm(2, 1, 4, ("compressibility",)),
    "rlcm-8": rlcm(8, 4, 4, ("compressibility",)),
}
IMAGES = 64  # of an iteration, in every arm


def jobs() -> list[Trial]:
    """Return all runs, seed by seed, so that an interrupted experiment has complete seeds."""
    trials = []

    for seed in SEEDS:
        for name, arm in ARMS.items():
            for task in arm.tasks:
                settings = (*COMMON, *TASKS[task], *arm.changes)
                trials.append(
                    Trial(task, name, seed, arm.recipe, arm.iterations, arm.every, settings)
                )

    return trials
