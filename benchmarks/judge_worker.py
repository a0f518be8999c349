"""The measure of the race: the mean reward of fixed prompts from fixed noise under any adapter.

It is the same for both libraries.

{"do": "start", "model", "steps", "guidance", "prompts", "images"}    `images` of each prompt
{"do": "judge", "adapter": FOLDER or ""}  -> {"reward"}
"""

from __future__ import annotations

import torch

from benchmarks import workload
from benchmarks.workers import RequestStream
from burnish.diffusion.guidance import CFG
from burnish.diffusion.kernels import DDIM
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.evaluation.paired import evaluate
from burnish.rewards.compressibility import compressibility
from burnish.types import Prompt


def main() -> None:
    """Answer requests until the parent ends."""
    stream = RequestStream()
    settings = stream.receive()
    stream.send()

    sampler = Sampler(DDIM(), settings["steps"], CFG(settings["guidance"]))
    prompts = [Prompt(text) for text in settings["prompts"]]
    rewards = {"size": compressibility(workload.QUALITY)}
    images = settings["images"]

    while (request := stream.receive())["do"] != "end":
        adapter = request["adapter"] or None
        policy = Policy.load(settings["model"], train="none", adapter=adapter, device="cpu")
        evaluation = evaluate(policy, sampler, prompts, rewards, images_per_prompt=images, chunk=30)
        stream.send(reward=float(evaluation.total(torch.ones(1)).mean()))


if __name__ == "__main__":
    main()
