"""The progress of a run, shown to who started it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from burnish import noise
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
        stack.enter_context(quiet_libraries())
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


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep progress bars and known noise of other libraries out of the output, nothing else.

    Levels of logging stay as they are, and downloads keep their bars.
    """
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.get_verbosity()  # gives it its handler
    bars = transformers_logging.is_progress_bar_enabled()
    downloads = not are_progress_bars_disabled()

    with noise.silenced():
        if not bars:
            yield
            return

        transformers_logging.disable_progress_bar()  # and those of downloads
        if downloads:
            enable_progress_bars()
        try:
            yield
        finally:
            with warnings.catch_warnings():  # of an environment that forbids all bars
                warnings.simplefilter("ignore")
                transformers_logging.enable_progress_bar()
            if not downloads:
                disable_progress_bars()
