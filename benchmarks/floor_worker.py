"""The network alone: the cost of an iteration if nothing but it had to be computed.

{"do": "start", "model", "rank"}       and "guidance", the table of a configuration, if that is not
                                       classifier-free guidance
{"do": "forward", "images", "batch"}   -> {"seconds", ...}  sampling: calls without gradient,
                                       the adapter merged
{"do": "backward", "images", "batch"}  -> {"seconds", ...}  replay: calls with gradient for the
                                       adapter; "guided" false: for the prompts alone

`images` counts guided calls, `batch` how many of them go into one call, with twice as many texts
unless the network takes the weight. The network is the one that Burnish trains, with the kernels it
chooses; no sampler, loss, decoder, reward or optimizer.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.workers import RequestStream
from burnish import catalog
from burnish.diffusion.families import family_of
from burnish.diffusion.guidance import CFG, Unguided
from burnish.diffusion.policy import Policy
from burnish.types import Guidance, Prompt


class Floor:
    """A policy's network, called as its guidance calls it.

    Args:
        policy: that Burnish trains.
        guidance: of the calls.
    """

    def __init__(self, policy: Policy, guidance: Guidance) -> None:
        self.policy = policy
        self.guidance = guidance
        self.family = family_of(type(policy.pipe).__name__)

    def forward(self, images: int, batch: int) -> float:
        """Return the seconds of the calls without gradient."""
        call = self.inputs(batch, self.guidance)
        started = time.perf_counter()

        with torch.no_grad(), self.policy.merged():
            for _ in range(images // batch):
                self.call(*call)

        return time.perf_counter() - started

    def backward(self, images: int, batch: int, guided: bool = True) -> float:
        """Return the seconds of the calls with their gradients."""
        call = self.inputs(batch, self.guidance if guided else Unguided(self.guidance))
        started = time.perf_counter()

        for _ in range(images // batch):
            self.call(*call).sum().backward()

        return time.perf_counter() - started

    def call(self, *inputs: Any) -> torch.Tensor:
        """Return the network's output."""
        return self.family.call(self.policy.pipe, *inputs)

    def inputs(self, batch: int, guidance: Guidance) -> list[Any]:
        """Return x, t and the condition with which the guidance calls the network."""
        made: list[Any] = []

        def network(*inputs: Any) -> torch.Tensor:
            made[:] = inputs
            return torch.zeros(len(inputs[2]["text"]), *self.policy.latent_shape)

        x = torch.randn(batch, *self.policy.latent_shape)
        t = self.policy.schedule.time_at(torch.full((batch,), 0.5))
        cond = self.policy.encode([Prompt("a cat")] * batch)
        guidance(network, x, t, cond, self.policy.null(batch))
        return made


def main() -> None:
    """Answer requests until the parent ends."""
    stream = RequestStream()
    settings = stream.receive()
    stream.send()
    rank = settings["rank"]
    policy = Policy.load(settings["model"], rank=rank, alpha=rank, device="cpu")
    table = settings.get("guidance")
    floor = Floor(policy, catalog.build("guidance", table) if table else CFG(3.0))
    calls = {"forward": floor.forward, "backward": floor.backward}

    while (request := stream.receive())["do"] != "end":
        started = time.process_time()
        call = calls[request.pop("do")]
        seconds = call(**request)
        stream.send(seconds=seconds, cpu_seconds=time.process_time() - started)


if __name__ == "__main__":
    main()
