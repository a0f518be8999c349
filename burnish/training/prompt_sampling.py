"""Prompt sampling: the prompts of an iteration's images, in this process.

The images of one drawn prompt are neighbours, and stay in one process.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from burnish.checked import checked_prompts, name_of
from burnish.prompts import identifiers
from burnish.prompts.pairs import images_of_pairs
from burnish.seeds import generator, seed_of
from burnish.training.job import Job
from burnish.training.stored_images import has_stored_images
from burnish.types import Prompt
from burnish.user_code import call_user


def sample_prompt_numbers(job: Job, iteration: int) -> Tensor:
    """Return this process's prompt numbers in an iteration, (images,) int64.

    Images of one prompt are neighbours. Prompts come from one endless row of shuffled rounds over
    all prompts, so each is drawn equally often.
    """
    available = len(job.parts.prompts)
    count = job.config.batch.prompts
    indices = range((iteration - 1) * count, iteration * count)
    rounds = {
        number: torch.randperm(
            available, generator=generator(job.config.seed, "prompts", number)
        ).tolist()
        for number in range(indices[0] // available, indices[-1] // available + 1)
    }
    drawn = sorted(rounds[index // available][index % available] for index in indices)

    local_count = count // job.world.count
    local = torch.tensor(drawn[job.world.rank * local_count :][:local_count])
    return local.repeat_interleave(job.config.batch.images_per_prompt)


def sample_prompts(job: Job, iteration: int) -> tuple[list[Prompt], Tensor]:
    """Return this process's prompts in an iteration, one an image, and their groups (images,).

    Images of one drawn prompt are neighbours. What a function draws has group numbers that follow
    from the texts, so that they mean the same in every process and after a resume. A prompt with
    another identifier is another group.
    """
    source = job.parts.source
    images_per_prompt = job.config.batch.images_per_prompt

    if source is None:
        group = sample_prompt_numbers(job, iteration)
        prompts = [job.parts.prompts[number] for number in group.tolist()]
    else:
        count = job.config.batch.prompts // job.world.count
        name = name_of(source)
        returned = call_user(f"the prompt function {name}", source, count)
        drawn = checked_prompts(returned, name, count)
        prompts = [prompt for prompt in drawn for _ in range(images_per_prompt)]
        numbers = torch.tensor([seed_of("prompt", prompt.text) for prompt in drawn])
        group = numbers.repeat_interleave(images_per_prompt)

    if has_stored_images(job.config):
        return images_of_pairs(prompts), group

    target = target_rewards(job, len(prompts))
    if target is None:
        return prompts, group

    after = job.config.sampler.identifiers_after
    prompts = [
        replace(prompt, template=identifiers.template([reward], after))
        for prompt, reward in zip(prompts, target.tolist(), strict=True)
    ]
    pairs = zip(group.tolist(), target.tolist(), strict=True)
    return prompts, torch.tensor([seed_of("asked", number, reward) for number, reward in pairs])


def target_rewards(job: Job, images: int) -> Tensor | None:
    """Return the target reward (images,) of each image; None without identifiers."""
    if not job.config.sampler.identifiers:
        return None
    images_per_prompt = job.config.batch.images_per_prompt
    return identifiers.target_rewards(images, images_per_prompt, len(job.parts.rewards))
