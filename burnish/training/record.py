"""The recorder: after each iteration the record, and where due checkpoint, grid, evaluation.

Only the main process writes. Each of these may be called twice: what is already on the disk is not
made again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, replace
from typing import Any

from burnish import config as configuration
from burnish.config import Config
from burnish.errors import type_and_message
from burnish.files import dumps, write
from burnish.run_control import NOTHING, Requests, clear, take
from burnish.runs import Record, Run, tidy
from burnish.stages import tell_record
from burnish.training import resume
from burnish.training.batch import Credit, RolloutBatch
from burnish.training.evaluations import (
    Evaluations,
    check_guard,
    evaluate_initial,
    evaluate_now,
)
from burnish.training.job import Job, Stopped, check_weights
from burnish.training.metrics import of_all_processes, own_numbers
from burnish.training.origin import origin_of
from burnish.training.reward_stats import gains
from burnish.training.samples import draw_identifier_grid, draw_samples, draw_strength_grid
from burnish.user_code import call_hook


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
        self.requests = NOTHING  # that were taken and not carried out yet
        self.origin = origin_of(job.config, job.world, job.parts)  # before a file changes
        self._started = 0.0  # when the updates of the iteration began

    def start(self) -> range:
        """Prepare the run directory and return the iterations that are left.

        The configuration is written, the trackers opened, and the model before training evaluated.
        What a stop or a crash left undone after the last iteration is made up for, and the guard
        may end the run then.
        """
        config = self.job.config
        run = self.job.run
        check_weights(self.job)

        if self.job.world.main:
            tidy(run)
            write(run.config, configuration.dump(config, run.folder))
            write(run.origin, dumps(self.origin, indent=1))
            run.forget(self.done)
        resume.make_up(self.job, self.done)

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

        tell_record(record)
        if self.on_record is not None and job.world.main:
            returned = call_hook("on_record", self.on_record, deepcopy(record))
            record = with_own_numbers(job.run, record, returned)

        self.requests = take_shared(job)
        # a checkpoint says what the log was, so numbers of the user's join it before
        if saves_after(job.config, iteration, self.requests):
            resume.save(job, iteration, self.origin)
        job.world.tracking.log(record, iteration)

        job.poll()
        if self.requests.stop:
            raise Stopped
        self.review(iteration)
        return self.ended_by_guard

    def review(self, iteration: int) -> None:
        """Draw and evaluate the state after an iteration where due or asked for; ask the guard."""
        sample_every = self.job.config.run.sample_every
        if sample_every and iteration % sample_every == 0:
            draw_samples(self.job, iteration)
        due = evaluation_is_due(self.job.config, iteration)
        self.carry_out(iteration, due or iteration >= self.job.config.iterations)

    def carry_out(self, iteration: int, evaluate: bool = False) -> None:
        """Draw and evaluate the state after an iteration as somebody asks for; ask the guard.

        Args:
            iteration: that is done.
            evaluate: also if nobody asks for it.
        """
        job = self.job
        if self.requests.sample:
            draw_samples(job, iteration, requested=True)
            self.requests = replace(self.requests, sample=False)
        if self.requests.strength is not None:
            draw_strength_grid(job, iteration, self.requests.strength)
            self.requests = replace(self.requests, strength=None)
        if self.initial and (self.requests.evaluate or evaluate):
            evaluate_now(job, self.initial, iteration)
            self.ended_by_guard = check_guard(job, self.initial, iteration)
        # only now: a stop may have come in the midst of it, and what was asked for is done before
        self.requests = NOTHING

    def carry_out_last(self) -> None:
        """Do what somebody still asks for when the run ends; another stop cuts it off."""
        self.requests = self.requests.and_also(take_shared(self.job))
        with suppress(Stopped):
            self.carry_out(self.done)

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
            **batch.metrics,
            **of_all_processes(self.job.world.gather_list([dict(metrics)])),
            "seconds_sampling": batch.seconds_sampling,
            "seconds_scoring": batch.seconds_scoring,
            "seconds_training": time.perf_counter() - self._started,
        }

    def end(self) -> None:
        """Draw and evaluate the last state, unless the guard has done so."""
        job = self.job
        if not self.ended_by_guard:
            draw_samples(job, self.done)
            draw_identifier_grid(job, self.done)
            if self.initial:
                evaluate_now(job, self.initial, self.done)
            self.carry_out_last()
        if job.world.main:
            clear(job.run)  # what nobody carries out any more

    def end_early(self, error: BaseException) -> None:
        """Save what is done, if the weights are those after an iteration; then raise the error.

        A stop that was requested is none: what else was asked for is done before the end. With a
        sharded network only a stop is saved: after another error the other processes are somewhere
        else, and cannot give their parts. Code that ends programs must not end this one as if all
        were well.

        Raises:
            RuntimeError: user code called `sys.exit`.
        """
        together = isinstance(error, Stopped) or not self.job.parts.policy.sharded
        if self.consistent and together:
            resume.save(self.job, self.done, self.origin)
        if self.consistent and self.done and isinstance(error, Stopped) and error.together:
            self.carry_out_last()
        if self.job.world.main:
            clear(self.job.run)  # a stop that was asked for is done

        if isinstance(error, (SystemExit, GeneratorExit)):
            raise RuntimeError(
                f"{type_and_message(error)} was raised in iteration {self.done + 1}, which would "
                "have ended the program without a word; take the call of sys.exit out of your code"
            ) from error
        if not isinstance(error, Stopped):
            raise error


def evaluation_is_due(config: Config, iteration: int) -> bool:
    """Return whether an evaluation is due at intervals after an iteration."""
    every = config.evaluation.every
    return bool(every) and iteration % every == 0


def saves_after(config: Config, iteration: int, requests: Requests) -> bool:
    """Return whether a checkpoint is due: at intervals, at the end, for the guard, if asked."""
    # a state that is evaluated is one that the guard may go back to
    evaluates = evaluation_is_due(config, iteration) or requests.evaluate
    for_guard = evaluates and config.guard.action == "rollback"
    last = iteration == config.iterations
    return requests.save or iteration % config.run.checkpoint_every == 0 or last or for_guard


def take_shared(job: Job) -> Requests:
    """Return what somebody asks of the run, the same in all processes; it is taken away."""
    taken = [take(job.run)] if job.world.main else []
    requests: Requests = job.world.gather_list(taken)[0]
    return requests


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
