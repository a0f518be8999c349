"""The hacked models with their adapters at lower strength: the reward and the truth, on the
evaluation's own noise.
"""

from __future__ import annotations

from pathlib import Path

from burnish import config as configuration
from burnish.evaluation.paired import evaluate
from burnish.runs import Run, dumps, write
from burnish.tools.gallery import open_source
from burnish.training.assembly import load_judge, load_prompts, load_rewards
from burnish.types import Reward
from experiments.guard import plan
from experiments.guard.truth import taste, truth


def turn(out: Path) -> None:
    """Writes `dial.json` into each run without a guard: {strength: {"aesthetic", "taste",
    "truth"}}, each a mean.
    """
    for seed in plan.SEEDS:
        folder = out / plan.Job("free", seed).name
        if (folder / "dial.json").exists():
            continue

        config = configuration.load(Run(folder).config)
        rewards: dict[str, Reward] = {
            **load_rewards(config.rewards, "rewards"),
            "taste": taste,
            "truth": truth(),
        }
        prompts = load_prompts(config.prompts, "prompts")
        found = {}

        for strength in plan.STRENGTHS:
            policy, sampler = open_source(str(folder), strength=strength)
            seen = evaluate(
                policy,
                sampler,
                prompts,
                rewards,
                judge=load_judge(config),
                images_per_prompt=config.evaluation.images_per_prompt,
                seed=config.evaluation.seed,
                chunk=config.batch.sample_batch,
            )
            columns = zip(
                *([float(value or 0) for value in row] for row in seen.parts), strict=True
            )
            found[f"{strength:g}"] = {
                name: sum(column) / len(column)
                for name, column in zip(seen.rewards, columns, strict=True)
            }
            print(f"{folder.name} at {strength:g}: {found[f'{strength:g}']}", flush=True)

        write(folder / "dial.json", dumps(found, indent=1))
