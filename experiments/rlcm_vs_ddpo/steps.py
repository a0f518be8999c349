"""A trained run, evaluated with other numbers of network calls an image; or how long a picture
takes with each.

python -m experiments.rlcm_vs_ddpo.steps RUN        # writes RUN/steps.json
python -m experiments.rlcm_vs_ddpo.steps --time     # prints seconds a picture as JSON
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from burnish import config as configuration
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.evaluation.paired import evaluate
from burnish.prompts.sources import zoo_nouns
from burnish.runs import Run, dumps, write
from burnish.seeds import generator
from burnish.tools.gallery import open_source
from burnish.training.assembly import load_judge, load_prompts, load_rewards
from experiments.reading import rewards, share
from experiments.rlcm_vs_ddpo.plan import ARMS, STEPS


def measure(run: Run) -> None:
    """Reward and judge on the training prompts at each number of steps, with the trained adapter."""
    config = configuration.load(run.config)
    policy, sampler = open_source(str(run.folder))
    found = {}

    for steps in sorted({*STEPS, sampler.steps}):
        seen = evaluate(
            policy,
            replace(sampler, steps=steps),
            load_prompts(config.prompts, "prompts"),
            load_rewards(config.rewards, "rewards"),
            judge=load_judge(config),
            images_per_prompt=1,
        )
        found[steps] = {"reward": float(np.mean(rewards(seen))), "judge": share(seen)}

    write(run.folder / "steps.json", dumps(found, indent=1))


def picture_seconds(policy: Policy, sampler: Sampler, count: int = 32, rounds: int = 3) -> float:
    """Median seconds a picture, decoded."""
    prompts = zoo_nouns()[:count]
    taken = []

    for number in range(rounds + 1):
        started = time.perf_counter()
        cond = policy.encode(prompts)
        policy.decode(
            sampler.rollout(policy, cond, torch.arange(count), generator("time", number)).latent
        )
        taken.append((time.perf_counter() - started) / count)

    return median(taken[1:])


def times() -> dict[str, dict[int, float]]:
    """Seconds a picture by arm and number of steps."""
    found: dict[str, dict[int, float]] = {}

    for name in ("ddpo", "rlcm"):
        config = configuration.load(ARMS[name].recipe)
        policy, _ = open_source(config.model.id)
        weight = config.sampler.guidance["weight"]

        for steps in sorted({*STEPS, config.sampler.steps}):
            _, sampler = open_source(config.model.id, steps=steps, guidance=weight)
            found.setdefault(name, {})[steps] = picture_seconds(policy, sampler)

    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--time", action="store_true")
    options = parser.parse_args()

    if options.time:
        print(json.dumps(times()))
    if options.run:
        measure(Run.open(options.run))


if __name__ == "__main__":
    main()
