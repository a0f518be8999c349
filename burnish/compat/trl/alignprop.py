"""TRL 0.23.1's AlignPropConfig and AlignPropTrainer: a reward's gradient through the sampler.

An epoch is one optimizer step on b a p images: b = train_batch_size, a =
train_gradient_accumulation_steps, p processes. It is objective "latent": TRL differentiates through
the states of the chain as well, here they are constants (see `diffusion.chain`). TRL cuts the
gradient off at a call that is drawn anew at each one; here each has the weight that it has in the
mean, which rises evenly (`chain.ramp`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from burnish import catalog
from burnish import config as configuration
from burnish.compat.trl.calls import (
    Calls,
    Hook,
    NoTracker,
    PromptFunction,
    RewardFunction,
    columns,
)
from burnish.compat.trl.options import (
    LATENT,
    Options,
    option,
    refuse_shared,
    shared_differences,
)
from burnish.compat.trl.trainer import Trainer
from burnish.config import Config, Table
from burnish.training.collect import SampledImages
from burnish.types import Prompt, differentiable


@dataclass
class AlignPropConfig(Options):
    """TRL's options with TRL's defaults.

    `to_burnish` translates them; the trainer does so by itself.

    Example:
        >>> config = AlignPropConfig(truncated_backprop_rand=False, sample_num_steps=50)
        >>> config.first_call
        49
    """

    method: ClassVar[str] = "alignprop"

    train_learning_rate: float = option(1e-3, "Learning rate of AdamW.")
    negative_prompts: str | None = option(None, "The negative prompt of all images.")
    log_image_freq: int = option(1, "Epochs between two calls of the hook for images.")
    truncated_backprop_rand: bool = option(True, "Cut the gradient off at a call drawn at random.")
    truncated_backprop_timestep: int = option(
        49, "First call with a gradient, from 0, where it is not drawn."
    )
    truncated_rand_backprop_minmax: tuple[int, int] = option(
        (0, 50), "Range that this call is drawn from."
    )

    @property
    def output_dir(self) -> str:
        """The folder in which a script's last line saves the model: PROJECT_DIR/RUN_NAME-model."""
        return f"{self.folder}-model"

    @property
    def first_call(self) -> int:
        """The first call of the network, from 0, that can have a gradient."""
        if self.truncated_backprop_rand:
            return int(self.truncated_rand_backprop_minmax[0])
        return self.truncated_backprop_timestep

    def to_burnish(
        self,
        model: str,
        prompts: Table,
        rewards: Sequence[Table],
        *,
        use_lora: bool = True,
        latent: int = LATENT,
        processes: int = 1,
        **more: Any,
    ) -> Config:
        """Return the configuration that means the same.

        Args:
            model: a hub id, a folder or zoo:NAME.
            prompts: in place of the prompt function, such as {"use": "animals"}.
            rewards: in place of the reward function, such as [{"use": "aesthetic"}].
            use_lora: as in DefaultDDPOStableDiffusionPipeline.
            latent: without a meaning here.
            processes: of the run; TRL's batch sizes are those of one process.
            more: further keys of [model], such as rank.

        Raises:
            ValueError: an option that Burnish cannot follow; the message names it.
        """
        _refuse(self)
        for sentence in _differences(self):
            warnings.warn(sentence, stacklevel=2)

        images = self.train_batch_size * self.train_gradient_accumulation_steps
        return configuration.parse(
            {
                **self.tree(model, prompts, rewards, use_lora, **more),
                "advantage": {"use": "none"},
                "objective": {"use": "latent"},
                "chain": {
                    "last": self.sample_num_steps - self.first_call,
                    "ramp": self.truncated_backprop_rand,
                    "normalise": False,
                },
                "batch": {
                    "prompts": images * processes,
                    "images_per_prompt": 1,
                    "sample_batch": self.train_batch_size,
                    "train_batch": self.train_batch_size,
                    "minibatches": 1,
                },
            }
        )


def _refuse(config: AlignPropConfig) -> None:
    """Raise ValueError for an option that has no counterpart."""
    refuse_shared(config)

    for name in ("train_batch_size", "train_gradient_accumulation_steps", "log_image_freq"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} = {getattr(config, name)}; it must be at least 1")

    if not 0 <= config.first_call < config.sample_num_steps:
        name = "truncated_backprop_timestep"
        if config.truncated_backprop_rand:
            name = "truncated_rand_backprop_minmax"
        raise ValueError(
            f"{name}: the gradient begins at call {config.first_call}, and an image has "
            f"{config.sample_num_steps}, from 0 (sample_num_steps); lower it"
        )


def _differences(config: AlignPropConfig) -> list[str]:
    """Return a sentence for each option that works differently in Burnish."""
    sentences = shared_differences(config)
    high = config.truncated_rand_backprop_minmax[1]
    calls = config.sample_num_steps - config.first_call

    if calls > 1:
        sentences.append(
            "truncated_backprop_timestep, truncated_rand_backprop_minmax: the gradient goes to "
            f"the last {calls} calls, but not through the states that the network is given"
        )
    if config.truncated_backprop_rand and high < config.sample_num_steps - 1:
        sentences.append(
            f"truncated_rand_backprop_minmax: in TRL all calls from {high} on count alike; here "
            "the weight rises to the last one"
        )
    return sentences


class AlignPropCalls(Calls):
    """The functions of an AlignProp script: the reward has a gradient, the hook the last batch."""

    every = 1  # epochs between two calls of the hook

    @differentiable
    def reward(self, images: Tensor, prompts: Sequence[Prompt]) -> Any:
        """Return the rewards (B,) of a batch, with their gradient."""
        return super().reward(images, prompts)

    def show(self, sampled: SampledImages) -> None:
        """Call the hook in the main process with the images of the last batch, as TRL does."""
        if self.hook is None or sampled.rank != 0 or sampled.iteration % self.every:
            return

        last = slice(-self.batch, None)
        prompts, metadata = columns(sampled.prompts[last])
        rewards = sampled.scores.parts[last, 0]
        batch = {
            "images": sampled.images[last],
            "prompts": prompts,
            "prompt_metadata": metadata,
            "rewards": rewards.to(sampled.images.device, sampled.images.dtype),
        }
        tracker = sampled.trackers[0] if sampled.trackers else NoTracker()
        self.hook(batch, sampled.iteration, tracker)


class AlignPropTrainer(Trainer):
    """A trainer that fine-tunes a pipeline along a reward's gradient, by TRL 0.23.1's name.

    Args:
        config: the options.
        reward_function: (images (B, 3, H, W) in [0, 1], B prompts, B metadata) -> (B rewards with a
            gradient to the images, anything).
        prompt_function: () -> (prompt, metadata); called for every image.
        sd_pipeline: the pipeline to train.
        image_samples_hook: (batch, global_step, tracker), where the batch is a dict of images,
            prompts, prompt_metadata and rewards; global_step counts the epochs from 1.

    Attributes:
        config, sd_pipeline, recipe, run: as in DDPOTrainer.

    Raises:
        ValueError, TypeError, FileExistsError: one sentence that says what is wrong with an option.

    Example:
        >>> trainer = AlignPropTrainer(config, reward, prompt, pipeline)  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
    """

    config: AlignPropConfig

    def calls(self, reward: RewardFunction, prompt: PromptFunction, hook: Hook | None) -> Calls:
        """Return the script's functions as the loop calls them."""
        calls = AlignPropCalls(reward, prompt, hook, self.config.train_batch_size)
        calls.every = self.config.log_image_freq
        return calls

    def save_model(self, output_dir: str | Path) -> None:
        """Write the pipeline and its trained weights, as `save_pretrained` does."""
        self.save_pretrained(output_dir)


def aesthetic_scorer(
    hub_model_id: str = "trl-lib/ddpo-aesthetic-predictor",
    model_filename: str = "aesthetic-model.pth",
    clip: str = "openai/clip-vit-large-patch14",
) -> RewardFunction:
    """Return TRL's aesthetic reward function, on the device of the images.

    Args:
        hub_model_id: a hub id, a folder or `zoo:emoji-aesthetic`.
        model_filename: its file there.
        clip: the CLIP model that it was fitted on; not in TRL.
    """
    arguments = {"model": clip, "head": hub_model_id, "file": model_filename}
    reward: Callable[..., Tensor] = catalog.build("reward", {"use": "aesthetic", **arguments})

    def aesthetic(images: Tensor, prompts: Any, metadata: Any) -> tuple[Tensor, dict[str, Any]]:
        return reward(images, [Prompt(prompt) for prompt in prompts]), {}

    return aesthetic
