"""The network alone: the cost of an iteration if nothing but the UNet had to be computed.

{"do": "start", "model", "rank"}       and "weight", if the network takes the guidance weight
                                       as an input
{"do": "forward", "images", "batch"}   -> {"seconds", ...}  sampling: calls without gradient,
                                       the adapter merged
{"do": "backward", "images", "batch"}  -> {"seconds", ...}  replay: calls with gradient for the
                                       adapter

`images` counts guided calls, `batch` how many of them go into one call, with twice as many texts
unless the network takes the weight. The network is the one that Burnish trains, with the kernels it
chooses; no sampler, loss, decoder, reward or optimizer.
"""

from __future__ import annotations

import time

import torch

from benchmarks.workers import RequestStream
from burnish.diffusion.policy import Policy
from burnish.types import Prompt


def forward(policy: Policy, images: int, batch: int, weight: float | None = None) -> float:
    """Return the seconds of the calls without gradient."""
    x, t, text, embedding = inputs(policy, batch, weight)
    started = time.perf_counter()

    with torch.no_grad(), policy.merged():
        for _ in range(images // batch):
            policy.pipe.unet(x, t, text, timestep_cond=embedding, return_dict=False)

    return time.perf_counter() - started


def backward(policy: Policy, images: int, batch: int, weight: float | None = None) -> float:
    """Return the seconds of the calls with their gradients."""
    x, t, text, embedding = inputs(policy, batch, weight)
    started = time.perf_counter()

    for _ in range(images // batch):
        outputs = policy.pipe.unet(x, t, text, timestep_cond=embedding, return_dict=False)
        outputs[0].sum().backward()

    return time.perf_counter() - started


def inputs(policy: Policy, batch: int, weight: float | None) -> tuple[torch.Tensor | None, ...]:
    """Return x, t, text, and the embedded weight of `batch` guided calls."""
    x = torch.randn(batch, *policy.latent_shape)
    t = torch.randint(1000, (batch,))
    prompts = [Prompt("a cat")] * batch

    if weight is None:
        return x, t, policy.encode([Prompt("")] * batch + prompts)["text"], None

    width = policy.pipe.unet.config.time_cond_proj_dim
    weights = torch.full((batch,), weight - 1)
    embedding = policy.pipe.get_guidance_scale_embedding(weights, embedding_dim=width)
    return x, t, policy.encode(prompts)["text"], embedding


def main() -> None:
    """Answer requests until the parent ends."""
    stream = RequestStream()
    settings = stream.receive()
    stream.send()
    rank = settings["rank"]
    policy = Policy.load(settings["model"], rank=rank, alpha=rank, device="cpu")
    calls = {"forward": forward, "backward": backward}

    while (request := stream.receive())["do"] != "end":
        started = time.process_time()
        call = calls[request["do"]]
        seconds = call(policy, request["images"], request["batch"], settings.get("weight"))
        stream.send(seconds=seconds, cpu_seconds=time.process_time() - started)


if __name__ == "__main__":
    main()
