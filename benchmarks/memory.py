"""Savings and costs of the options for less memory, measured on this machine's CPU.

    python -m benchmarks.memory [--quick]

A network of Stable Diffusion 1.5's layers at 0.4 of its width, a decoder at half of its own, random
weights, float32, latents of 48 x 48 (images of 384 x 384). Every row is a process of its own with
one thread: the most memory it holds while it works, above what it holds before, and the processor's
seconds.

    replay        one guided replay of `replay` transitions and its backward, LoRA rank 4
    decode        four images, `at once` in a call
    optimizer     the first AdamW step of the whole network, whose moments are allocated in it
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MIB = 1 << 20
SIDE = 48
IMAGES = 4
ROWS: tuple[dict[str, Any], ...] = (
    *(
        {"do": "replay", "replay": n, "checkpointing": on}
        for n in (1, 2, 4)
        for on in (False, True)
    ),
    *({"do": "decode", "at once": n} for n in (1, 2, 4)),
    *({"do": "optimizer", "eight_bit": on} for on in (False, True)),
)


def build(folder: Path) -> None:
    """Write the pipeline into a folder, with its small text encoder from the zoo."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from burnish.diffusion.loading import load_pipeline

    pipe = load_pipeline("zoo:emoji-sd")
    torch.manual_seed(0)
    pipe.unet = UNet2DConditionModel(
        sample_size=SIDE,
        block_out_channels=(128, 256, 512, 512),
        attention_head_dim=8,
        cross_attention_dim=pipe.text_encoder.config.hidden_size,
    )
    pipe.vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(64, 128, 256, 256),
        layers_per_block=2,
        latent_channels=4,
    )
    pipe.save_pretrained(folder)


def measure(folder: Path, row: dict[str, Any]) -> dict[str, float]:
    """Return a row's MiB and seconds, measured in this process."""
    prepare = {"replay": _replay, "decode": _decode, "optimizer": _optimizer}[row["do"]]
    work = prepare(folder, row)
    Path("/proc/self/clear_refs").write_text("5")  # from here on the highest use counts anew
    before = _status("VmRSS")
    started = time.process_time()
    work()
    seconds = time.process_time() - started
    return {"MiB": (_status("VmHWM") - before) / MIB, "seconds": seconds}


def _replay(folder: Path, row: dict[str, Any]) -> Any:
    import torch

    from burnish.diffusion.guidance import CFG
    from burnish.diffusion.kernels import DDIM
    from burnish.diffusion.policy import Policy
    from burnish.diffusion.sampler import Sampler
    from burnish.types import Prompt, Trajectory

    policy = Policy.load(folder, device="cpu", gradient_checkpointing=row["checkpointing"])
    count = row["replay"]
    x = torch.randn(count, 2, *policy.latent_shape)
    cond = policy.encode([Prompt("a cat")] * count)
    traj = Trajectory(
        x, torch.tensor([601, 581]), torch.zeros(count, 1), x[:, 1], cond, torch.arange(count)
    )
    policy.null(1)
    _touch(policy.pipe.unet)
    sampler = Sampler(DDIM(), 50, CFG(5.0))
    images = torch.arange(count)
    transitions = torch.zeros(count, 1, dtype=torch.long)

    return lambda: sampler.replay(policy, traj, images, transitions).logp.sum().backward()


def _decode(folder: Path, row: dict[str, Any]) -> Any:
    import torch

    from burnish.diffusion.policy import Policy

    policy = Policy.load(folder, device="cpu", train="none", decode_at_once=row["at once"])
    latent = policy.noise(IMAGES, torch.Generator().manual_seed(0))
    _touch(policy.pipe.vae)

    return lambda: policy.decode(latent)


def _optimizer(folder: Path, row: dict[str, Any]) -> Any:
    import torch

    from burnish.config import OptimizerConfig
    from burnish.diffusion.policy import Policy
    from burnish.training.optimizer import adamw

    policy = Policy.load(folder, device="cpu", train="full")
    optimizer = adamw(OptimizerConfig(eight_bit=row["eight_bit"]))(policy.trainable)

    for parameter in policy.trainable:
        parameter.grad = torch.randn(parameter.shape).contiguous()

    return optimizer.step


def _touch(network: Any) -> None:
    """Read all weights once.

    They lie in a mapped file and are read when they are first used: that is no memory of the work.
    """
    for parameter in network.parameters():
        parameter.sum()


def _status(name: str) -> int:
    """Return a field of Linux's status of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def main() -> None:
    """Measure every row in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only the smallest row of each kind")
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "ROW"), help=argparse.SUPPRESS)
    options = parser.parse_args()

    if options.one:
        built, row_json = options.one
        print(json.dumps(measure(Path(built), json.loads(row_json))))
        return

    rows = (ROWS[0], ROWS[1], ROWS[6]) if options.quick else ROWS

    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        print("| what | MiB above what was held before | CPU seconds |\n|---|---|---|")

        for row in rows:
            numbers = _measure_in_process(folder, row)
            options_text = ", ".join(f"{key} {value}" for key, value in row.items() if key != "do")
            cells = f"{numbers['MiB']:,.0f} | {numbers['seconds']:.1f}"
            print(f"| {row['do']}: {options_text} | {cells} |", flush=True)


def _measure_in_process(folder: str, row: dict[str, Any]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.memory", "--one", folder, json.dumps(row)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    if process.returncode:
        sys.exit(process.stderr)

    numbers: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return numbers


if __name__ == "__main__":
    main()
