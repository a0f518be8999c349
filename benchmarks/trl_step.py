"""One epoch of TRL 0.23.1 with a single optimizer step, everything about it written down. Runs in
TRL's environment.

`trl_step.py MODEL OUT` leaves in OUT the adapter before the step (diffusers' format) and
`step.safetensors`: the samples, the advantages, the gradients as they were given to the optimizer,
and the adapter after it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline

from benchmarks.setting import PROMPTS
from benchmarks.trl_worker import compressibility

OPTIONS = Path(__file__).parent / "same_step.json"


def main() -> None:
    model = sys.argv[1]
    out = Path(sys.argv[2])
    PartialState()  # TRL logs before it would make it
    options = json.loads(OPTIONS.read_text())
    asked = iter(PROMPTS * 9)
    pipeline = DefaultDDPOStableDiffusionPipeline(model)
    trainer = DDPOTrainer(
        DDPOConfig(**options), compressibility, lambda: (next(asked), {}), pipeline
    )
    pipeline.set_progress_bar_config(disable=True)
    network = pipeline.unet
    learned = {name: p for name, p in network.named_parameters() if p.requires_grad}

    with torch.no_grad():  # a LoRA fresh from its making has no gradient in one of its halves
        for place, p in enumerate(learned.values()):
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(place)))

    pipeline.save_checkpoint([network], [None], out)

    found: dict[str, torch.Tensor] = {}
    generate = trainer._generate_samples
    loss = trainer.calculate_loss
    step = trainer.optimizer.step

    def generated(*args: Any, **kwargs: Any) -> Any:
        samples, pairs = generate(*args, **kwargs)
        for name in samples[0]:
            found[name] = torch.cat([one[name] for one in samples]).contiguous()
        return samples, pairs

    def calculated(
        latents: Any, timesteps: Any, following: Any, logp: Any, advantages: Any, embeds: Any
    ) -> Any:
        for row, adv in zip(latents, advantages, strict=True):  # TRL has shuffled them
            place = next(
                i for i, one in enumerate(found["latents"]) if any(torch.equal(row, x) for x in one)
            )
            found.setdefault("advantages", torch.zeros(len(found["latents"])))[place] = adv

        return loss(latents, timesteps, following, logp, advantages, embeds)

    def stepped(*args: Any, **kwargs: Any) -> Any:
        if trainer.accelerator.sync_gradients:
            found.update({f"gradient.{name}": p.grad.clone() for name, p in learned.items()})
        return step(*args, **kwargs)

    trainer._generate_samples = generated
    trainer.calculate_loss = calculated
    trainer.optimizer.step = stepped
    trainer.step(0, 0)
    found.update({f"after.{name}": p.detach().clone() for name, p in learned.items()})
    save_file({name: value.contiguous() for name, value in found.items()}, out / "step.safetensors")


if __name__ == "__main__":
    main()
