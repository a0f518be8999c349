"""TRL's DDPOTrainer, one epoch of sampling and training for each request.

Runs in TRL's own environment.

{"do": "start", "model", "images", "steps", "updates", "sample", "train", ...}
{"do": "iterate"}           -> {"seconds", "cpu_seconds", "sampling", "training", "reward"}
{"do": "save", "folder"}    writes the adapter in diffusers' format
"""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from PIL import Image

from benchmarks import workload
from benchmarks.workers import RequestStream


def compressibility(
    images: torch.Tensor, prompts: Any, metadata: Any
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return minus the sizes of the JPEG files in kB, as Burnish computes them."""
    pixels = images.mul(255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()

    def size(image: Any) -> float:
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="JPEG", quality=workload.QUALITY)
        return file.tell() / 1000

    with ThreadPoolExecutor() as pool:
        return -torch.tensor(list(pool.map(size, pixels))), {}


def build_config(settings: dict[str, Any]) -> Any:
    """Return TRL's configuration for a request's settings."""
    from trl import DDPOConfig

    images = settings["images"]
    updates = settings["updates"]
    return DDPOConfig(
        seed=settings.get("seed", 0) + 1,  # 0 would mean a random one
        sample_num_steps=settings["steps"],
        sample_eta=1.0,
        sample_guidance_scale=settings["guidance"],
        sample_batch_size=settings["sample"],
        sample_num_batches_per_epoch=images // settings["sample"],
        train_batch_size=settings["train"],
        train_gradient_accumulation_steps=images // (settings["train"] * updates),
        train_num_inner_epochs=1,
        train_cfg=True,
        train_learning_rate=settings.get("lr", 3e-4),
        train_clip_range=settings.get("clip", 1e-4),
        train_timestep_fraction=settings.get("fraction", 1.0),
        per_prompt_stat_tracking=settings.get("tracker", False),
        per_prompt_stat_tracking_buffer_size=32,
        # 16 by default, which 64 images of 45 prompts reach after 11 rounds
        per_prompt_stat_tracking_min_count=4,
        mixed_precision="no",
        allow_tf32=False,
        save_freq=10**9,
    )


def build_trainer(settings: dict[str, Any], rewards: list[float]) -> Any:
    """Return a trainer that appends its rewards to `rewards`."""
    from accelerate import PartialState
    from trl import DDPOTrainer, DefaultDDPOStableDiffusionPipeline

    rng = random.Random(settings.get("seed", 0))

    def prompt() -> tuple[str, dict[str, Any]]:
        return rng.choice(workload.PROMPTS), {}

    def reward(
        images: torch.Tensor, prompts: Any, metadata: Any
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        values, info = compressibility(images, prompts, metadata)
        rewards.extend(values.tolist())
        return values, info

    config = build_config(settings)
    PartialState()  # TRL logs before it would make it
    pipeline = DefaultDDPOStableDiffusionPipeline(settings["model"], use_lora=True)
    trainer = DDPOTrainer(config, reward, prompt, pipeline)
    pipeline.set_progress_bar_config(disable=True)

    return trainer


def timed(function: Callable[..., Any], seconds: dict[str, float], name: str) -> Callable[..., Any]:
    """Return the function, which then adds its seconds to those under a name."""

    def call(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        result = function(*args, **kwargs)
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started
        return result

    return call


def save(trainer: Any, folder: str) -> None:
    """Write the adapter in diffusers' format."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    pipe = trainer.sd_pipeline.sd_pipeline
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet))
    pipe.save_lora_weights(
        folder, unet_lora_layers={name: value.contiguous() for name, value in layers.items()}
    )


def main() -> None:
    """Answer requests until the parent ends."""
    stream = RequestStream()
    rewards: list[float] = []
    seconds: dict[str, float] = {}
    trainer: Any = None
    epoch = 0
    step = 0

    while (request := stream.receive())["do"] != "end":
        if request["do"] == "start":
            trainer = build_trainer(request, rewards)
            epoch = 0
            step = 0
            sampling = timed(trainer._generate_samples, seconds, "sampling")
            training = timed(trainer._train_batched_samples, seconds, "training")
            trainer._generate_samples = sampling
            trainer._train_batched_samples = training
            stream.send()
            continue

        if request["do"] == "save":
            save(trainer, request["folder"])
            stream.send()
            continue

        seconds.clear()
        rewards.clear()
        started = time.perf_counter()
        cpu_started = time.process_time()

        step = trainer.step(epoch, step)
        epoch += 1

        times = {
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - cpu_started,
        }
        stream.send(**times, **seconds, reward=sum(rewards) / len(rewards))


if __name__ == "__main__":
    main()
