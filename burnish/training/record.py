"""The recorder: after each iteration the record, and where due checkpoint, grid, evaluation.

Only the main process writes. Each of these may be called twice: what is already on the disk is not
made again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from burnish import config as configuration
from burnish.runs import Record, Run, write
from burnish.stages import tell_record
from burnish.training import resume
from burnish.training.batch import Credit, RolloutBatch
from burnish.training.evaluations import (
    Evaluations,
    check_guard,
    evaluate_initial,
    evaluate_now,
)
from burnish.training.job import Job
from burnish.training.metrics import own_numbers
from burnish.training.reward_stats import gains
from burnish.training.samples import draw_identifier_grid, draw_samples


class Recorder:
    """Writes what an iteration leaves behind, and decides whether it was the last one.

    Args:
        job: the run.
        done: iterations that an earlier start has finished.
        on_record: called in the main process with each iteration's record; numbers by name that it
            returns join the record.
    """

    def __init__(
        self, job: Job, done: int, on_record: Callable[[Record], object] | None = None
    ) -> None:
        self.job = job
        self.done = done
        self.on_record = on_record
        self.consistent = True  # the weights and memories are those after `done` iterations
        self.ended_by_guard = False
        self.initial: Evaluations | None = None
        self._started = 0.0  # when the updates of the iteration began

    def start(self) -> range:
        """Prepare the run directory and return the iterations that are left.

        The configuration is written, the trackers opened, and the model before training evaluated.
        What a stop or a crash left undone after the last iteration is made up for, and the guard
        may end the run then.
        """
        config = self.job.config
        run = self.job.run

        if self.job.world.main:
            write(run.config, configuration.dump(config))
            run.forget(self.done)

        self.job.world.tracking.start(run, asdict(config), self.done)
        self.initial = evaluate_initial(self.job, self.done)
        if self.done == 0:
            draw_samples(self.job, 0)
        else:
            self.review(self.done)

        if self.ended_by_guard:
            return range(0)
        return range(self.done + 1, config.iterations + 1)

    def begin_updates(self) -> None:
        """Note that weights and memories are about to change."""
        self.consistent = False
        self._started = time.perf_counter()

    def finish(self, batch: RolloutBatch, credit: Credit, metrics: Mapping[str, Any]) -> bool:
        """Record an iteration, save, draw and evaluate where due; return whether the run ends."""
        job = self.job
        iteration = batch.iteration
        record = self.record(batch, credit, metrics)

        # the record is on the disk before anybody hears of it
        if job.world.main:
            job.run.append(record)
        self.done = iteration
        self.consistent = True

        if self.saves_after(iteration):
            resume.save(job, iteration)
        tell_record(record)
        if self.on_record is not None and job.world.main:
            record = with_own_numbers(job.run, record, self.on_record(record))
        job.world.tracking.log(record, iteration)

        job.poll()
        self.review(iteration)
        return self.ended_by_guard

    def review(self, iteration: int) -> None:
        """Draw and evaluate the state after an iteration where due, and ask the guard."""
        job = self.job
        sample_every = job.config.run.sample_every
        if sample_every and iteration % sample_every == 0:
            draw_samples(job, iteration)

        if self.initial and (self.is_due(iteration) or iteration == job.config.iterations):
            evaluate_now(job, self.initial, iteration)
            self.ended_by_guard = check_guard(job, self.initial, iteration)

    def record(
        self, batch: RolloutBatch, credit: Credit, metrics: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the record of an iteration: a line of RUN/log.jsonl."""
        credited = dict(credit.metrics)
        if self.initial:
            changes = gains(batch.scores, batch.prompts, self.initial["train"], self.job.world)
            credited["rewards"] = {
                name: {**values, **changes.get(name, {})}
                for name, values in credited["rewards"].items()
            }

        return {
            "iteration": batch.iteration,
            "images": self.job.world.count * len(batch.prompts),
            **credited,
            **metrics,
            "seconds_sampling": batch.seconds_sampling,
            "seconds_scoring": batch.seconds_scoring,
            "seconds_training": time.perf_counter() - self._started,
        }

    def is_due(self, iteration: int) -> bool:
        """Return whether an evaluation is due after an iteration."""
        every = self.job.config.evaluation.every
        return bool(every) and iteration % every == 0

    def saves_after(self, iteration: int) -> bool:
        """Return whether a checkpoint is due: at intervals, at the end, and for the guard."""
        config = self.job.config
        # a state that is evaluated is one that the guard may go back to
        for_guard = self.is_due(iteration) and config.guard.action == "rollback"
        last = iteration == config.iterations
        return iteration % config.run.checkpoint_every == 0 or last or for_guard

    def end(self) -> None:
        """Draw and evaluate the last state, unless the guard has done so."""
        job = self.job
        if self.ended_by_guard:
            return

        draw_samples(job, self.done)
        draw_identifier_grid(job, self.done)
        missing = job.world.any(not job.run.evaluation_file(self.done).exists())
        if self.initial and missing:
            evaluate_now(job, self.initial, self.done)

    def save_after_failure(self) -> None:
        """Save what is done after a failure, if the weights are those after an iteration."""
        if self.consistent:
            resume.save(self.job, self.done)


def with_own_numbers(run: Run, record: dict[str, Any], returned: object) -> dict[str, Any]:
    """Return the last record with the numbers that `on_record` returned, also in the log.

    Raises:
        ValueError: it returned something else than numbers, or a name that the record has.
    """
    added = own_numbers(returned, record)
    if not added:
        return record

    record = {**record, **added}
    run.append(record, amend=True)
    return record
