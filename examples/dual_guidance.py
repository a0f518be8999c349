"""Draws an expanded prompt under guidance that is centred on its original (Parrot, arXiv
2401.05675), with diffusers.

    python examples/dual_guidance.py stable-diffusion-v1-5/stable-diffusion-v1-5 "a cat" \\
        "a cat in a sunlit library, oil on canvas, fine brushwork" --out cat.png

    out = null + w1 * (original - null) + w2 * (expanded - null)

It is what `guidance = { use = "dual" }` does in Burnish, and needs nothing of it: one loop over a
stock scheduler, for pipelines of Stable Diffusion 1.x and 2.x. A larger --w1 keeps the subject, a
larger --w2 brings the details. What a run
has learned: --adapter RUN/adapter.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor


@torch.no_grad()
def draw(
    pipe: Any,
    original: str,
    expanded: str,
    *,
    w1: float = 5.0,
    w2: float = 5.0,
    count: int = 1,
    steps: int = 50,
    eta: float = 1.0,
    generator: torch.Generator,
) -> Tensor:
    """`count` images (count, 3, H, W) in [0, 1]; all noise comes from the CPU `generator`."""
    device = pipe.unet.device
    unet = pipe.unet
    states, _ = pipe.encode_prompt(
        ["", original, expanded], device, 1, do_classifier_free_guidance=False
    )
    states = states.repeat_interleave(count, 0)  # all images without a prompt, then all with each
    # latents go beyond [-1, 1]
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    scheduler.set_timesteps(steps, device=device)
    side = unet.config.sample_size
    x = torch.randn((count, unet.config.in_channels, side, side), generator=generator).to(
        device, unet.dtype
    )

    for t in scheduler.timesteps:
        three = scheduler.scale_model_input(torch.cat([x] * 3), t)
        null, first, second = unet(three, t, encoder_hidden_states=states).sample.float().chunk(3)
        out = null + w1 * (first - null) + w2 * (second - null)
        x = scheduler.step(out, t, x, eta=eta, generator=generator).prev_sample.to(unet.dtype)

    return pipe.image_processor.postprocess(
        pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample, "pt"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a pipeline's folder or hub id")
    parser.add_argument("original", help="the prompt that was meant")
    parser.add_argument("expanded", help="the prompt with more words")
    parser.add_argument("--w1", type=float, default=5.0, help="weight of the original (default: 5)")
    parser.add_argument(
        "--w2", type=float, default=5.0, help="weight of the expansion (default: 5)"
    )
    parser.add_argument(
        "--steps", type=int, default=50, help="steps; three network rows each (default: 50)"
    )
    parser.add_argument(
        "--eta", type=float, default=1.0, help="noise: 0 none, 1 as in training (default: 1)"
    )
    parser.add_argument("--adapter", default="", help="a run's adapter folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="picture.png")
    asked = parser.parse_args()
    pipe = StableDiffusionPipeline.from_pretrained(asked.model, safety_checker=None)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")

    if asked.adapter:
        pipe.load_lora_weights(asked.adapter)

    noise = torch.Generator().manual_seed(asked.seed)
    image = draw(
        pipe,
        asked.original,
        asked.expanded,
        w1=asked.w1,
        w2=asked.w2,
        steps=asked.steps,
        eta=asked.eta,
        generator=noise,
    )
    pipe.image_processor.numpy_to_pil(image.permute(0, 2, 3, 1).float().cpu().numpy())[0].save(
        asked.out
    )


if __name__ == "__main__":
    main()
