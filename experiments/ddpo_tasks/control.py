"""The control on further tasks: its run of compressibility, measured with their rewards.

With equal weights no reward has a say, and the tasks of `plan.BORROWED` have the same prompts: on
them the control would be that very run again, bit for bit. So its checkpoints are measured instead,
as those of any run.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from burnish import config as configuration
from burnish.evaluation.paired import save_evaluation
from burnish.runs import Run
from burnish.training import checkpoint
from burnish.training.checkpoint import under
from burnish.training.assembly import assemble
from burnish.training.evaluations import evaluate_all
from experiments.ddpo_tasks import plan
from experiments.running import place

NAME = "rwr_control"


def borrow(out: Path) -> None:
    """Writes the evaluations of the control on every borrowed task that are not there yet."""
    for seed in plan.SEEDS:
        for task in plan.BORROWED:
            job = plan.trial(task, NAME, seed)
            run = Run(out / place(task, NAME, seed))

            if run.measured(job.iterations).exists():
                continue

            config = configuration.load(job.recipe, job.changes())
            parts = assemble(config)
            run.measured(0).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Run(out / place(task, "ddpo_is", seed)).measured(0), run.measured(0))
            source = Run(out / place("compressibility", NAME, seed))

            for iteration in range(job.every, job.iterations + 1, job.every):
                parts.policy.load_state(
                    under("weights.", checkpoint.read(source.checkpoints / f"{iteration:06d}").learners["generator"])
                )
                settings = config.evaluation
                seen = evaluate_all(
                    parts, settings.images_per_prompt, settings.seed, config.batch.sample_batch
                )
                save_evaluation(run.measured(iteration), seen)

            print(f"{job.name}: measured", flush=True)
