"""One optimizer step of Burnish against one of TRL 0.23.1 on the same samples, in numbers.

TRL samples an epoch and takes a step; Burnish, under the same options through `burnish.compat.trl`,
gets TRL's adapter and TRL's latents, scores the transitions, makes advantages of the rewards, and
takes the step too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.speed import model_folder
from benchmarks.workers import ROOT
from benchmarks.workload import PROMPTS, for_old_transformers
from burnish.compat.trl import DDPOConfig, DefaultDDPOStableDiffusionPipeline
from burnish.compat.trl.trainer import translated
from burnish.diffusion.process import ReverseProcess
from burnish.rewards import score
from burnish.rewards.compressibility import compressibility
from burnish.runs import Run
from burnish.training.assembly import Overrides
from burnish.training.batch import Credit
from burnish.training.job import Job, prepare
from burnish.training.learners import GeneratorLearner
from burnish.types import Prompt, Reward, Trajectory
from burnish.world import World

OPTIONS = ROOT / "benchmarks" / "same_step.json"


def differences(folder: str, out: Path) -> dict[str, float]:
    """Return the differences of Burnish's step on TRL's samples in `out` from TRL's."""
    trl = load_file(out / "step.safetensors")
    reward = {"compressibility": compressibility()}
    job = prepare_job(folder, out, reward, count=len(trl["latents"]))
    policy = job.parts.policy
    times = job.parts.sampler.times(policy)
    assert torch.equal(times[:-1], trl["timesteps"][0])

    prompts = repeated_prompts(len(trl["latents"]))
    trajectory = trl_trajectory(trl, times, policy.encode(prompts))
    scores = score(reward, policy.decode(trajectory.latent), prompts)
    adv = job.parts.advantage(scores, job.parts.weights, trajectory.group)

    count = len(trajectory.group)
    transitions = len(times) - 1
    learner = job.learners["generator"]
    assert isinstance(learner, GeneratorLearner)
    (pairs,) = learner.updates.pairs(1, adv)
    before = policy.state()
    gradients = record_gradients(job, learner)
    process = ReverseProcess(policy, job.parts.sampler, trajectory)

    with torch.no_grad():
        every = torch.arange(transitions).repeat(count)
        replay = process.replay(trajectory.group.repeat_interleave(transitions), every)
        logp = replay.logp.view_as(trajectory.logp)

    valid = torch.ones(count).bool()
    credit = Credit(adv, valid, trajectory.group, counted=valid, loss_scale=1.0)
    metrics = learner.updates.update(process, credit, pairs, first=True)
    after = policy.state()

    def flat(tensors: dict[str, Tensor], prefix: str = "") -> Tensor:
        return torch.cat([tensors[prefix + name].flatten() for name in sorted(before)])

    change = flat(after) - flat(before)
    trl_change = flat(trl, "after.") - flat(before)
    text = trajectory.cond["text"]
    return {
        "images": count,
        "pairs": len(pairs[0]),
        "text states, relative": relative(text, trl["prompt_embeds"]),
        "log-densities, largest difference": float((logp - trl["log_probs"]).abs().max()),
        "advantages, largest difference": float((adv - trl["advantages"]).abs().max()),
        "ratio - 1, largest": metrics["ratio_deviation"],
        "gradient given to Adam, relative": relative(flat(gradients), flat(trl, "gradient.")),
        "change of the adapter, relative": relative(change, trl_change),
    }


def repeated_prompts(count: int) -> list[Prompt]:
    """Return the prompts in the order in which TRL draws them."""
    return [Prompt(text) for text in (PROMPTS * 9)[:count]]


def prepare_job(folder: str, out: Path, reward: dict[str, Reward], count: int) -> Job:
    """Return a job of Burnish with TRL's options and its adapter in `out`."""
    options = DDPOConfig(**json.loads(OPTIONS.read_text()))
    pipeline = DefaultDDPOStableDiffusionPipeline(folder, adapter=out)
    recipe = translated(options, pipeline, "compressibility")
    policy = pipeline.to_policy(recipe.model.dtype, recipe.model.device)
    overrides = Overrides(policy, reward, repeated_prompts)
    config = overrides.apply_to(recipe)
    return prepare(config, Run(out / "run"), World(), overrides=overrides)


def trl_trajectory(trl: dict[str, Tensor], times: Tensor, cond: dict[str, Tensor]) -> Trajectory:
    """Return TRL's samples as a trajectory."""
    states = torch.cat([trl["latents"][:, :1], trl["next_latents"]], 1)
    group = torch.arange(len(states))
    return Trajectory(states, times, trl["log_probs"], states[:, -1], cond, group)


def record_gradients(job: Job, learner: GeneratorLearner) -> dict[str, Tensor]:
    """Return a table that the optimizer's next step fills with its gradients."""
    policy = job.parts.policy
    gradients: dict[str, Tensor] = {}

    def record(*_: Any) -> None:
        for name, parameter in policy.named_trainable.items():
            if parameter.grad is not None:
                gradients[name] = parameter.grad.clone()

    learner.weights.optimizer.register_step_pre_hook(record)
    return gradients


def relative(tensor: Tensor, reference: Tensor) -> float:
    """Return the length of the difference over the length of the reference."""
    return float((tensor - reference).norm() / reference.norm())


def main() -> None:
    """Let both libraries take the step and print the differences."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.same_step")
    parser.add_argument(
        "--trl", type=Path, default=ROOT / "benchmarks" / ".venv-trl", help="TRL's environment"
    )
    parser.add_argument("--model", default="zoo:emoji-sd")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as work:
        folder = str(for_old_transformers(model_folder(options.model), Path(work) / "model"))
        out = Path(work) / "out"
        python = str(options.trl / "bin" / "python")
        command = [python, "-m", "benchmarks.trl_step", folder, str(out)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.run(command, env=environment, capture_output=True, text=True)

        if process.returncode:
            raise SystemExit(f"TRL failed:\n{process.stderr[-2000:]}")

        for name, value in differences(folder, out).items():
            print(f"{name:<40} {value:.3g}")


if __name__ == "__main__":
    main()
