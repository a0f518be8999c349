"""Trained weights with what belongs to them: optimizer, average, old policy, state at the start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from burnish.config import Config, OldPolicyConfig
from burnish.diffusion.sharding import is_sharded, total
from burnish.training.average import (
    LaggingPolicy,
    MovingAverage,
    NoAverage,
    OldPolicy,
    Trainable,
    copies,
    copy_into,
)
from burnish.training.checkpoint import load_optimizer, optimizer_tensors, prefixed, under
from burnish.world import World, gradient_of


class WeightUpdater:
    """The trained weights of a network, with their optimizer, moving average and initial copy.

    Args:
        network: whose weights they are.
        config: optimizer.ema and guard.action of it are used.
        optimizer: of these weights.
        scaler: of half-precision gradients, where there is one.
        old_policy: how the policy that samples lags behind; None: it does not.
    """

    def __init__(
        self,
        network: Trainable,
        config: Config,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None = None,
        old_policy: OldPolicyConfig | None = None,
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
        self.max_grad_norm = config.optimizer.max_grad_norm
        self.initial: list[Tensor] | None = None
        if config.guard.action == "rollback":
            self.initial = [value.cpu() for value in copies(network)]
        self.average = NoAverage()
        if config.optimizer.ema and network.trainable:
            self.average = MovingAverage(network, config.optimizer.ema)

        self.old_policy = OldPolicy()
        if old_policy and old_policy.decay and network.trainable:
            self.old_policy = LaggingPolicy(network, old_policy)

    def step(self, world: World, not_finite: str) -> float:
        """Take an optimizer step with the gradients of all processes; return their norm.

        Raises:
            RuntimeError: with the message `not_finite`, if the gradient is not finite.
        """
        parameters = self.network.trainable
        average_gradients(world, parameters)
        self.scaler.unscale_(self.optimizer)
        norm = total(nn.utils.clip_grad_norm_(parameters, self.max_grad_norm))

        # in float16 a step may be left out now and then, until the gradients' scale fits; at a
        # scale of 1 it never will
        if not norm.isfinite() and self.scaler.get_scale() <= 1:
            raise RuntimeError(not_finite)

        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.step()

        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def state(self) -> dict[str, Tensor]:
        """Return weights, optimizer, moving average and loss scaling as tensors by name."""
        tensors = prefixed("weights", self.network.state())
        tensors |= prefixed("optimizer", optimizer_tensors(self.optimizer))
        tensors |= self.average.state() | self.old_policy.state()

        scaling = self.scaler.state_dict()
        tensors |= {
            f"scaler.{name}": torch.tensor(value, dtype=torch.float64)
            for name, value in scaling.items()
        }
        return tensors

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        self.average.load_state(state)
        self.old_policy.load_state(state)
        self.network.load_state(under("weights.", state))
        load_optimizer(self.optimizer, under("optimizer.", state))

        if self.scaler.is_enabled():
            scaling = self.scaler.state_dict()
            stored = under("scaler.", state)
            self.scaler.load_state_dict(
                {name: type(value)(stored[name].item()) for name, value in scaling.items()}
            )

    def reset(self, state: Mapping[str, Tensor] | None) -> None:
        """Go back to the (averaged) weights of a checkpoint, or to those before training.

        Args:
            state: what `state` returned for that checkpoint; None: before training.

        Raises:
            RuntimeError: the weights before training were not kept.
        """
        if state is not None:
            self.network.load_state(evaluated_weights(state))
        elif self.initial is not None:
            copy_into(self.network, self.initial)
        else:
            raise RuntimeError("the weights before training are kept only for the guard's rollback")

        self.average.restart()
        self.old_policy.restart()


def average_gradients(world: World, parameters: Sequence[nn.Parameter]) -> None:
    """Replace gradients by their means over the processes; those of sharded weights are such."""
    world.average_gradients([one for one in parameters if not is_sharded(one)])
    for parameter in parameters:
        if is_sharded(parameter):
            gradient_of(parameter)  # as of others, none is 0


def evaluated_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a learner's state that are evaluated: the average, if there is one."""
    return under("average.", state) or under("weights.", state)
