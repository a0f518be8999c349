"""The loop: `train` is the whole of it, top to bottom, and the rest of the library is its pieces.

    collect (prompts -> images -> rewards) -> credit (rewards -> advantages)
        -> each learner learns -> record

Nothing downstream writes into anything upstream. Random numbers are derived from (seed, iteration,
purpose), never carried over, so a run that was killed goes on bit for bit as if it had not been.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from burnish.config import Config
from burnish.runs import Record, Run
from burnish.seeds import seed_globals
from burnish.training.assembly import Overrides
from burnish.training.collect import Collector, OnImages
from burnish.training.credit import gather_scores
from burnish.training.job import prepare
from burnish.training.metrics import with_metrics
from burnish.training.record import Recorder
from burnish.training.resume import check_not_guarded, check_unchanged, restore
from burnish.training.score_checks import ScoreChecks
from burnish.training.shown import shown
from burnish.user_code import check_signature
from burnish.world import World, join_world


def train(
    config: Config,
    out: str | Path,
    *,
    resume: bool = False,
    accept_changes: bool = False,
    on_record: Callable[[Record], object] | None = None,
    stop: Callable[[], bool] | None = None,
    overrides: Overrides | None = None,
    on_images: OnImages | None = None,
    progress: bool = True,
) -> Path:
    """Fine-tune as `config` says and leave everything in the run directory `out`; return it.

    If sampling or a reward fails, the finished iterations are saved first: fix it and resume. If an
    update fails, the newest checkpoint is what counts.

    Args:
        config: from `burnish.load_config`.
        out: a new folder, or with `resume` the folder of a run.
        resume: go on with the run in `out` from its newest checkpoint.
        accept_changes: with `resume`, also if the configuration, a file that it names, the log or
            the number of processes is not what it was.
        on_record: called in the main process with each iteration's record, which is also a line of
            RUN/log.jsonl. A dict of numbers that it returns joins the record.
        stop: called often; once it returns True, a running update phase is finished, the run saved,
            and `train` returns.
        overrides: objects in place of what `config` names: a policy, rewards, a function that draws
            prompts, an objective, an advantage, ..., and further learners.
        on_images: called in each process with its own images of each iteration before anything is
            learned from them.
        progress: print what the run is doing: a live table in a terminal, otherwise (a notebook, a
            file) a line for each stage and iteration.

    Raises:
        ValueError, OSError, RuntimeError: one sentence that says what is wrong and what to do.

    Example:
        >>> config = load_config("demo", ["iterations=2"])                         # doctest: +SKIP
        >>> redness = lambda images, prompts: images[:, 0].mean((1, 2))            # doctest: +SKIP
        >>> overrides = Overrides(rewards={"redness": redness})                    # doctest: +SKIP
        >>> train(config, "runs/red", overrides=overrides)                         # doctest: +SKIP
    """
    check_hooks(on_record, stop, on_images)
    overrides = overrides or Overrides()
    config = overrides.apply_to(config)
    trackers = Path(config.run.tracker_folder or out)
    world = join_world(config.run.trackers, trackers, config.model.device, config.run.sharding)
    is_new = not Path(out).exists()
    run = open_run(out, world, resume)

    with run.lock(is_new) if world.main else nullcontext(), shown(progress, config, run, world):
        if resume:
            check_unchanged(config, run, world, accept_changes)
            check_not_guarded(run)

        seed_globals(config.seed, "weights")
        job = prepare(config, run, world, stop, overrides)
        done = restore(job, accept_changes) if resume else 0
        collector = Collector(job, on_images)
        checks = ScoreChecks(job, done)
        recorder = Recorder(job, done, on_record)

        try:
            for iteration in recorder.start():
                seed_globals(config.seed, iteration, world.rank)
                batch = collector.collect(iteration)
                job.poll()  # once begun, updates are finished, even if a stop is requested

                scores = gather_scores(batch.scores, world)
                checks.check(scores, iteration)
                recorder.begin_updates()
                credit = checks.assign_credit(batch, scores, world)

                metrics: dict[str, Any] = {}
                for name, learner in job.learners.items():
                    metrics = with_metrics(metrics, name, learner.learn(batch, credit))

                job.parts.curriculum.observe(scores)
                if recorder.finish(batch, credit, metrics):
                    break

            recorder.end()
        except BaseException as error:  # Ctrl+C too: what is done is saved
            recorder.end_early(error)

        world.end()

    return run.folder


def check_hooks(
    on_record: Callable[[Record], object] | None,
    stop: Callable[[], bool] | None,
    on_images: OnImages | None,
) -> None:
    """Refuse functions that could not be called as they will be.

    Raises:
        ValueError: one takes other arguments, or is no function.
    """
    hooks: list[tuple[str, Any, tuple[str, ...]]] = [
        ("on_record", on_record, ("record",)),
        ("stop", stop, ()),
        ("on_images", on_images, ("sampled",)),
    ]
    for name, function, called_with in hooks:
        if function is not None:
            check_signature(name, function, called_with)


def open_run(out: str | Path, world: World, resume: bool) -> Run:
    """Return the run directory, created or opened by the main process."""
    if not world.main:
        return Run(Path(out))
    return Run.open(out) if resume else Run.create(out)
