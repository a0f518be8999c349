"""Before hours are spent: one small rehearsal of an iteration, and what it shows, one line a
finding.

Sampled, scored, replayed and differentiated is one chunk each, at the sizes of the configuration,
so that a batch that does not fit into memory fails here. Nothing is trained and nothing is written.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from burnish.config import Config
from burnish.diffusion.process import ForwardProcess, ReverseProcess
from burnish.diffusion.sampler import Sampler
from burnish.prompts import identifiers
from burnish.prompts.expander import Expander
from burnish.rewards import score
from burnish.rl import advantages
from burnish.rl.pareto import expected_share
from burnish.seeds import generator, seed_globals
from burnish.training.assembly import Parts, assemble, stage
from burnish.training.optimizer import adamw
from burnish.types import Process, Prompt, Scores, Trajectory

LEAST_IMAGES = 4  # a prompt, for a group's mean and spread to mean anything
# advantages that compare the images of a prompt
GROUPED = ("group", "normalised", "weighted", "pareto")
MOST_CHOSEN = 0.5  # of the images on the front, for the selection to mean something
PREVIEWED = 4  # moves whose previews are looked at
LEAST_SETTLED = 0.1  # of the advantages' variance, for previews to be worth their time
SLOW_TRACKER = 10  # iterations until a running mean is used
MOST_CUT = 0.5  # of expansions that the generator has no room for
MOST_OFF = 0.5  # nats between a text as it was drawn and as it is replayed
MIB = 1 << 20


@dataclass(frozen=True)
class Finding:
    """One line: what was found and, unless it is fine, what to do about it."""

    level: Literal["ok", "warning", "error"]
    text: str
    remedy: str = ""


def preflight(config: Config) -> list[Finding]:
    """Rehearse a part of one iteration of `config`. What cannot even be loaded raises, as in
    training.
    """
    adamw(config.optimizer)  # can be made
    seed_globals(config.seed, "weights")
    parts = assemble(config)

    try:
        return [*_prompts(config, parts), *_rehearsal(config, parts)]
    except torch.OutOfMemoryError:
        return [
            Finding(
                "error",
                "out of memory",
                "lower batch.sample_batch or batch.train_batch, or use model.dtype float16",
            )
        ]


def _rehearsal(config: Config, parts: Parts) -> Iterator[Finding]:
    policy = parts.policy
    sampler = stage(config, parts, 1)

    if policy.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(policy.device)

    prompts, group = _some_prompts(config, parts)
    prompts = identifiers.with_template(prompts, parts.template)

    if parts.expander is not None:
        prompts = yield from _expansions(config, parts.expander, prompts)

    started = time.perf_counter()
    cond = sampler.encode(policy, prompts)
    noise = generator(config.seed, "preflight")
    trajectory = sampler.rollout(
        policy, cond, group, noise, keep_x0_pred=bool(config.batch.baseline)
    )
    images = policy.decode(trajectory.latent)
    sampling = _since(started, parts) / len(prompts)
    forward = parts.objective.process == "forward"

    if not forward:
        yield from _finite(trajectory)

    started = time.perf_counter()
    scores = score(parts.rewards, images, prompts, parts.tolerance)
    scoring = _since(started, parts) / len(prompts)
    yield from _spread(scores, group, config)

    if config.guard.action != "none":
        seen, _ = parts.panel.measure(policy, sampler, trajectory, images, prompts, 0)
        watched = [
            *(["judge"] if parts.judge else []),
            *seen[0],
            *(["diversity"] if parts.panel.clip else []),
        ]
        yield Finding(
            "ok",
            f"the guard watches {', '.join(watched)} every {config.evaluation.every} iterations",
        )

    preview = (
        (yield from _previews(parts, prompts, trajectory, scores)) if config.batch.baseline else 0.0
    )

    pairs = config.batch.train_batch
    rows = torch.arange(pairs) % len(prompts)
    process: Process = ReverseProcess(policy, sampler, trajectory)
    count = (
        trajectory.logp.shape[1]
        if forward
        else sampler.transitions(policy, config.batch.least_noise)
    )

    if forward:
        count = config.batch.transitions or sampler.steps
        process = ForwardProcess(
            policy, sampler, trajectory, trajectory.latent.float().cpu(), (config.seed, "preflight")
        )

    moves = (torch.arange(pairs) * 7) % count  # spread over the trajectory
    started = time.perf_counter()
    replay = process.replay(rows, moves, reference=parts.objective.kl > 0)
    loss = parts.objective(replay, torch.ones(pairs))

    if policy.trainable:
        loss.value.backward()

    training = _since(started, parts) / pairs
    for parameter in policy.trainable:
        parameter.grad = None

    if forward:
        error = float(-replay.logp.detach().mean())
        level: Literal["ok", "error"] = "ok" if math.isfinite(error) else "error"
        remedy = "" if level == "ok" else "use model.dtype float32 or bfloat16"
        yield Finding(level, f"denoising error {error:.3g} on finished images noised again", remedy)
    else:
        yield from _ratio(config, parts, sampler, trajectory)

    yield _memory(parts)
    yield _time(config, parts, sampling, scoring, training + preview, count)


def _some_prompts(config: Config, parts: Parts) -> tuple[list[Prompt], torch.Tensor]:
    """One chunk of images: at least two of each of at least two prompts where the chunk allows."""
    total = min(
        config.batch.sample_batch, max(4, config.batch.prompts * config.batch.images_per_prompt)
    )
    each = min(max(2, config.batch.images_per_prompt), max(1, total // 2))
    group = (torch.arange(total) // each) % len(parts.prompts)
    group = group.sort().values
    return [parts.prompts[number] for number in group.tolist()], group


def _prompts(config: Config, parts: Parts) -> Iterator[Finding]:
    """Are there enough images a prompt for the advantage to mean something?"""
    batch = config.batch
    kind = config.advantage["use"]
    # images of a prompt that are asked alike
    shared = len(config.rewards) if config.sampler.identifiers else 1
    each = batch.images_per_prompt // shared
    text = f"{batch.prompts} of {len(parts.prompts)} prompts x {batch.images_per_prompt} images an iteration"

    if shared > 1:
        text = f"{text}, {each} for each of {shared} identifiers"

    if kind in GROUPED and each == 1:
        yield Finding(
            "error", f"{text}: a group of one has no advantage", "raise batch.images_per_prompt"
        )
    elif kind in GROUPED and each < LEAST_IMAGES:
        remedy = f"raise batch.images_per_prompt to {LEAST_IMAGES * shared} or more"
        yield Finding("warning", f"{text}: few to compare within a prompt", remedy)
    elif kind == "tracker":
        wanted = parts.advantage.min_count
        until = math.ceil(wanted * len(parts.prompts) / (batch.prompts * batch.images_per_prompt))
        text = f"{text}: a prompt's own mean is used after about {until} iterations"
        remedy = (
            "fewer prompts, more images, or advantage.use = group" if until > SLOW_TRACKER else ""
        )
        yield Finding("warning" if remedy else "ok", text, remedy)
    else:
        yield Finding("ok", text)

    if kind == "pareto":
        compared = (
            each if parts.advantage.within == "prompt" else batch.prompts * batch.images_per_prompt
        )
        yield _selection(compared, sum(table.get("weight", 1.0) != 0 for table in config.rewards))

    if config.sampler.identifiers:
        yield _length(parts)

    asked = [*parts.prompts, *(prompt for some in parts.judged.values() for prompt in some)]
    dual = parts.sampler.guidance.needs_original and parts.expander is None

    if dual and not any("original" in one.metadata for one in asked):
        remedy = 'give prompts an "original" (prompts.use = "jsonl"), or use guidance cfg'
        yield Finding(
            "warning",
            "guidance dual, but no prompt has an original: each is its own, at w1 + w2",
            remedy,
        )


def _expansions(
    config: Config, expander: Expander, prompts: list[Prompt]
) -> Generator[Finding, None, list[Prompt]]:
    """Is there room for what the expander says? Returns the expanded prompts."""
    drawn = expander.draw(prompts, generator(config.seed, "preflight", "expansions"))
    deviation = 0.0

    if expander.trainable:
        with torch.no_grad():
            say = expander.replay(drawn, torch.arange(len(prompts)))
        deviation = float((say.logp.cpu() - drawn.logp).sum(1).abs().max())

    cut = float(drawn.cut.double().mean())
    text = f"expansions such as '{drawn.prompts[0].text}': {cut:.0%} are cut, and replayed {deviation:.1e} nats off"

    if deviation > MOST_OFF:
        yield Finding("error", text, 'use expander.dtype = "float32"')
    elif cut > MOST_CUT:
        yield Finding("warning", text, "lower expander.tokens, or take shorter prompts")
    else:
        yield Finding("ok", text)

    return drawn.prompts


def _selection(compared: int, rewards: int) -> Finding:
    """Does the front leave anything out?"""
    share = expected_share(compared, rewards)
    text = f"of {compared} images compared in {rewards} independent rewards {share:.0%} would be dominated by none"

    if share <= MOST_CHOSEN or rewards == 1:
        return Finding("ok", text)

    remedy = 'more batch.images_per_prompt, fewer rewards, or advantage.within = "batch"'
    return Finding("warning", f"{text}: little is left out", remedy)


def _length(parts: Parts) -> Finding:
    """Do the prompts still fit beside all identifiers?"""
    length, most = identifiers.longest_prompt(
        parts.policy.pipe, identifiers.with_template(parts.prompts, parts.template)
    )
    text = f"with all identifiers the longest prompt has {length} tokens, and the text encoder reads {most}"

    if length <= most:
        return Finding("ok", text)

    return Finding(
        "warning", f"{text}: its end is cut off", 'sampler.identifiers = "tokens" takes less room'
    )


def _finite(trajectory: Trajectory) -> Iterator[Finding]:
    """Log-densities at every step."""
    bad = (~trajectory.logp.isfinite()).any(0).nonzero().flatten().tolist()

    if bad:
        times = ", ".join(str(int(trajectory.t[step])) for step in bad[:5])
        remedy = "use model.dtype float32 or bfloat16, or fewer sampler.steps"
        yield Finding("error", f"log-probability is not finite at timestep {times}", remedy)
    else:
        yield Finding(
            "ok", f"log-probabilities are finite at all {trajectory.logp.shape[1]} noisy moves"
        )


def _ratio(
    config: Config, parts: Parts, sampler: Sampler, trajectory: Trajectory
) -> Iterator[Finding]:
    """Before the first update the ratio must be 1 at every move: at most a tenth of the clip range
    off.
    """
    worst = 0.0
    where = 0
    dims = 1
    count = trajectory.logp.shape[1]
    images = torch.arange(min(config.batch.train_batch, len(trajectory.group)))

    with torch.no_grad():
        for step in range(count):
            replay = sampler.replay(
                parts.policy, trajectory, images, torch.full((len(images), 1), step)
            )
            deviation = float((replay.logp - replay.logp_old).abs().max())
            dims = replay.dims

            if not deviation <= worst:  # also true for NaN
                worst = deviation
                where = step

    clip = parts.objective.clip
    nats = worst * dims
    text = f"ratio - 1 before the first update is {worst:.1e} at most ({nats:.2g} nats; the clip range is {clip:g})"

    if nats <= clip / 10:
        yield Finding("ok", text)
    else:
        remedy = "use model.dtype float32, or float16 rather than bfloat16"
        yield Finding("error", f"{text}, at timestep {int(trajectory.t[where])}", remedy)


def _spread(scores: Scores, everyone: torch.Tensor, config: Config) -> Iterator[Finding]:
    """Does each reward tell images apart, also images of one prompt? Is it plain which way is
    better?
    """
    for place, name in enumerate(scores.names):
        there = scores.parts[:, place].isfinite()

        if not there.all():
            lost = int((~there).sum())
            why = "; ".join(scores.problems)
            yield Finding(
                "error" if not there.any() else "warning",
                f"reward {name}: {lost} of {len(there)} images got none: {why}",
            )

            if not there.any():
                continue

        column = scores.parts[there, place]
        group = everyone[there]
        within = max(float(column[group == number].std(correction=0)) for number in group.unique())
        weight = float(config.rewards[place].get("weight", 1.0))
        better = (
            "higher"
            if weight > 0
            else "LOWER (its weight is negative)"
            if weight < 0
            else "nothing (weight 0)"
        )
        text = (
            f"reward {name}: {column.min():.4g} to {column.max():.4g}, mean {column.mean():.4g}, "
            f"std within a prompt up to {within:.2g}; trained towards {better}"
        )

        if len(column) > 1 and float(column.max()) == float(column.min()):
            others = len(scores.names) > 1 and bool(
                (scores.parts[there] != scores.parts[there][0]).any()
            )
            remedy = (
                "try it alone with burnish.check_reward"
                + "; it teaches nothing until that changes" * others
            )
            yield Finding(
                "warning" if others else "error", text, f"the reward is constant: {remedy}"
            )
        elif within == 0 and config.advantage["use"] in GROUPED:
            remedy = "images of one prompt all score the same: use a finer reward, or advantage.use = batch"
            yield Finding("warning", text, remedy)
        else:
            yield (
                Finding("ok", text)
                if weight
                else Finding("warning", text, "give it a weight or leave it out")
            )


def _previews(
    parts: Parts, prompts: list[Prompt], trajectory: Trajectory, scores: Scores
) -> Generator[Finding, None, float]:
    """Do the guesses before the moves tell what the pictures will score? Returns the seconds a
    guess costs.
    """
    assert trajectory.x0_pred is not None
    count, moves = trajectory.logp.shape
    looked = torch.linspace(0, moves - 1, min(moves, PREVIEWED)).round().long().tolist()
    seen = torch.full((count, moves, len(parts.weights)), torch.nan, dtype=torch.float64)
    started = time.perf_counter()

    for move in looked:
        pictures = parts.policy.decode(trajectory.x0_pred[:, move])
        seen[:, move] = score(parts.rewards, pictures, prompts, parts.tolerance).parts

    seconds = _since(started, parts) / (count * len(looked))
    adv = advantages.GroupAdvantage()(scores, parts.weights, trajectory.group)
    left = (
        advantages.per_transition(adv, seen, parts.weights, trajectory.group)[:, looked]
        .square()
        .mean()
    )
    settled = float(1 - left / adv.square().mean()) if adv.any() else 0.0
    text = f"previews: {settled:.0%} of the advantages' variance is settled before a move, at {_duration(seconds)} each"
    useless = settled < LEAST_SETTLED
    yield Finding(
        "warning" if useless else "ok",
        text,
        "batch.baseline = '' saves that time" if useless else "",
    )

    return seconds


def _memory(parts: Parts) -> Finding:
    """The highest use of memory so far; on a GPU also how much there is."""
    device = parts.policy.device

    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        total = torch.cuda.get_device_properties(device).total_memory
        text = f"{peak / MIB:,.0f} of {total / MIB:,.0f} MiB of GPU memory at most, before the optimizer's share"
        close = peak > 0.85 * total

        return Finding(
            "warning" if close else "ok",
            text,
            "lower batch.sample_batch and batch.train_batch" if close else "",
        )

    if sys.platform == "win32" or device.type == "mps":
        return Finding("ok", "memory is not measured on this device")

    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
    return Finding("ok", f"{peak / MIB:,.0f} MiB of memory at most")


def _time(
    config: Config, parts: Parts, sampling: float, scoring: float, training: float, moves: int
) -> Finding:
    """An estimate; the first calls are slower than the later ones, so it errs on the long side."""
    batch = config.batch
    settings = config.evaluation
    images = batch.prompts * batch.images_per_prompt
    pairs = images * (batch.transitions or moves) * batch.epochs
    iteration = images * max(sampling, scoring) + pairs * training
    evaluated = settings.images_per_prompt * sum(len(prompts) for prompts in parts.judged.values())
    times = 2 + (config.iterations // settings.every if settings.every else 0)
    total = config.iterations * iteration + times * evaluated * (sampling + scoring)
    text = (
        f"about {_duration(iteration)} an iteration ({images} images, {pairs} trained moves), "
        f"{_duration(total)} for {config.iterations} iterations and {times} evaluations of {evaluated} images"
    )

    return Finding("ok", text)


def _since(started: float, parts: Parts) -> float:
    if parts.policy.device.type == "cuda":
        torch.cuda.synchronize(parts.policy.device)
    return time.perf_counter() - started


def _duration(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s"
