"""Collecting: the images of an iteration, from the prompts that are drawn to their rewards.

    prompts -> [identifiers] -> [expander] -> rollout -> decode -> rewards

Each process draws its own prompt groups. While one chunk of images is sampled, the chunk before it
is scored in a thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from burnish.config import Config
from burnish.diffusion.sampler import Sampler, join_trajectories
from burnish.prompts.expander import Expansions
from burnish.seeds import generator
from burnish.stages import advance, stage
from burnish.training.batch import RolloutBatch
from burnish.training.expansion import expand_prompts
from burnish.training.iteration_sampler import iteration_sampler, iteration_starts
from burnish.training.job import Job
from burnish.training.learners import sampling
from burnish.training.prompt_sampling import sample_prompts, target_rewards
from burnish.training.scoring import Scoring, join_scores
from burnish.training.thumbnails import Thumbnails
from burnish.training.voting import metrics_of, reward_of, with_votes
from burnish.types import Objective, Prompt, Scores, Trajectory
from burnish.user_code import call_hook, own_prompts, own_scores


@dataclass(frozen=True)
class SampledImages:
    """One process's images of an iteration, as they were scored: what `on_images` is given."""

    iteration: int
    images: Tensor  # (B, 3, H, W) float32 in [0, 1], where the policy computes
    prompts: list[Prompt]  # B
    scores: Scores
    rank: int  # of the process; the main one is 0
    trackers: list[Any]  # accelerate's open trackers in the main process: trackers[0].log_images


OnImages = Callable[[SampledImages], None]


@dataclass(frozen=True)
class Collector:
    """Collects the images of an iteration; `on_images` is called with them before they are used."""

    job: Job
    on_images: OnImages | None = None

    def collect(self, iteration: int) -> RolloutBatch:
        """Return this process's images of an iteration, sampled and scored."""
        started = time.perf_counter()
        prompts, group = sample_prompts(self.job, iteration)
        prompts, expansions = self.expand(prompts, iteration)
        sampler = iteration_sampler(self.job, iteration)

        with sampling(self.job.learners):
            trajectory, scores, seconds = rollout_and_score(
                self.job, sampler, prompts, group, iteration, self.on_images
            )

        varies = self.job.parts.curriculum.varies
        metrics = metrics_of(self.job)
        waiting = metrics.get("seconds_waiting", 0.0)
        return RolloutBatch(
            iteration=iteration,
            prompts=prompts,
            expansions=expansions,
            trajectory=trajectory,
            scores=scores,
            group=group,
            control_scale=sampler.control.scale if varies else None,
            seconds_sampling=time.perf_counter() - started - waiting,
            seconds_scoring=seconds,
            metrics=metrics,
        )

    def expand(
        self, prompts: list[Prompt], iteration: int
    ) -> tuple[list[Prompt], Expansions | None]:
        """Return the prompts expanded and the texts drawn for them; without an expander as is."""
        job = self.job
        if job.parts.expander is None:
            return prompts, None

        stream = generator(job.config.seed, iteration, "expansions", job.world.rank)
        return expand_prompts(job.parts.expander, prompts, job.config, stream)


def keeps_predictions(config: Config, objective: Objective) -> bool:
    """Return whether what is predicted before each transition is needed after sampling."""
    if config.batch.baseline:
        return True
    return objective.process == "reverse" and objective.uses_old_prediction


def rollout_and_score(
    job: Job,
    sampler: Sampler,
    prompts: list[Prompt],
    group: Tensor,
    iteration: int,
    on_images: OnImages | None = None,
) -> tuple[Trajectory, Scores, float]:
    """Sample an image for each prompt, chunk by chunk, and score it.

    The images are kept only where there is `on_images`, or somebody votes on them.

    Returns:
        The trajectories, the scores, and the seconds spent in the rewards.

    Raises:
        RuntimeError: a log-probability is not finite.
        ValueError: a reward failed.
    """
    parts = job.parts
    noise = generator(job.config.seed, iteration, "noise", job.world.rank)
    starts = iteration_starts(job, iteration)
    keep_x0_pred = keeps_predictions(job.config, parts.objective)
    keep_ode = parts.objective.process == "chain"
    trajectories: list[Trajectory] = []
    sampled: list[Tensor] = []
    thumbnails = Thumbnails(job.config.run.thumbnails if job.world.main else 0)
    votes = reward_of(job) is not None

    detail = f"{len(group)} images of iteration {iteration}"

    with Scoring(job) as scoring:
        with stage("sampling", detail, len(group), routine=iteration > 1):
            for rows in torch.arange(len(group)).split(job.config.batch.sample_batch):
                job.poll()
                chunk = [prompts[row] for row in rows.tolist()]
                trajectory, images = sampler.sample(
                    parts.policy, chunk, group[rows], noise, keep_x0_pred, starts, keep_ode
                )
                trajectories.append(trajectory)
                scoring.submit(images, chunk)
                thumbnails.add(images)
                if on_images is not None or votes:
                    sampled.append(images)
                advance(len(rows))

        with stage("scoring", detail, routine=True):
            results = scoring.results()

    trajectory = join_trajectories(trajectories)
    if not trajectory.logp.isfinite().all():
        raise RuntimeError(
            f"a log-probability of iteration {iteration} is not finite; use model.dtype float32 or "
            "bfloat16, or a lower optimizer.lr, and find out more with `burnish check`"
        )

    scores = join_scores([scores for scores, _ in results], target_rewards(job, len(prompts)))
    if votes:
        scores = with_votes(job, iteration, torch.cat(sampled), prompts, group, scores)
    thumbnails.write_iteration(job.run, iteration, prompts, group, scores)
    if on_images is not None:
        images = torch.cat(sampled)  # a copy, as the prompts and scores are
        shown = SampledImages(
            iteration,
            images,
            own_prompts(prompts),
            own_scores(scores),
            job.world.rank,
            job.world.tracking.trackers,
        )
        call_hook("on_images", on_images, shown)

    return trajectory, scores, sum(seconds for _, seconds in results)
