"""A grid of images a task: the same prompts and noise before training and after each algorithm.

They show the runs of the first seed.
"""

from __future__ import annotations

from pathlib import Path

from burnish.tools.gallery import draw, open_source
from experiments.ddpo_tasks import plan
from experiments.image_rows import image_rows
from experiments.running import run_folder

IMAGES = 8  # in a row
PAIR_PROMPTS = ("a cat and a guitar", "a bear and a car", "a fox and a car", "a dog and a guitar")
ANIMAL_PROMPTS = (
    "a cat",
    "a horse",
    "a bear",
    "a fox",
    "a spider",
    "a duck",
    "a lion",
    "a llama",
)


def draw_grids(out: Path, folder: Path) -> None:
    """Write `ddpo_tasks_TASK.png` for every task."""
    for task in plan.TASKS:
        prompts = PAIR_PROMPTS if task == "caption" else ANIMAL_PROMPTS
        runs = {
            name: str(out / run_folder(task, name, 0))
            for name, arm in plan.ARMS.items()
            if task in arm.tasks
        }

        # name of the row -> run, and whether it is drawn as it was before training
        rows = {
            "before": (runs["ddpo_is"], True),
            **{name: (run, False) for name, run in runs.items()},
            "rlcm, before": (runs["rlcm"], True),
        }
        images = {}

        for name, (run, before) in rows.items():
            policy, sampler = open_source(run, before=before)
            images[name] = draw(policy, sampler, prompts, IMAGES // len(prompts), seed=1)

        image_rows(images).save(folder / f"ddpo_tasks_{task}.png")
