"""``zoo:emoji-qr``: a ControlNet for the generator that draws Micro QR codes into its pictures.

``python -m pretrain.controlnet --minutes 18``. Behaves as the public QR ControlNets do: at a high
scale the picture is the code, at a low one it stays what the prompt says. So each picture that it
learns from is a scene mixed with a code,

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
from pretrain.unet import DROP, PROMPTS, encode_captions, scheduler

LARGEST = 2.0  # scale at which a picture is the bare code
# channels on the way from a picture to its latents' size: two halvings, as in the autoencoder
EMBEDDING = (16, 32, 64)
Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def codes(count: int, seed: int) -> Tensor:
    """The control pictures (count, SIZE, SIZE) uint8 of as many random payloads, none of the unseen
    part.
    """
    prompts = qr(["a code"], random=count, seed=seed)
    return torch.stack(
        [(layout_of(prompt, SIZE).draw()[0] * 255).to(torch.uint8) for prompt in prompts]
    )


@torch.no_grad()
def encode_pool(
    vae: AutoencoderKL, pictures: Tensor, n: int, seed: int, device: torch.device
) -> tuple[Tensor, Tensor, list[str]]:
    """``n`` scenes, each mixed with its code of ``pictures``: scaled latents (n, 4, 16, 16)
    float16, scales (n,) and captions. Four in five scenes show a single thing, as the prompts of
    the experiment do.
    """
    scenes = Scenes(seed)
    rng = random.Random(seed)
    latents = []
    scales = []
    captions = []

    for start in range(0, n, 250):
        kind = rng.choices(["single", "count", "pair"], [0.8, 0.1, 0.1])[0]
        images, shown = scenes.draw(250, kind)
        scale = (
            torch.rand(250, generator=torch.Generator().manual_seed(seed * 1000 + start)) * LARGEST
        )
        share = (scale / LARGEST).view(-1, 1, 1, 1)
        code = pictures[start : start + 250, None].float() / 255
        mixed = (1 - share) * images.permute(0, 3, 1, 2).float() / 255 + share * code
        x = (mixed * 2 - 1).to(device, memory_format=torch.channels_last)

        with torch.autocast(device.type, torch.bfloat16):
            latents.append(
                (vae.encode(x).latent_dist.mean.float() * vae.config.scaling_factor).half().cpu()
            )

        scales.append(scale)
        captions += [scene.caption for scene in shown]

    return torch.cat(latents), torch.cat(scales), captions


def batches(
    pipe: StableDiffusionPipeline, pool: int, size: int, device: torch.device
) -> Callable[[int], Iterator[Batch]]:
    """Endless batches: latents (B, 4, 16, 16), text states, codes (B, 3, SIZE, SIZE) in [0, 1],
    scales (B,).
    """

    def endless(seed: int) -> Iterator[Batch]:
        count = pool // loop.rank()[1] // 250 * 250
        pictures = codes(count, seed)
        latents, scales, captions = encode_pool(pipe.vae, pictures, count, seed, device)
        states, said = encode_captions(pipe.tokenizer, pipe.text_encoder, captions, device)
        generator = torch.Generator().manual_seed(seed)
        print(f"{count} latents, {len(states)} captions", flush=True)

        while True:
            rows = torch.randint(count, (size,), generator=generator)
            of_rows = torch.where(torch.rand(size, generator=generator) < DROP, 0, said[rows])
            code = (pictures[rows, None].float() / 255).expand(-1, 3, -1, -1)
            yield (
                latents[rows].float().to(device),
                states[of_rows.to(device)],
                code.to(device),
                scales[rows].to(device),
            )

    return endless


def main() -> None:
    parser = loop.arguments(__doc__, minutes=18, batch=32, lr=6e-4)
    parser.add_argument("--pool", type=int, default=20000, help="mixed pictures encoded once")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    base = StableDiffusionPipeline.from_pretrained(
        ZOO / "emoji-sd", dtype=torch.float32, safety_checker=None
    )
    net = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=EMBEDDING)
    pipe = StableDiffusionControlNetPipeline(
        **base.components, controlnet=net, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)

    for part in (pipe.vae, pipe.text_encoder, pipe.unet):
        part.to(device).requires_grad_(False)

    for network in (pipe.unet, net):
        network.to(device, memory_format=torch.channels_last)
        if device.type == "cpu":
            network.set_attn_processor(AttnProcessor())

    alphas = scheduler().alphas_cumprod.to(device)

    def loss_of(batch: Batch) -> tuple[Tensor, dict[str, float]]:
        x0, states, code, scale = batch
        t = torch.randint(1000, (len(x0),), device=device)
        e = torch.randn_like(x0)
        alpha = alphas[t].sqrt().view(-1, 1, 1, 1)
        sigma = (1 - alphas[t]).sqrt().view(-1, 1, 1, 1)
        x = (alpha * x0 + sigma * e).to(memory_format=torch.channels_last)

        with torch.autocast(device.type, torch.bfloat16):
            down, middle = net(x, t, states, controlnet_cond=code, return_dict=False)
            share = scale.view(-1, 1, 1, 1)
            v = pipe.unet(
                x,
                t,
                states,
                down_block_additional_residuals=[state * share for state in down],
                mid_block_additional_residual=middle * share,
            ).sample

        return (v.float() - (alpha * e - sigma * x0)).square().mean(), {}

    shown = codes(16, 1)[:, None].expand(-1, 3, -1, -1).float() / 255

    def picture() -> Image.Image:
        rows = []

        for scale in (0.0, 0.4, 0.8, 1.2, 1.6, 2.0):
            with torch.autocast(device.type, torch.bfloat16):
                drawn = pipe(
                    list(PROMPTS[:16]),
                    image=shown.to(device),
                    num_inference_steps=10,
                    guidance_scale=4.0,
                    controlnet_conditioning_scale=scale,
                    generator=torch.Generator().manual_seed(0),
                    output_type="pt",
                )

            rows.append(drawn.images)

        return loop.grid(torch.cat(rows), 16)

    loop.train(
        "controlnet",
        net,
        batches(pipe, options.pool, options.batch, device),
        loss_of,
        options,
        picture=picture,
        finish=lambda: net.save_pretrained(options.build / "controlnet" / "model"),
        decay=0.995,
    )


if __name__ == "__main__":
    main()
