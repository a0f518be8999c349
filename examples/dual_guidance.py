r"""Draw an expanded prompt under guidance that is centred on its original, with diffusers.

    python examples/dual_guidance.py stable-diffusion-v1-5/stable-diffusion-v1-5 "a cat" \
        "a cat in a sunlit library, oil on canvas, fine brushwork" --out cat.png

    output = null + w1 * (original - null) + w2 * (expanded - null)      (Parrot, arXiv 2401.05675)

`guidance = { use = "dual" }` does the same in Burnish, but this file needs only diffusers: one loop
over a stock scheduler, for pipelines of Stable Diffusion 1.x and 2.x. A larger --w1 keeps the
subject, a larger --w2 brings the details. To use the weights of a run: --adapter RUN/adapter.
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
    """Return `count` images (count, 3, H, W) in [0, 1].

    Args:
        pipe: a Stable Diffusion pipeline.
        original: the prompt that was meant.
        expanded: the prompt with more words.
        w1: weight of the original.
        w2: weight of the expansion.
        count: number of images.
        steps: network calls, of three rows an image each.
        eta: noise: 0 none, 1 as in training.
        generator: on the CPU; all noise comes from it.
    """
    unet = pipe.unet
    device = unet.device
    states, _ = pipe.encode_prompt(
        ["", original, expanded], device, 1, do_classifier_free_guidance=False
    )
    states = states.repeat_interleave(count, 0)  # all images without a prompt, then all with each

    # latents go beyond [-1, 1]
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    scheduler.set_timesteps(steps, device=device)
    side = unet.config.sample_size
    x = torch.randn((count, unet.config.in_channels, side, side), generator=generator)
    x = x.to(device, unet.dtype)

    for t in scheduler.timesteps:
        rows = scheduler.scale_model_input(torch.cat([x] * 3), t)
        output = unet(rows, t, encoder_hidden_states=states).sample.float()
        null, for_original, for_expanded = output.chunk(3)
        guided = null + w1 * (for_original - null) + w2 * (for_expanded - null)
        x = scheduler.step(guided, t, x, eta=eta, generator=generator).prev_sample.to(unet.dtype)

    images = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample
    return pipe.image_processor.postprocess(images, "pt")


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
    options = parser.parse_args()

    # one precision for all parts, whatever each was saved in
    pipe = StableDiffusionPipeline.from_pretrained(
        options.model, safety_checker=None, dtype=torch.float32
    )
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")

    if options.adapter:
        pipe.load_lora_weights(options.adapter)

    images = draw(
        pipe,
        options.original,
        options.expanded,
        w1=options.w1,
        w2=options.w2,
        steps=options.steps,
        eta=options.eta,
        generator=torch.Generator().manual_seed(options.seed),
    )
    pixels = images.permute(0, 2, 3, 1).float().cpu().numpy()
    pipe.image_processor.numpy_to_pil(pixels)[0].save(options.out)


if __name__ == "__main__":
    main()
