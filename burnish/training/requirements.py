"""What a configuration's parts require of each other, checked before anything is trained."""

from __future__ import annotations

from typing import Any

from burnish.config import Config
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.types import Objective


def check_identifiers(config: Config) -> None:
    """ValueError if a prompt's images cannot be shared among the rewards, or one of these is not
    trained.
    """
    count = len(config.rewards)
    each = config.batch.images_per_prompt

    if not config.sampler.identifiers:
        return
    if each % count:
        raise ValueError(
            f"sampler.identifiers shares the {each} images of a prompt among {count} rewards; make "
            f"batch.images_per_prompt a multiple of {count}"
        )
    if any(table.get("weight", 1.0) == 0 for table in config.rewards):
        raise ValueError(
            "sampler.identifiers asks for each reward alone, and one has weight 0; give it another, or move it to "
            "guard.panel"
        )


def check_transitions(
    config: Config, policy: Policy, sampler: Sampler, objective: Objective, advantage: Any
) -> None:
    """ValueError if the sampler does not fit the model, or has fewer moves to train on than are
    asked for.
    """
    if sampler.kernel.consistency_only and not policy.schedule.consistency:
        raise ValueError(
            f"kernel 'lcm' wants a consistency model, which {config.model.id} is not by its scheduler; with an "
            "LCM-LoRA in model.fused_lora set model.scheduler = \"lcm\", otherwise use kernel 'ddim'"
        )
    if objective.imitates != advantage.imitates:
        raise ValueError(
            "objective 'rwr' and the advantages 'softmax' and 'top_fraction' go together: set objective.use or "
            "advantage.use"
        )
    if advantage.selects and (config.batch.baseline or objective.compares_images):
        raise ValueError(
            "advantage 'pareto' leaves images out, but batch.baseline and objective 'rebel' give every image something "
            "to learn; set batch.baseline = "
            ' and objective.use = "clipped"'
        )

    if objective.process == "forward":
        if policy.schedule.consistency or config.batch.baseline:
            raise ValueError(
                "an objective on the forward process noises finished images again: it cannot train a consistency "
                "model, and has no moves to preview; take objective 'clipped', or set batch.baseline = ''"
            )

        return

    moves = sampler.transitions(policy, config.batch.least_noise)
    if config.batch.baseline and config.batch.images_per_prompt < 2:
        raise ValueError(
            "batch.baseline compares the images of a prompt; set batch.images_per_prompt to 4 or more, or "
            "leave batch.baseline out"
        )

    if objective.compares_images:
        if config.batch.transitions not in (0, moves):
            raise ValueError(
                "this objective needs all moves of an image; set batch.transitions = 0"
            )
        if config.batch.baseline:
            raise ValueError(
                "this objective has one advantage for all moves of an image; set batch.baseline = ''"
            )

        alike = config.batch.images_per_prompt // (
            len(config.rewards) if config.sampler.identifiers else 1
        )

        if alike < 2 or config.batch.minibatches > config.batch.prompts:
            raise ValueError(
                "this objective compares the images of a prompt; set batch.images_per_prompt to 2 or more (with "
                "sampler.identifiers for each reward), and batch.minibatches to at most batch.prompts"
            )

    if config.batch.transitions > moves:
        enough = f" with the noise that batch.least_noise = {config.batch.least_noise} asks for"
        raise ValueError(
            f"batch.transitions = {config.batch.transitions}, but an image of {config.sampler.steps} steps has only "
            f"{moves} noisy moves{enough if config.batch.least_noise else ''}; lower it, or take 0 for all"
        )
