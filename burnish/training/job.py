"""Preparation of a training run: parts, learners and the way to stop it."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from burnish import run_control
from burnish.config import Config
from burnish.diffusion.sharding import bit_sum, unlike
from burnish.prompts.expander import Expander
from burnish.runs import Run
from burnish.training.assembly import Overrides, Parts, assemble
from burnish.training.checked_learner import checked_learners
from burnish.training.learners import (
    ExpanderLearner,
    GeneratorLearner,
    IdentifierLearner,
    Learner,
)
from burnish.training.optimizer import adamw
from burnish.training.requirements import check_minibatches
from burnish.user_code import call_hook
from burnish.world import World, share_weights

LONGEST_DELAY = 60.0
"""Seconds after which a folder that another machine has made must be seen."""

PAUSE = 0.5
"""Seconds between two tries to see it."""


class Stopped(Exception):
    """A stop was requested, and the run ends between two pieces of work.

    Args:
        together: in all processes, so that they may do something together before the end.
    """

    def __init__(self, together: bool = True) -> None:
        super().__init__()
        self.together = together


@dataclass(frozen=True)
class Job:
    """One training run in this process: what is trained, with what, and where it is written."""

    config: Config
    run: Run
    world: World
    parts: Parts
    learners: Mapping[str, Learner]  # in the order in which they learn
    poll: Callable[[], None]  # raises `Stopped` if a stop was requested

    def takes_part(self, wanted: bool) -> bool:
        """Return whether this process does what the main one wants to do.

        It is the main one, or the network is sharded, which needs all of them. Only the main
        process writes, in any case.
        """
        wanted = self.world.main and wanted
        return self.world.any(wanted) if self.parts.policy.sharded else wanted


def prepare(
    config: Config,
    run: Run,
    world: World,
    stop: Callable[[], bool] | None = None,
    overrides: Overrides | None = None,
) -> Job:
    """Return the job of a configuration: its parts loaded, its learners with their optimizers.

    Raises:
        ValueError, OSError: a part cannot be loaded, or the parts do not fit each other.
    """

    def stops() -> bool:
        if stop is not None and call_hook("stop", stop):
            return True
        return world.main and run_control.stop_requested(run)

    def poll() -> None:
        if world.any(stops()):
            raise Stopped

    def poll_alone() -> None:  # while this process waits, the others cannot be asked
        # with a sharded network a process can save nothing without them
        if not config.run.sharding and stops():
            raise Stopped(together=world.count == 1)

    check_folder(run, world)
    if world.main:
        run_control.clear(run)  # requests to an earlier start
    if config.batch.prompts % world.count:
        raise ValueError(
            f"batch.prompts = {config.batch.prompts} cannot be shared evenly by {world.count} "
            "processes; make it a multiple of their number"
        )

    overrides = overrides or Overrides()
    given_learners = checked_learners(overrides.learners)
    adamw(config.optimizer)  # says so at once if the library for 8 bits is missing
    device = world.device(config.model.device)
    sharded = config.run.sharding == "full" and world.count > 1
    parts = assemble(config, device, overrides, poll_alone, sharded)

    if parts.expander is not None and config.expander.start:
        share_start(parts.expander, world)

    check_minibatches(config, parts.objective, world.count)

    learners: dict[str, Learner] = {"generator": GeneratorLearner(config, world, parts)}
    if parts.embeddings is not None:
        learners["identifiers"] = IdentifierLearner(config, world, parts.embeddings)
    if parts.expander is not None:
        learners["expander"] = ExpanderLearner(config, world, parts.expander)
    learners |= given_learners

    return Job(config, run, world, parts, learners, poll)


def check_folder(run: Run, world: World) -> None:
    """Refuse machines that do not see the run directory, which the main process has made.

    Raises:
        ValueError: the message names these machines.
    """
    ends = time.monotonic() + LONGEST_DELAY
    while world.count > 1 and not run.folder.is_dir() and time.monotonic() < ends:
        time.sleep(PAUSE)  # file systems of several machines need a while

    blind = [] if world.count == 1 or run.folder.is_dir() else [platform.node()]
    if machines := sorted(set(world.gather_list(blind))):
        raise ValueError(
            f"{', '.join(machines)} cannot see the run directory {run.folder}, which every process "
            "reads; give an --out that all machines share"
        )


def share_start(expander: Expander, world: World) -> None:
    """Give all processes the main one's expander after its imitation of `expander.start`.

    Each has computed it, and different GPUs need not agree in the last bits.
    """
    share_weights(world, expander.trainable)
    if expander.remembers:
        expander.remember()


def check_weights(job: Job) -> None:
    """Refuse processes that do not begin with the same weights.

    Those of a sharded network are compared before they are divided.

    Raises:
        ValueError: the message names these processes.
    """
    if job.world.count == 1:
        return

    parts = job.parts
    modules = [one for one in parts.policy.pipe.components.values() if isinstance(one, nn.Module)]
    if parts.expander is not None:
        modules.append(parts.expander.model)

    sums = [bit_sum(module) for module in modules]
    everybody = job.world.gather(torch.tensor([sums]))
    if others := (everybody != everybody[0]).any(1).nonzero().flatten().tolist():
        raise ValueError(unlike(others))
