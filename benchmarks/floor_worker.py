"""The network alone: what an iteration would cost if nothing but the UNet had to be computed.

    {"do": "start", "model", "rank"}
    {"do": "forward", "images", "batch"}   -> {"seconds", ...}  calls without gradient, the adapter merged: sampling
    {"do": "backward", "images", "batch"}  -> {"seconds", ...}  calls with gradient for the adapter: replay

`images` counts guided calls, `batch` how many of them go into one call with twice as many texts. The network is the one
that Burnish trains, with the kernels it chooses; no sampler, loss, decoder, reward or optimizer.
"""

from __future__ import annotations

import time

import torch

from benchmarks.line import Line
from burnish.policy import Policy
from burnish.types import Prompt


def forward(policy: Policy, images: int, batch: int) -> float:
    x, t, text = inputs(policy, batch)
    started = time.perf_counter()
    with torch.no_grad(), policy.merged():
        for _ in range(images // batch):
            policy.pipe.unet(x, t, text, return_dict=False)
    return time.perf_counter() - started


def backward(policy: Policy, images: int, batch: int) -> float:
    x, t, text = inputs(policy, batch)
    started = time.perf_counter()
    for _ in range(images // batch):
        policy.pipe.unet(x, t, text, return_dict=False)[0].sum().backward()
    return time.perf_counter() - started


def inputs(policy: Policy, batch: int) -> tuple[torch.Tensor, ...]:
    text = policy.encode([Prompt("")] * batch + [Prompt("a cat")] * batch)["text"]
    return torch.randn(batch, *policy.latent_shape), torch.randint(1000, (batch,)), text


def main() -> None:
    line = Line()
    settings = line.receive()
    line.send()
    policy = Policy.load(settings["model"], rank=settings["rank"], alpha=settings["rank"], device="cpu")
    work = {"forward": forward, "backward": backward}
    while (request := line.receive())["do"] != "end":
        busy = time.process_time()
        seconds = work[request["do"]](policy, request["images"], request["batch"])
        line.send(seconds=seconds, cpu_seconds=time.process_time() - busy)


if __name__ == "__main__":
    main()
