"""A complete script for TRL 0.23.1: `same_script` runs it there, and on Burnish.

Burnish's has another import line.

`script.py MODEL OUT SEED EPOCHS` writes each epoch's mean reward to OUT.json and the model to OUT.
"""

import io
import json
import os
import random
import sys
import time
from typing import Any

from accelerate import PartialState
from PIL import Image
from trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline

from benchmarks.workload import GUIDANCE, PROMPTS, QUALITY, STEPS

BATCHES = 2
rewards: list[float] = []


def jpeg_compressibility(
    images: Any, prompts: Any, metadata: Any
) -> tuple[list[float], dict[str, Any]]:
    """Return minus the sizes of the JPEG files in kB."""
    for pixels in images.mul(255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="JPEG", quality=QUALITY)
        rewards.append(-file.tell() / 1000)

    return rewards[-len(images) :], {}


def prompt() -> tuple[str, dict[str, Any]]:
    """Return a random prompt."""
    return random.choice(PROMPTS), {}


if __name__ == "__main__":
    model = sys.argv[1]
    out = sys.argv[2]
    seed = int(sys.argv[3])
    epochs = int(sys.argv[4])
    PartialState()  # TRL logs before it would make it
    config = DDPOConfig(
        seed=seed,
        num_epochs=epochs,
        mixed_precision="no",
        allow_tf32=False,
        sample_num_steps=STEPS,
        sample_guidance_scale=GUIDANCE,
        sample_batch_size=16,
        sample_num_batches_per_epoch=BATCHES,
        train_batch_size=16,
        train_gradient_accumulation_steps=1,
        train_learning_rate=3e-3,
        train_clip_range=1.6e-3,
        train_timestep_fraction=0.4,
        per_prompt_stat_tracking=True,
        per_prompt_stat_tracking_buffer_size=32,
        per_prompt_stat_tracking_min_count=4,
        save_freq=10**6,
        project_kwargs={"project_dir": out + "-run", "automatic_checkpoint_naming": True},
    )
    pipeline = DefaultDDPOStableDiffusionPipeline(model)
    trainer = DDPOTrainer(config, jpeg_compressibility, prompt, pipeline)
    pipeline.set_progress_bar_config(disable=True)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    images = len(rewards) // epochs
    means = [
        sum(rewards[start : start + images]) / images for start in range(0, len(rewards), images)
    ]

    pipeline.save_pretrained(out)
    with open(out + ".json", "w") as file:
        json.dump({"images": images, "means": means, "seconds": seconds}, file)
    print(os.path.basename(out), [round(mean, 3) for mean in means], flush=True)
