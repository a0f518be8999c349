"""`zoo:emoji-qr` and `zoo:emoji-qr-128`: ControlNets that draw codes into a generator's images.

`python -m pretrain.controlnet` (`--size 128`; docs/zoo.md has the options). They behave as the
public QR ControlNets do: the higher the scale, the better an image can be read as the code. Each
image that they learn from is a scene whose modules were moved in luminance alone
(`pretrain.shading`) by share = scale / 2, and the ControlNet's output is multiplied with that very
scale, drawn evenly from 0 to 2, while it learns. The generator is frozen; the loss is its own
(v-prediction, one caption in ten dropped). Scenes of 64 px have Micro QR codes, those of 128 px QR
codes of versions 1 and 2.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
)
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor

from burnish.zoo.scenes import SIZE, Scenes
from pretrain import loop
from pretrain.data import ZOO
from pretrain.shading import LENGTHS, codes, shaded
from pretrain.unet import DROP, PROMPTS, add_noise, encode_captions, encode_scenes, scheduler

LARGEST = 2.0  # scale at which modules are as dark and as light as can be
# channels on the way from an image to its latents' size: two halvings, as in the autoencoder
EMBEDDING = (16, 32, 64)
KINDS = {"single": 0.8, "count": 0.1, "pair": 0.1}  # shares of scenes
Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def scenes(count: int, seed: int, size: int) -> tuple[Tensor, list[str]]:
    """Return scenes (count, 3, size, size) uint8 with their captions.

    Four in five show a single thing, as the prompts of the experiment do.
    """
    source = Scenes(seed, size=size)
    images: list[Tensor] = []
    captions: list[str] = []

    for kind, share in KINDS.items():
        drawn, shown = source.draw(int(count * share), kind)
        images.append(drawn.permute(0, 3, 1, 2))
        captions += [scene.caption for scene in shown]

    return torch.cat(images), captions


def batches(
    pipe: StableDiffusionControlNetPipeline,
    options: argparse.Namespace,
    device: torch.device,
    drop: float = DROP,
) -> Callable[[int], Iterator[Batch]]:
    """Return a function of a seed to endless batches of scenes with codes in them.

    Scene, code and scale are drawn anew each time, and a share `drop` of captions is replaced by
    the empty one. A batch is latents (B, 4, size / 4, size / 4), text states, codes
    (B, 3, size, size) in [0, 1] and scales (B,).
    """

    @torch.no_grad()
    def endless(seed: int) -> Iterator[Batch]:
        _, processes = loop.rank()
        count = options.pool // processes
        images, captions = scenes(count, seed, options.size)
        images = images.to(device)
        drawn = codes(options.codes, seed, options.size, modules=options.modules)
        control_images = drawn[:, None].to(device)
        states, caption_rows = encode_captions(pipe.tokenizer, pipe.text_encoder, captions, device)
        caption_rows = caption_rows.to(device)
        generator = torch.Generator(device).manual_seed(seed)
        draw = partial(torch.rand, generator=generator, device=device)
        print(f"{len(images)} scenes, {len(states)} captions", flush=True)

        while True:
            rows = (draw(options.batch) * len(images)).long()
            code = control_images[(draw(options.batch) * options.codes).long()].float() / 255
            scale = draw(options.batch) * LARGEST
            share = (scale / LARGEST).view(-1, 1, 1, 1)
            shown = shaded(images[rows].float() / 255, code, share) * 2 - 1
            dropped = draw(options.batch) < drop
            text = states[torch.where(dropped, 0, caption_rows[rows])].float()
            yield encode_scenes(pipe.vae, shown), text, code.expand(-1, 3, -1, -1), scale

    return endless


def load(
    generator: Path, start: Path | None, device: torch.device
) -> StableDiffusionControlNetPipeline:
    """Return a generator, frozen, with a ControlNet: that of a folder or a new one."""
    base = StableDiffusionPipeline.from_pretrained(
        generator, dtype=torch.float32, safety_checker=None
    )
    if start:
        controlnet = ControlNetModel.from_pretrained(start, dtype=torch.float32)
    else:
        controlnet = ControlNetModel.from_unet(
            base.unet, conditioning_embedding_out_channels=EMBEDDING
        )
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


def preview(
    pipe: StableDiffusionControlNetPipeline,
    options: argparse.Namespace,
    device: torch.device,
    calls: int = 10,
) -> Image.Image:
    """Return images of 16 prompts with codes, in `calls`, a row for each of several scales."""
    drawn = codes(16, 1, options.size, modules=options.modules)
    control_images = drawn[:, None].expand(-1, 3, -1, -1).float().to(device) / 255
    rows = []

    for scale in (0.0, 0.4, 0.8, 1.2, 1.6, 2.0):
        with loop.autocast(device):
            output = pipe(
                list(PROMPTS[:16]),
                image=control_images,
                height=options.size,
                width=options.size,
                num_inference_steps=calls,
                guidance_scale=4.0,
                controlnet_conditioning_scale=scale,
                generator=torch.Generator().manual_seed(0),
                output_type="pt",
            )

        rows.append(output.images)

    return loop.grid(torch.cat(rows), 16)


def add_codes(parser: argparse.ArgumentParser) -> None:
    """Add the options of `batches`."""
    parser.add_argument("--pool", type=int, default=20000, help="scenes to draw from")
    parser.add_argument("--codes", type=int, default=10000, help="codes to draw from")
    parser.add_argument(
        "--modules",
        type=int,
        nargs="+",
        default=[4],
        choices=sorted(LENGTHS),
        help="sides of the modules of the codes on 128 px, by turns",
    )


def main() -> None:
    parser = loop.arguments(__doc__, minutes=18, batch=32, lr=6e-4)
    add_codes(parser)
    parser.add_argument("--size", type=int, default=SIZE, choices=(SIZE, 2 * SIZE), help="in px")
    parser.add_argument("--warm", action="store_true", help="go on from the package's weights")
    options = parser.parse_args()
    job = loop.sized("controlnet", options.size)
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    generator = ZOO / "emoji-sd" if options.size == SIZE else options.build / "sd-128"
    start = ZOO / loop.sized("emoji-qr", options.size) if options.warm else None
    pipe = load(generator, start, device)
    controlnet = pipe.controlnet
    alphas = scheduler().alphas_cumprod.to(device)

    def loss_of(batch: Batch) -> tuple[Tensor, dict[str, float]]:
        x0, states, code, scale = batch
        x, t, target = add_noise(x0, alphas)

        with loop.autocast(device):
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

    loop.train(
        job,
        controlnet,
        batches(pipe, options, device),
        loss_of,
        options,
        preview=lambda: preview(pipe, options, device),
        finish=lambda: controlnet.save_pretrained(options.build / job / "model"),
        decay=0.995,
    )


if __name__ == "__main__":
    main()
