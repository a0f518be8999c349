"""The sampler of an iteration's training images: evaluations keep the one of the configuration.

Control scale, window and shared starts follow from the seed and the iteration alone, so that a
resumed run has the same ones.
"""

from __future__ import annotations

from dataclasses import replace

from burnish.diffusion.sampler import Sampler
from burnish.diffusion.window import SharedStarts, window_at
from burnish.seeds import generator
from burnish.training.job import Job
from burnish.training.stored_images import has_stored_images, opening_images


def iteration_sampler(job: Job, iteration: int) -> Sampler:
    """Return the sampler of an iteration, at the curriculum's control scale, with its window.

    Where the images were made before, it opens these.
    """
    sampler = job.parts.sampler
    curriculum = job.parts.curriculum
    window = job.config.sampler.window
    seed = job.config.seed

    if curriculum.varies:
        progress = (iteration - 1) / max(1, job.config.iterations - 1)
        scale = curriculum(progress, generator(seed, iteration, "curriculum"))
        sampler = replace(sampler, control=replace(sampler.control, scale=scale))

    if window.size:
        place = window_at(window, iteration, window_room(job), seed)
        sampler = replace(sampler, window=place)

    return opening_images(sampler) if has_stored_images(job.config) else sampler


def window_room(job: Job) -> int:
    """Return the number of transitions, from the first on, among which a window may lie."""
    whole = replace(job.parts.sampler, window=None)
    return whole.transitions(job.parts.policy, job.config.batch.least_noise)


def iteration_starts(job: Job, iteration: int) -> SharedStarts | None:
    """Return the starts that the images of a prompt share; None where each has its own."""
    if not job.config.sampler.shared_noise:
        return None
    return SharedStarts((job.config.seed, iteration, "start"))
