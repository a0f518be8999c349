"""The progress of a run, shown to who started it."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack

from burnish.config import Config
from burnish.report.progress import Plan, Progress
from burnish.runs import Run
from burnish.stages import Nobody, listening
from burnish.world import World


def shown(progress: bool, config: Config, run: Run, world: World) -> AbstractContextManager[object]:
    """Return a context in which the main process shows what a run is doing.

    Args:
        progress: whether anything is shown.
        config: says how much there is to do.
        run: where the run is.
        world: the processes.
    """
    with ExitStack() as stack:
        if not (progress and world.main):
            stack.enter_context(listening(Nobody()))
            return stack.pop_all()

        evaluation = config.evaluation
        plan = Plan(
            folder=run.folder,
            iterations=config.iterations,
            evaluations=evaluation.images_per_prompt > 0,
            evaluate_every=evaluation.every,
        )
        watcher = stack.enter_context(Progress(plan))
        stack.enter_context(listening(watcher))
        return stack.pop_all()
