"""`zoo:emoji-sd`: the diffusion model of the zoo.

It works over the latents of `pretrain.vae` and reads the text states of `pretrain.clip`.

`python -m pretrain.unet --minutes 75`; later, `--warm` goes on from the package's own weights.
`--size 128` makes the generator of 128 pixels that `zoo:emoji-lcm-128` is distilled from, in some
minutes of a GPU: `python -m pretrain.unet --warm --size 128 --minutes 4.6 --batch 256 --lr 5e-4`.
v-prediction on Stable Diffusion's noise schedule, one caption in ten dropped for classifier-free
guidance, EMA weights. Scenes are encoded once into a pool of latents; every batch draws new noise
and times.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from burnish.zoo.scenes import SIZE, Scenes
from pretrain import loop
from pretrain.data import ZOO

DROP = 0.1  # share of captions replaced by the empty one
PROMPTS = (
    "a cat|a dog|a lion|a frog|a bee|a zebra|a whale|a turtle|a penguin|a unicorn|"
    "a pizza|a guitar|a rocket|a cactus|a castle|a robot|"
    "a fox on a blue background|a pig on a black background|a shark on a yellow background|"
    "a rose on a pink background|"
    "two cats|three bees|two rockets on a red background|three apples|"
    "a fox and a guitar|a cat and a pizza|a bear and a cake|"
    "a frog and a crown on a purple background|"
    "a cat in noto style|a cat in twemoji style|a cat in fluent style|an owl"
).split("|")


def pool_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `batches`."""
    parser.add_argument("--pool", type=int, default=60000, help="scenes encoded once")
    parser.add_argument(
        "--pairs",
        type=float,
        default=0.5,
        help='share of scenes that show two nouns ("a fox and a cake")',
    )
    parser.add_argument("--size", type=int, default=SIZE, choices=(SIZE, 2 * SIZE), help="in px")


def build(width: int) -> UNet2DConditionModel:
    """Return a new network: 6.7 M parameters, 0.675 GFLOP a call.

    (`attention_head_dim` of this class is the number of heads.)
    """
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def scheduler() -> DDIMScheduler:
    """Return Stable Diffusion's noise schedule, with v-prediction as in SD 2."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def batches(
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    text: CLIPTextModel,
    options: argparse.Namespace,
    device: torch.device,
    drop: float = DROP,
) -> Callable[[int], Iterator[tuple[Tensor, Tensor]]]:
    """Return a function of a seed to endless batches; each seed has a pool of its own.

    A batch is latents (B, 4, size / 4, size / 4) and text states (B, tokens, width).
    """

    def endless(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        _, processes = loop.rank()
        count = options.pool // processes
        pool, captions = encode_pool(vae, count, options.pairs, seed, options.size)
        states, caption_rows = encode_captions(tokenizer, text, captions, device)
        generator = torch.Generator().manual_seed(seed)
        print(f"{len(pool)} latents, {len(states)} captions", flush=True)

        while True:
            rows = torch.randint(len(pool), (options.batch,), generator=generator)
            dropped = torch.rand(options.batch, generator=generator) < drop
            state_rows = torch.where(dropped, 0, caption_rows[rows])
            yield pool[rows].float().to(device), states[state_rows.to(device)].float()

    return endless


@torch.no_grad()
def encode_captions(
    tokenizer: CLIPTokenizer, text: CLIPTextModel, captions: list[str], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the text states of all different captions, and each caption's row of them.

    States are (N, tokens, width) bfloat16, those of the empty caption first.
    """
    rows = {caption: row for row, caption in enumerate(dict.fromkeys(["", *captions]))}
    ids = tokenizer(
        list(rows), padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    states = torch.cat([text(chunk.to(device))[0].bfloat16() for chunk in ids.split(1000)])
    return states, torch.tensor([rows[caption] for caption in captions])


@torch.no_grad()
def encode_scenes(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Return images (B, 3, H, W) in [-1, 1] as scaled latents (B, 4, H / 4, W / 4) float32."""
    x = images.to(vae.device, memory_format=torch.channels_last)

    with loop.autocast(vae.device):
        mean = vae.encode(x).latent_dist.mean.float()

    return mean * vae.config.scaling_factor


@torch.no_grad()
def encode_pool(
    vae: AutoencoderKL, n: int, pairs: float, seed: int, size: int = SIZE
) -> tuple[Tensor, list[str]]:
    """Return `n` scenes as scaled latents (n, 4, size / 4, size / 4) float16, and their captions.

    `pairs` is the share of scenes that show two nouns, `size` the side of a scene in pixels.
    """
    scenes = Scenes(seed, size=size)
    rng = random.Random(seed)
    kinds = {"pair": pairs, "single": (1 - pairs) * 0.6, "count": (1 - pairs) * 0.4}
    latents = []
    captions = []

    for _ in range(n // 250):
        kind = rng.choices(list(kinds), list(kinds.values()))[0]
        images, drawn = scenes.draw(250, kind)
        x = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        latents.append(encode_scenes(vae, x).half().cpu())
        captions += [scene.caption for scene in drawn]

    return torch.cat(latents), captions


def load(
    build_folder: Path, warm: bool, device: torch.device
) -> tuple[AutoencoderKL, CLIPTokenizer, CLIPTextModel, UNet2DConditionModel]:
    """Return the autoencoder, the tokenizer, the text encoder and the network.

    The first three come from their finished jobs and the network is new; with `warm` all four are
    the package's.
    """
    package = ZOO / "emoji-sd"
    clip = build_folder / "clip" / "model"
    vae_folder = package / "vae" if warm else build_folder / "vae" / "model"
    vae = AutoencoderKL.from_pretrained(vae_folder, dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(package / "tokenizer" if warm else clip)
    text_folder = package / "text_encoder" if warm else clip
    text = CLIPTextModel.from_pretrained(text_folder, dtype=torch.float32)

    if warm:
        unet = UNet2DConditionModel.from_pretrained(package / "unet", dtype=torch.float32)
    else:
        unet = build(text.config.hidden_size)

    return (
        vae.to(device).eval(),
        tokenizer,
        text.to(device).eval(),
        unet.to(device, memory_format=torch.channels_last),
    )


def undistil(unet: UNet2DConditionModel) -> None:
    """Give a network the weights of `zoo:emoji-lcm-128`, all but those of its guidance input.

    What is left predicts an image at every time, and learns soon to predict the mean of all again.
    """
    folder = ZOO / "emoji-lcm-128" / "unet"
    weights = UNet2DConditionModel.from_pretrained(folder, dtype=torch.float32).state_dict()
    del weights["time_embedding.cond_proj.weight"]
    unet.load_state_dict(weights)


def add_noise(x0: Tensor, alphas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return noised latents, their random times, and the target v = alpha * noise - sigma * x0."""
    t = torch.randint(1000, (len(x0),), device=x0.device)
    noise = torch.randn_like(x0)
    alpha = alphas[t].sqrt().view(-1, 1, 1, 1)
    sigma = (1 - alphas[t]).sqrt().view(-1, 1, 1, 1)
    x = (alpha * x0 + sigma * noise).to(memory_format=torch.channels_last)
    return x, t, alpha * noise - sigma * x0


def preview(pipe: StableDiffusionPipeline, size: int) -> Image.Image:
    """Return images of `PROMPTS` on one sheet."""
    with loop.autocast(pipe.unet.device):
        images = pipe(
            PROMPTS,
            height=size,
            width=size,
            num_inference_steps=25,
            eta=1.0,
            guidance_scale=4.0,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images

    return loop.grid(images, 8)


def main() -> None:
    parser = loop.arguments(__doc__, minutes=80, batch=64, lr=1e-3)
    pool_arguments(parser)
    parser.add_argument(
        "--warm",
        action="store_true",
        help="go on from the weights in the package, with a fresh optimizer",
    )
    parser.add_argument(
        "--undistil",
        action="store_true",
        help="with --warm --size 128: go on from zoo:emoji-lcm-128, whose teacher is not in the "
        "package",
    )
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    vae, tokenizer, text, unet = load(options.build, options.warm, device)

    if options.undistil:
        undistil(unet)

    if device.type == "cpu":
        # the fused kernel's backward is slow on CPU for so few tokens
        unet.set_attn_processor(AttnProcessor())

    if options.size != SIZE:  # what the pipeline draws without arguments
        unet.register_to_config(sample_size=options.size // 4)

    schedule = scheduler()
    alphas = schedule.alphas_cumprod.to(device)

    def loss_of(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
        x0, states = batch
        x, t, target = add_noise(x0, alphas)

        with loop.autocast(device):
            v = unet(x, t, states).sample

        return (v.float() - target).square().mean(), {}

    pipe = StableDiffusionPipeline(
        vae,
        text,
        tokenizer,
        unet,
        schedule,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)

    loop.train(
        loop.sized("unet", options.size),
        unet,
        batches(vae, tokenizer, text, options, device),  # a resumed job draws other scenes
        loss_of,
        options,
        preview=lambda: preview(pipe, options.size),
        finish=lambda: pipe.save_pretrained(options.build / loop.sized("sd", options.size)),
        decay=0.999,
    )


if __name__ == "__main__":
    main()
