"""Sample grids: the same prompts and noise after so many iterations, as one PNG."""

from __future__ import annotations

import torch
from torch import Tensor

from burnish.config import Config
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.files import dumps, write
from burnish.images import image_grid
from burnish.prompts import identifiers
from burnish.prompts.expander import Expander, expand_in_chunks
from burnish.run_control import strength_grid
from burnish.seeds import generator
from burnish.stages import stage
from burnish.training.job import Job
from burnish.training.learners import averaged
from burnish.types import Prompt

IDENTIFIER_PROMPTS = 8  # in the grid of the identifiers


def draw_samples(job: Job, iteration: int, requested: bool = False) -> None:
    """Write the sample grid of an iteration, if it is not there yet.

    Args:
        job: the run.
        iteration: that is done.
        requested: somebody asked for it, so it is drawn although the run may draw no grids.
    """
    settings = job.config.run
    path = job.run.sample_grid(iteration)
    wanted = bool(settings.sample_every) or requested
    if not job.takes_part(wanted and not path.exists()):
        return

    prompts = spread_prompts(job.parts.prompts, settings.sample_prompts)
    template = job.parts.template if iteration else "{}"
    detail = f"{len(prompts)} images after iteration {iteration}"
    routine = iteration not in (0, job.config.iterations)
    with stage("sample grid", detail, len(prompts), routine), averaged(job.learners):
        images = sample_images(job, identifiers.with_template(prompts, template))

    if not job.world.main:
        return
    png, columns = image_grid(images)
    texts = [prompt.text for prompt in prompts]
    layout = {"texts": texts, "columns": columns, "size": images.shape[-1]}
    write(job.run.samples / "prompts.json", dumps(layout))
    write(path, png)
    job.world.tracking.image("samples", path, iteration)


def draw_strength_grid(job: Job, iteration: int, strength: float) -> None:
    """Write the sample grid with the adapter at a strength, if it is not there yet.

    Args:
        job: the run, of a LoRA; other weights have no strength, and nothing is written.
        iteration: that is done.
        strength: 0 is before training, 1 as trained; more is exaggerated.
    """
    settings = job.config.run
    policy = job.parts.policy
    path = strength_grid(job.run, iteration, strength)
    if not job.takes_part(policy.train == "lora" and not path.exists()):
        return

    prompts = spread_prompts(job.parts.prompts, settings.sample_prompts)
    detail = f"{len(prompts)} images with the adapter at {strength:.0%}"
    with stage("sample grid", detail, len(prompts)), averaged(job.learners):
        policy.set_lora_scale(strength)
        try:
            images = sample_images(job, identifiers.with_template(prompts, job.parts.template))
        finally:
            policy.set_lora_scale(1)

    if job.world.main:
        write(path, image_grid(images)[0])


def draw_identifier_grid(job: Job, iteration: int) -> None:
    """Write a grid of a few prompts with all rewards as target, then with each reward alone.

    All from the same noise. Nothing is written without identifiers.
    """
    config = job.config
    path = job.run.identifier_grid(iteration)
    wanted = bool(config.sampler.identifiers and config.run.sample_every)
    if not job.takes_part(wanted and not path.exists()):
        return

    count = min(IDENTIFIER_PROMPTS, config.run.sample_prompts)
    prompts = spread_prompts(job.parts.prompts, count)
    names = list(job.parts.rewards)
    after = config.sampler.identifiers_after
    templates = [identifiers.template([index], after) for index in range(len(names))]

    total = count * (1 + len(names))
    with stage("grid of identifiers", f"{total} images", total), averaged(job.learners):
        images = [
            sample_images(job, identifiers.with_template(prompts, template))
            for template in (job.parts.template, *templates)
        ]

    if not job.world.main:
        return
    png, columns = image_grid(torch.cat(images))
    texts = [prompt.text for prompt in prompts]
    layout = {"texts": texts, "rewards": ["all", *names], "columns": columns}
    write(path.with_suffix(".json"), dumps(layout))
    write(path, png)
    job.world.tracking.image("samples/identifiers", path, iteration)


def sample_images(job: Job, prompts: list[Prompt]) -> Tensor:
    """Return images (B, 3, H, W) of the prompts, from the fixed noise and texts of the samples."""
    parts = job.parts
    return fixed_images(job.config, parts.policy, parts.sampler, parts.expander, prompts)


def fixed_images(
    config: Config,
    policy: Policy,
    sampler: Sampler,
    expander: Expander | None,
    prompts: list[Prompt],
) -> Tensor:
    """Return images (B, 3, H, W) of prompts, from the fixed noise and texts of a run's samples."""
    seed = config.seed
    chunk = config.batch.sample_batch
    expanded = expand_in_chunks(expander, prompts, chunk, seed, "samples", "expansions")
    return sampler.images(policy, expanded, generator(seed, "samples"), chunk)


def spread_prompts(prompts: list[Prompt], count: int) -> list[Prompt]:
    """Return `count` prompts at even distances, over and over if there are fewer."""
    if count <= len(prompts):
        return [prompts[index * len(prompts) // count] for index in range(count)]
    return [prompts[index % len(prompts)] for index in range(count)]
