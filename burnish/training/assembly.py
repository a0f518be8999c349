"""From a configuration to the parts a run is made of: the one place where names become models and
functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor

from burnish import catalog
from burnish.config import Config, Table, reward_arguments, reward_names
from burnish.diffusion.control import Control
from burnish.diffusion.policy import DTYPES, Policy
from burnish.diffusion.sampler import Sampler
from burnish.evaluation.held_out import Panel
from burnish.prompts import identifiers
from burnish.prompts.expander import Expander
from burnish.prompts.imitation import imitate, read_pairs
from burnish.rewards import Tolerance
from burnish.seeds import generator
from burnish.training.requirements import check_identifiers, check_transitions
from burnish.types import Judge, Objective, Prompt, Reward

# how many are wanted -> that many prompts, drawn anew each time
Source = Callable[[int], Sequence[Prompt]]
IN_MEMORY = "burnish.training.assembly:absent"
"""What a run's configuration says in place of the name of something that has none: an object of a
Python program.
"""


@dataclass(frozen=True)
class Overrides:
    """What a Python program has in its hands and gives to `train` in place of what the
    configuration names.

    Only that program can resume such a run: its config.toml says where an object stood, but cannot
        hold it.
    """

    # in place of [model], which should say how it was made; it is trained as it is
    policy: Policy | None = None
    rewards: Mapping[str, Reward] = field(default_factory=dict)  # by name, in place of [[rewards]]
    # in place of [prompts]: called in each iteration by every process for its share, while
    # Python's, numpy's and torch's random numbers follow from (seed, iteration, process)
    source: Source | None = None

    def described(self, config: Config) -> Config:
        """The configuration with what is given in it; a reward keeps the weight that its name has
        there.
        """
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
    # that are trained on; with a `source` those that samples and evaluations show
    prompts: list[Prompt]
    rewards: dict[str, Reward]
    weights: Tensor  # (K,) of the rewards
    tolerance: Tolerance  # of rewards that fail
    advantage: Any  # an Advantage; one that remembers has state_dict and load_state_dict
    objective: Objective
    judge: Judge | None
    panel: Panel  # held-out measures of the evaluations
    judged: dict[str, list[Prompt]]  # evaluation prompts: "train" and, if there are any, "unseen"
    # (progress, chance) -> control scale; one that remembers has learn, state_dict, ...
    curriculum: Any = None
    source: Source | None = None  # draws each iteration's prompts, if they are no fixed list
    expander: Expander | None = None  # rewrites what the generator reads
    # all reward identifiers: how a trained model is asked in evaluations and samples
    template: str = "{}"


def assemble(config: Config, device: str = "", given: Overrides | None = None) -> Parts:
    """Load and build everything but what is `given`; what takes longest comes last, so that a slip
    is told soon.
    """
    given = given or Overrides()
    check_identifiers(config)
    prompts = [] if given.source else load_prompts(config.prompts, "prompts")
    judged = {"train": load_prompts(config.evaluation.prompts, "evaluation.prompts") or prompts}

    if not judged["train"] and (config.evaluation.images_per_prompt or config.run.sample_every):
        raise ValueError(
            "the prompts are drawn by a function, but evaluations and sample grids want some that stay: set "
            "evaluation.prompts, or evaluation.images_per_prompt = 0 and run.sample_every = 0"
        )

    if config.evaluation.unseen:
        judged["unseen"] = load_prompts(config.evaluation.unseen, "evaluation.unseen")

    advantage = catalog.build("advantage", config.advantage)
    objective = catalog.build("objective", config.objective)
    sampler = load_sampler(config)
    policy = given.policy or load_policy(config, device)

    if (policy.train, policy.dtype) != (config.model.train, DTYPES[config.model.dtype]):
        raise ValueError(
            f'the given policy has train = "{policy.train}" and computes in {str(policy.dtype)[6:]}; make model.train '
            "and model.dtype say the same"
        )

    identify(config, policy)
    check_transitions(config, policy, sampler, objective, advantage)
    everything = range(len(config.rewards) if config.sampler.identifiers else 0)
    tolerance = Tolerance(
        config.scoring.retries, config.scoring.timeout, config.scoring.missing == "mask"
    )

    return Parts(
        policy=policy,
        sampler=sampler,
        prompts=prompts or judged["train"],
        rewards=dict(given.rewards) or load_rewards(config.rewards, "rewards"),
        weights=torch.tensor([float(table.get("weight", 1.0)) for table in config.rewards]),
        tolerance=tolerance,
        advantage=advantage,
        objective=objective,
        judge=load_judge(config),
        panel=load_panel(config, tolerance),
        judged=judged,
        curriculum=catalog.build("curriculum", config.curriculum) if config.curriculum else None,
        source=given.source,
        expander=load_expander(config, policy),
        template=identifiers.template(everything, config.sampler.identifiers_after),
    )


def stage(config: Config, parts: Parts, iteration: int) -> Sampler:
    """How an iteration is sampled: at the control scale to which the curriculum has come, if there
    is one.

    Evaluations and sample grids stay at `sampler.control.scale`.
    """
    if parts.curriculum is None:
        return parts.sampler
    progress = (iteration - 1) / max(1, config.iterations - 1)
    scale = parts.curriculum(progress, generator(config.seed, iteration, "curriculum"))
    return replace(parts.sampler, control=replace(parts.sampler.control, scale=scale))


def absent(**arguments: Any) -> NoReturn:
    """What `OBJECT` names: the error of a run whose object is not given."""
    raise ValueError(
        "this was an object of a Python program, which no file holds: go on with the program that gave it"
    )


def load_prompts(table: Table, where: str) -> list[Prompt]:
    """The prompts of a source; an empty table gives none."""
    return catalog.build("prompts", table, where) if table else []


def load_sampler(config: Config) -> Sampler:
    """Kernel, steps and guidance."""
    kernel = catalog.build("kernel", config.sampler.kernel, "sampler.kernel")
    guidance = catalog.build("guidance", config.sampler.guidance, "sampler.guidance")
    control = Control(**asdict(config.sampler.control))
    return Sampler(kernel, config.sampler.steps, guidance, control)


def load_policy(config: Config, device: str = "", adapter: str = "") -> Policy:
    """The model with its trainable weights; `device` and `adapter` stand in for the
    configuration's.
    """
    model = config.model
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
        reference=model.train == "full"
        and (config.objective.get("kl", 0) > 0 or config.guard.kl > 0),
    )
    identify(config, policy)

    return policy


def load_expander(config: Config, policy: Policy, adapter: str = "") -> Expander | None:
    """The prompt expander, if there is one, on the generator's device; a trained `adapter` is only
    to draw with.
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


def identify(config: Config, policy: Policy) -> None:
    """Let the model read the rewards' identifiers, if they are tokens of their own."""
    if config.sampler.identifiers == "tokens":
        identifiers.add_tokens(policy.pipe, len(config.rewards))


def load_rewards(tables: Sequence[Table], where: str) -> dict[str, Reward]:
    """Reward by name, in the order of the configuration."""
    named = zip(reward_names(tables), tables, strict=True)
    built = {
        name: catalog.build("reward", reward_arguments(table), f"{where}.{place}")
        for place, (name, table) in enumerate(named)
    }
    by_original = {
        name
        for name, table in zip(built, tables, strict=True)
        if table.get("of", "original") == "original"
    }

    return {
        name: of_original(reward) if name in by_original else reward
        for name, reward in built.items()
    }


def of_original(reward: Reward) -> Reward:
    """A reward that judges by what was asked for, not by what an expander made of it. Its prompts
    keep everything but the text.
    """

    def judged(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return reward(images, [prompt.unexpanded() for prompt in prompts])

    return judged


def load_panel(config: Config, tolerance: Tolerance) -> Panel:
    """What the guard watches beside the judge; nothing without a guard."""
    guard = config.guard
    if guard.action == "none":
        return Panel()

    from burnish.rewards.clip import Clip

    clip = Clip.load(guard.diversity) if guard.diversity else None
    return Panel(load_rewards(guard.panel, "guard.panel"), clip, guard.kl > 0, tolerance)


def load_judge(config: Config) -> Judge | None:
    """The classifier of the embedded models, where it is asked for."""
    if not config.evaluation.judge or not config.evaluation.images_per_prompt:
        return None
    from burnish.zoo import judge

    return judge.load()
