"""The four rewards of every arm's images: the same prompts and the same noise for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from burnish import config as configuration
from burnish.diffusion.guidance import EmbeddedDualGuidance
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.evaluation.paired import Evaluation, evaluate, save_evaluation
from burnish.prompts.expander import Expander
from burnish.prompts.identifiers import with_template
from burnish.tools.gallery import open_expander, open_source, preferred
from burnish.training.assembly import load_prompts, load_rewards
from burnish.types import Prompt, Reward
from burnish.zoo import judge
from experiments.parrot import plan
from experiments.running import run_folder

NOISE = 4321  # the seed of all measurements
CHUNK = 60
SPLITS = {"train": ("animals", plan.EACH), "unseen": ("objects", 1)}


@dataclass(frozen=True)
class ImageSource:
    """An arm's generator, sampler and expander, and the template around its prompts."""

    policy: Policy
    sampler: Sampler
    expander: Expander | None
    template: str


def measurement_path(out: Path, arm: str, seed: int) -> Path:
    """Return the file of an arm's measurement; an arm without training has one for all seeds."""
    name = f"{arm}-{seed}.json" if is_trained(arm) else f"{arm}.json"
    return out / "measured" / name


def preference_path(out: Path, reward: str) -> Path:
    """Return the file of the measurement with the identifier of one reward alone."""
    return out / "measured" / f"prefer-{reward}.json"


def is_trained(arm: str) -> bool:
    """Return True if an arm depends on the seed."""
    return bool(plan.ARMS[arm].generator or plan.ARMS[arm].expander in plan.TRAINED)


def measure_all(out: Path) -> None:
    """Write the missing measurements of every arm, and those with one reward's identifier alone."""
    rewards = load_rewards(configuration.load(plan.RECIPE).rewards, "rewards")

    for path, source in missing_measurements(out):
        path.parent.mkdir(parents=True, exist_ok=True)
        evaluations = {
            split: _evaluate(source, rewards, nouns, images_per_prompt)
            for split, (nouns, images_per_prompt) in SPLITS.items()
        }
        save_evaluation(path, evaluations)
        print(f"{path.stem}: measured", flush=True)


def _evaluate(
    source: ImageSource, rewards: dict[str, Reward], nouns: str, images_per_prompt: int
) -> Evaluation:
    return evaluate(
        source.policy,
        source.sampler,
        with_template(noun_prompts(nouns), source.template),
        rewards,
        judge=judge.load(),
        expander=source.expander,
        images_per_prompt=images_per_prompt,
        seed=NOISE,
        chunk=CHUNK,
    )


def noun_prompts(split: str) -> list[Prompt]:
    """Return the prompts of the zoo's "animals" or "objects"."""
    return load_prompts({"use": "zoo_nouns", "split": split}, "prompts")


def missing_measurements(out: Path) -> Iterator[tuple[Path, ImageSource]]:
    """Yield the file and the images' source of every measurement that does not exist yet."""
    for seed in plan.SEEDS:
        for name, arm in plan.ARMS.items():
            path = measurement_path(out, name, seed)
            if not path.exists():
                yield path, open_arm(out, arm, seed)

    for reward in plan.REWARDS:
        path = preference_path(out, reward)
        if not path.exists():
            source = open_arm(out, plan.ARMS["no_expander"], plan.SEEDS[0])
            run = str(out / run_folder(plan.TASK, "no_expander", plan.SEEDS[0]))
            yield path, replace(source, template=preferred(run, reward))


def open_arm(out: Path, arm: plan.Arm, seed: int) -> ImageSource:
    """Return the source of an arm's images."""

    def run(name: str) -> str:
        return str(out / run_folder(plan.TASK, name, seed))

    generator_run = run(arm.generator or "no_expander")
    untrained = not arm.generator
    policy, sampler = open_source(generator_run, before=untrained)
    template = preferred(generator_run, before=untrained)

    expander = None
    if arm.expander == "before":
        expander = open_expander(run("parrot"), policy, before=True)
    elif arm.expander:
        expander = open_expander(run(arm.expander), policy)

    if arm.dual:
        sampler = replace(sampler, guidance=EmbeddedDualGuidance(*plan.DUAL))

    return ImageSource(policy, sampler, expander, template)
