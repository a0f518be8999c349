"""The loop: `train` is the whole of it, top to bottom, and the rest of the library is what it calls.

    prompts -> rollout -> decode -> score -> advantage -> (replay -> objective -> backward -> step)* -> record

One direction: nothing downstream writes into anything upstream. Chance is derived from (seed, iteration, purpose),
never carried over, so a run that was killed goes on bit for bit as if it had not been.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from burnish import config as configuration
from burnish import journal
from burnish.advantages import per_move
from burnish.config import Config
from burnish.journal import Job
from burnish.parts import Parts, assemble
from burnish.rewards import score
from burnish.rollout import join
from burnish.runs import Record, Run, write
from burnish.seeds import generator, seed_globals
from burnish.types import Prompt, Scores, Trajectory
from burnish.world import World


class Stopped(Exception):
    """Somebody asked the run to stop between two pieces of work."""


def train(
    config: Config,
    out: str | Path,
    *,
    resume: bool = False,
    on_record: Callable[[Record], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Path:
    """Fine-tune as `config` says and leave everything in the run directory `out`; returns it.

    If anything fails on the way, a reward for example, what is done is saved first: mend it and resume.

    Args:
        resume: go on with the run in `out` from its newest checkpoint.
        on_record: called in the main process with each iteration's record, which is also a line of RUN/log.jsonl.
        stop: asked often; once it says True, a running update phase is finished, the run saved, and `train` returns.

    Raises:
        ValueError, OSError, RuntimeError: one sentence that says what is wrong and what to do.

    Example:
        >>> train(configuration.load("demo", ["iterations=2"]), "runs/try")                # doctest: +SKIP
    """
    world = World.start(config.run.trackers, Path(out), config.model.device)
    run = Run(Path(out)) if not world.main else Run.open(out) if resume else Run.create(out)
    with run.lock() if world.main else nullcontext():
        # 1. Everything the configuration names, and where an earlier start left it.
        if resume:
            journal.check_same(config, run)
        seed_globals(config.seed, "weights")
        job = prepare(config, run, world, stop)
        parts = job.parts
        done, whole = journal.restore(job) if resume else 0, True  # whole: the weights are those after `done`
        if world.main:
            write(run.config, configuration.dump(config))
            run.forget(done)
        world.track(asdict(config))

        try:
            # 2. What the pictures are before training, to compare with.
            before = journal.before(job, done)
            if done == 0:
                journal.draw_samples(job, 0)

            for iteration in range(done + 1, config.iterations + 1):
                seed_globals(config.seed, iteration, world.rank)

                # 3. Prompts -> images -> scores: whole prompt groups, each process its own.
                started = time.perf_counter()
                group = draw(job, iteration)
                trajectory, own_scores, seconds_scoring = explore(job, group, iteration)
                sampled = time.perf_counter()
                job.poll()  # the last chance before the updates

                # 4. Scores -> advantages: over the images of all processes.
                scores = Scores(world.gather(own_scores.parts), own_scores.names)
                check_spread(scores, iteration)
                whole = False
                everyone = parts.advantage(scores, parts.weights, world.gather(group))
                adv = everyone[world.rank * len(group) :][: len(group)]

                # 5. Updates. Once begun they are finished, even if somebody asks to stop.
                pairs = list(minibatches(job, *trajectory.logp.shape, iteration=iteration))
                more: dict[str, float] = {}
                if config.batch.previews:
                    adv, more["settled"] = credit(job, trajectory, adv, pairs)
                updates = []
                for number, (images, steps) in enumerate(pairs):
                    set_rate(job, iteration, number)
                    updates.append(update(job, trajectory, adv, images, steps, first=number == 0))

                # 6. The record, on the disk before anybody hears of it.
                record = {
                    "iteration": iteration,
                    "images": len(scores.parts),
                    "rewards": describe(scores),
                    "idle": float((everyone == 0).float().mean()),  # share of images that teach nothing
                    **more,
                    **summary(updates),
                    "seconds_sampling": sampled - started,
                    "seconds_scoring": seconds_scoring,  # meanwhile, in a thread: part of the sampling's seconds
                    "seconds_training": time.perf_counter() - sampled,
                }
                if world.main:
                    run.append(record)
                done, whole = iteration, True
                world.log(record)
                if iteration % config.run.checkpoint_every == 0 or iteration == config.iterations:
                    journal.save(job, iteration)
                if on_record is not None and world.main:
                    on_record(record)
                job.poll()
                if config.run.sample_every and iteration % config.run.sample_every == 0:
                    journal.draw_samples(job, iteration)
                due = config.evaluation.every and iteration % config.evaluation.every == 0
                if before and due and iteration < config.iterations:
                    journal.after(job, before, iteration)

            # 7. What the pictures are now.
            journal.draw_samples(job, done)
            if before and world.any(not run.measured(done).exists()):
                journal.after(job, before, done)
        except Exception as error:
            if whole:
                journal.save(job, done)
            if not isinstance(error, Stopped):
                raise
        world.end()
    return run.folder


# The pieces, in the order of the loop ---------------------------------------------------------------------------------


def prepare(config: Config, run: Run, world: World, stop: Callable[[], bool] | None) -> Job:
    """Load what the configuration names and give it an optimizer."""

    def poll() -> None:
        if world.any(bool(stop and stop())):
            raise Stopped

    if config.batch.prompts % world.count:
        raise ValueError(
            f"batch.prompts = {config.batch.prompts} cannot be shared by {world.count} processes; make it a multiple"
        )
    parts, settings = assemble(config, world.device(config.model.device)), config.optimizer
    optimizer = torch.optim.AdamW(
        parts.policy.trainable,
        lr=settings.lr,
        betas=(settings.betas[0], settings.betas[1]),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )
    # Half-precision gradients of a log-density averaged over 16384 dimensions would vanish without scaling.
    scaler = torch.amp.GradScaler(parts.policy.device.type, enabled=config.model.dtype == "float16")
    return Job(config, run, world, parts, optimizer, scaler, poll)


def draw(job: Job, iteration: int) -> Tensor:
    """This process's prompt numbers in an iteration, (images,) int64; images of one prompt are neighbours.

    Prompts come from one endless row of shuffled rounds over all prompts, so each is drawn equally often.
    """
    available, count = len(job.parts.prompts), job.config.batch.prompts
    places = range((iteration - 1) * count, iteration * count)
    rounds = {
        number: torch.randperm(available, generator=generator(job.config.seed, "prompts", number)).tolist()
        for number in range(places[0] // available, places[-1] // available + 1)
    }
    drawn = sorted(rounds[place // available][place % available] for place in places)
    share = count // job.world.count
    own = torch.tensor(drawn[job.world.rank * share :][:share])
    return own.repeat_interleave(job.config.batch.images_per_prompt)


def explore(job: Job, group: Tensor, iteration: int) -> tuple[Trajectory, Scores, float]:
    """Sample an image for each of `group`, chunk by chunk, scoring one chunk while the next is sampled.

    Returns the trajectories, the scores, and the seconds spent in the rewards.
    """
    parts, policy = job.parts, job.parts.policy
    noise = generator(job.config.seed, iteration, "noise", job.world.rank)
    trajectories, answers = [], []
    thread = ThreadPoolExecutor(1)
    try:
        for numbers in group.split(job.config.batch.sample):
            job.poll()
            prompts = [parts.prompts[number] for number in numbers.tolist()]
            cond, previews = policy.encode(prompts), job.config.batch.previews
            trajectory = parts.sampler.rollout(policy, cond, numbers, noise, guesses=previews)
            trajectories.append(trajectory)
            answers.append(thread.submit(timed_score, parts, policy.decode(trajectory.latent), prompts))
            for answer in answers:
                if answer.done():
                    answer.result()  # a reward that failed is told now, not after the last chunk
        scores = [answer.result()[0] for answer in answers]
    finally:
        thread.shutdown(cancel_futures=True)  # after a failure no other chunk is scored
    everything = join(trajectories)
    if not everything.logp.isfinite().all():
        raise RuntimeError(
            f"a log-probability of iteration {iteration} is not finite; use model.dtype float32 or bfloat16, or a "
            "lower optimizer.lr, and find out more with `burnish check`"
        )
    seconds = sum(answer.result()[1] for answer in answers)
    return everything, Scores(torch.cat([one.parts for one in scores]), scores[0].names), seconds


def timed_score(parts: Parts, images: Tensor, prompts: list[Prompt]) -> tuple[Scores, float]:
    """The scores of a chunk and the seconds they took."""
    started = time.perf_counter()
    scores = score(parts.rewards, images, prompts)
    return scores, time.perf_counter() - started


def check_spread(scores: Scores, iteration: int) -> None:
    """A reward that is the same for every image of the first iteration is a mistake; later it may be a success."""
    if iteration == 1 and len(scores.parts) > 1 and bool((scores.parts == scores.parts[0]).all()):
        raise ValueError(
            f"reward '{', '.join(scores.names)}' gave {scores.parts[0].tolist()} to all {len(scores.parts)} images of "
            "the first iteration, so there is nothing to learn from; try it alone with burnish.check_reward"
        )


def minibatches(job: Job, images: int, moves: int, *, iteration: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For each optimizer step the flat (image, move) pairs it learns from: two int64 tensors of one length.

    Each epoch shuffles the images, and draws `batch.transitions` different ones of its `moves` for each image; with
    previews the same for all images of a prompt, so that these can be compared. An objective that compares the
    images of a prompt gets them together.
    """
    count, company = job.config.batch.transitions or moves, job.config.batch.images_per_prompt
    block = company if hasattr(job.parts.objective, "targets") else 1
    alike = company if job.config.batch.previews else 1
    for epoch in range(job.config.batch.epochs):
        stream = generator(job.config.seed, iteration, "order", epoch, job.world.rank)
        order = torch.randperm(images // block, generator=stream)
        chosen = torch.rand(images // alike, moves, generator=stream).argsort(1)[:, :count].repeat_interleave(alike, 0)
        for blocks in order.tensor_split(job.config.batch.updates):
            rows = (blocks[:, None] * block + torch.arange(block)).flatten()
            yield rows.repeat_interleave(count), chosen[rows].flatten()


def credit(job: Job, trajectory: Trajectory, adv: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, float]:
    """The advantage of each move (B, T), from the score of the picture that the network expected before it.

    Also the share of the advantages' variance that was settled before the moves and is left out.
    """
    parts, (count, moves) = job.parts, trajectory.logp.shape
    assert trajectory.guess is not None  # asked for, because the configuration says so
    previews = torch.full((count * moves, len(parts.weights)), torch.nan, dtype=torch.float64)
    chosen = torch.cat([images * moves + steps for images, steps in pairs]).unique()
    for places in chosen.split(job.config.batch.sample):
        images, steps = places // moves, places % moves
        prompts = [parts.prompts[number] for number in trajectory.group[images].tolist()]
        previews[places] = score(parts.rewards, parts.policy.decode(trajectory.guess[images, steps]), prompts).parts
    left = per_move(adv, previews.view(count, moves, -1), parts.weights, trajectory.group)
    before = adv[chosen // moves].square().sum()
    return left, float(1 - left.flatten()[chosen].square().sum() / before) if before > 0 else 0.0


def set_rate(job: Job, iteration: int, number: int) -> None:
    """Gives the optimizer the learning rate of an iteration's update ``number``, the first being 0."""
    settings, batch = job.config.optimizer, job.config.batch
    step = (iteration - 1) * batch.updates * batch.epochs + number + 1
    fallen = 1 - (1 - settings.final_lr) * (iteration - 1) / job.config.iterations
    for group in job.optimizer.param_groups:
        group["lr"] = settings.lr * fallen * min(1.0, step / max(1, settings.warmup))


def targets(job: Job, trajectory: Trajectory, adv: Tensor, images: Tensor, steps: Tensor, first: bool) -> Tensor:
    """What an objective that compares whole images makes of the advantages (B,), for the ``images`` of one update."""
    change, parts = torch.zeros_like(adv), job.parts
    with torch.no_grad():
        for rows, columns in zip(*(each.split(job.config.batch.replay) for each in (images, steps)), strict=True):
            if not first:  # before the first update nothing has changed
                replay = parts.sampler.replay(parts.policy, trajectory, rows, columns[:, None])
                change.index_add_(0, rows, (replay.logp - replay.logp_old)[:, 0].to(adv))
    rows, result = images.unique(), torch.zeros_like(adv)
    group = trajectory.group[rows]
    result[rows] = parts.objective.targets(change[rows], adv[rows], group, trajectory.logp.shape[1])  # type: ignore[attr-defined]
    return result


def update(
    job: Job, trajectory: Trajectory, adv: Tensor, images: Tensor, steps: Tensor, first: bool
) -> dict[str, float]:
    """One optimizer step on the mean loss over all (image, move) pairs, some at a time; returns what it measured.

    `first`: of its iteration, so that the weights are still those that sampled.
    """
    parts, policy = job.parts, job.parts.policy
    pieces = math.ceil(len(images) / job.config.batch.replay)
    needs_reference = getattr(parts.objective, "kl", 0) > 0
    adv = targets(job, trajectory, adv, images, steps, first) if hasattr(parts.objective, "targets") else adv
    metrics: dict[str, float] = {}
    for rows, columns in zip(images.tensor_split(pieces), steps.tensor_split(pieces), strict=True):
        replay = parts.sampler.replay(policy, trajectory, rows, columns[:, None], reference=needs_reference)
        own = adv[rows] if adv.dim() == 1 else adv[rows, columns]
        loss, share = parts.objective(replay, own), len(rows) / len(images)
        job.scaler.scale(loss.value * share).backward()
        for name, value in loss.metrics.items():  # the largest deviation, the mean of everything else
            old = metrics.get(name, 0.0)
            largest = old if value <= old else value  # NaN too
            metrics[name] = largest if name == "ratio_deviation" else old + share * value
    job.world.average_gradients(policy.trainable)
    job.scaler.unscale_(job.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(policy.trainable, job.config.optimizer.max_grad_norm)
    # in float16 a step may be left out now and then, until the gradients' scale fits; at a scale of 1 it never will
    if not norm.isfinite() and job.scaler.get_scale() <= 1:
        raise RuntimeError(
            "the gradient is not finite any more, so training ends here; earlier checkpoints are kept: start again "
            "with a lower optimizer.lr"
        )
    job.scaler.step(job.optimizer)
    job.scaler.update()
    job.optimizer.zero_grad(set_to_none=True)
    return {**metrics, "grad_norm": float(norm), "lr": job.optimizer.param_groups[0]["lr"]}


def describe(scores: Scores) -> dict[str, dict[str, float]]:
    """What each reward gave in an iteration."""
    return {
        name: {
            "mean": float(column.mean()),
            "std": float(column.std(correction=0)),
            "min": float(column.min()),
            "max": float(column.max()),
        }
        for name, column in zip(scores.names, scores.parts.T, strict=True)
    }


def summary(updates: list[dict[str, float]]) -> dict[str, float]:
    """The mean over an iteration's updates; the ratio's deviation only before the first, where it must be 0."""
    means = {name: sum(one[name] for one in updates) / len(updates) for name in updates[0]}
    return {name: updates[0][name] if name == "ratio_deviation" else mean for name, mean in means.items()}
