"""A grid a task: the same prompts and the same noise before training and after each algorithm,
first seed.
"""

from __future__ import annotations

from pathlib import Path

from burnish.tools.gallery import draw, open_source
from experiments.ddpo_tasks import plan
from experiments.running import place
from experiments.sheet import sheet

TEXTS = {
    "caption": ["a cat and a guitar", "a bear and a car", "a fox and a car", "a dog and a guitar"]
}
USUAL = ["a cat", "a horse", "a bear", "a fox", "a spider", "a duck", "a lion", "a llama"]


def grids(out: Path, folder: Path) -> None:
    """Writes `ddpo_tasks_TASK.png` for every task."""
    for task in plan.TASKS:
        texts = TEXTS.get(task, USUAL)
        runs = {
            name: str(out / place(task, name, 0))
            for name, arm in plan.ARMS.items()
            if task in arm.tasks
        }
        rows = {
            "before": (runs["ddpo_is"], True),
            **{name: (run, False) for name, run in runs.items()},
        }
        rows["rlcm, before"] = (runs["rlcm"], True)
        pictures = {}

        for name, (run, before) in rows.items():
            policy, sampler = open_source(run, before=before)
            pictures[name] = draw(policy, sampler, texts, 8 // len(texts), seed=1)

        sheet(pictures).save(folder / f"ddpo_tasks_{task}.png")
