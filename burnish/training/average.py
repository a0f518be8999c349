"""Copies of trained weights that lag behind them.

The moving average (EMA) is what is evaluated and exported; the old policy is what samples and what
objectives compare with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from burnish.config import OldPolicyConfig
from burnish.diffusion.sharding import held
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


def copies(network: Trainable) -> list[Tensor]:
    """Return copies of the trained weights, as far as this process holds them."""
    return [parameter.detach().clone() for parameter in held(network.trainable)]


@torch.no_grad()
def copy_into(network: Trainable, weights: Sequence[Tensor]) -> None:
    """Give the trained weights the values that `copies` returned."""
    for parameter, value in zip(held(network.trainable), weights, strict=True):
        parameter.copy_(value)


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


class OldPolicy:
    """The policy that samples where it does not lag: the weights themselves; it keeps nothing."""

    lags = False

    def step(self, iteration: int) -> None:
        """Take in the weights after an iteration's updates."""

    def restart(self) -> None:
        """Begin again from the weights as they are."""

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Return a context in which the network has the weights that sample."""
        yield

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint needs, as tensors by name."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned; it may leave other weights in the network."""


class LaggingPolicy(OldPolicy):
    """An old policy that takes in a part of the weights after each iteration (DiffusionNFT).

    Args:
        network: whose weights learn.
        settings: how much it keeps of itself, iteration by iteration.
    """

    lags = True

    def __init__(self, network: Trainable, settings: OldPolicyConfig) -> None:
        self.network = network
        self.settings = settings
        self.restart()

    def decay(self, iteration: int) -> float:
        """Return the part that it keeps of itself after an iteration, the first being 1."""
        risen = self.settings.rise * (iteration - self.settings.after)
        return max(0.0, min(self.settings.decay, risen))

    @torch.no_grad()
    def step(self, iteration: int) -> None:
        """Take in the weights after an iteration's updates."""
        current = [parameter.detach() for parameter in held(self.network.trainable)]
        torch._foreach_lerp_(self.weights, current, 1 - self.decay(iteration))

    def restart(self) -> None:
        """Begin again from the weights as they are."""
        self.weights = copies(self.network)

    @contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """Return a context in which the network has the weights that sample."""
        current = copies(self.network)
        copy_into(self.network, self.weights)
        try:
            yield
        finally:
            copy_into(self.network, current)

    def state(self) -> dict[str, Tensor]:
        """Return its weights, named as the network's."""
        with self.applied():
            return prefixed("old", self.network.state())

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned; it leaves the old weights in the network.

        A state without old weights is of a run whose old policy did not lag: they are the weights.
        """
        self.network.load_state(under("old.", state) or under("weights.", state))
        self.restart()


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
        self.weights = held(network.trainable)
        self.ema = EMAModel(self.weights, decay=decay)

    def step(self) -> None:
        """Take in the weights after an optimizer step."""
        self.ema.step(self.weights)

    def restart(self) -> None:
        """Begin again from the weights as they are; the decay stays where it was."""
        self.ema.load_state_dict({"shadow_params": copies(self.network)})

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Return a context in which the network has its averaged weights."""
        self.ema.store(self.weights)
        self.ema.copy_to(self.weights)
        try:
            yield
        finally:
            self.ema.restore(self.weights)

    def state(self) -> dict[str, Tensor]:
        """Return the averaged weights and the number of steps."""
        with self.applied():
            tensors = prefixed("average", self.network.state())
        return tensors | {"average_steps": torch.tensor(self.ema.optimization_step)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned; it leaves the averaged weights in the network.

        A state without an average is of a run that had none: it begins from the weights.
        """
        self.network.load_state(under("average.", state) or under("weights.", state))
        self.restart()
        steps = int(state.get("average_steps", torch.tensor(0)))
        self.ema.load_state_dict({"optimization_step": steps})
