"""Before hours are spent: one small rehearsal of an iteration, and one line for each finding.

One chunk is sampled, scored, replayed and differentiated with the loop's own pieces, at the sizes
of the configuration, so that a batch that does not fit into memory fails here. Nothing is trained
and nothing is written.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from burnish.config import Config, images_compared
from burnish.diffusion.chain import ChainProcess
from burnish.diffusion.sampler import Sampler
from burnish.diffusion.window import window_places
from burnish.prompts import identifiers
from burnish.prompts.expander import Expander, Expansions
from burnish.prompts.pairs import images_of_pairs
from burnish.rewards import score
from burnish.rewards.training_only import TrainingReward
from burnish.rl.advantages import GroupAdvantage
from burnish.rl.pareto import ParetoAdvantage, expected_share
from burnish.runs import Run
from burnish.seeds import generator, seed_globals
from burnish.stages import stage
from burnish.training.assembly import Parts
from burnish.training.baseline import x0_baseline
from burnish.training.batch import RolloutBatch
from burnish.training.collect import keeps_predictions
from burnish.training.forward import transition_count
from burnish.training.iteration_sampler import iteration_sampler, iteration_starts, window_room
from burnish.training.job import Job, prepare
from burnish.training.learners import GeneratorLearner
from burnish.training.requirements import needs_reference, reads_old
from burnish.training.stored_images import has_stored_images
from burnish.types import Process, Prompt, Replay, Reward, Scores, Trajectory
from burnish.world import World

LEAST_IMAGES = 4  # of a prompt, for a group's mean and spread to mean anything
MOST_SELECTED = 0.5  # of the images on the front, for the selection to mean something
PREVIEWED = 4  # transitions whose x0 baseline is computed
LEAST_EXPLAINED = 0.1  # of the advantages' variance, for the x0 baseline to be worth its time
SLOW_TRACKER = 10  # iterations until a running mean is used
MOST_TRUNCATED = 0.5  # of expansions that the generator has no room for
MOST_DEVIATION = 0.5  # nats between a text as it was drawn and as it is replayed
MIB = 1 << 20
MUCH_STORED = 4096 * MIB  # of predictions, before that is worth a warning

UNITS = {"bfloat16": ("amx_bf16", "avx512_bf16"), "float16": ("amx_fp16", "avx512_fp16")}
"""The units that make a CPU fast in a precision, by names of `torch.cpu.get_capabilities`."""

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One line: what was found and, unless it is fine, what to do about it."""

    level: Level
    text: str
    remedy: str = ""


@dataclass
class Seconds:
    """Seconds that each phase takes: an image to sample or to score, a pair to train."""

    sampling: float = 0.0
    scoring: float = 0.0
    training: float = 0.0


@dataclass
class Rehearsal:
    """One chunk of an iteration on its way through the loop's pieces."""

    job: Job
    seconds: Seconds = field(default_factory=Seconds)

    @property
    def config(self) -> Config:
        """The configuration that is rehearsed."""
        return self.job.config

    @property
    def parts(self) -> Parts:
        """Its parts."""
        return self.job.parts

    def findings(self) -> Iterator[Finding]:
        """Sample, score and train one chunk; yield what is found on the way."""
        parts = self.parts
        if parts.policy.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(parts.policy.device)
        elif parts.policy.device.type == "cpu":
            yield from check_precision(self.config.model.dtype, cpu_units())

        sampler = iteration_sampler(self.job, 1)
        if sampler.window is not None:
            yield check_window(self.config, sampler.window, window_room(self.job))

        prompts, group = chunk_prompts(self.config, parts)
        prompts = identifiers.with_template(prompts, parts.template)
        if has_stored_images(self.config):
            prompts = images_of_pairs(prompts)

        expansions: Expansions | None = None
        if parts.expander is not None:
            stream = generator(self.config.seed, "preflight", "expansions")
            expansions = parts.expander.draw(prompts, stream)
            yield check_expansions(parts.expander, expansions)
            prompts = expansions.prompts

        trajectory, images = self.sample(sampler, prompts, group)
        if parts.objective.process == "reverse":
            yield check_log_probs(trajectory)

        scores = self.score(images, prompts)
        if scores.names:
            yield from check_rewards(scores, group, self.parts)
        if self.config.guard.action != "none":
            yield self.check_guard(sampler, trajectory, images, prompts)

        batch = RolloutBatch(
            iteration=1,
            prompts=prompts,
            expansions=expansions,
            trajectory=trajectory,
            scores=scores,
            group=group,
            control_scale=None,
            seconds_sampling=0.0,
            seconds_scoring=0.0,
        )
        if self.config.batch.baseline:
            yield self.check_baseline(batch)

        process, replay = self.train(batch)
        if parts.objective.process == "forward":
            yield check_denoising(replay)
        elif isinstance(process, ChainProcess):
            yield check_chain(process, parts)
        else:
            yield check_ratio(self.config, parts, sampler, trajectory)

        yield from check_predictions(self.config, parts, trajectory)
        yield check_memory(parts)
        yield check_time(self.config, parts, self.seconds)

    def sample(
        self, sampler: Sampler, prompts: list[Prompt], group: Tensor
    ) -> tuple[Trajectory, Tensor]:
        """Return the trajectories and images of a chunk."""
        started = time.perf_counter()
        noise = generator(self.config.seed, "preflight")
        starts = iteration_starts(self.job, 1)
        policy = self.parts.policy
        keep = keeps_predictions(self.config, self.parts.objective)
        keep_ode = self.parts.objective.process == "chain"
        with stage("sampling", f"{len(prompts)} images"):
            sampled = sampler.sample(policy, prompts, group, noise, keep, starts, keep_ode)
        self.seconds.sampling = self.since(started) / len(prompts)
        return sampled

    def score(self, images: Tensor, prompts: list[Prompt]) -> Scores:
        """Return the scores of a chunk; without columns where nothing is scored image by image."""
        rewards = scored_alone(self.parts.rewards)
        if not rewards:
            return Scores(torch.zeros(len(prompts), 0), ())

        started = time.perf_counter()
        with stage("scoring", f"{len(prompts)} images"):
            scores = score(rewards, images, prompts, self.parts.tolerance)
        self.seconds.scoring = self.since(started) / len(prompts)
        return scores

    def train(self, rollout: RolloutBatch) -> tuple[Process, Replay]:
        """Replay and differentiate one micro-batch; return what was replayed, and the replay."""
        parts = self.parts
        learner = self.job.learners["generator"]
        assert isinstance(learner, GeneratorLearner)

        batch = self.config.batch
        pairs = batch.train_batch
        images = torch.arange(pairs) % len(rollout.group)
        transitions = torch.arange(pairs) % transition_count(self.config, parts)
        updates = min(pairs, batch.minibatches * batch.epochs, 2)
        minibatches = zip(
            images.tensor_split(updates), transitions.tensor_split(updates), strict=True
        )

        started = time.perf_counter()
        with stage("training", f"{pairs} transitions"):
            process = learner.updates.process(rollout, list(minibatches))
            if parts.objective.compares_images:
                with torch.no_grad():
                    process.replay(images, transitions)

            replay = process.replay(images, transitions, needs_reference(parts.objective))
            if parts.policy.trainable:
                parts.objective(replay, torch.ones(pairs)).value.backward()

        self.seconds.training += self.since(started) / pairs
        for parameter in parts.policy.trainable:
            parameter.grad = None

        return process, replay

    def check_baseline(self, batch: RolloutBatch) -> Finding:
        """Check that the x0 predictions before transitions explain what the images score."""
        parts = self.parts
        images, transitions = batch.trajectory.logp.shape
        count = min(transitions, PREVIEWED)
        columns = torch.linspace(0, transitions - 1, count).round().long().unique()
        pairs = (torch.arange(images).repeat(len(columns)), columns.repeat_interleave(images))
        adv = GroupAdvantage()(batch.scores, parts.weights, batch.group)

        started = time.perf_counter()
        chunk = self.config.batch.sample_batch
        valid = batch.scores.valid
        _, explained = x0_baseline(parts, batch, adv, valid, [pairs], chunk)
        seconds = self.since(started) / len(pairs[0])
        self.seconds.training += seconds

        text = (
            f"x0 baseline: {explained:.0%} of the advantages' variance is explained before a "
            f"transition, at {readable_time(seconds)} each"
        )
        if explained < LEAST_EXPLAINED:
            return Finding("warning", text, "batch.baseline = '' saves that time")
        return Finding("ok", text)

    def check_guard(
        self, sampler: Sampler, trajectory: Trajectory, images: Tensor, prompts: list[Prompt]
    ) -> Finding:
        """Check that the guard's measures can be taken."""
        parts = self.parts
        kl = parts.panel.divergence(parts.policy, sampler, trajectory, 0, 0)
        measured, _ = parts.panel.measure(images, prompts, kl)
        names = ["judge"] if parts.judge else []
        names += [*measured[0], *(["diversity"] if parts.panel.clip else [])]
        every = self.config.evaluation.every
        return Finding("ok", f"the guard watches {', '.join(names)} every {every} iterations")

    def since(self, started: float) -> float:
        """Return the seconds since then, when the device has finished its work."""
        device = self.parts.policy.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter() - started


def preflight(config: Config) -> list[Finding]:
    """Rehearse a part of one iteration of `config` and return the findings.

    Raises:
        ValueError, OSError: something cannot even be loaded, as in training.
    """
    seed_globals(config.seed, "weights")
    job = prepare(config, Run(Path("preflight")), World())

    try:
        return [*check_prompts(config, job.parts), *Rehearsal(job).findings()]
    except torch.OutOfMemoryError:
        remedy = (
            "lower batch.sample_batch or batch.train_batch, or use model.dtype float16; burnish "
            "check with --memory GB names settings that fit"
        )
        return [Finding("error", "out of memory", remedy)]


def chunk_prompts(config: Config, parts: Parts) -> tuple[list[Prompt], Tensor]:
    """Return the prompts of one chunk: two images or more of each of two prompts or more."""
    batch = config.batch
    total = min(batch.sample_batch, max(4, batch.prompts * batch.images_per_prompt))
    images_per_prompt = min(max(2, batch.images_per_prompt), max(1, total // 2))
    group = (torch.arange(total) // images_per_prompt) % len(parts.prompts)
    group = group.sort().values
    return [parts.prompts[number] for number in group.tolist()], group


# Before anything is sampled ---------------------------------------------------------------------


def check_prompts(config: Config, parts: Parts) -> Iterator[Finding]:
    """Check the numbers of images and prompts, their identifiers and their originals."""
    batch = config.batch
    yield check_group_size(config, parts)
    yield from check_on_policy(config, parts)
    yield from check_adapter(parts)

    if isinstance(parts.advantage, ParetoAdvantage):
        compared = images_compared(config)
        if parts.advantage.within != "prompt":
            compared = batch.prompts * batch.images_per_prompt
        yield check_selection(
            compared, sum(table.get("weight", 1.0) != 0 for table in config.rewards)
        )

    if config.sampler.identifiers:
        yield check_length(parts)

    if config.model.text_encoder == "free":
        count = len(parts.policy.prompt_encoder)
        yield Finding("ok", f"{count} prompts are encoded, and the text encoders out of memory")

    prompt_sets = [parts.prompts, *parts.evaluation_prompts.values()]
    prompts = [prompt for prompt_set in prompt_sets for prompt in prompt_set]
    needs_original = parts.sampler.guidance.needs_original and parts.expander is None
    if needs_original and not any("original" in prompt.metadata for prompt in prompts):
        yield Finding(
            "warning",
            "guidance dual, but no prompt has an original: each is its own, at w1 + w2",
            'give prompts an "original" (prompts.use = "jsonl"), or use guidance cfg',
        )


def check_adapter(parts: Parts) -> Iterator[Finding]:
    """Check that an adapter reaches every block of the network that has attention."""
    if names := parts.policy.attention_without_adapter():
        yield Finding(
            "warning",
            f"no adapter, so nothing is learned, in {len(names)} of the network's blocks: the "
            f"first has {names[0]}",
            "name a layer of theirs in model.targets (docs/models.md)",
        )


def check_on_policy(config: Config, parts: Parts) -> Iterator[Finding]:
    """Check that an objective without a ratio takes one optimizer step an iteration."""
    objective = parts.objective
    corrected = objective.uses_ratio or objective.imitates or objective.compares_images
    updates = config.batch.minibatches * config.batch.epochs
    if objective.process == "forward" or corrected:
        return
    if config.old_policy.decay:
        yield Finding(
            "warning",
            "without a ratio nothing corrects for the images being those of an older policy",
            "leave [old_policy] out, or take objective clipped",
        )
    if updates == 1:
        return

    yield Finding(
        "warning",
        f"without a ratio only the first of {updates} updates of an iteration is on policy",
        "set batch.minibatches = 1 and batch.epochs = 1, or take objective clipped",
    )


def check_group_size(config: Config, parts: Parts) -> Finding:
    """Check that there are enough images to compare each with."""
    batch = config.batch
    count = config.identifier_count
    compared = images_compared(config)
    text = (
        f"{batch.prompts} of {len(parts.prompts)} prompts x {batch.images_per_prompt} images an "
        "iteration"
    )
    if count > 1:
        text = f"{text}, {compared} for each of {count} identifiers"

    if parts.advantage.compares_images and compared < LEAST_IMAGES:
        remedy = f"raise batch.images_per_prompt to {LEAST_IMAGES * count} or more"
        return Finding("warning", f"{text}: few to compare within a prompt", remedy)

    if parts.advantage.min_count:
        images = batch.prompts * batch.images_per_prompt
        until = math.ceil(parts.advantage.min_count * len(parts.prompts) / images)
        text = f"{text}: a prompt's own mean is used after about {until} iterations"
        if until > SLOW_TRACKER:
            remedy = "fewer prompts, more images, or advantage.use = group"
            return Finding("warning", text, remedy)

    return Finding("ok", text)


def check_selection(compared: int, rewards: int) -> Finding:
    """Check that the front leaves something out."""
    fraction = expected_share(compared, rewards)
    text = (
        f"of {compared} images compared in {rewards} independent rewards {fraction:.0%} would be "
        "dominated by none"
    )
    if fraction <= MOST_SELECTED or rewards == 1:
        return Finding("ok", text)

    remedy = 'more batch.images_per_prompt, fewer rewards, or advantage.within = "batch"'
    return Finding("warning", f"{text}: little is left out", remedy)


def check_length(parts: Parts) -> Finding:
    """Check that the prompts still fit beside all identifiers."""
    prompts = identifiers.with_template(parts.prompts, parts.template)
    length, most = identifiers.longest_prompt(parts.policy.pipe, prompts)
    text = (
        f"with all identifiers the longest prompt has {length} tokens, and the text encoder reads "
        f"{most}"
    )
    if length <= most:
        return Finding("ok", text)

    remedy = 'sampler.identifiers = "tokens" takes less room'
    return Finding("warning", f"{text}: its end is cut off", remedy)


def check_window(config: Config, window: range, room: int) -> Finding:
    """Say which transitions are stochastic, and how far the window comes in this run."""
    settings = config.sampler.window
    steps = config.sampler.steps
    text = (
        f"transitions {window.start + 1} to {window.stop} of {steps} are stochastic and trained in "
        "the first iteration"
    )
    if settings.placement == "random":
        last = settings.last or room
        return Finding("ok", f"{text}, others of {settings.first} to {last} later")
    if settings.placement == "fixed":
        return Finding("ok", f"{text}, and in all others")

    changes = (config.iterations - 1) // settings.every
    farthest = min(changes, window_places(settings, room) - 1)
    return Finding("ok", f"{text}; the window comes to {window.stop + farthest} in this run")


# While a chunk is sampled, scored and trained ---------------------------------------------------


def check_expansions(expander: Expander, drawn: Expansions) -> Finding:
    """Check that the expander's texts have room and are replayed as they were drawn."""
    deviation = 0.0
    if expander.trainable:
        with torch.no_grad():
            replay = expander.replay(drawn, torch.arange(len(drawn.prompts)))
        deviation = float((replay.logp.cpu() - drawn.logp).sum(1).abs().max())

    truncated = float(drawn.truncated.double().mean())
    text = (
        f"expansions such as '{drawn.prompts[0].text}': {truncated:.0%} are truncated, and "
        f"replayed {deviation:.1e} nats off"
    )
    if deviation > MOST_DEVIATION:
        return Finding("error", text, 'use expander.dtype = "float32"')
    if truncated > MOST_TRUNCATED:
        return Finding("warning", text, "lower expander.tokens, or take shorter prompts")
    return Finding("ok", text)


def cpu_units() -> Mapping[str, Any]:
    """Return what this CPU can compute with, by torch's names; {} where torch cannot tell."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return capabilities if capabilities.get("architecture") == "x86_64" else {}


def check_precision(dtype: str, units: Mapping[str, Any]) -> Iterator[Finding]:
    """Find a precision that a CPU has no units for: there it is the slowest and not the fastest.

    Measured on a CPU with AVX2 alone: images of `zoo:emoji-lcm-128` took eleven times as long.
    """
    wanted = UNITS.get(dtype, ())
    if wanted and units and not any(units.get(name) for name in wanted):
        text = f"this CPU has no units for {dtype}, which is then far slower than float32"
        yield Finding("warning", text, 'set model.dtype = "float32"')


def check_log_probs(trajectory: Trajectory) -> Finding:
    """Check that the log-probability is finite at every transition."""
    bad = (~trajectory.logp.isfinite()).any(0).nonzero().flatten().tolist()
    if bad:
        times = ", ".join(str(int(trajectory.t[transition])) for transition in bad[:5])
        remedy = "use model.dtype float32 or bfloat16, or fewer sampler.steps"
        return Finding("error", f"log-probability is not finite at timestep {times}", remedy)

    count = trajectory.logp.shape[1]
    return Finding("ok", f"log-probabilities are finite at all {count} noisy transitions")


def check_rewards(scores: Scores, group: Tensor, parts: Parts) -> Iterator[Finding]:
    """Check that each reward distinguishes images, also of one prompt; say which way is better."""
    for index, name in enumerate(scores.names):
        valid = scores.parts[:, index].isfinite()
        if not valid.all():
            missing = int((~valid).sum())
            text = f"reward {name}: {missing} of {len(valid)} images got none: "
            level: Level = "warning" if valid.any() else "error"
            yield Finding(level, text + "; ".join(scores.problems))

        if valid.any():
            yield check_reward_spread(scores, index, valid, group, parts)


def scored_alone(rewards: Mapping[str, Reward]) -> dict[str, Reward]:
    """Return the rewards that can score a chunk of images, without the rest of an iteration."""
    return {
        name: reward
        for name, reward in rewards.items()
        if not (isinstance(reward, TrainingReward) and reward.of_iterations)
    }


def check_reward_spread(
    scores: Scores, index: int, valid: Tensor, group: Tensor, parts: Parts
) -> Finding:
    """Check that one reward distinguishes images."""
    column = scores.parts[valid, index]
    numbers = group[valid]
    within = max(float(column[numbers == number].std(correction=0)) for number in numbers.unique())
    weight = float(parts.weights[list(parts.rewards).index(scores.names[index])])
    text = (
        f"reward {scores.names[index]}: {column.min():.4g} to {column.max():.4g}, mean "
        f"{column.mean():.4g}, std within a prompt up to {within:.2g}; trained towards "
        f"{direction(weight)}"
    )

    if len(column) > 1 and float(column.max()) == float(column.min()):
        rows = scores.parts[valid]
        others = len(scores.names) > 1 and bool((rows != rows[0]).any())
        remedy = "the reward is constant: try it alone with burnish.check_reward"
        if others:
            return Finding(
                "warning", text, f"{remedy}; nothing can be learned from it until that changes"
            )
        return Finding("error", text, remedy)

    if within == 0 and parts.advantage.compares_images:
        remedy = (
            "images of one prompt all score the same: use a finer reward, or advantage.use = batch"
        )
        return Finding("warning", text, remedy)
    if weight == 0:
        return Finding("warning", text, "give it a weight or leave it out")
    return Finding("ok", text)


def direction(weight: float) -> str:
    """Return which values of a reward with this weight are trained towards."""
    if weight > 0:
        return "higher"
    return "LOWER (its weight is negative)" if weight < 0 else "nothing (weight 0)"


def check_denoising(replay: Replay) -> Finding:
    """Check that the denoising error of the forward process is finite."""
    error = float(-replay.logp.detach().mean())
    text = f"denoising error {error:.3g} on finished images noised again"
    if math.isfinite(error):
        return Finding("ok", text)
    return Finding("error", text, "use model.dtype float32 or bfloat16")


def check_chain(process: ChainProcess, parts: Parts) -> Finding:
    """Check that images have a direction to move in, and say by what."""
    sizes = process.direction.flatten(1).norm(dim=1)
    count = int((sizes > 0).sum())
    source = "a gradient of the rewards"
    remedy = "the gradient is 0: try the reward alone with burnish.check_reward"
    if parts.objective.direction == "difference":
        source = "a difference from the others of their prompt"
        remedy = "the images of a prompt are all the same: take a larger sampler.kernel.gamma"

    text = f"{count} of {len(sizes)} images have {source}; {len(process.factors)} calls follow it"
    return Finding("ok", text) if count else Finding("error", text, remedy)


def check_ratio(config: Config, parts: Parts, sampler: Sampler, trajectory: Trajectory) -> Finding:
    """Check that the ratio is 1 before the first update, up to a tenth of the clip range."""
    worst = 0.0
    worst_transition = 0
    dims = 1
    images = torch.arange(min(config.batch.train_batch, len(trajectory.group)))

    with torch.no_grad():
        for transition in range(trajectory.logp.shape[1]):
            column = torch.full((len(images), 1), transition)
            replay = sampler.replay(parts.policy, trajectory, images, column)
            deviation = float((replay.logp - replay.logp_old).abs().max())
            dims = replay.dims
            if not deviation <= worst:  # also true for NaN
                worst = deviation
                worst_transition = transition

    clip = parts.objective.clip
    nats = worst * dims
    text = (
        f"ratio - 1 before the first update is {worst:.1e} at most ({nats:.2g} nats; the clip "
        f"range is {clip:g})"
    )
    if nats <= clip / 10:
        return Finding("ok", text)

    timestep = int(trajectory.t[worst_transition])
    remedy = "use model.dtype float32, or float16 rather than bfloat16"
    return Finding("error", f"{text}, at timestep {timestep}", remedy)


# What it costs ----------------------------------------------------------------------------------


def check_memory(parts: Parts) -> Finding:
    """Check the highest use of memory so far, on a GPU against what there is."""
    device = parts.policy.device
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        total = torch.cuda.get_device_properties(device).total_memory
        text = (
            f"{peak / MIB:,.0f} of {total / MIB:,.0f} MiB of GPU memory at most, before the "
            "optimizer's part"
        )
        if peak > 0.85 * total:
            return Finding("warning", text, "lower batch.sample_batch and batch.train_batch")
        return Finding("ok", text)

    if sys.platform == "win32" or device.type == "mps":
        return Finding("ok", "memory is not measured on this device")

    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return Finding("ok", f"{peak / MIB:,.0f} MiB of memory at most")


def check_predictions(config: Config, parts: Parts, trajectory: Trajectory) -> Iterator[Finding]:
    """Check how much is stored of what the network, or others, predict in an iteration."""
    objective = parts.objective
    batch = config.batch
    whose = []

    if objective.process == "reverse":
        count = trajectory.logp.shape[1]
        remedy = "lower batch.prompts or sampler.steps, if the machine has no more"
        whose += ["the network"] * keeps_predictions(config, objective)
    else:
        count = transition_count(config, parts) * batch.epochs
        remedy = "lower batch.transitions or batch.epochs, if the machine has no more"
        drifts = batch.minibatches * batch.epochs > 1 or config.old_policy.decay > 0
        whose += ["the old policy"] * (reads_old(objective) and drifts)
        whose += ["the anchor"] * needs_reference(objective)
    if not whose:
        return

    images = batch.prompts * batch.images_per_prompt
    size = 4 * images * count * math.prod(parts.policy.latent_shape) * len(whose)
    text = f"predictions of {' and '.join(whose)} take {size / MIB:,.0f} MiB in each iteration"
    if size <= MUCH_STORED:
        yield Finding("ok", text)
    else:
        yield Finding("warning", f"{text}, outside of the GPU", remedy)


def check_time(config: Config, parts: Parts, seconds: Seconds) -> Finding:
    """Estimate the time of the run; the first calls are slow, so it errs on the long side."""
    batch = config.batch
    settings = config.evaluation
    images = batch.prompts * batch.images_per_prompt
    transitions = batch.transitions or transition_count(config, parts)
    pairs = images * transitions * batch.epochs
    iteration = images * max(seconds.sampling, seconds.scoring) + pairs * seconds.training

    prompts = sum(len(prompts) for prompts in parts.evaluation_prompts.values())
    evaluated = settings.images_per_prompt * prompts
    evaluations = 2 + (config.iterations // settings.every if settings.every else 0)
    evaluating = evaluations * evaluated * (seconds.sampling + seconds.scoring)
    total = config.iterations * iteration + evaluating

    return Finding(
        "ok",
        f"about {readable_time(iteration)} an iteration ({images} images, {pairs} trained "
        f"transitions), {readable_time(total)} for {config.iterations} iterations and "
        f"{evaluations} evaluations of {evaluated} images",
    )


def readable_time(seconds: float) -> str:
    """Return seconds in a unit that suits them."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s"
