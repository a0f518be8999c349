"""The loop: `train` is the whole of it, top to bottom, and the rest of the library is what it
calls.

    prompts -> rollout -> decode -> score -> advantage -> (replay -> objective -> backward -> step)*
    -> record

With an expander the prompts are reworded before the rollout, and it learns from the advantages too
(see `wording`).

A replay looks at the moves that were sampled, or at the finished images noised again (see
`process`).

One direction: nothing downstream writes into anything upstream. Chance is derived from (seed,
iteration, purpose), never carried over, so a run that was killed goes on bit for bit as if it had
not been.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from burnish import config as configuration
from burnish.config import Config
from burnish.diffusion.sampler import Sampler, join_trajectories
from burnish.prompts import identifiers
from burnish.rewards import score
from burnish.rl.pareto import ParetoAdvantage
from burnish.runs import Record, Run, write
from burnish.seeds import generator, seed_globals
from burnish.seeds import number as seed_of
from burnish.training import evaluations, samples
from burnish.training import resume as resuming
from burnish.training.assembly import Overrides, Parts, assemble, stage
from burnish.training.expansion import reword, teach
from burnish.training.job import Job
from burnish.training.optimizer import adamw
from burnish.training.updates import (
    loss_scale,
    make_process,
    minibatches,
    moves,
    selects,
    set_rate,
    summary,
    update,
    x0_baseline,
)
from burnish.types import Prompt, Scores, Trajectory
from burnish.world import World, join_world

SCALES = 0.05
"""Control scales less than about this apart count as the same for what is remembered of a prompt.
"""


@dataclass(frozen=True)
class SampledImages:
    """One process's images of an iteration, as they were scored."""

    iteration: int
    images: Tensor  # (B, 3, H, W) float32 in [0, 1], where the policy computes
    prompts: list[Prompt]  # B
    scores: Scores
    rank: int  # of the process; the main one is 0
    # accelerate's open trackers, in the main process: trackers[0].log_images(...)
    trackers: list[Any]


class Stopped(Exception):
    """Somebody asked the run to stop between two pieces of work."""


def train(
    config: Config,
    out: str | Path,
    *,
    resume: bool = False,
    on_record: Callable[[Record], None] | None = None,
    stop: Callable[[], bool] | None = None,
    given: Overrides | None = None,
    on_images: Callable[[SampledImages], None] | None = None,
) -> Path:
    """Fine-tune as `config` says and leave everything in the run directory `out`; returns it.

    If anything fails on the way, a reward for example, what is done is saved first: mend it and
        resume.

    Args:
        resume: go on with the run in `out` from its newest checkpoint.
        on_record: called in the main process with each iteration's record, which is also a line of
            RUN/log.jsonl.
        stop: asked often; once it says True, a running update phase is finished, the run saved, and
            `train` returns.
        given: objects in place of what `config` names: a policy, rewards, a function that draws
            prompts.
        on_images: called in each process with its own images of each iteration before anything is
            learned from them.

    Raises:
        ValueError, OSError, RuntimeError: one sentence that says what is wrong and what to do.

    Example:
        >>> train(configuration.load("demo", ["iterations=2"]), "runs/try")                # doctest: +SKIP
        >>> redness = lambda images, prompts: images[:, 0].mean((1, 2)) - images.mean((1, 2, 3))
        >>> train(configuration.load("demo"), "runs/red", given=Given(rewards={"redness": redness}))
        # doctest: +SKIP
    """
    given = given or Overrides()
    config = given.described(config)
    world = join_world(
        config.run.trackers, Path(config.run.tracker_folder or out), config.model.device
    )
    run = Run(Path(out)) if not world.main else Run.open(out) if resume else Run.create(out)

    with run.lock() if world.main else nullcontext():
        # 1. Everything the configuration names, and where an earlier start left it.
        if resume:
            resuming.check_unchanged(config, run)
            resuming.check_not_guarded(run)

        seed_globals(config.seed, "weights")
        job = prepare(config, run, world, stop, given)
        parts = job.parts
        # whole: the weights are those after `done`
        done = resuming.restore(job) if resume else 0
        whole = True
        # iterations in a row without one image that has its scores; did the guard end it?
        barren = 0
        guarded = False

        if world.main:
            write(run.config, configuration.dump(config))
            run.forget(done)

        world.track(asdict(config), config.run.tracker_project, config.run.tracker_options)

        try:
            # 2. What the pictures are before training, to compare with.
            before = evaluations.evaluate_initial(job, done)
            if done == 0:
                samples.draw_samples(job, 0)

            for iteration in range(done + 1, config.iterations + 1):
                seed_globals(config.seed, iteration, world.rank)

                # 3. Prompts -> images -> scores: whole prompt groups, each process its own.
                started = time.perf_counter()
                prompts, group = sample_prompts(job, iteration)
                prompts, texts = reword(job, prompts, iteration)
                sampler = stage(config, parts, iteration)
                trajectory, own_scores, seconds_scoring = rollout_and_score(
                    job, sampler, prompts, group, iteration, on_images
                )
                sampled = time.perf_counter()
                job.poll()  # the last chance before the updates

                # 4. Scores -> advantages: over the images of all processes.
                problems = sorted(set(world.gather_list(list(own_scores.problems))))
                target = (
                    None
                    if own_scores.target_reward is None
                    else world.gather(own_scores.target_reward)
                )
                scores = Scores(
                    world.gather(own_scores.parts), own_scores.names, tuple(problems), target
                )
                there = scores.parts.isfinite().all(1)  # the images that have all their scores
                barren = 0 if there.any() else barren + 1

                if parts.curriculum is None:  # it begins where success is easy
                    check_spread(scores, iteration)

                check_patience(config, scores, barren)
                whole = False
                groups = world.gather(group)

                if parts.curriculum is not None:
                    groups = group_by_scale(groups, sampler.control.scale)
                    learn(job, scores)

                everyone = parts.advantage(scores, parts.weights, groups)
                several = len(scores.names) > 1
                chosen = (
                    (parts.advantage if selects(job) else ParetoAdvantage()).front(
                        scores, parts.weights, groups
                    )
                    if several or selects(job)
                    else there
                )
                own = slice(world.rank * len(group), (world.rank + 1) * len(group))
                adv = (everyone * loss_scale(job, everyone, chosen if selects(job) else there))[own]

                # 5. Updates. Once begun they are finished, even if somebody asks to stop.
                more: dict[str, Any] = {}
                updates: list[dict[str, float]] = []
                pairs = list(minibatches(job, len(adv), moves(job), iteration=iteration, adv=adv))
                pairs = pairs if there.any() and parts.policy.trainable else []

                if config.batch.baseline and pairs:
                    adv, more["settled"] = x0_baseline(
                        job, prompts, trajectory, adv, there[own], pairs, own_scores.target_reward
                    )

                process = make_process(job, trajectory, pairs, iteration)
                for number, (images, steps) in enumerate(pairs):
                    set_rate(job, iteration, number)
                    updates.append(
                        update(job, process, adv, there[own], images, steps, first=number == 0)
                    )

                more |= teach(job, texts, everyone[own], there[own], groups[own])

                # 6. The record, on the disk before anybody hears of it.
                record = {
                    "iteration": iteration,
                    "images": len(scores.parts),
                    "rewards": describe(scores, groups),
                    **(
                        {} if parts.curriculum is None else {"control_scale": sampler.control.scale}
                    ),
                    **({"front": float(chosen[there].float().mean())} if several else {}),
                    # share of images that teach nothing
                    "idle": float((everyone == 0).float().mean()),
                    **missing(scores),
                    **more,
                    **summary(updates),
                    "seconds_sampling": sampled - started,
                    # meanwhile, in a thread: part of the sampling's seconds
                    "seconds_scoring": seconds_scoring,
                    "seconds_training": time.perf_counter() - sampled,
                }

                if world.main:
                    run.append(record)

                done = iteration
                whole = True
                world.log(record)
                due = config.evaluation.every and iteration % config.evaluation.every == 0
                last = iteration == config.iterations

                # a state that is evaluated is one that the guard may go back to
                if (
                    iteration % config.run.checkpoint_every == 0
                    or last
                    or (due and config.guard.action == "rollback")
                ):
                    resuming.save(job, iteration)

                if on_record is not None and world.main:
                    on_record(record)

                job.poll()
                if config.run.sample_every and iteration % config.run.sample_every == 0:
                    samples.draw_samples(job, iteration)

                if before and (due or last):
                    evaluations.evaluate_now(job, before, iteration)
                    if guarded := evaluations.check_guard(job, before, iteration):
                        break

            # 7. What the pictures are now.
            if not guarded:
                samples.draw_samples(job, done)
                samples.draw_identifier_grid(job, done)
            if before and not guarded and world.any(not run.measured(done).exists()):
                evaluations.evaluate_now(job, before, done)
        except Exception as error:
            if whole:
                resuming.save(job, done)
            if not isinstance(error, Stopped):
                raise

        world.end()

    return run.folder


# The pieces, in the order of the loop
# ---------------------------------------------------------------------------------


def prepare(
    config: Config,
    run: Run,
    world: World,
    stop: Callable[[], bool] | None,
    given: Overrides | None = None,
) -> Job:
    """Load what the configuration names, but for what is given, and give it an optimizer."""

    def poll() -> None:
        if world.any(bool(stop and stop())):
            raise Stopped

    if config.batch.prompts % world.count:
        raise ValueError(
            f"batch.prompts = {config.batch.prompts} cannot be shared by {world.count} processes; make it a multiple"
        )

    make = adamw(config.optimizer)
    parts = assemble(config, world.device(config.model.device), given)
    optimizer = make(parts.policy.trainable)
    wordsmith = None

    if parts.expander is not None and parts.expander.trainable:
        wordsmith = adamw(replace(config.optimizer, lr=config.expander.lr))(
            parts.expander.trainable
        )

    # Half-precision gradients of a log-density averaged over 16384 dimensions would vanish without
    # scaling.
    scaler = torch.amp.GradScaler(parts.policy.device.type, enabled=config.model.dtype == "float16")
    first = parts.policy.state() if config.guard.action == "rollback" else None
    average = None

    if config.optimizer.ema:
        from diffusers.training_utils import EMAModel

        # its decay rises as (1 + n) / (10 + n)
        average = EMAModel(parts.policy.trainable, decay=config.optimizer.ema)

    words = parts.expander.state() if parts.expander is not None and first is not None else None
    return Job(config, run, world, parts, optimizer, scaler, poll, first, average, wordsmith, words)


def sample_prompt_numbers(job: Job, iteration: int) -> Tensor:
    """This process's prompt numbers in an iteration, (images,) int64; images of one prompt are
    neighbours.

    Prompts come from one endless row of shuffled rounds over all prompts, so each is drawn equally
    often.
    """
    available = len(job.parts.prompts)
    count = job.config.batch.prompts
    places = range((iteration - 1) * count, iteration * count)
    rounds = {
        number: torch.randperm(
            available, generator=generator(job.config.seed, "prompts", number)
        ).tolist()
        for number in range(places[0] // available, places[-1] // available + 1)
    }
    drawn = sorted(rounds[place // available][place % available] for place in places)
    share = count // job.world.count
    own = torch.tensor(drawn[job.world.rank * share :][:share])

    return own.repeat_interleave(job.config.batch.images_per_prompt)


def sample_prompts(job: Job, iteration: int) -> tuple[list[Prompt], Tensor]:
    """This process's prompts in an iteration, one an image, and their numbers (images,): the same
    text, the same one.

    Images of one drawn prompt are neighbours. What a function draws has numbers that follow from
    the texts, so that they mean the same in every process and after a resume. A prompt with another
    identifier is another text.
    """
    if job.parts.source is None:
        group = sample_prompt_numbers(job, iteration)
        prompts = [job.parts.prompts[number] for number in group.tolist()]
    else:
        count = job.config.batch.prompts // job.world.count
        each = job.config.batch.images_per_prompt
        drawn = list(job.parts.source(count))

        if len(drawn) != count:
            raise ValueError(
                f"the function that draws prompts gave {len(drawn)}, but was asked for {count}"
            )

        prompts = [prompt for prompt in drawn for _ in range(each)]
        group = torch.tensor(
            [seed_of("prompt", prompt.text) for prompt in drawn]
        ).repeat_interleave(each)

    if (asked := asked_for(job, len(prompts))) is None:
        return prompts, group

    templates = [
        identifiers.template([place], job.config.sampler.identifiers_after)
        for place in asked.tolist()
    ]
    prompts = [
        replace(prompt, template=template)
        for prompt, template in zip(prompts, templates, strict=True)
    ]
    numbers = zip(group.tolist(), asked.tolist(), strict=True)

    return prompts, torch.tensor([seed_of("asked", number, place) for number, place in numbers])


def asked_for(job: Job, images: int) -> Tensor | None:
    """The place (images,) of the reward whose identifier each image of an iteration is asked with;
    None without.
    """
    if not job.config.sampler.identifiers:
        return None
    return identifiers.target_rewards(
        images, job.config.batch.images_per_prompt, len(job.parts.rewards)
    )


def group_by_scale(group: Tensor, scale: float) -> Tensor:
    """The prompts' numbers (images,) at a control scale, others at another: what a prompt scored at
    one scale is no measure of it at the next, and an advantage that remembers must not compare
    them.
    """
    bucket = round(scale / SCALES)
    return torch.tensor([seed_of("scale", number, bucket) for number in group.tolist()])


def learn(job: Job, scores: Scores) -> None:
    """Tells the curriculum how the iteration went."""
    job.parts.curriculum.observe(scores)


def rollout_and_score(
    job: Job,
    sampler: Sampler,
    prompts: list[Prompt],
    group: Tensor,
    iteration: int,
    on_images: Callable[[SampledImages], None] | None = None,
) -> tuple[Trajectory, Scores, float]:
    """Sample an image for each of `prompts`, chunk by chunk, scoring one chunk while the next is
    sampled.

    Returns the trajectories, the scores, and the seconds spent in the rewards. All images are kept,
    for `on_images`, only where somebody wants them.
    """
    parts = job.parts
    policy = job.parts.policy
    noise = generator(job.config.seed, iteration, "noise", job.world.rank)
    trajectories = []
    answers = []
    kept = []
    thread = ThreadPoolExecutor(1)

    try:
        for rows in torch.arange(len(group)).split(job.config.batch.sample_batch):
            job.poll()
            some = [prompts[row] for row in rows.tolist()]
            cond = sampler.encode(policy, some)
            previews = bool(job.config.batch.baseline)
            trajectory = sampler.rollout(policy, cond, group[rows], noise, keep_x0_pred=previews)
            trajectories.append(trajectory)
            images = policy.decode(trajectory.latent)
            answers.append(thread.submit(timed_score, parts, images, some))

            if on_images is not None:
                kept.append(images)
            for answer in answers:
                if answer.done():
                    answer.result()  # a reward that failed is told now, not after the last chunk

        scores = [answer.result()[0] for answer in answers]
    finally:
        thread.shutdown(cancel_futures=True)  # after a failure no other chunk is scored

    everything = join_trajectories(trajectories)
    if not everything.logp.isfinite().all():
        raise RuntimeError(
            f"a log-probability of iteration {iteration} is not finite; use model.dtype float32 or bfloat16, or a "
            "lower optimizer.lr, and find out more with `burnish check`"
        )

    seconds = sum(answer.result()[1] for answer in answers)
    problems = tuple(problem for one in scores for problem in one.problems)
    everyone = Scores(
        torch.cat([one.parts for one in scores]),
        scores[0].names,
        problems,
        asked_for(job, len(prompts)),
    )

    if on_images is not None:
        on_images(
            SampledImages(
                iteration, torch.cat(kept), prompts, everyone, job.world.rank, job.world.trackers
            )
        )

    return everything, everyone, seconds


def timed_score(parts: Parts, images: Tensor, prompts: list[Prompt]) -> tuple[Scores, float]:
    """The scores of a chunk and the seconds they took."""
    started = time.perf_counter()
    scores = score(parts.rewards, images, prompts, parts.tolerance)
    return scores, time.perf_counter() - started


def check_spread(scores: Scores, iteration: int) -> None:
    """A reward that is the same for every image of the first iteration is a mistake; later it may
    be a success.
    """
    scored = scores.parts[scores.parts.isfinite().all(1)]
    if iteration == 1 and len(scored) > 1 and bool((scored == scored[0]).all()):
        raise ValueError(
            f"reward '{', '.join(scores.names)}' gave {scored[0].tolist()} to all {len(scored)} images of "
            "the first iteration, so there is nothing to learn from; try it alone with burnish.check_reward"
        )


def check_patience(config: Config, scores: Scores, barren: int) -> None:
    """RuntimeError after too many iterations without a single image that has its scores."""
    if barren >= config.scoring.patience:
        raise RuntimeError(
            f"no image of the last {barren} iterations got its rewards ({'; '.join(scores.problems)}); mend the "
            "reward, then go on with --resume"
        )


def describe(scores: Scores, group: Tensor) -> dict[str, dict[str, float]]:
    """What each reward gave in an iteration; NaN where it gave nothing.

    With several, `within` is the mean over prompts of the standard deviation within one: the spread
        that advantages are made of. With identifiers, `asked` is the mean over the images that were
        asked for this reward.
    """

    def four(column: Tensor) -> dict[str, float]:
        if len(column) == 0:
            return dict.fromkeys(("mean", "std", "min", "max"), math.nan)

        low, high = column.aminmax()
        return {
            "mean": float(column.mean()),
            "std": float(column.std(correction=0)),
            "min": float(low),
            "max": float(high),
        }

    described = {}

    for place, (name, column) in enumerate(zip(scores.names, scores.parts.T, strict=True)):
        there = column.isfinite()
        described[name] = four(column[there])

        if len(scores.names) > 1:
            spreads = [
                column[there & (group == number)].std(correction=0)
                for number in group[there].unique()
            ]
            described[name]["within"] = float(torch.stack(spreads).mean()) if spreads else math.nan

        if scores.target_reward is not None:
            described[name]["asked"] = float(column[there & (scores.target_reward == place)].mean())

    return described


def missing(scores: Scores) -> dict[str, Any]:
    """How many images have no score by reward, and why; nothing if all have."""
    counts = (~scores.parts.isfinite()).sum(0).tolist()
    if not any(counts):
        return {}

    return {
        "missing": dict(zip(scores.names, counts, strict=True)),
        "problems": list(scores.problems[:5]),
    }
