"""Learners: generator, identifiers, prompt expander, or anything else that has their methods.

A learner owns its weights, its optimizer, the moving average of its weights and a copy of them as
they were before training. The loop only has it learn from a batch, give and take its state, lend
its averaged weights, go back, and export itself. So something new that learns is one class, and the
loop stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from burnish.config import Config
from burnish.prompts import identifiers
from burnish.prompts.expander import Expander
from burnish.prompts.identifier_embeddings import IdentifierEmbeddings
from burnish.stages import stage
from burnish.training.assembly import Parts
from burnish.training.batch import Credit, RolloutBatch
from burnish.training.expansion import expander_metrics, expander_update, text_advantages
from burnish.training.optimizer import adamw
from burnish.training.updates import GeneratorUpdates
from burnish.training.weights import WeightUpdater
from burnish.world import World


class Learner(Protocol):
    """Something that learns from the images of an iteration.

    With several processes each has a learner of its own, which sees its share of the images: it
    must average gradients by itself (torch.distributed). The main process's state is saved.
    """

    def learn(self, batch: RolloutBatch, credit: Credit) -> Mapping[str, Any]:
        """Learn from one process's images; return numbers for the record.

        Args:
            batch: the images of an iteration, sampled and scored.
            credit: the advantages of these images.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """Return everything that a checkpoint needs, as tensors on the CPU by name."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned.

        Args:
            state: from a checkpoint; {} if this learner returned none.

        Raises:
            ValueError: it does not fit; nothing has changed then.
        """
        return None

    def averaged(self) -> AbstractContextManager[None]:
        """Return a context in which the weights are their moving average, if there is one."""
        return nullcontext()

    def sampling(self) -> AbstractContextManager[None]:
        """Return a context in which the weights are those that sample an iteration's images."""
        return nullcontext()

    def reset(self, state: Mapping[str, Tensor] | None) -> None:
        """Go back to the (averaged) weights of a checkpoint, or to those before training.

        Args:
            state: what `state` returned for that checkpoint; None: before training.
        """
        return None

    def export(self, folder: Path) -> None:
        """Write the weights in a format that other programs read.

        Args:
            folder: RUN/adapter, shared by all learners.
        """
        return None


class UpdaterLearner(Learner):
    """A learner whose weights, optimizer and moving average are those of a `WeightUpdater`."""

    weights: WeightUpdater

    def state(self) -> dict[str, Tensor]:
        """Return everything that a checkpoint needs; {} where nothing is trained."""
        return self.weights.state() if self.weights.network.trainable else {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        if self.weights.network.trainable:
            self.weights.load_state(state)

    def averaged(self) -> AbstractContextManager[None]:
        """Return a context in which the network has its averaged weights, if there are any."""
        return self.weights.average.applied()

    def sampling(self) -> AbstractContextManager[None]:
        """Return a context in which the network has the weights of the old policy."""
        return self.weights.old_policy.applied()

    def reset(self, state: Mapping[str, Tensor] | None) -> None:
        """Go back to the weights of a checkpoint, or to those before training."""
        if self.weights.network.trainable:
            self.weights.reset(state)


class GeneratorLearner(UpdaterLearner):
    """The image generator: its updates are those of the configured objective."""

    def __init__(self, config: Config, world: World, parts: Parts) -> None:
        self.policy = parts.policy
        has_tokens = config.sampler.identifiers == "tokens" and parts.embeddings is None
        self.identifiers = len(parts.rewards) if has_tokens else 0

        # half-precision gradients of a log-density averaged over 16384 dimensions would vanish
        half = config.model.dtype == "float16"
        scaler = torch.amp.GradScaler(parts.policy.device.type, enabled=half)
        optimizer = adamw(config.optimizer)(parts.policy.trainable)
        self.weights = WeightUpdater(parts.policy, config, optimizer, scaler, config.old_policy)
        self.updates = GeneratorUpdates(config, world, parts, self.weights)

    def learn(self, batch: RolloutBatch, credit: Credit) -> dict[str, Any]:
        """Take the optimizer steps of an iteration; return the means of what they measured."""
        steps = self.updates.config.batch.minibatches * self.updates.config.batch.epochs
        with stage("training", f"{steps} optimizer steps", steps, routine=True):
            metrics = self.updates.run(batch, credit)

        self.weights.old_policy.step(batch.iteration)
        return metrics

    def export(self, folder: Path) -> None:
        """Write the LoRA (or network) in diffusers' format, and tokens that do not learn."""
        if self.policy.train != "none":
            self.policy.save_adapter(folder)
        if self.identifiers:
            identifiers.save_tokens(self.policy.pipe, self.identifiers, folder / "identifiers")


class IdentifierLearner(UpdaterLearner):
    """The identifiers' embeddings: one step an iteration, after the generator's.

    Its gradient is that of all the generator's updates of the iteration together.
    """

    def __init__(self, config: Config, world: World, embeddings: IdentifierEmbeddings) -> None:
        self.world = world
        self.embeddings = embeddings
        settings = replace(config.optimizer, lr=config.sampler.identifiers_lr)
        self.weights = WeightUpdater(embeddings, config, adamw(settings)(embeddings.trainable))

    def learn(self, batch: RolloutBatch, credit: Credit) -> dict[str, Any]:
        """Take one optimizer step, if the generator's loss depends on the texts."""
        gradients = self.embeddings.gradients.take()
        if not self.world.any(bool(gradients)):
            return {}

        self.embeddings.add_gradient(gradients)
        norm = self.weights.step(
            self.world,
            "the identifiers' gradient is not finite any more; start again with a lower "
            "sampler.identifiers_lr or optimizer.lr",
        )
        return {"grad_norm": norm, "distance": self.embeddings.distance()}

    def export(self, folder: Path) -> None:
        """Write the embeddings as textual inversions for diffusers into `folder/identifiers`."""
        self.embeddings.save(folder / "identifiers")


class ExpanderLearner(UpdaterLearner):
    """The prompt expander: one optimizer step on its texts in each iteration."""

    def __init__(self, config: Config, world: World, expander: Expander) -> None:
        self.config = config
        self.world = world
        self.expander = expander
        settings = replace(config.optimizer, lr=config.expander.lr)
        self.weights = WeightUpdater(expander, config, adamw(settings)(expander.trainable))

    def learn(self, batch: RolloutBatch, credit: Credit) -> dict[str, Any]:
        """Take one optimizer step on an iteration's texts; return what was measured of them."""
        drawn = batch.expansions
        if drawn is None:
            return {}

        metrics = expander_metrics(drawn)
        adv = text_advantages(credit.advantages, credit.valid, credit.group, len(drawn.prompts))
        useful = bool(adv.any()) or self.config.expander.kl > 0
        if not (self.expander.trainable and self.world.any(useful)):
            return metrics

        metrics |= expander_update(self.expander, drawn, adv, self.config)
        norm = self.weights.step(
            self.world,
            "the expander's gradient is not finite any more; start again with a lower expander.lr",
        )
        return metrics | {"grad_norm": norm}

    def export(self, folder: Path) -> None:
        """Write the adapter (or model) for peft and transformers into `folder/expander`."""
        self.expander.save(folder / "expander")


@contextmanager
def averaged(learners: Mapping[str, Learner]) -> Iterator[None]:
    """Return a context in which all learners have their averaged weights, if there are any."""
    with ExitStack() as stack:
        for learner in learners.values():
            stack.enter_context(learner.averaged())
        yield


@contextmanager
def sampling(learners: Mapping[str, Learner]) -> Iterator[None]:
    """Return a context in which all learners have the weights that sample an iteration."""
    with ExitStack() as stack:
        for learner in learners.values():
            stack.enter_context(learner.sampling())
        yield
