"""The four rewards of every arm's images: the same prompts and the same noise for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from burnish import config as configuration
from burnish.diffusion.guidance import EmbeddedDualGuidance
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.evaluation.paired import Evaluation, evaluate, save_evaluation
from burnish.prompts.expander import Expander
from burnish.prompts.identifiers import with_template
from burnish.tools.gallery import open_expander, open_source, preferred
from burnish.training.assembly import load_rewards
from burnish.types import Prompt, Reward
from burnish.zoo import judge
from burnish.zoo.scenes import vocabulary
from experiments.parrot import plan
from experiments.parrot.prompts import texts
from experiments.running import run_folder

NOISE = 4321  # the seed of all measurements
CHUNK = 48
STEERED = "no_expander"  # the arm that is asked for one reward


@dataclass(frozen=True)
class ImageSource:
    """An arm's generator, sampler and expander, and the template around its prompts."""

    policy: Policy
    sampler: Sampler
    expander: Expander | None
    template: str


class SceneJudge:
    """The zoo's judge of nouns and counts, which here sees the background too."""

    def __init__(self) -> None:
        self.judge = judge.load()

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Return whether each image shows its prompt, with its background, (B,) bool."""
        right = self.judge(images, prompts)
        colours = list(vocabulary()["colours"])
        seen = self.judge.classify(images).colour.tolist()

        for row, prompt in enumerate(prompts):
            scene = judge.parse(prompt.text)
            if scene is not None and scene.colour:
                right[row] &= colours[seen[row]] == scene.colour

        return right


def measurement_path(out: Path, arm: str, seed: int) -> Path:
    """Return the file of an arm's measurement; an arm without training has one for all seeds."""
    name = f"{arm}-{seed}.json" if is_trained(arm) else f"{arm}.json"
    return out / "measured" / name


def steering_path(out: Path, reward: str, seed: int) -> Path:
    """Return the file of the measurement with the identifier of one reward alone."""
    return out / "measured" / f"asked-{reward}-{seed}.json"


def is_trained(arm: str) -> bool:
    """Return True if an arm depends on the seed."""
    return bool(plan.ARMS[arm].generator or plan.ARMS[arm].expander in plan.TRAINED)


def arm_seeds(arm: str, budget: plan.Budget) -> tuple[int, ...]:
    """Return the seeds of an arm's measurements."""
    return plan.seeds(arm, budget) if is_trained(arm) else budget.seeds[:1]


def measured_prompts(name: str, budget: plan.Budget) -> list[Prompt]:
    """Return the prompts of a set that are measured, spread over all of its kinds."""
    found = texts(name)
    step = len(found) // (budget.measured or len(found))
    return [Prompt(text) for text in found[::step]]


def measure_all(out: Path, budget: plan.Budget) -> None:
    """Write the missing measurements of every arm, and those with one reward's identifier alone."""
    rewards = load_rewards(configuration.load(plan.RECIPE).rewards, "rewards")
    scene_judge = SceneJudge()

    for path, source in missing_measurements(out, budget):
        path.parent.mkdir(parents=True, exist_ok=True)
        splits = {"train": budget.each, "unseen": budget.each_unseen}
        evaluations = {
            split: _evaluate(source, rewards, scene_judge, measured_prompts(split, budget), each)
            for split, each in splits.items()
        }
        save_evaluation(path, evaluations)
        print(f"{path.stem}: measured", flush=True)


def _evaluate(
    source: ImageSource,
    rewards: dict[str, Reward],
    scene_judge: SceneJudge,
    prompts: list[Prompt],
    images_per_prompt: int,
) -> Evaluation:
    return evaluate(
        source.policy,
        source.sampler,
        with_template(prompts, source.template),
        rewards,
        judge=scene_judge,
        expander=source.expander,
        images_per_prompt=images_per_prompt,
        seed=NOISE,
        chunk=CHUNK,
    )


def missing_measurements(out: Path, budget: plan.Budget) -> Iterator[tuple[Path, ImageSource]]:
    """Yield the file and the images' source of every measurement that does not exist yet."""
    for seed in budget.seeds:
        for name in plan.arms(budget):
            path = measurement_path(out, name, seed)
            if seed in arm_seeds(name, budget) and not path.exists():
                yield path, open_arm(out, plan.ARMS[name], seed)

        for reward in plan.REWARDS:
            path = steering_path(out, reward, seed)
            if not path.exists():
                source = open_arm(out, plan.ARMS[STEERED], seed)
                run = str(out / run_folder(plan.TASK, STEERED, seed))
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
