"""The hacked models with their adapters at lower strength: the reward and the truth.

They are measured on the evaluation's own noise.
"""

from __future__ import annotations

from pathlib import Path

from burnish import config as configuration
from burnish.config import Config
from burnish.evaluation.paired import Evaluation, evaluate
from burnish.files import dumps, write
from burnish.runs import Run
from burnish.tools.gallery import open_source
from burnish.training.assembly import load_judge, load_prompts, load_rewards
from burnish.types import Reward
from experiments.guard import plan
from experiments.guard.truth import Truth, taste


def measure_strengths(out: Path) -> None:
    """Write `dial.json` into each run without a guard.

    It has {strength: {"aesthetic", "taste", "truth"}}, each a mean.
    """
    for seed in plan.SEEDS:
        folder = out / plan.Job("free", seed).name
        if (folder / "dial.json").exists():
            continue

        config = configuration.load(Run(folder).config)
        rewards: dict[str, Reward] = {
            **load_rewards(config.rewards, "rewards"),
            "taste": taste,
            "truth": Truth(),
        }
        measured = {}

        for strength in plan.STRENGTHS:
            means = _column_means(_evaluate(folder, config, rewards, strength))
            measured[f"{strength:g}"] = means
            print(f"{folder.name} at {strength:g}: {means}", flush=True)

        write(folder / "dial.json", dumps(measured, indent=1))


def _evaluate(
    folder: Path, config: Config, rewards: dict[str, Reward], strength: float
) -> Evaluation:
    policy, sampler = open_source(str(folder), strength=strength)
    return evaluate(
        policy,
        sampler,
        load_prompts(config.prompts, "prompts"),
        rewards,
        judge=load_judge(config),
        images_per_prompt=config.evaluation.images_per_prompt,
        seed=config.evaluation.seed,
        chunk=config.batch.sample_batch,
    )


def _column_means(evaluation: Evaluation) -> dict[str, float]:
    rows = [[float(value or 0) for value in row] for row in evaluation.parts]
    columns = zip(*rows, strict=True)
    return {
        name: sum(column) / len(column)
        for name, column in zip(evaluation.rewards, columns, strict=True)
    }
