"""The memory that a recipe takes on a GPU, predicted without a GPU and without weights.

One chunk of an iteration is sampled and scored, one training call is made and one optimizer step
taken, by the loop's own pieces, with networks on torch's meta device (`diffusion.allocations`):
what lives at the same time is added up, and no number is computed. The networks come from
configurations (`diffusion.weightless`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from burnish import catalog
from burnish.config import Config, EvaluationConfig, ExpanderConfig, GuardConfig, reward_names
from burnish.diffusion.allocations import META, Allocations, GPUArithmetic
from burnish.diffusion.frozen_linear import offloaded_tensors
from burnish.diffusion.policy import DTYPES, Policy
from burnish.diffusion.weightless import (
    DECODER,
    NETWORK,
    TEXT,
    assign_parts,
    attach_weightless_controlnet,
    weightless_clip,
    weightless_pipeline,
)
from burnish.diffusion.weights import enable_gradient_checkpointing
from burnish.prompts.pairs import images_of_pairs
from burnish.rewards.clip import prepare as prepare_images
from burnish.runs import Run
from burnish.seeds import seed_globals
from burnish.tools.preflight import Rehearsal, chunk_prompts
from burnish.training.assembly import Overrides, load_policy
from burnish.training.batch import RolloutBatch
from burnish.training.iteration_sampler import iteration_sampler
from burnish.training.job import Job, prepare
from burnish.training.learners import GeneratorLearner
from burnish.training.requirements import needs_reference
from burnish.training.stored_images import has_stored_images
from burnish.types import Prompt, Reward, Scores, differentiable
from burnish.world import World

GIB = 1 << 30
LEARNED = "adapter and optimizer"
REWARDS = "rewards"
WORK = "activations"
MAIN_MEMORY = "main memory"
PURPOSES = (NETWORK, TEXT, DECODER, LEARNED, REWARDS, WORK)
"""Of a GPU's memory."""

CONTEXT = 0.6
"""GiB that CUDA takes for itself in each process."""

FRAGMENTS = 1.1
"""The memory that torch's allocator holds, over that of the tensors in it.

On an H200 it was 1.00 to 1.15 (benchmarks/README.md).
"""

CLIP_REWARDS = (
    "aesthetic",
    "clip_contrast",
    "clip_retrieval",
    "clip_similarity",
    "code_distance",
    "picture_similarity",
    "preference",
    "sentiment",
    "taste",
)
"""Rewards that ask a CLIP model on the generator's device; their argument `model` names it."""

WITHOUT_MODEL = (
    "compressibility",
    "incompressibility",
    "qr_scan",
    "qr_modules",
    "remote",
    "chosen",
)
"""Rewards that take no memory of a GPU worth counting."""


@dataclass(frozen=True)
class Prediction:
    """The bytes by purpose when most are taken, in each phase of a run."""

    phases: Mapping[str, Mapping[str, int]]

    @property
    def phase(self) -> str:
        """The phase that takes most."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def peak(self) -> int:
        """Bytes of tensors at most."""
        return sum(self.phases[self.phase].values())

    def saves(self, other: Prediction) -> bool:
        """Return whether a phase takes less than in another prediction, by more than 1 %."""
        return any(
            sum(self.phases[name].values()) < 0.99 * sum(taken.values())
            for name, taken in other.phases.items()
        )

    @property
    def needed(self) -> float:
        """GiB that a card must have: with the allocator's fragments and CUDA's own."""
        return self.peak / GIB * FRAGMENTS + CONTEXT


@dataclass
class Forecast:
    """A run without weights on its way through the phases."""

    config: Config
    memory: Allocations
    arithmetic: GPUArithmetic
    phases: dict[str, dict[str, int]] = field(default_factory=dict)
    moments: list[Tensor] = field(default_factory=list)  # of an optimizer with 8 bits

    def run(self) -> None:
        """Go through the phases."""
        policy = self.load()
        rewards = self.load_rewards()
        job = self.prepare(policy, rewards)
        prompts, group = chunk_prompts(job.config, job.parts)
        if has_stored_images(job.config):
            prompts = images_of_pairs(prompts)

        self.encode(job, prompts)
        self.step(job)
        batch = self.sample(job, prompts, group)
        self.train(job, batch)

    @property
    def text_place(self) -> str:
        """The purpose of the text encoders' memory, and of what they compute."""
        return MAIN_MEMORY if self.config.model.text_encoder == "cpu" else TEXT

    def load(self) -> Policy:
        """Return the policy, whose networks have no weights."""
        model = self.config.model
        dtype = DTYPES[model.dtype]
        trained = torch.float32 if model.train == "full" else dtype
        theirs = dtype if model.trainable_parts == "controlnet" else trained
        named = model.config or model.id  # a single file has the former's shapes
        pipe = weightless_pipeline(named, self.memory, dtype, theirs, model.revision)
        if model.controlnet:
            control = trained if model.trainable_parts else dtype
            pipe = attach_weightless_controlnet(pipe, self.memory, control)

        loaded = replace(
            model, adapter="", fused_lora="", controlnet="", vae="", text_encoder="keep"
        )
        with self.memory.purpose(LEARNED):
            policy = load_policy(
                replace(self.config, model=loaded),
                META,
                pipe=pipe,
                reference=self.config.guard.kl > 0 or has_anchor(self.config),
            )

        assign_parts(self.memory, policy.pipe, policy._family, self.text_place)
        self.memory.assign(offloaded_tensors(policy._family.network_of(policy.pipe)), MAIN_MEMORY)
        if model.gradient_checkpointing:
            enable_gradient_checkpointing(policy.pipe, policy._family, self.arithmetic.checkpoint)
        policy._family = replace(
            policy._family,
            call=once(policy._family.call),
            decode=for_decoder(self.memory, once(policy._family.decode)),
            embed=for_decoder(self.memory, policy._family.embed),
        )
        self.memory.restart()
        return policy

    def load_rewards(self) -> dict[str, Reward]:
        """Return stand-ins for the rewards by name, with the models that are known."""
        models: dict[str, Any] = {}
        rewards = {}

        with self.memory.purpose(REWARDS):
            for name, table in zip(
                reward_names(self.config.rewards), self.config.rewards, strict=True
            ):
                model = clip_of(table)
                if model and model not in models:
                    models[model] = weightless_clip(model)
                rewards[name] = stand_in(self.memory, models.get(model))

        return rewards

    def prepare(self, policy: Policy, rewards: Mapping[str, Reward]) -> Job:
        """Return the job of a training with this policy and these rewards, and one prompt."""
        names = zip(reward_names(self.config.rewards), self.config.rewards, strict=True)
        tables = [
            {"use": "compressibility", "name": name, "weight": table.get("weight", 1.0)}
            for name, table in names
        ]
        model = replace(self.config.model, device="cpu", text_encoder="keep")
        config = replace(
            self.config,
            model=model,
            rewards=tables,
            expander=ExpanderConfig(),
            evaluation=EvaluationConfig(images_per_prompt=0),
            guard=GuardConfig(),
            sampler=replace(self.config.sampler, identifiers="", identifiers_learn=False),
            run=replace(self.config.run, sample_every=0),
            optimizer=replace(self.config.optimizer, eight_bit=False),
        )
        with self.memory.purpose(LEARNED):
            overrides = Overrides(policy=policy, rewards=rewards)
            job = prepare(config, Run(Path("memory")), World(), overrides=overrides)

        longest = max(job.parts.prompts, key=lambda prompt: len(prompt.generator_text))
        return replace(job, parts=replace(job.parts, prompts=[longest]))

    def encode(self, job: Job, prompts: list[Prompt]) -> None:
        """Encode the prompts, and take the text encoders out of memory where the run does."""
        encoder = job.parts.policy.prompt_encoder
        negatives = ("", job.parts.sampler.guidance.negative)
        is_first = self.config.model.text_encoder == "free"

        with self.memory.purpose(self.text_place):
            if is_first:
                encoder.free([prompt.generator_text for prompt in prompts], negatives)
            else:
                job.parts.sampler.encode(job.parts.policy, prompts)
                for text in negatives:
                    encoder.null(1, text)

        self.end("encoding")
        if is_first:  # nothing else is on the device yet
            taken = self.phases["encoding"]
            self.phases["encoding"] = dict.fromkeys(taken, 0) | {TEXT: taken[TEXT]}

    def step(self, job: Job) -> None:
        """Take an optimizer step, whose moments stay."""
        learner = job.learners["generator"]
        assert isinstance(learner, GeneratorLearner)
        weights = learner.weights
        weights.scaler = torch.amp.GradScaler("cpu", enabled=False)  # it takes no memory
        if not weights.network.trainable:
            return

        with self.memory.purpose(LEARNED):
            for weight in weights.network.trainable:
                weight.grad = torch.zeros_like(weight)
            if self.config.optimizer.eight_bit:
                self.moments = list(moments_in_eight_bits(weights.network.trainable))
            else:
                for group in weights.optimizer.param_groups:
                    group["foreach"] = True  # what torch chooses on a GPU
                weights.step(job.world, "")
            for weight in weights.network.trainable:
                weight.grad = None

        self.end("optimizer step")

    def sample(self, job: Job, prompts: list[Prompt], group: Tensor) -> RolloutBatch:
        """Return the images of a chunk, sampled while the chunk before it is scored."""
        rehearsal = Rehearsal(job)

        with self.memory.purpose(WORK):
            trajectory, images = rehearsal.sample(iteration_sampler(job, 1), prompts, group)
        self.end("sampling")

        before = self.memory.live[REWARDS]
        with torch.no_grad():
            scores = [reward(images, prompts).cpu() for reward in job.parts.rewards.values()]
        while_scored = self.memory.peak[REWARDS] - before
        self.end("scoring")
        self.phases["sampling"][REWARDS] += max(while_scored, 0)

        return RolloutBatch(
            iteration=1,
            prompts=prompts,
            expansions=None,
            trajectory=trajectory,
            scores=Scores(torch.stack(scores, 1), tuple(job.parts.rewards)),
            group=group,
            control_scale=None,
            seconds_sampling=0.0,
            seconds_scoring=0.0,
        )

    def train(self, job: Job, batch: RolloutBatch) -> None:
        """Make a training call; the gradients of the calls before it are there."""
        with self.memory.purpose(LEARNED):
            for weight in job.parts.policy.trainable:
                weight.grad = torch.zeros_like(weight)
        with self.memory.purpose(WORK):
            Rehearsal(job).train(batch)
        self.end("training")

    def end(self, phase: str) -> None:
        """Note what a phase took at most."""
        self.phases[phase] = {name: self.memory.peak[name] for name in PURPOSES}
        self.memory.restart()


def for_decoder(memory: Allocations, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a function whose memory counts as the decoder's."""

    def call(*args: Any) -> Tensor:
        with memory.purpose(DECODER):
            return function(*args)

    return call


def stand_in(memory: Allocations, clip: Any) -> Reward:
    """Return a reward that embeds images by a CLIP model; without one it takes their mean."""

    @differentiable
    def reward(images: Tensor, prompts: object) -> Tensor:
        if clip is None:
            return images.mean((1, 2, 3))
        with memory.purpose(REWARDS):
            size = int(clip.config.vision_config.image_size)
            pixels = prepare_images(images, size, (0.5,) * 3, (0.5,) * 3)
            embedded: Tensor = clip.get_image_features(pixel_values=pixels).pooler_output
            return embedded.sum(1)

    return reward


def once(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a function of a pipeline and tensors that is called once for each number of rows.

    After that, only a result of the same form is made; with a gradient it is called every time.
    """
    results: dict[int, tuple[torch.Size, torch.dtype]] = {}

    def called(pipe: Any, *arguments: Any) -> Tensor:
        if torch.is_grad_enabled():
            return function(pipe, *arguments)

        cond = arguments[-1]
        rows = len(cond["text"] if isinstance(cond, dict) else cond)
        if rows in results:
            return torch.empty(results[rows][0], dtype=results[rows][1], device=META)

        result = function(pipe, *arguments)
        results[rows] = (result.shape, result.dtype)
        return result

    return called


def moments_in_eight_bits(weights: list[torch.nn.Parameter]) -> Iterator[Tensor]:
    """Yield AdamW's moments in 8 bits, with a scale of each 256; small ones are float32."""
    for weight in weights:
        count = weight.numel()
        for _ in range(2):
            if count < 4096:
                yield torch.empty(count, device=META)
            else:
                yield torch.empty(count, dtype=torch.uint8, device=META)
                yield torch.empty(-(-count // 256), device=META)


def clip_of(table: Mapping[str, Any]) -> str:
    """Return the CLIP model that a reward asks on the generator's device; "": none is known."""
    use = table["use"]
    if use not in CLIP_REWARDS or table.get("device", "auto") == "cpu":
        return ""
    arguments = inspect.signature(catalog.resolve("reward", use)).parameters
    return str(table.get("model") or arguments["model"].default)


def has_anchor(config: Config) -> bool:
    """Return whether the objective reads the weights before training."""
    return needs_reference(catalog.build("objective", config.objective, "objective"))


def left_out(config: Config) -> Iterator[str]:
    """Yield what a prediction does not count."""
    for name, table in zip(reward_names(config.rewards), config.rewards, strict=True):
        is_on_cpu = table["use"] in CLIP_REWARDS and table.get("device") == "cpu"
        if not (clip_of(table) or is_on_cpu or table["use"] in WITHOUT_MODEL):
            yield f"reward {name}"
    if config.model.vae:
        yield "model.vae (the model's own autoencoder is counted)"
    if config.expander.model:
        yield "the expander"
    if config.sampler.identifiers_learn:
        yield "identifiers that learn"


def predict(config: Config) -> Prediction:
    """Return the memory that a configuration takes on a GPU.

    Raises:
        FileNotFoundError, ValueError: the model's configuration is not on this machine, or the
            configuration is wrong.
    """
    if config.model.train == "none":
        raise ValueError(
            'the memory is predicted of runs whose generator learns, and model.train = "none"; '
            "burnish check without --memory measures it"
        )

    if config.model.id.endswith(".safetensors") and not config.model.config:
        raise ValueError(
            f"model.id: memory is predicted from a model's configuration, which {config.model.id} "
            "does not have: set model.config to the folder of such a model in diffusers' format"
        )

    seed_globals(config.seed, "weights")
    memory = Allocations()
    arithmetic = GPUArithmetic()
    with memory, arithmetic:
        forecast = Forecast(config, memory, arithmetic)
        forecast.run()
    return Prediction(forecast.phases)
