"""The cost of reward identifiers to a model that was never trained with them.

    python -m experiments.identifiers

Images of the 45 animals by `zoo:emoji-sd` (five calls, one seed): their similarity to the prompt,
and how many the judge finds right, without identifiers, before and behind the prompt, and with
commas in their place.
"""

from __future__ import annotations

import torch

from burnish import config as configuration
from burnish.evaluation.paired import evaluate
from burnish.prompts.identifiers import template, with_template
from burnish.training.assembly import load_policy, load_prompts, load_rewards, load_sampler
from burnish.zoo import judge

TEMPLATES = {
    "none": "{}",
    "one, before": template([0]),
    "four, before": template(range(4)),
    "one, behind": template([0], after=True),
    "four, behind": template(range(4), after=True),
    "three commas": "{} , , ,",
}
SETTINGS = (
    "model.id=zoo:emoji-sd",
    "sampler.steps=5",
    'sampler.kernel={use="ddim",eta=1.0}',
    'sampler.guidance={use="cfg",weight=4.0}',
)


def main() -> None:
    """Print a line for each template."""
    config = configuration.load("emoji-parrot", SETTINGS)
    rewards = {"alignment": load_rewards(config.rewards, "rewards")["alignment"]}
    policy = load_policy(config)
    sampler = load_sampler(config)
    emoji_judge = judge.load()
    prompts = load_prompts({"use": "zoo_nouns", "split": "animals"}, "prompts")

    for name, text in TEMPLATES.items():
        evaluation = evaluate(
            policy,
            sampler,
            with_template(prompts, text),
            rewards,
            judge=emoji_judge,
            images_per_prompt=1,
            seed=5,
            chunk=60,
        )
        right = sum(evaluation.judged or [])
        similarity = float(evaluation.total(torch.ones(1)).mean())
        print(f"{name}: {right} of {len(prompts)} right, similarity {similarity:.3f}", flush=True)


if __name__ == "__main__":
    main()
