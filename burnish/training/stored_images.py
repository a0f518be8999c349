"""Images that were made before in the place of an iteration's rollout, for offline preferences.

They are opened, cut and scaled to the model's size, and encoded as the model's own images would be.
There are no transitions, so only objectives on the forward process learn from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from burnish.config import Config
from burnish.diffusion.control import add_control
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.diffusion.window import SharedStarts
from burnish.images import fit_image, open_image
from burnish.prompts.pairs import IMAGES_OF_A_PAIR
from burnish.types import Objective, Prompt, Trajectory

PAIRS = ("pairs", "burnish.prompts.pairs:pairs")
"""The names of the prompt source whose images are stored."""


@dataclass(frozen=True)
class StoredImages(Sampler):
    """A sampler that opens the image that each prompt's metadata names, and draws none."""

    @torch.no_grad()
    def sample(
        self,
        policy: Policy,
        prompts: Sequence[Prompt],
        group: Tensor,
        generator: torch.Generator,
        keep_x0_pred: bool = False,
        starts: SharedStarts | None = None,
    ) -> tuple[Trajectory, Tensor]:
        """Return trajectories without transitions, and the images (B, 3, H, W).

        Args:
            policy: whose autoencoder encodes the images.
            prompts: with the path of an "image" in their metadata.
            group: (B,) the prompt's number of each image.
            generator: of the CPU; latents are drawn from the autoencoder's posterior.
            keep_x0_pred: not used.
            starts: not used.

        Raises:
            ValueError, FileNotFoundError: an image cannot be read; the message names the file.
        """
        _, height, width = policy.latent_shape
        side = policy.latent_pixel
        images = torch.stack(
            [
                fit_image(open_image(Path(prompt.metadata["image"])), height * side, width * side)
                for prompt in prompts
            ]
        ).to(policy.device)
        latent = policy.embed(images, generator)
        cond = add_control(self.encode(policy, prompts), self.control, self.times(policy))

        trajectory = Trajectory(
            x=latent[:, None].cpu(),
            t=torch.tensor([-1]),
            logp=latent.new_empty(len(latent), 0).cpu(),
            latent=latent,
            cond={name: value.cpu() for name, value in cond.items()},
            group=group,
        )
        return trajectory, images


def has_stored_images(config: Config) -> bool:
    """Return whether a run learns from images that were made before."""
    return config.prompts.get("use") in PAIRS


def opening_images(sampler: Sampler) -> StoredImages:
    """Return a sampler that opens images, with the guidance and control of another one."""
    return StoredImages(**{field.name: getattr(sampler, field.name) for field in fields(sampler)})


def check_stored_images(config: Config, objective: Objective) -> None:
    """Refuse what cannot be learned from images that were made before.

    Raises:
        ValueError: the message names the key.
    """
    if not has_stored_images(config):
        return

    if objective.process != "forward":
        raise ValueError(
            'prompts.use = "pairs" gives finished images without transitions; set objective.use = '
            '"dpo", or another objective on the forward process'
        )
    if config.batch.images_per_prompt != IMAGES_OF_A_PAIR:
        raise ValueError(
            'prompts.use = "pairs" gives two images of each prompt; set batch.images_per_prompt = 2'
        )
    if config.expander.model or config.sampler.identifiers or config.batch.baseline:
        raise ValueError(
            'prompts.use = "pairs" gives images that were made before, so nothing can be added to '
            "their prompts, and there are no transitions: leave expander.model, "
            "sampler.identifiers and batch.baseline out"
        )
