"""Does one optimizer step of Burnish equal one of TRL 0.23.1, on the same samples? How far apart,
in numbers.

TRL samples an epoch and takes a step; Burnish, under the same options through `burnish.compat.trl`,
gets TRL's adapter and TRL's latents, scores the moves, makes advantages of the rewards, and takes
the step too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.line import ROOT
from benchmarks.run import model
from benchmarks.setting import PROMPTS, for_old_transformers
from burnish.compat.trl import DDPOConfig, DefaultDDPOStableDiffusionPipeline
from burnish.compat.trl.trainer import translated
from burnish.rewards import score
from burnish.rewards.compressibility import compressibility
from burnish.runs import Run
from burnish.training.assembly import Overrides
from burnish.training.job import prepare
from burnish.training.learners import GeneratorLearner
from burnish.types import Prompt, Trajectory
from burnish.world import World

OPTIONS = ROOT / "benchmarks" / "same_step.json"


def burnish(folder: str, out: Path) -> dict[str, float]:
    """The step on TRL's samples in `out`; how far each quantity is from TRL's."""
    theirs = load_file(out / "step.safetensors")
    options = DDPOConfig(**json.loads(OPTIONS.read_text()))
    pipeline = DefaultDDPOStableDiffusionPipeline(folder, adapter=out)
    recipe = translated(options, pipeline, "compressibility")
    policy = pipeline.to_policy(recipe.model.dtype, recipe.model.device)
    reward = {"compressibility": compressibility()}
    given = Overrides(
        policy, reward, lambda count: [Prompt(text) for text in (PROMPTS * 9)[:count]]
    )
    job = prepare(given.described(recipe), Run(out / "run"), World(), None, given)
    prompts = given.source(len(theirs["latents"])) if given.source else []
    times = job.parts.sampler.times(policy)
    assert torch.equal(times[:-1], theirs["timesteps"][0])

    states = torch.cat([theirs["latents"][:, :1], theirs["next_latents"]], 1)
    cond = policy.encode(prompts)
    group = torch.arange(len(states))
    trajectory = Trajectory(states, times, theirs["log_probs"], states[:, -1], cond, group)
    scores = score(reward, policy.decode(trajectory.latent), prompts)
    adv = job.parts.advantage(scores, job.parts.weights, group)

    gradients: dict[str, Tensor] = {}
    names = {id(p): name for name, p in policy.named_trainable.items()}
    learner = job.learners["generator"]
    assert isinstance(learner, GeneratorLearner)
    learner.weights.optimizer.register_step_pre_hook(
        lambda optimizer, *_: gradients.update(
            {names[id(p)]: p.grad.clone() for p in policy.trainable if p.grad is not None}
        )
    )
    (pairs,) = learner.updates.pairs(1, adv)
    before = policy.state()
    process = learner.updates.process(trajectory, [pairs], 1)
    every = torch.arange(len(times) - 1).repeat(len(group))

    with torch.no_grad():
        said = process.replay(group.repeat_interleave(len(times) - 1), every).logp.view_as(
            trajectory.logp
        )

    told = learner.updates.update(process, adv, torch.ones(len(group)).bool(), pairs, first=True)
    after = policy.state()

    def relative(ours: Tensor, other: Tensor) -> float:
        return float((ours - other).norm() / other.norm())

    def flat(found: dict[str, Tensor], prefix: str = "") -> Tensor:
        return torch.cat([found[prefix + name].flatten() for name in sorted(before)])

    return {
        "images": len(group),
        "pairs": len(pairs[0]),
        "text states, relative": relative(cond["text"], theirs["prompt_embeds"]),
        "log-densities, largest difference": float((said - theirs["log_probs"]).abs().max()),
        "advantages, largest difference": float((adv - theirs["advantages"]).abs().max()),
        "ratio - 1, largest": told["ratio_deviation"],
        "gradient given to Adam, relative": relative(flat(gradients), flat(theirs, "gradient.")),
        "change of the adapter, relative": relative(
            flat(after) - flat(before), flat(theirs, "after.") - flat(before)
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.same_step")
    parser.add_argument(
        "--trl", type=Path, default=ROOT / "benchmarks" / ".venv-trl", help="TRL's environment"
    )
    parser.add_argument("--model", default="zoo:emoji-sd")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as work:
        folder = str(for_old_transformers(model(options.model), Path(work) / "model"))
        out = Path(work) / "out"
        command = [
            str(options.trl / "bin" / "python"),
            "-m",
            "benchmarks.trl_step",
            folder,
            str(out),
        ]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )

        if done.returncode:
            raise SystemExit(f"TRL failed:\n{done.stderr[-2000:]}")

        for name, value in burnish(folder, out).items():
            print(f"{name:<40} {value:.3g}")


if __name__ == "__main__":
    main()
