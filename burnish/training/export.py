"""The trained weights in formats that other programs read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from burnish.prompts import identifiers
from burnish.training import checkpoint
from burnish.training.job import Job


def save_adapter(job: Job) -> None:
    """The weights in diffusers' format, averaged if there is an average."""
    with averaged(job), checkpoint.saving(job.run.adapter):
        if job.parts.policy.train != "none":
            job.parts.policy.save_adapter(job.run.adapter)
        if job.parts.expander is not None:
            job.parts.expander.save(job.run.adapter / "expander")

        if job.config.sampler.identifiers == "tokens":
            identifiers.save_tokens(
                job.parts.policy.pipe, len(job.parts.rewards), job.run.adapter / "identifiers"
            )


@contextmanager
def averaged(job: Job) -> Iterator[None]:
    """Within it the policy has the moving average of its weights, if there is one."""
    if job.average is None:
        yield
        return

    job.average.store(job.parts.policy.trainable)
    job.average.copy_to(job.parts.policy.trainable)

    try:
        yield
    finally:
        job.average.restore(job.parts.policy.trainable)
