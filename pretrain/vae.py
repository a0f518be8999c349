"""The autoencoder of `zoo:emoji-sd`: 64x64 pixels <-> 16x16x4 latents, a small KL-VAE.

`python -m pretrain.vae --minutes 25`. Loss: L2 + 0.1 L1 on pixels in [-1, 1] plus a light KL. The
scaling factor is measured at the end, so that scaled latents have unit variance. `--decoder` goes
on from the package's weights with the decoder alone: images get sharper, and the latents, so every
model of them, stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from burnish.zoo.scenes import Scenes
from pretrain import loop
from pretrain.data import ZOO

# per latent scalar relative to the per-pixel loss: keeps the latents bounded, hardly costs
# sharpness
KL = 1e-6
Loss = tuple[Tensor, dict[str, float]]


def build() -> AutoencoderKL:
    """Return a new autoencoder: 0.65 M parameters.

    It has no attention in the middle, which at 16x16 costs more than it gives.
    """
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def batches(batch: int) -> Callable[[int], Iterator[Tensor]]:
    """Return a function of a seed to endless batches of scenes (B, 3, 64, 64) in [-1, 1]."""

    def endless(seed: int) -> Iterator[Tensor]:
        scenes = Scenes(seed)
        while True:
            images, _ = scenes.draw(batch)
            yield images.permute(0, 3, 1, 2).float() / 127.5 - 1

    return endless


def reconstruct(vae: AutoencoderKL, x: Tensor) -> Tensor:
    """Return the decoded mean latents of `x`."""
    with torch.no_grad():
        return vae.decode(vae.encode(x).latent_dist.mean).sample


def psnr(vae: AutoencoderKL, x: Tensor) -> float:
    """Return the mean peak signal-to-noise ratio in dB, pixels clipped to their range."""
    error = x - reconstruct(vae, x).clamp(-1, 1)
    square = error.pow(2).mean((1, 2, 3)).clamp_min(1e-10)
    return (10 * torch.log10(4 / square)).mean().item()


def decoder_loss(vae: AutoencoderKL, x: Tensor, device: torch.device) -> Loss:
    """Return the loss of the decoder alone, and the PSNR."""
    x = x.to(device, memory_format=torch.channels_last)

    with loop.autocast(device):
        with torch.no_grad():
            z = vae.encode(x).latent_dist.mean
        y = vae.decode(z).sample

    error = y.float() - x
    square = error.square().mean((1, 2, 3))
    loss = square.mean() + 0.02 * error.abs().mean()
    return loss, {"psnr": (10 * torch.log10(4 / square)).mean().item()}


def full_loss(vae: AutoencoderKL, x: Tensor, device: torch.device) -> Loss:
    """Return the loss of encoder and decoder, the PSNR and the KL."""
    x = x.to(device, memory_format=torch.channels_last)

    with loop.autocast(device):
        posterior = vae.encode(x).latent_dist
        z = posterior.mean + posterior.std * torch.randn_like(posterior.std)
        y = vae.decode(z).sample

    error = y.float() - x
    square = error.square().mean((1, 2, 3))
    divergence = posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()
    kl = 0.5 * divergence.sum((1, 2, 3)).mean()
    loss = square.mean() + 0.1 * error.abs().mean() + KL * kl / (3 * 64 * 64) * 1024
    return loss, {"psnr": (10 * torch.log10(4 / square)).mean().item(), "kl": kl.item()}


def measure_scaling(vae: AutoencoderKL, device: torch.device) -> float:
    """Return the factor that gives latents unit variance."""
    chunks = next(batches(512)(7)).split(64)

    with torch.no_grad():
        latents = torch.cat([vae.encode(chunk.to(device)).latent_dist.mean for chunk in chunks])

    return round(1 / latents.std().item(), 5)


def main() -> None:
    parser = loop.arguments(__doc__, minutes=25, batch=16, lr=1.5e-3)
    parser.add_argument(
        "--decoder",
        action="store_true",
        help="train the decoder of the package's autoencoder alone",
    )
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    name = "vae-decoder" if options.decoder else "vae"
    loss = decoder_loss if options.decoder else full_loss

    if options.decoder:
        vae = AutoencoderKL.from_pretrained(ZOO / "emoji-sd" / "vae", dtype=torch.float32)
    else:
        vae = build()

    vae.to(device, memory_format=torch.channels_last)

    if options.decoder:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)

    test = next(batches(64)(10**6)).to(device)

    def preview() -> Image.Image:
        y = reconstruct(vae, test[:16])
        print(
            "psnr of the EMA weights, styles of the generator:",
            round(psnr(vae, test), 2),
            flush=True,
        )
        return loop.grid(torch.cat([test[:16], y]) / 2 + 0.5, 16)

    def finish() -> None:
        if not options.decoder:
            vae.register_to_config(scaling_factor=measure_scaling(vae, device))

        vae.save_pretrained(options.build / name / "model")

    loop.train(
        name,
        vae.decoder if options.decoder else vae,
        batches(options.batch),
        lambda x: loss(vae, x, device),
        options,
        preview=preview,
        finish=finish,
        decay=0.998,
        weight_decay=0.0,
    )


if __name__ == "__main__":
    main()
