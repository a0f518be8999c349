"""The control on further tasks: its run of compressibility, measured with their rewards.

With equal weights no reward has a say, and the tasks of `plan.SHARED_TASKS` have the same prompts:
on them the control would be that very run again, bit for bit. So its checkpoints are measured
instead, as those of any run.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from burnish import config as configuration
from burnish.evaluation.paired import save_evaluation
from burnish.runs import Run
from burnish.training import checkpoint
from burnish.training.assembly import assemble
from burnish.training.evaluations import evaluate_all
from burnish.training.weights import evaluated_weights
from experiments.ddpo_tasks import plan
from experiments.running import run_folder

CONTROL = "rwr_control"


def measure_control(out: Path) -> None:
    """Write the missing evaluations of the control on the tasks that share its run."""
    for seed in plan.SEEDS:
        for task in plan.SHARED_TASKS:
            _measure_task(out, task, seed)


def _measure_task(out: Path, task: str, seed: int) -> None:
    job = plan.trial(task, CONTROL, seed)
    run = Run(out / job.name)
    if run.evaluation_file(job.iterations).exists():
        return

    config = configuration.load(job.recipe, job.changes())
    parts = assemble(config)
    run.evaluation_file(0).parent.mkdir(parents=True, exist_ok=True)
    before = Run(out / run_folder(task, "ddpo_is", seed)).evaluation_file(0)
    shutil.copyfile(before, run.evaluation_file(0))

    source = Run(out / run_folder("compressibility", CONTROL, seed))
    settings = config.evaluation
    chunk = config.batch.sample_batch

    for iteration in range(job.every, job.iterations + 1, job.every):
        saved = checkpoint.read(source.checkpoints / f"{iteration:06d}")
        parts.policy.load_state(evaluated_weights(saved.learners["generator"]))
        evaluations = evaluate_all(parts, settings.images_per_prompt, settings.seed, chunk)
        save_evaluation(run.evaluation_file(iteration), evaluations)

    print(f"{job.name}: measured", flush=True)
