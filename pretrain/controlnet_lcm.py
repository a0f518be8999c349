"""A ControlNet that draws codes, learned at `zoo:emoji-lcm-128` itself.

`python -m pretrain.controlnet_lcm --modules 4 5` goes on from `zoo:emoji-qr-128` and writes
`build/controlnet-lcm-128`. It needs no diffusion model: at a noisy latent x_t the target is the
generator's own answer without the code, decoded, with the code's modules moved in luminance
(`pretrain.shading`), and encoded again,

    target = f(x_t) + E(shaded(D(f(x_t)))) - E(D(f(x_t)))

with f the consistency function, D and E the autoencoder (what it loses cancels). x_t are noised
scenes that have their code already, as they have after the sampler's first call; the times are the
50 of the distillation. The loss is the square distance from f with the ControlNet, whose output is
multiplied with a scale, drawn evenly from 0 to 2 for each image, as in `pretrain.controlnet`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import StableDiffusionControlNetPipeline
from torch import Tensor

from burnish import zoo
from burnish.diffusion.schedule import Schedule, read_schedule
from burnish.zoo.scenes import SIZE
from pretrain import loop
from pretrain.controlnet import LARGEST, Batch, add_codes, batches, load, preview
from pretrain.lcm import SOLVER, TIMESTEPS, WEIGHTS, WIDTH
from pretrain.shading import shaded
from pretrain.unet import encode_scenes

NAME = "controlnet-lcm-128"
CALLS = 4  # of the preview's images


@dataclass(frozen=True)
class Distillation:
    """The generator, frozen, with the ControlNet that learns."""

    pipe: StableDiffusionControlNetPipeline
    schedule: Schedule

    def f(self, x: Tensor, t: Tensor, states: Tensor, weight: Tensor, **residuals: Any) -> Tensor:
        """Return the consistency function at `x`, float32; `weight` is embedded."""
        output = self.pipe.unet(x, t.to(x.device), states, timestep_cond=weight, **residuals).sample
        return self.schedule.x0(x, t, output)

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images (B, 3, H, W) in [0, 1] of scaled latents."""
        scaled = latents / self.pipe.vae.config.scaling_factor
        return (self.pipe.vae.decode(scaled).sample.float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def target(self, plain: Tensor, code: Tensor, scale: Tensor) -> Tensor:
        """Return the latents of the images of `plain` with the code at a scale (B,)."""
        images = self.decode(plain)
        share = (scale / LARGEST).view(-1, 1, 1, 1)
        shown = shaded(images, code[:, :1], share)
        both = torch.cat([shown, images]) * 2 - 1
        with_code, without = encode_scenes(self.pipe.vae, both).chunk(2)
        return plain + with_code - without

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Return the square distance from the target; `plain`: that without a ControlNet."""
        x0, states, code, scale = batch
        t = torch.randint(1, SOLVER + 1, (len(x0),)) * (TIMESTEPS // SOLVER) - 1
        level = self.schedule.level(t, x0.device)
        x = level.alpha.float() * x0 + level.sigma.float() * torch.randn_like(x0)
        x = x.to(memory_format=torch.channels_last)
        weights = torch.empty(len(x0)).uniform_(*WEIGHTS)
        weight = self.pipe.get_guidance_scale_embedding(weights - 1, WIDTH).to(x0.device)

        with loop.autocast(x.device):
            with torch.no_grad():
                plain = self.f(x, t, states, weight)

            down, middle = self.pipe.controlnet(
                x, t.to(x.device), states, controlnet_cond=code, return_dict=False
            )
            factor = scale.view(-1, 1, 1, 1)
            drawn = self.f(
                x,
                t,
                states,
                weight,
                down_block_additional_residuals=[state * factor for state in down],
                mid_block_additional_residual=middle * factor,
            )
            target = self.target(plain, code, scale)

        untrained = (plain - target).square().mean().item()
        return (drawn - target).square().mean(), {"plain": untrained}


def main() -> None:
    parser = loop.arguments(__doc__, minutes=60, batch=32, lr=3e-4)
    add_codes(parser)
    options = parser.parse_args()
    options.size = 2 * SIZE
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    pipe = load(zoo.path("emoji-lcm-128"), zoo.path("emoji-qr-128"), device)
    job = Distillation(pipe, read_schedule(pipe.scheduler))

    loop.train(
        NAME,
        pipe.controlnet,
        batches(pipe, options, device, drop=0.0),
        job.loss,
        options,
        preview=lambda: preview(pipe, options, device, CALLS),
        finish=lambda: pipe.controlnet.save_pretrained(options.build / NAME / "model"),
        decay=0.995,
    )


if __name__ == "__main__":
    main()
