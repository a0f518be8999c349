"""The moving average of trained weights (EMA), which is what is evaluated and exported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from burnish.training.checkpoint import prefixed, under


class Trainable(Protocol):
    """A network whose trained weights can be copied out and in: `Policy` and `Expander`."""

    trainable: list[nn.Parameter]

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the trained weights by name, float32 on the CPU."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        ...


class NoAverage:
    """An average of decay 0, that is the weights themselves: it keeps nothing."""

    def step(self) -> None:
        """Take in the weights after an optimizer step."""

    def restart(self) -> None:
        """Begin again from the weights as they are."""

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Return a context in which the network has its averaged weights."""
        yield

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint needs, as tensors by name."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned; it leaves the averaged weights in the network."""


class MovingAverage(NoAverage):
    """An exponential moving average, diffusers' EMAModel.

    Its decay rises as (1 + n) / (10 + n) with the number n of steps, up to `decay`.

    Args:
        network: whose weights are averaged.
        decay: in (0, 1).
    """

    def __init__(self, network: Trainable, decay: float) -> None:
        from diffusers.training_utils import EMAModel

        self.network = network
        self.ema = EMAModel(network.trainable, decay=decay)

    def step(self) -> None:
        """Take in the weights after an optimizer step."""
        self.ema.step(self.network.trainable)

    def restart(self) -> None:
        """Begin again from the weights as they are; the decay stays where it was."""
        copies = [parameter.detach().clone() for parameter in self.network.trainable]
        self.ema.load_state_dict({"shadow_params": copies})

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Return a context in which the network has its averaged weights."""
        self.ema.store(self.network.trainable)
        self.ema.copy_to(self.network.trainable)
        try:
            yield
        finally:
            self.ema.restore(self.network.trainable)

    def state(self) -> dict[str, Tensor]:
        """Return the averaged weights and the number of steps."""
        with self.applied():
            tensors = prefixed("average", self.network.state())
        return tensors | {"average_steps": torch.tensor(self.ema.optimization_step)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned; it leaves the averaged weights in the network."""
        self.network.load_state(under("average.", state))
        self.restart()
        self.ema.load_state_dict({"optimization_step": int(state["average_steps"])})
