"""One epoch of TRL 0.23.1 with a single optimizer step, and everything about it in a file.

Runs in TRL's environment.

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

from benchmarks.trl_worker import compressibility
from benchmarks.workload import PROMPTS

OPTIONS = Path(__file__).parent / "same_step.json"


class StepRecorder:
    """Keep the tensors of TRL's sampling, loss and optimizer step."""

    def __init__(self, trainer: Any, parameters: dict[str, torch.Tensor]) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._trainer = trainer
        self._parameters = parameters
        self._generate = trainer._generate_samples
        self._loss = trainer.calculate_loss
        self._step = trainer.optimizer.step
        trainer._generate_samples = self._generate_samples
        trainer.calculate_loss = self._calculate_loss
        trainer.optimizer.step = self._optimizer_step

    def save(self, path: Path) -> None:
        """Write everything, with the parameters as they are after the step."""
        for name, parameter in self._parameters.items():
            self.tensors[f"after.{name}"] = parameter.detach().clone()

        save_file({name: value.contiguous() for name, value in self.tensors.items()}, path)

    def _generate_samples(self, *args: Any, **kwargs: Any) -> Any:
        samples, pairs = self._generate(*args, **kwargs)
        for name in samples[0]:
            self.tensors[name] = torch.cat([sample[name] for sample in samples]).contiguous()

        return samples, pairs

    def _calculate_loss(
        self,
        latents: Any,
        timesteps: Any,
        next_latents: Any,
        logp: Any,
        advantages: Any,
        embeds: Any,
    ) -> Any:
        sampled = self.tensors["latents"]
        recorded = self.tensors.setdefault("advantages", torch.zeros(len(sampled)))

        for row, advantage in zip(latents, advantages, strict=True):  # TRL has shuffled them
            matches = (
                i for i, states in enumerate(sampled) if any(torch.equal(row, x) for x in states)
            )
            recorded[next(matches)] = advantage

        return self._loss(latents, timesteps, next_latents, logp, advantages, embeds)

    def _optimizer_step(self, *args: Any, **kwargs: Any) -> Any:
        if self._trainer.accelerator.sync_gradients:
            for name, parameter in self._parameters.items():
                assert parameter.grad is not None
                self.tensors[f"gradient.{name}"] = parameter.grad.clone()

        return self._step(*args, **kwargs)


def main() -> None:
    """Take the step and write its files."""
    model = sys.argv[1]
    out = Path(sys.argv[2])
    PartialState()  # TRL logs before it would make it
    options = json.loads(OPTIONS.read_text())
    prompts = iter(PROMPTS * 9)
    pipeline = DefaultDDPOStableDiffusionPipeline(model)
    trainer = DDPOTrainer(
        DDPOConfig(**options), compressibility, lambda: (next(prompts), {}), pipeline
    )
    pipeline.set_progress_bar_config(disable=True)
    network = pipeline.unet
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}

    with torch.no_grad():  # a LoRA fresh from its making has no gradient in one of its halves
        for seed, parameter in enumerate(trained.values()):
            generator = torch.Generator().manual_seed(seed)
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))

    pipeline.save_checkpoint([network], [None], out)

    recorder = StepRecorder(trainer, trained)
    trainer.step(0, 0)
    recorder.save(out / "step.safetensors")


if __name__ == "__main__":
    main()
