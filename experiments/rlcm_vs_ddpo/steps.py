"""A trained run with other numbers of network calls an image; or the seconds of an image with each.

python -m experiments.rlcm_vs_ddpo.steps RUN        # writes RUN/steps.json
python -m experiments.rlcm_vs_ddpo.steps --time     # prints seconds an image as JSON
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
from burnish.files import dumps, write
from burnish.prompts.sources import zoo_nouns
from burnish.runs import Run
from burnish.seeds import generator
from burnish.tools.gallery import open_source
from burnish.training.assembly import load_judge, load_prompts, load_rewards
from experiments.measurements import mean_rewards, share_right
from experiments.rlcm_vs_ddpo.plan import ARMS, MEASURED, STEPS


def measure(run: Run) -> None:
    """Write reward and judge on the training prompts at each number of steps to `steps.json`."""
    config = configuration.load(run.config)
    policy, sampler = open_source(str(run.folder))
    results = {}

    for steps in sorted({*STEPS, sampler.steps}):
        evaluation = evaluate(
            policy,
            replace(sampler, steps=steps),
            load_prompts(config.prompts, "prompts"),
            load_rewards(config.rewards, "rewards"),
            judge=load_judge(config),
            images_per_prompt=1,
        )
        results[steps] = {
            "reward": float(np.mean(mean_rewards(evaluation))),
            "judge": share_right(evaluation),
        }

    write(run.folder / "steps.json", dumps(results, indent=1))


def image_seconds(policy: Policy, sampler: Sampler, count: int = 32, rounds: int = 3) -> float:
    """Return the median seconds of an image, decoded."""
    prompts = zoo_nouns()[:count]
    group = torch.arange(count)
    seconds = []

    for number in range(rounds + 1):
        started = time.perf_counter()
        cond = policy.encode(prompts)
        trajectory = sampler.rollout(policy, cond, group, generator("time", number))
        policy.decode(trajectory.latent)
        seconds.append((time.perf_counter() - started) / count)

    return median(seconds[1:])  # the first round warms up


def all_image_seconds() -> dict[str, dict[int, float]]:
    """Return the seconds of an image by arm and number of steps."""
    seconds: dict[str, dict[int, float]] = {}

    for name in MEASURED:
        config = configuration.load(ARMS[name].recipe, list(ARMS[name].changes))
        policy, _ = open_source(config.model.id)
        weight = config.sampler.guidance["weight"]
        seconds[name] = {}

        for steps in sorted({*STEPS, config.sampler.steps}):
            _, sampler = open_source(config.model.id, steps=steps, guidance=weight)
            seconds[name][steps] = image_seconds(policy, sampler)

    return seconds


def main() -> None:
    """Measure a run, or print the seconds of an image."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--time", action="store_true")
    options = parser.parse_args()

    if options.time:
        print(json.dumps(all_image_seconds()))
    if options.run:
        measure(Run.open(options.run))


if __name__ == "__main__":
    main()
