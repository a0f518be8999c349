"""Sample grids: the same prompts and noise after so many iterations, as one PNG."""

from __future__ import annotations

import torch
from torch import Tensor

from burnish.images import image_grid
from burnish.prompts import identifiers
from burnish.runs import dumps, write
from burnish.seeds import generator
from burnish.training.export import averaged
from burnish.training.job import Job
from burnish.types import Prompt

ASKED = 8  # prompts in the grid of the identifiers


def draw_samples(job: Job, iteration: int) -> None:
    """One grid of pictures, from the same prompts and noise each time."""
    if not job.world.main or not job.config.run.sample_every or job.run.sample(iteration).exists():
        return

    prompts = spread_prompts(job.parts.prompts, job.config.run.sample_prompts)
    prompts = identifiers.with_template(prompts, job.parts.template if iteration else "{}")

    with averaged(job):
        images = _sample_images(job, prompts)

    picture, columns = image_grid(images)
    layout = {
        "texts": [prompt.text for prompt in prompts],
        "columns": columns,
        "size": images.shape[-1],
    }
    write(job.run.samples / "prompts.json", dumps(layout))
    write(job.run.sample(iteration), picture)


def draw_identifier_grid(job: Job, iteration: int) -> None:
    """What the identifiers do: a grid of a few prompts asked for every reward together, then for
    each reward alone, from the same noise. Nothing without identifiers.
    """
    config = job.config
    path = job.run.identifier_grid(iteration)

    if (
        not job.world.main
        or not config.sampler.identifiers
        or not config.run.sample_every
        or path.exists()
    ):
        return

    prompts = spread_prompts(job.parts.prompts, min(ASKED, config.run.sample_prompts))
    names = list(job.parts.rewards)
    templates = [
        identifiers.template([place], config.sampler.identifiers_after)
        for place in range(len(names))
    ]

    with averaged(job):
        images = [
            _sample_images(job, identifiers.with_template(prompts, template))
            for template in (job.parts.template, *templates)
        ]

    picture, columns = image_grid(torch.cat(images))
    layout = {
        "texts": [prompt.text for prompt in prompts],
        "rewards": ["all", *names],
        "columns": columns,
    }
    write(path.with_suffix(".json"), dumps(layout))
    write(path, picture)


def _sample_images(job: Job, prompts: list[Prompt]) -> Tensor:
    """Pictures (B, 3, H, W) of the prompts, from the noise and the words of the run's samples."""
    parts = job.parts
    size = job.config.batch.sample_batch
    noise = generator(job.config.seed, "samples")
    images = []

    for start in range(0, len(prompts), size):
        some = prompts[start : start + size]
        if parts.expander is not None:
            some = parts.expander.draw(
                some, generator(job.config.seed, "samples", "expansions", start)
            ).prompts

        cond = parts.sampler.encode(parts.policy, some)
        trajectory = parts.sampler.rollout(parts.policy, cond, torch.arange(len(some)), noise)
        images.append(parts.policy.decode(trajectory.latent).cpu())

    return torch.cat(images)


def spread_prompts(prompts: list[Prompt], count: int) -> list[Prompt]:
    """`count` prompts at even distances, over and over if there are fewer."""
    if count <= len(prompts):
        return [prompts[place * len(prompts) // count] for place in range(count)]
    return [prompts[place % len(prompts)] for place in range(count)]
