"""Assembly: from a configuration to the parts of a run. Names become models and functions here."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from burnish import catalog
from burnish.catalog import IN_MEMORY
from burnish.checked import checked_part, checked_prompts, name_of
from burnish.config import (
    Config,
    Table,
    check_compared_images,
    check_curriculum,
    check_expander,
    check_guard_kl,
    check_noise,
    check_shared_noise,
    check_window,
    reward_arguments,
    reward_names,
)
from burnish.diffusion.loading import present_device
from burnish.diffusion.policy import DTYPES, Policy
from burnish.diffusion.prompt_encoder import PromptEncoder
from burnish.diffusion.sampler import Sampler
from burnish.diffusion.weights import check_adapter
from burnish.evaluation.held_out import Panel
from burnish.prompt_warnings import check_signs
from burnish.prompts import identifiers
from burnish.prompts.expander import Expander
from burnish.prompts.identifier_embeddings import IdentifierEmbeddings
from burnish.prompts.imitation import imitate, read_pairs
from burnish.rewards.gradient import check_differentiable
from burnish.rewards.tolerance import Tolerance, keep_waiting
from burnish.rewards.training_only import TrainingReward
from burnish.rl.curriculum import ConstantCurriculum
from burnish.seeds import generator
from burnish.stages import stage
from burnish.training.requirements import (
    check_devices,
    check_identifiers,
    check_prompt_images,
    check_text_encoder,
    check_transitions,
    check_votes,
    follows_gradient,
    needs_reference,
)
from burnish.training.stored_images import check_stored_images
from burnish.types import (
    Advantage,
    Curriculum,
    Guidance,
    Judge,
    Kernel,
    Objective,
    Prompt,
    Reward,
    describe_value,
    differentiable,
    is_differentiable,
)
from burnish.user_code import check_signature

if TYPE_CHECKING:
    from burnish.training.learners import Learner

Source = Callable[[int], Sequence[Prompt]]
"""(how many are wanted) -> that many prompts, drawn anew each time."""

ADD_REWARD = "add a reward with weight = 0.0 for it, or set evaluation.images_per_prompt = 0"
"""The remedy where a run's rewards all know training images only."""


@dataclass(frozen=True)
class Overrides:
    """Objects of a Python program that `train` takes in place of what the configuration names.

    Only that program can resume such a run. Its config.toml marks the place of what is given, but
    cannot hold it; of a policy it has [model] as given, which is loaded by others.
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

    # in place of what the tables of these names say: an object of the protocol, or a function that
    # is called as the object would be
    advantage: Advantage | Callable[..., Any] | None = None
    objective: Objective | Callable[..., Any] | None = None
    curriculum: Curriculum | Callable[..., Any] | None = None
    kernel: Kernel | Callable[..., Any] | None = None
    guidance: Guidance | Callable[..., Any] | None = None

    @property
    def parts(self) -> dict[str, Any]:
        """The given parts of a run's method by their kind."""
        given = {
            "advantage": self.advantage,
            "objective": self.objective,
            "curriculum": self.curriculum,
            "kernel": self.kernel,
            "guidance": self.guidance,
        }
        return {kind: part for kind, part in given.items() if part is not None}

    def build(self, kind: str, table: Table, where: str = "") -> Any:
        """Return the given part of a kind, or else what the configuration's table names.

        Raises:
            ValueError: it is no part of this kind.
        """
        if kind not in self.parts:
            return catalog.build(kind, table, where)
        return checked_part(kind, self.parts[kind], _own_name(self.parts[kind]))

    def check(self) -> None:
        """Refuse rewards, a source or learners that could not be called.

        Raises:
            ValueError: one sentence that says how to give them.
        """
        for name, example in (
            ("rewards", 'rewards by name, such as {"redness": redness}'),
            ("learners", 'learners by name, such as {"critic": critic}'),
        ):
            given = getattr(self, name)
            if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
                shape = describe_value(given)
                raise ValueError(f"overrides.{name} is {shape}; give a dict of {example}")

        given_rewards(self)
        if self.source is not None:
            check_signature("overrides.source", self.source, ("count",))

    def apply_to(self, config: Config) -> Config:
        """Return the configuration with the objects in it; rewards keep their names' weights.

        Raises:
            ValueError: the rewards, the source or the learners are not what they must be.
        """
        self.check()
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

        tables: dict[str, Any] = {
            kind: {"use": IN_MEMORY, "name": _own_name(part)} for kind, part in self.parts.items()
        }
        of_sampler = {kind: tables.pop(kind) for kind in ("kernel", "guidance") if kind in tables}
        sampler = replace(config.sampler, **of_sampler)
        return replace(config, sampler=sampler, **changes, **tables)


@dataclass(frozen=True, kw_only=True)
class EvaluationParts:
    """The parts of a configuration that an evaluation needs."""

    policy: Policy
    sampler: Sampler
    rewards: dict[str, Reward]
    weights: Tensor  # (K,) of the rewards
    tolerance: Tolerance  # of rewards that fail
    judge: Judge | None
    panel: Panel  # held-out measures
    evaluation_prompts: dict[str, list[Prompt]]  # "train" and, if there are any, "unseen"
    listed: Mapping[str, int] = field(default_factory=dict)  # prompts of each set before thinning
    embeddings: IdentifierEmbeddings | None = None  # of reward identifiers, if they learn
    expander: Expander | None = None  # rewrites what the generator reads
    template: str = "{}"  # all reward identifiers: put around the prompts of evaluations

    @property
    def evaluated(self) -> dict[str, Reward]:
        """The rewards that evaluations measure: without those that know training images only."""
        found = self.rewards.items()
        return {name: one for name, one in found if not isinstance(one, TrainingReward)}

    @property
    def evaluated_weights(self) -> Tensor:
        """The weights (K,) of these; if none of them is trained on, they count alike."""
        weights = dict(zip(self.rewards, self.weights, strict=True))
        found = torch.stack([weights[name] for name in self.evaluated])
        return found if found.any() or len(found) == len(weights) else torch.ones_like(found)


@dataclass(frozen=True, kw_only=True)
class Parts(EvaluationParts):
    """Everything that a configuration names."""

    prompts: list[Prompt]  # trained on; with a `source` those of samples and evaluations
    advantage: Advantage
    objective: Objective
    curriculum: Curriculum
    source: Source | None = None  # draws each iteration's prompts, if they are no fixed list


def assemble(
    config: Config,
    device: str = "",
    overrides: Overrides | None = None,
    poll: Callable[[], None] = keep_waiting,
    sharded: bool = False,
) -> Parts:
    """Return the parts of a configuration, with what `overrides` gives in place of its own.

    What takes longest comes last, so that a slip is reported soon.

    Args:
        config: of the run.
        device: in place of the configuration's; "" keeps that.
        overrides: objects in place of what the configuration names.
        poll: called often while a reward is waited for; it may raise to stop.
        sharded: each process keeps a part of the network's weights.

    Raises:
        ValueError, OSError: a part cannot be loaded, or the parts do not fit each other.
    """
    overrides = overrides or Overrides()
    if sharded and overrides.policy is not None:
        raise ValueError(
            'run.sharding = "full" divides a model while it is loaded, and overrides.policy is '
            "loaded; leave one of them out"
        )
    check_expander(config)
    check_identifiers(config)
    check_text_encoder(config, listed=overrides.source is None)
    check_devices(config, device)
    if config.evaluation.images_per_prompt and not overrides.rewards:
        check_evaluated_tables(config.rewards)
    prompts = [] if overrides.source else load_prompts(config.prompts, "prompts")
    evaluation_prompts = load_evaluation_prompts(config, prompts)

    advantage = overrides.build("advantage", config.advantage)
    objective = overrides.build("objective", config.objective)
    curriculum = load_curriculum(config, overrides)
    sampler = load_sampler(config, overrides)
    check_noise(sampler.kernel, objective)
    check_shared_noise(config, sampler.kernel)
    check_window(config, objective)
    check_guard_kl(config, sampler.kernel)
    check_stored_images(config, objective)
    check_prompt_signs(config, sampler, prompts, evaluation_prompts)
    reference = needs_reference(objective) or config.guard.kl > 0
    with stage("loading", f"model {config.model.id}"):
        first = encoded_first(config, sampler, prompts, evaluation_prompts)
        policy = overrides.policy or load_policy(
            config, device, reference=reference, encode_first=first, sharded=sharded
        )
    check_policy(config, policy)
    warn_of_text_layers(policy)
    add_identifiers(config, policy, config.model.adapter)
    check_transitions(config, policy, sampler, objective, advantage)
    check_compared_images(config, advantage)
    if first is not None and not policy.prompt_encoder.freed:
        first(policy.prompt_encoder)
    rewards = given_rewards(overrides)
    shared = _shared(config, policy, sampler, evaluation_prompts, rewards, poll)
    if follows_gradient(objective):
        weighted = zip(shared.rewards, shared.weights.tolist(), strict=True)
        check_differentiable(shared.rewards, [name for name, weight in weighted if weight == 0])
    check_votes(config, shared.rewards)
    known = [*prompts, *chain.from_iterable(evaluation_prompts.values())]
    if config.evaluation.images_per_prompt or config.run.sample_every:
        check_prompt_images(config, policy, known)
    else:
        check_prompt_images(config, policy, prompts)
    drawn = identifiers.with_template(known, shared.template)
    policy.prompt_encoder.check([prompt.generator_text for prompt in drawn])

    return Parts(
        **vars(shared),
        prompts=prompts or evaluation_prompts["train"],
        advantage=advantage,
        objective=objective,
        curriculum=curriculum,
        source=overrides.source,
    )


def assemble_evaluation(config: Config, rewards: Sequence[Table] = ()) -> EvaluationParts:
    """Return what an evaluation of a run needs; no advantage, objective or curriculum is built.

    The run may have been trained on another machine: a device that this one lacks is replaced. An
    expander has not made its supervised start (`start_expander`).

    Args:
        config: of the run.
        rewards: to judge by, in place of its own.

    Raises:
        ValueError, OSError: a part cannot be loaded, or the parts do not fit each other.
    """
    check_evaluated_tables(rewards or config.rewards, "judge by another one with --reward")
    check_expander(config)
    check_identifiers(config)
    check_text_encoder(config)
    device = present_device(config.model.device)
    check_devices(config, device)
    prompts = [] if config.evaluation.prompts else load_prompts(config.prompts, "prompts")
    evaluation_prompts = load_evaluation_prompts(config, prompts)
    sampler = load_sampler(config)
    reference = config.guard.action != "none" and config.guard.kl > 0
    with stage("loading", f"model {config.model.id}"):
        first = encoded_first(config, sampler, [], evaluation_prompts)
        policy = load_policy(config, device, reference=reference, encode_first=first)
    return _shared(config, policy, sampler, evaluation_prompts, tables=rewards, started=False)


def _shared(
    config: Config,
    policy: Policy,
    sampler: Sampler,
    evaluation_prompts: dict[str, list[Prompt]],
    given: Mapping[str, Reward] | None = None,
    poll: Callable[[], None] = keep_waiting,
    tables: Sequence[Table] = (),
    started: bool = True,
) -> EvaluationParts:
    tables = tables or config.rewards
    scoring = config.scoring
    masked = scoring.missing == "mask"
    tolerance = Tolerance(scoring.retries, scoring.timeout, masked, poll=poll)
    identified = range(len(config.rewards) if config.sampler.identifiers else 0)

    with stage("loading", f"rewards {', '.join(reward_names(tables))}"):
        rewards = dict(given or {}) or load_rewards(tables, "rewards")
        judge = load_judge(config)
        panel = load_panel(config, tolerance)
    if config.evaluation.images_per_prompt:
        check_evaluated(rewards)

    return EvaluationParts(
        policy=policy,
        sampler=sampler,
        rewards=rewards,
        weights=torch.tensor([float(table.get("weight", 1.0)) for table in tables]),
        tolerance=tolerance,
        judge=judge,
        panel=panel,
        evaluation_prompts={
            name: thinned(prompt_set, config.evaluation.max_prompts)
            for name, prompt_set in evaluation_prompts.items()
        },
        listed={name: len(prompt_set) for name, prompt_set in evaluation_prompts.items()},
        embeddings=learned_identifiers(config, policy),
        expander=load_expander(config, policy, started=started),
        template=identifiers.template(identified, config.sampler.identifiers_after),
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


def _own_name(part: Any) -> str:
    """Return the name of a function or of an object's class, without its module's."""
    return name_of(part).partition(".")[2]


def load_prompts(table: Table, where: str) -> list[Prompt]:
    """Return the prompts of a source; an empty table gives none.

    Raises:
        ValueError: the source gives none, or something else.
    """
    if not table:
        return []

    prompts = checked_prompts(catalog.build("prompts", table, where), table["use"])
    counts = Counter((prompt.text, prompt.template, repr(prompt.metadata)) for prompt in prompts)
    repeated = [text for (text, *_), count in counts.items() if count > 1]
    if repeated:
        warnings.warn(
            f"{where}: {len(prompts) - len(counts)} of {len(prompts)} prompts are there already "
            f"(such as '{repeated[0]}'): they are drawn more often, and count as prompts of their "
            "own",
            stacklevel=2,
        )
    return prompts


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


def thinned(prompts: list[Prompt], most: int) -> list[Prompt]:
    """Return at most so many of the prompts, in their order: one of each stretch of the list.

    It is drawn from its stretch, from a fixed seed, so that the same list always gives the same
    prompts, and a list with a rhythm (every noun in two styles) does not give one style only.

    Args:
        prompts: a set of an evaluation.
        most: of them; 0: all.
    """
    count = len(prompts)
    if not most or count <= most:
        return prompts

    ends = [index * count // most for index in range(most + 1)]
    draw = generator("evaluation prompts")
    rows = [int(torch.randint(start, end, (1,), generator=draw)) for start, end in pairwise(ends)]
    return [prompts[row] for row in rows]


def check_prompt_signs(
    config: Config,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    evaluation_prompts: Mapping[str, Sequence[Prompt]],
) -> None:
    """Refuse prompts with signs for weights, unless the configuration takes them as letters.

    Raises:
        ValueError: a prompt of the run, or its negative prompt, has some.
    """
    if config.model.prompt_signs == "letters":
        return

    known = chain(prompts, *evaluation_prompts.values())
    texts = [*(prompt.text for prompt in known), sampler.guidance.negative]
    check_signs(filter(None, texts))


def load_sampler(config: Config, overrides: Overrides | None = None) -> Sampler:
    """Return the sampler: kernel, steps, guidance and control.

    With a window it follows the ODE: so it is evaluated, and the window is an iteration's.
    """
    overrides = overrides or Overrides()
    kernel = overrides.build("kernel", config.sampler.kernel, "sampler.kernel")
    guidance = overrides.build("guidance", config.sampler.guidance, "sampler.guidance")
    window = range(0) if config.sampler.window.size else None
    return Sampler(kernel, config.sampler.steps, guidance, config.sampler.control, window)


def load_curriculum(config: Config, overrides: Overrides) -> Curriculum:
    """Return the curriculum of the control scale; without one the constant scale."""
    if not config.curriculum:
        return ConstantCurriculum(config.sampler.control.scale)

    curriculum: Curriculum = overrides.build("curriculum", config.curriculum)
    check_curriculum(config, curriculum)
    return curriculum


def load_policy(
    config: Config,
    device: str | torch.device = "",
    adapter: str = "",
    *,
    reference: bool = False,
    pipe: Any = None,
    encode_first: Callable[[PromptEncoder], None] | None = None,
    sharded: bool = False,
) -> Policy:
    """Return the model with its trainable weights.

    Args:
        config: of the run.
        device: in place of the configuration's; "" keeps that.
        adapter: in place of the configuration's; "" keeps that.
        reference: keep the weights before training beside those that are trained in full.
        pipe: a diffusers pipeline in place of the configuration's.
        encode_first: what `encoded_first` returned. Without it, text encoders that a run frees stay
            in main memory: who draws later has other prompts.
        sharded: each process keeps a part of the network's weights.
    """
    model = config.model
    is_beside = model.text_encoder == "keep" or encode_first is not None
    source = adapter or model.adapter
    with_weights = bool(source) and not identifiers.are_alone(Path(source).expanduser())
    if source and not with_weights and config.sampler.identifiers != "tokens":
        raise ValueError(
            f"model.adapter: {source} has embeddings of identifiers, and no LoRA: set "
            'sampler.identifiers = "tokens" to start from them, or leave model.adapter out'
        )
    if with_weights and not model.trainable_parts:
        check_adapter(source, model.train, bool(model.quantization))

    policy = Policy.load(
        pipe or model.id,
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
        config=model.config,
        vae=model.vae,
        clip_skip=model.clip_skip,
        trainable_parts=model.trainable_parts,
        adapter=source if with_weights else None,
        reference=model.train == "full" and reference,
        quantization=model.quantization,
        offload=model.offload,
        text_encoder="keep" if is_beside else "cpu",
        encode_first=encode_first,
        sharded=sharded,
    )
    policy.prompt_encoder.warnings.signs = model.prompt_signs != "letters"
    add_identifiers(config, policy, source)
    return policy


def encoded_first(
    config: Config,
    sampler: Sampler,
    prompts: list[Prompt],
    evaluation_prompts: Mapping[str, list[Prompt]],
) -> Callable[[PromptEncoder], None] | None:
    """Return a function that encodes every prompt of a run and frees the text encoders.

    It is None if the configuration does not say so.

    Args:
        config: of the run.
        sampler: its guidance may read a negative prompt, and prompts before expansion.
        prompts: trained on.
        evaluation_prompts: by set, before they are thinned.
    """
    if config.model.text_encoder != "free":
        return None

    most = config.evaluation.max_prompts
    known = [*prompts, *chain.from_iterable(thinned(s, most) for s in evaluation_prompts.values())]
    rewards = range(len(config.rewards) if config.sampler.identifiers else 0)
    drawn = list(known)
    for targets in ([], rewards, *([reward] for reward in rewards)):
        template = identifiers.template(targets, config.sampler.identifiers_after)
        drawn += identifiers.with_template(known, template)
    if sampler.guidance.needs_original:
        drawn += [prompt.unexpanded() for prompt in known]

    texts = list(dict.fromkeys(prompt.generator_text for prompt in drawn))

    def encode(encoder: PromptEncoder) -> None:
        encoder.warnings.signs = config.model.prompt_signs != "letters"
        with stage("encoding", f"{len(texts)} prompts", len(texts)):
            encoder.free(texts, ("", sampler.guidance.negative))

    return encode


def check_policy(config: Config, policy: Policy) -> None:
    """Refuse a given policy that is not what [model] says of it.

    Raises:
        ValueError: `train`, `dtype` or `quantization` differ.
    """
    model = config.model
    wanted = (model.train, DTYPES[model.dtype], model.quantization)
    if (policy.train, policy.dtype, policy.quantization) != wanted:
        stored = f', quantization = "{policy.quantization}"' if policy.quantization else ""
        raise ValueError(
            f'the given policy has train = "{policy.train}"{stored} and computes in '
            f"{str(policy.dtype)[6:]}; make model.train, model.dtype and model.quantization say "
            "the same"
        )


def warn_of_text_layers(policy: Policy) -> None:
    """Say which LoRA changes text encoders, which do not learn."""
    becomes = {
        "model.fused_lora": "it is merged into them for good, and what is learned is for a model "
        "with it",
        "model.adapter": "its layers there stay as they are, and are written into RUN/adapter "
        "beside what is learned",
    }
    for key, parts in policy.lora_texts.items():
        warnings.warn(
            f"{key}: the LoRA changes the {', '.join(parts)} too, and these do not learn: "
            f"{becomes[key]}",
            stacklevel=2,
        )


def load_expander(
    config: Config, policy: Policy, adapter: str = "", *, started: bool = True
) -> Expander | None:
    """Return the prompt expander, if there is one, on the generator's device.

    A trained `adapter` is only to draw with.

    Args:
        config: of the run.
        policy: with the generator.
        adapter: a folder such as RUN/adapter/expander.
        started: it has made its supervised start, if one is set; False: `start_expander` may do
            that later.
    """
    settings = config.expander
    if not settings.model:
        return None

    with stage("loading", f"expander {settings.model}"):
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

    if started:
        start_expander(config, expander)
    if settings.train == "lora" or settings.kl > 0:
        expander.remember()

    return expander


def start_expander(config: Config, expander: Expander) -> None:
    """Let an expander imitate what `expander.start` names, if that is set and it learns.

    The same configuration gives the same start, so a resumed run makes it again rather than keeping
    a copy.
    """
    settings = config.expander
    if settings.start and expander.trainable:
        pairs = read_pairs(settings.start)
        imitate(expander, pairs, settings.start_epochs, settings.start_lr, config.seed)


def add_identifiers(config: Config, policy: Policy, adapter: str = "") -> None:
    """Add the rewards' identifiers to the model's tokens, if they are tokens.

    Args:
        config: of the run.
        policy: with the model.
        adapter: a folder such as RUN/adapter, whose embeddings they have, if there are any.
    """
    settings = config.sampler
    if settings.identifiers != "tokens":
        return

    distance = identifiers.NEAR if settings.identifiers_learn else identifiers.FAR
    identifiers.add_tokens(policy.pipe, len(config.rewards), distance)
    if adapter:
        folder = Path(adapter).expanduser() / "identifiers"
        identifiers.load_tokens(policy.pipe, len(config.rewards), folder)


def learned_identifiers(config: Config, policy: Policy) -> IdentifierEmbeddings | None:
    """Return the identifiers' embeddings as parameters, if they learn.

    Raises:
        ValueError: the model's text encoders are gone.
    """
    if not config.sampler.identifiers_learn:
        return None

    embeddings = IdentifierEmbeddings(policy.pipe, len(config.rewards))
    policy.prompt_encoder.learned = embeddings.trainable
    return embeddings


def load_rewards(tables: Sequence[Table], where: str) -> dict[str, Reward]:
    """Return the rewards by name, in the order of the configuration."""
    rewards = {}

    for index, (name, table) in enumerate(zip(reward_names(tables), tables, strict=True)):
        reward = catalog.build("reward", reward_arguments(table), f"{where}.{index}")
        judges_original = table.get("of", "original") == "original"
        judges_original &= not isinstance(reward, TrainingReward)
        rewards[name] = of_original(reward) if judges_original else reward

    return rewards


def check_evaluated(rewards: Mapping[str, Reward]) -> None:
    """Refuse an evaluation without a reward that it can measure.

    Raises:
        ValueError: all rewards know training images only.
    """
    if all(isinstance(reward, TrainingReward) for reward in rewards.values()):
        _refuse_evaluation(rewards, ADD_REWARD)


def check_evaluated_tables(tables: Sequence[Table], remedy: str = ADD_REWARD) -> None:
    """Refuse the same as `check_evaluated` by what `use` names, before anything is loaded.

    Args:
        tables: of the rewards.
        remedy: the end of the sentence.

    Raises:
        ValueError: all rewards know training images only.
    """
    if all(_knows_training_only(table) for table in tables):
        _refuse_evaluation(reward_names(tables), remedy)


def _knows_training_only(table: Table) -> bool:
    """Return whether a class, or a function that says what it returns, makes a TrainingReward."""
    found = catalog.resolve("reward", table["use"])
    made = found if isinstance(found, type) else catalog.argument_hints(found).get("return")
    return isinstance(made, type) and issubclass(made, TrainingReward)


def _refuse_evaluation(names: Iterable[str], remedy: str) -> NoReturn:
    raise ValueError(
        f"reward '{', '.join(names)}' knows only images that are trained on, so an evaluation has "
        f"nothing to measure: {remedy}"
    )


def given_rewards(overrides: Overrides) -> dict[str, Reward]:
    """Return the rewards of a Python program.

    Raises:
        ValueError: one of them cannot be called with images and prompts.
    """
    called_with = catalog.CALLED_WITH["reward"]
    return {
        name: checked_part("reward", reward, f"'{name}'", called_with)
        for name, reward in overrides.rewards.items()
    }


def of_original(reward: Reward) -> Reward:
    """Return a reward that sees the prompts as they were before they were expanded."""

    def judged(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return reward(images, [prompt.unexpanded() for prompt in prompts])

    return differentiable(judged) if is_differentiable(reward) else judged


def load_panel(config: Config, tolerance: Tolerance) -> Panel:
    """Return the measures that the guard watches beside the judge; none without a guard."""
    guard = config.guard
    if guard.action == "none":
        return Panel()

    from burnish.rewards.clip import Clip

    clip = Clip.load(guard.diversity, key="guard.diversity") if guard.diversity else None
    return Panel(load_rewards(guard.panel, "guard.panel"), clip, guard.kl > 0, tolerance)


def load_judge(config: Config) -> Judge | None:
    """Return the classifier of the embedded models, where it is configured."""
    if not config.evaluation.judge or not config.evaluation.images_per_prompt:
        return None
    from burnish.zoo import judge

    return judge.load(config.evaluation.judge)
