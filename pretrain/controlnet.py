"""`zoo:emoji-qr`: a ControlNet for the generator that draws Micro QR codes into its images.

`python -m pretrain.controlnet --minutes 18`. Behaves as the public QR ControlNets do: at a high
scale the image is the code, at a low one it still shows the prompt. So each image that it learns
from is a scene mixed with a code,

    (1 - share) scene + share code,    share = scale / 2

and the ControlNet's output is multiplied with that very scale, drawn evenly from 0 to 2, while it
learns. The generator is frozen; the loss is its own (v-prediction, one caption in ten dropped).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
)
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor

from burnish.prompts.codes import qr
from burnish.qr.layout import layout_of
from burnish.zoo.scenes import SIZE, Scenes
from pretrain import loop
from pretrain.data import ZOO
from pretrain.unet import DROP, PROMPTS, add_noise, encode_captions, encode_scenes, scheduler

LARGEST = 2.0  # scale at which an image is the bare code
# channels on the way from an image to its latents' size: two halvings, as in the autoencoder
EMBEDDING = (16, 32, 64)
CHUNK = 250  # scenes drawn and encoded at once
Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def codes(count: int, seed: int) -> Tensor:
    """Return the control images (count, SIZE, SIZE) uint8 of as many random payloads.

    None of the payloads is of the unseen part.
    """
    prompts = qr(["a code"], random=count, seed=seed)
    layouts = [layout_of(prompt, SIZE) for prompt in prompts]
    return torch.stack([(layout.draw()[0] * 255).to(torch.uint8) for layout in layouts])


@torch.no_grad()
def encode_pool(
    vae: AutoencoderKL, control_images: Tensor, seed: int, device: torch.device
) -> tuple[Tensor, Tensor, list[str]]:
    """Return scenes, each mixed with one of the n `control_images`.

    Four in five scenes show a single thing, as the prompts of the experiment do.

    Returns:
        Scaled latents (n, 4, 16, 16) float16, scales (n,) and captions.
    """
    scenes = Scenes(seed)
    rng = random.Random(seed)
    latents = []
    scales = []
    captions = []

    for start in range(0, len(control_images), CHUNK):
        kind = rng.choices(["single", "count", "pair"], [0.8, 0.1, 0.1])[0]
        images, drawn = scenes.draw(CHUNK, kind)
        generator = torch.Generator().manual_seed(seed * 1000 + start)
        scale = torch.rand(CHUNK, generator=generator) * LARGEST
        share = (scale / LARGEST).view(-1, 1, 1, 1)
        code = control_images[start : start + CHUNK, None].float() / 255
        mixed = (1 - share) * images.permute(0, 3, 1, 2).float() / 255 + share * code

        latents.append(encode_scenes(vae, mixed * 2 - 1, device))
        scales.append(scale)
        captions += [scene.caption for scene in drawn]

    return torch.cat(latents), torch.cat(scales), captions


def batches(
    pipe: StableDiffusionPipeline, pool: int, size: int, device: torch.device
) -> Callable[[int], Iterator[Batch]]:
    """Return a function of a seed to endless batches of mixed images.

    A batch is latents (B, 4, 16, 16), text states, codes (B, 3, SIZE, SIZE) in [0, 1] and scales
    (B,).
    """

    def endless(seed: int) -> Iterator[Batch]:
        _, processes = loop.rank()
        count = pool // processes // CHUNK * CHUNK
        control_images = codes(count, seed)
        latents, scales, captions = encode_pool(pipe.vae, control_images, seed, device)
        states, caption_rows = encode_captions(pipe.tokenizer, pipe.text_encoder, captions, device)
        generator = torch.Generator().manual_seed(seed)
        print(f"{count} latents, {len(states)} captions", flush=True)

        while True:
            rows = torch.randint(count, (size,), generator=generator)
            dropped = torch.rand(size, generator=generator) < DROP
            state_rows = torch.where(dropped, 0, caption_rows[rows])
            code = (control_images[rows, None].float() / 255).expand(-1, 3, -1, -1)
            yield (
                latents[rows].float().to(device),
                states[state_rows.to(device)],
                code.to(device),
                scales[rows].to(device),
            )

    return endless


def load(device: torch.device) -> StableDiffusionControlNetPipeline:
    """Return the package's generator, frozen, with a new ControlNet."""
    base = StableDiffusionPipeline.from_pretrained(
        ZOO / "emoji-sd", dtype=torch.float32, safety_checker=None
    )
    controlnet = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=EMBEDDING)
    pipe = StableDiffusionControlNetPipeline(
        **base.components, controlnet=controlnet, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)

    for part in (pipe.vae, pipe.text_encoder, pipe.unet):
        part.to(device).requires_grad_(False)

    for network in (pipe.unet, controlnet):
        network.to(device, memory_format=torch.channels_last)
        if device.type == "cpu":
            network.set_attn_processor(AttnProcessor())

    return pipe


def main() -> None:
    parser = loop.arguments(__doc__, minutes=18, batch=32, lr=6e-4)
    parser.add_argument("--pool", type=int, default=20000, help="mixed images encoded once")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    pipe = load(device)
    controlnet = pipe.controlnet
    alphas = scheduler().alphas_cumprod.to(device)

    def loss_of(batch: Batch) -> tuple[Tensor, dict[str, float]]:
        x0, states, code, scale = batch
        x, t, target = add_noise(x0, alphas)

        with torch.autocast(device.type, torch.bfloat16):
            down, middle = controlnet(x, t, states, controlnet_cond=code, return_dict=False)
            factor = scale.view(-1, 1, 1, 1)
            v = pipe.unet(
                x,
                t,
                states,
                down_block_additional_residuals=[state * factor for state in down],
                mid_block_additional_residual=middle * factor,
            ).sample

        return (v.float() - target).square().mean(), {}

    preview_codes = codes(16, 1)[:, None].expand(-1, 3, -1, -1).float() / 255

    def preview() -> Image.Image:
        rows = []

        for scale in (0.0, 0.4, 0.8, 1.2, 1.6, 2.0):
            with torch.autocast(device.type, torch.bfloat16):
                output = pipe(
                    list(PROMPTS[:16]),
                    image=preview_codes.to(device),
                    num_inference_steps=10,
                    guidance_scale=4.0,
                    controlnet_conditioning_scale=scale,
                    generator=torch.Generator().manual_seed(0),
                    output_type="pt",
                )

            rows.append(output.images)

        return loop.grid(torch.cat(rows), 16)

    loop.train(
        "controlnet",
        controlnet,
        batches(pipe, options.pool, options.batch, device),
        loss_of,
        options,
        preview=preview,
        finish=lambda: controlnet.save_pretrained(options.build / "controlnet" / "model"),
        decay=0.995,
    )


if __name__ == "__main__":
    main()
