"""The measure of the race: the mean reward of fixed prompts from fixed noise under any adapter, for
both libraries.

{"do": "start", "model", "steps", "guidance", "prompts", "images"}    `images` of each prompt
{"do": "judge", "adapter": FOLDER or ""}  -> {"reward"}
"""

from __future__ import annotations

import torch

from benchmarks import setting
from benchmarks.line import Line
from burnish.diffusion.guidance import CFG
from burnish.diffusion.kernels import DDIM
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.evaluation.paired import evaluate
from burnish.rewards.compressibility import compressibility
from burnish.types import Prompt


def main() -> None:
    line = Line()
    settings = line.receive()
    line.send()
    sampler = Sampler(DDIM(), settings["steps"], CFG(settings["guidance"]))
    prompts = [Prompt(text) for text in settings["prompts"]]
    rewards = {"size": compressibility(setting.QUALITY)}

    while (request := line.receive())["do"] != "end":
        policy = Policy.load(
            settings["model"], train="none", adapter=request["adapter"] or None, device="cpu"
        )
        measured = evaluate(
            policy, sampler, prompts, rewards, images_per_prompt=settings["images"], chunk=30
        )
        line.send(reward=float(measured.total(torch.ones(1)).mean()))


if __name__ == "__main__":
    main()
