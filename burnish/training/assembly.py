"""Assembly: from a configuration to the parts of a run. Names become models and functions here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from burnish import catalog
from burnish.checked import checked_prompts
from burnish.config import (
    Config,
    Table,
    check_curriculum,
    check_expander,
    reward_arguments,
    reward_names,
)
from burnish.diffusion.policy import DTYPES, Policy
from burnish.diffusion.sampler import Sampler
from burnish.evaluation.held_out import Panel
from burnish.prompts import identifiers
from burnish.prompts.expander import Expander
from burnish.prompts.imitation import imitate, read_pairs
from burnish.rewards import Tolerance
from burnish.rl.curriculum import ConstantCurriculum
from burnish.training.requirements import (
    check_compared_images,
    check_identifiers,
    check_transitions,
)
from burnish.types import Advantage, Curriculum, Judge, Objective, Prompt, Reward

if TYPE_CHECKING:
    from burnish.training.learners import Learner

Source = Callable[[int], Sequence[Prompt]]
"""(how many are wanted) -> that many prompts, drawn anew each time."""

IN_MEMORY = "burnish.training.assembly:absent"
"""The name that a run's configuration gives to an object of a Python program."""


@dataclass(frozen=True)
class Overrides:
    """Objects of a Python program that `train` takes in place of what the configuration names.

    Only that program can resume such a run. Its config.toml marks the place of rewards and of a
    source, but cannot hold them; of a policy it has [model] as given, which is loaded by others.
    """

    # in place of [model], which should say how it was made; it is trained as it is
    policy: Policy | None = None

    # by name, in place of [[rewards]]
    rewards: Mapping[str, Reward] = field(default_factory=dict)

    # in place of [prompts]: called in each iteration by every process for its own prompts, while
    # Python's, numpy's and torch's random numbers follow from (seed, iteration, process)
    source: Source | None = None

    # by name, beside the generator and the expander: what else learns
    learners: Mapping[str, Learner] = field(default_factory=dict)

    def apply_to(self, config: Config) -> Config:
        """Return the configuration with the objects in it; rewards keep their names' weights."""
        changes: dict[str, Any] = {}

        if self.rewards:
            names = reward_names(config.rewards)
            weights = {
                name: table.get("weight", 1.0)
                for name, table in zip(names, config.rewards, strict=True)
            }
            changes["rewards"] = [
                {"use": IN_MEMORY, "name": name, "weight": float(weights.get(name, 1.0))}
                for name in self.rewards
            ]

        if self.source is not None:
            changes["prompts"] = {"use": IN_MEMORY}

        return replace(config, **changes)


@dataclass(frozen=True)
class Parts:
    """Everything that a configuration names."""

    policy: Policy
    sampler: Sampler
    prompts: list[Prompt]  # trained on; with a `source` those of samples and evaluations
    rewards: dict[str, Reward]
    weights: Tensor  # (K,) of the rewards
    tolerance: Tolerance  # of rewards that fail
    advantage: Advantage
    objective: Objective
    curriculum: Curriculum
    judge: Judge | None
    panel: Panel  # held-out measures of the evaluations
    evaluation_prompts: dict[str, list[Prompt]]  # "train" and, if there are any, "unseen"
    source: Source | None = None  # draws each iteration's prompts, if they are no fixed list
    expander: Expander | None = None  # rewrites what the generator reads
    template: str = "{}"  # all reward identifiers: put around the prompts of evaluations


def assemble(config: Config, device: str = "", overrides: Overrides | None = None) -> Parts:
    """Return the parts of a configuration, with what `overrides` gives in place of its own.

    What takes longest comes last, so that a slip is reported soon.

    Args:
        config: of the run.
        device: in place of the configuration's; "" keeps that.
        overrides: objects in place of what the configuration names.

    Raises:
        ValueError, OSError: a part cannot be loaded, or the parts do not fit each other.
    """
    overrides = overrides or Overrides()
    check_expander(config)
    check_curriculum(config)
    check_identifiers(config)
    prompts = [] if overrides.source else load_prompts(config.prompts, "prompts")
    evaluation_prompts = load_evaluation_prompts(config, prompts)

    advantage = catalog.build("advantage", config.advantage)
    objective = catalog.build("objective", config.objective)
    curriculum = load_curriculum(config)
    sampler = load_sampler(config)
    policy = overrides.policy or load_policy(config, device)
    check_policy(config, policy)
    add_identifiers(config, policy)
    check_transitions(config, policy, sampler, objective, advantage)
    check_compared_images(config, advantage)

    scoring = config.scoring
    tolerance = Tolerance(scoring.retries, scoring.timeout, scoring.missing == "mask")
    identified = range(len(config.rewards) if config.sampler.identifiers else 0)
    template = identifiers.template(identified, config.sampler.identifiers_after)
    known = [*prompts, *chain.from_iterable(evaluation_prompts.values())]
    policy.check_prompts(identifiers.with_template(known, template))

    return Parts(
        policy=policy,
        sampler=sampler,
        prompts=prompts or evaluation_prompts["train"],
        rewards=dict(overrides.rewards) or load_rewards(config.rewards, "rewards"),
        weights=torch.tensor([float(table.get("weight", 1.0)) for table in config.rewards]),
        tolerance=tolerance,
        advantage=advantage,
        objective=objective,
        curriculum=curriculum,
        judge=load_judge(config),
        panel=load_panel(config, tolerance),
        evaluation_prompts=evaluation_prompts,
        source=overrides.source,
        expander=load_expander(config, policy),
        template=template,
    )


def absent(**arguments: Any) -> NoReturn:
    """Raise the error of a run whose object is not given; `IN_MEMORY` names this function.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        "this was an object of a Python program, which no file holds: go on with the program that "
        "gave it"
    )


def load_prompts(table: Table, where: str) -> list[Prompt]:
    """Return the prompts of a source; an empty table gives none.

    Raises:
        ValueError: the source gives none, or something else.
    """
    if not table:
        return []

    return checked_prompts(catalog.build("prompts", table, where), table["use"])


def load_evaluation_prompts(config: Config, prompts: list[Prompt]) -> dict[str, list[Prompt]]:
    """Return the prompts of evaluations and sample grids: "train" and perhaps "unseen".

    Args:
        config: with the sources of these prompts.
        prompts: trained on, which are evaluated where no others are named.

    Raises:
        ValueError: there are no prompts to evaluate, or a source is wrong.
    """
    settings = config.evaluation
    prompt_sets = {"train": load_prompts(settings.prompts, "evaluation.prompts") or prompts}

    if not prompt_sets["train"] and (settings.images_per_prompt or config.run.sample_every):
        raise ValueError(
            "the prompts are drawn by a function, but evaluations and sample grids need some that "
            "stay: set evaluation.prompts, or evaluation.images_per_prompt = 0 and "
            "run.sample_every = 0"
        )

    if settings.unseen:
        prompt_sets["unseen"] = load_prompts(settings.unseen, "evaluation.unseen")
    return prompt_sets


def load_sampler(config: Config) -> Sampler:
    """Return the sampler: kernel, steps, guidance and control."""
    kernel = catalog.build("kernel", config.sampler.kernel, "sampler.kernel")
    guidance = catalog.build("guidance", config.sampler.guidance, "sampler.guidance")
    return Sampler(kernel, config.sampler.steps, guidance, config.sampler.control)


def load_curriculum(config: Config) -> Curriculum:
    """Return the curriculum of the control scale; without one the constant scale."""
    if not config.curriculum:
        return ConstantCurriculum(config.sampler.control.scale)

    curriculum: Curriculum = catalog.build("curriculum", config.curriculum)
    return curriculum


def load_policy(config: Config, device: str = "", adapter: str = "") -> Policy:
    """Return the model with its trainable weights.

    `device` and `adapter` stand in for the configuration's.
    """
    model = config.model
    objective: Objective = catalog.build("objective", config.objective)
    needs_reference = objective.kl > 0 or config.guard.kl > 0
    policy = Policy.load(
        model.id,
        train=model.train,
        rank=model.rank,
        alpha=model.alpha,
        targets=tuple(model.targets),
        dtype=model.dtype,
        device=device or model.device,
        gradient_checkpointing=model.gradient_checkpointing,
        decode_at_once=model.decode_at_once,
        revision=model.revision or None,
        variant=model.variant or None,
        scheduler=model.scheduler,
        fused_lora=model.fused_lora or None,
        controlnet=model.controlnet,
        size=model.size,
        trainable_parts=model.trainable_parts,
        adapter=adapter or model.adapter or None,
        reference=model.train == "full" and needs_reference,
    )
    add_identifiers(config, policy)
    return policy


def check_policy(config: Config, policy: Policy) -> None:
    """Refuse a given policy that is not what [model] says of it.

    Raises:
        ValueError: `train` or `dtype` differ.
    """
    if (policy.train, policy.dtype) != (config.model.train, DTYPES[config.model.dtype]):
        raise ValueError(
            f'the given policy has train = "{policy.train}" and computes in '
            f"{str(policy.dtype)[6:]}; make model.train and model.dtype say the same"
        )


def load_expander(config: Config, policy: Policy, adapter: str = "") -> Expander | None:
    """Return the prompt expander, if there is one, on the generator's device.

    A trained `adapter` is only to draw with.
    """
    settings = config.expander
    if not settings.model:
        return None

    expander = Expander.load(
        settings.model,
        train="none" if adapter else settings.train,
        rank=settings.rank,
        dtype=settings.dtype,
        device=policy.device,
        adapter=adapter or settings.adapter,
        temperature=settings.temperature,
        tokens=settings.tokens,
        instruction=settings.instruction,
        fits=partial(identifiers.fits, policy.pipe),
    )

    if not expander.trainable:
        return expander

    # the same configuration gives the same start, so a resumed run makes it again rather than
    # keeping a copy
    if settings.start:
        imitate(
            expander,
            read_pairs(settings.start),
            settings.start_epochs,
            settings.start_lr,
            config.seed,
        )

    if settings.train == "lora" or settings.kl > 0:
        expander.remember()

    return expander


def add_identifiers(config: Config, policy: Policy) -> None:
    """Add the rewards' identifiers to the model's tokens, if they are tokens."""
    if config.sampler.identifiers == "tokens":
        identifiers.add_tokens(policy.pipe, len(config.rewards))


def load_rewards(tables: Sequence[Table], where: str) -> dict[str, Reward]:
    """Return the rewards by name, in the order of the configuration."""
    rewards = {}

    for index, (name, table) in enumerate(zip(reward_names(tables), tables, strict=True)):
        reward = catalog.build("reward", reward_arguments(table), f"{where}.{index}")
        judges_original = table.get("of", "original") == "original"
        rewards[name] = of_original(reward) if judges_original else reward

    return rewards


def of_original(reward: Reward) -> Reward:
    """Return a reward that sees the prompts as they were before they were expanded."""

    def judged(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return reward(images, [prompt.unexpanded() for prompt in prompts])

    return judged


def load_panel(config: Config, tolerance: Tolerance) -> Panel:
    """Return the measures that the guard watches beside the judge; none without a guard."""
    guard = config.guard
    if guard.action == "none":
        return Panel()

    from burnish.rewards.clip import Clip

    clip = Clip.load(guard.diversity) if guard.diversity else None
    return Panel(load_rewards(guard.panel, "guard.panel"), clip, guard.kl > 0, tolerance)


def load_judge(config: Config) -> Judge | None:
    """Return the classifier of the embedded models, where it is configured."""
    if not config.evaluation.judge or not config.evaluation.images_per_prompt:
        return None
    from burnish.zoo import judge

    return judge.load()
