"""The four rewards of every arm's pictures: the same prompts and the same noise for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from burnish import config as configuration
from burnish.diffusion.guidance import EmbeddedDualGuidance
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.evaluation.paired import evaluate, save_evaluation
from burnish.prompts.expander import Expander
from burnish.prompts.identifiers import with_template
from burnish.tools.gallery import open_expander, open_source, preferred
from burnish.training.assembly import load_prompts, load_rewards
from burnish.types import Prompt
from burnish.zoo import judge
from experiments.parrot import plan
from experiments.running import place

NOISE = 4321  # the seed of all measurements
CHUNK = 60
SPLITS = {"train": ("animals", plan.EACH), "unseen": ("objects", 1)}


def where(out: Path, arm: str, seed: int) -> Path:
    """The file of an arm's measurement; what learned nothing has one for all seeds."""
    return out / "measured" / (f"{arm}-{seed}.json" if learned(arm) else f"{arm}.json")


def learned(arm: str) -> bool:
    """Whether an arm depends on the seed."""
    return bool(plan.ARMS[arm].generator or plan.ARMS[arm].expander in plan.TRAINED)


def measure_all(out: Path) -> None:
    """Writes what is missing: every arm, and Parrot without expander asked for each reward alone."""
    rewards = load_rewards(configuration.load(plan.RECIPE).rewards, "rewards")

    for path, policy, sampler, expander, template in missing(out):
        path.parent.mkdir(parents=True, exist_ok=True)
        found = {
            split: evaluate(
                policy,
                sampler,
                with_template(nouns(kind), template),
                rewards,
                judge=judge.load(),
                expander=expander,
                images_per_prompt=each,
                seed=NOISE,
                chunk=CHUNK,
            )
            for split, (kind, each) in SPLITS.items()
        }
        save_evaluation(path, found)
        print(f"{path.stem}: measured", flush=True)


def nouns(kind: str) -> list[Prompt]:
    """The prompts of a split."""
    return load_prompts({"use": "zoo_nouns", "split": kind}, "prompts")


def missing(out: Path) -> Iterator[tuple[Path, Policy, Sampler, Expander | None, str]]:
    """How to draw every measurement that is not there yet."""
    for seed in plan.SEEDS:
        for name, arm in plan.ARMS.items():
            if not where(out, name, seed).exists():
                yield where(out, name, seed), *artist(out, arm, seed)

    for reward in plan.REWARDS:
        path = out / "measured" / f"prefer-{reward}.json"
        if not path.exists():
            policy, sampler, expander, _ = artist(out, plan.ARMS["no_expander"], plan.SEEDS[0])
            run = str(out / place(plan.TASK, "no_expander", plan.SEEDS[0]))
            yield path, policy, sampler, expander, preferred(run, reward)


def artist(out: Path, arm: plan.Arm, seed: int) -> tuple[Policy, Sampler, Expander | None, str]:
    """An arm's generator, sampler and expander, and what is put around its prompts."""

    def run(name: str) -> str:
        return str(out / place(plan.TASK, name, seed))

    drawing = run(arm.generator or "no_expander")
    policy, sampler = open_source(drawing, before=not arm.generator)
    template = preferred(drawing, before=not arm.generator)
    writing = run("parrot" if arm.expander == "before" else arm.expander)
    expander = (
        open_expander(writing, policy, before=arm.expander == "before") if arm.expander else None
    )

    return (
        policy,
        replace(sampler, guidance=EmbeddedDualGuidance(*plan.DUAL)) if arm.dual else sampler,
        expander,
        template,
    )
