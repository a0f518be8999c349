"""The network alone: what an iteration would cost if nothing but the UNet had to be computed.

    {"do": "start", "model", "rank"}     and "weight", if the network takes the guidance weight as an input
    {"do": "forward", "images", "batch"}   -> {"seconds", ...}  calls without gradient, the adapter merged: sampling
    {"do": "backward", "images", "batch"}  -> {"seconds", ...}  calls with gradient for the adapter:
    replay

`images` counts guided calls, `batch` how many of them go into one call, with twice as many texts
unless the network takes the weight. The network is the one that Burnish trains, with the kernels it
chooses; no sampler, loss, decoder, reward or optimizer.
"""

from __future__ import annotations

import time

import torch

from benchmarks.line import Line
from burnish.diffusion.policy import Policy
from burnish.types import Prompt


def forward(policy: Policy, images: int, batch: int, weight: float | None = None) -> float:
    x, t, text, embedding = inputs(policy, batch, weight)
    started = time.perf_counter()

    with torch.no_grad(), policy.merged():
        for _ in range(images // batch):
            policy.pipe.unet(x, t, text, timestep_cond=embedding, return_dict=False)

    return time.perf_counter() - started


def backward(policy: Policy, images: int, batch: int, weight: float | None = None) -> float:
    x, t, text, embedding = inputs(policy, batch, weight)
    started = time.perf_counter()
    for _ in range(images // batch):
        policy.pipe.unet(x, t, text, timestep_cond=embedding, return_dict=False)[0].sum().backward()
    return time.perf_counter() - started


def inputs(policy: Policy, batch: int, weight: float | None) -> tuple[torch.Tensor | None, ...]:
    """x, t, text, and the embedded weight of ``batch`` guided calls."""
    x = torch.randn(batch, *policy.latent_shape)
    t = torch.randint(1000, (batch,))

    if weight is None:
        return x, t, policy.encode([Prompt("")] * batch + [Prompt("a cat")] * batch)["text"], None

    width = policy.pipe.unet.config.time_cond_proj_dim
    embedding = policy.pipe.get_guidance_scale_embedding(
        torch.full((batch,), weight - 1), embedding_dim=width
    )
    return x, t, policy.encode([Prompt("a cat")] * batch)["text"], embedding


def main() -> None:
    line = Line()
    settings = line.receive()
    line.send()
    policy = Policy.load(
        settings["model"], rank=settings["rank"], alpha=settings["rank"], device="cpu"
    )
    work = {"forward": forward, "backward": backward}

    while (request := line.receive())["do"] != "end":
        busy = time.process_time()
        seconds = work[request["do"]](
            policy, request["images"], request["batch"], settings.get("weight")
        )
        line.send(seconds=seconds, cpu_seconds=time.process_time() - busy)


if __name__ == "__main__":
    main()
