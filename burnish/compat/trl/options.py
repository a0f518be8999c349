"""TRL 0.23.1's DDPOConfig: its fields and defaults, translated into a Burnish configuration.

An epoch of TRL is an iteration here. With s = sample_batch_size, n = sample_num_batches_per_epoch,
b = train_batch_size, a = train_gradient_accumulation_steps, p processes and D scalars in a latent:

    batch.prompts = s n p, one image each
    batch.minibatches = s n / (b a)
    objective.clip = train_clip_range * D

because TRL clips the ratio of densities averaged over D, and Burnish states the same bound in nats
per image. Every option is kept, translated, warned about or refused: nothing is dropped in silence.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from burnish import config as configuration
from burnish.config import Config, Table

LATENT = 4 * 64 * 64
"""D of Stable Diffusion at 512 pixels."""

PRECISIONS = {
    "no": "float32",
    "none": "float32",
    None: "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
}
PROJECT_KEYS = ("project_dir", "logging_dir", "automatic_checkpoint_naming", "total_limit")


def option(default: Any, help: str, **more: Any) -> Any:
    """Return a field with its line of help for transformers' HfArgumentParser."""
    return field(default=default, metadata={"help": help, **more})


# Optional, not "| None": HfArgumentParser of every version reads it
@dataclass
class Options:
    """The options that TRL's trainers for diffusion models have in common, with TRL's defaults."""

    method: ClassVar[str] = ""

    exp_name: str = option(
        Path(sys.argv[0]).stem if sys.argv[0].endswith(".py") else "",
        "Name of the experiment: the script's.",
    )
    run_name: str = option("", "Name of this run, and of its folder; the experiment's if empty.")
    seed: int = option(0, "Seed of all random numbers.")
    log_with: str | None = option(None, "Where curves are sent.", choices=["wandb", "tensorboard"])
    tracker_kwargs: dict = field(
        default_factory=dict,
        metadata={"help": "Arguments for the start of each tracker, by its name."},
    )
    accelerator_kwargs: dict = field(
        default_factory=dict, metadata={"help": "Only cpu=True is understood: train without a GPU."}
    )
    project_kwargs: dict = field(
        default_factory=dict,
        metadata={"help": "Folders: project_dir, logging_dir, total_limit (of checkpoints)."},
    )
    tracker_project_name: str = option("trl", "Project under which trackers file the run.")
    logdir: str = option("logs", "Folder of the runs, unless project_kwargs has a project_dir.")
    num_epochs: int = option(100, "Rounds of sampling and training.")
    save_freq: int = option(1, "Epochs between checkpoints.")
    num_checkpoint_limit: int = option(5, "Newest checkpoints that are kept.")
    mixed_precision: str = option(
        "fp16", "Precision of frozen weights and arithmetic: fp16, bf16 or no."
    )
    allow_tf32: bool = option(True, "Multiply float32 matrices in TF32 where the GPU can.")
    resume_from: str = option("", "Folder of a run to go on with.")
    sample_num_steps: int = option(50, "Network calls an image.")
    sample_eta: float = option(1.0, "Fraction of DDPM's noise in each DDIM transition, above 0.")
    sample_guidance_scale: float = option(
        5.0, "Weight of classifier-free guidance; 1 or less: none."
    )
    train_batch_size: int = option(1, "Images trained on at once in each process.")
    train_use_8bit_adam: bool = option(False, "Optimizer state in 8 bits.")
    train_learning_rate: float = option(3e-4, "Learning rate of AdamW.")
    train_adam_beta1: float = option(0.9, "Decay of Adam's first moment.")
    train_adam_beta2: float = option(0.999, "Decay of Adam's second moment.")
    train_adam_weight_decay: float = option(1e-4, "Weight decay.")
    train_adam_epsilon: float = option(1e-8, "Adam's epsilon.")
    train_gradient_accumulation_steps: int = option(1, "Training batches in an optimizer step.")
    train_max_grad_norm: float = option(1.0, "Norm that gradients are scaled down to.")
    negative_prompts: str | None = option("", "The negative prompt of all images.")
    push_to_hub: bool = option(False, "Only for the script's own use; the trainer ignores it.")

    def to_dict(self) -> dict[str, Any]:
        """Return all options by name; those inside a table as "table/name"."""
        options: dict[str, Any] = {}

        for name, value in asdict(self).items():
            if isinstance(value, dict):
                options |= {f"{name}/{key}": inner for key, inner in value.items()}
            else:
                options[name] = value

        return options

    @property
    def folder(self) -> Path:
        """The run directory: PROJECT_DIR/RUN_NAME."""
        parent = self.project_kwargs.get("project_dir") or self.logdir
        return Path(parent).expanduser() / (self.run_name or self.exp_name or self.method)

    def tree(
        self, model: str, prompts: Table, rewards: Sequence[Table], use_lora: bool, **more: Any
    ) -> dict[str, Any]:
        """Return the part of the configuration that does not depend on how is learned.

        Args:
            model: a hub id, a folder or zoo:NAME.
            prompts: a prompt source.
            rewards: at least one.
            use_lora: train an adapter.
            more: further keys of [model].
        """
        train = {"train": "lora" if use_lora else "full", "dtype": PRECISIONS[self.mixed_precision]}
        device = {"device": "cpu"} if self.accelerator_kwargs.get("cpu") else {}
        return {
            "seed": self.seed,
            "iterations": self.num_epochs,
            "model": {"id": model, **train, **device, **more},
            "sampler": _sampler(self),
            "prompts": prompts,
            "rewards": list(rewards),
            "optimizer": _optimizer(self),
            "evaluation": {"images_per_prompt": 0},  # TRL has none; nor sample grids
            "run": _run(self),
        }

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
        """Return the configuration that means the same, see the methods' own."""
        raise NotImplementedError


@dataclass
class DDPOConfig(Options):
    """TRL's options with TRL's defaults.

    `to_burnish` translates them; the trainer does so by itself.

    Example:
        >>> batches = {"sample_num_batches_per_epoch": 4, "train_batch_size": 4}
        >>> DDPOConfig(sample_batch_size=8, **batches).updates
        8
    """

    method: ClassVar[str] = "ddpo"

    sample_batch_size: int = option(1, "Images sampled at once in each process.")
    sample_num_batches_per_epoch: int = option(2, "Sampling batches in an epoch.")
    train_num_inner_epochs: int = option(1, "Passes over an epoch's images.")
    train_cfg: bool = option(True, "Guidance while training too.")
    train_adv_clip_max: float = option(5.0, "Largest advantage.")
    train_clip_range: float = option(
        1e-4, "PPO's clip range, on densities averaged over the latent."
    )
    train_timestep_fraction: float = option(
        1.0, "Fraction of an image's transitions that is trained on."
    )
    per_prompt_stat_tracking: bool = option(
        False, "Compare rewards with earlier ones of the same prompt."
    )
    per_prompt_stat_tracking_buffer_size: int = option(
        16, "Latest rewards of each prompt that are kept."
    )
    per_prompt_stat_tracking_min_count: int = option(
        16, "Rewards that a prompt needs for statistics of its own."
    )
    async_reward_computation: bool = option(False, "Compute rewards in threads.")
    max_workers: int = option(2, "Threads for rewards.")

    @property
    def updates(self) -> int:
        """Optimizer steps in one pass over an epoch's images.

        Raises:
            ValueError: the batches do not divide each other.
        """
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; it must be at least 1")

        sampled = self.sample_batch_size
        trained = self.train_batch_size

        if sampled % trained:
            raise ValueError(
                f"sample_batch_size = {sampled} must be a multiple of train_batch_size = {trained}"
            )

        images = sampled * self.sample_num_batches_per_epoch
        per_step = trained * self.train_gradient_accumulation_steps

        if images % per_step:
            raise ValueError(
                f"an epoch's {images} images (sample_batch_size * sample_num_batches_per_epoch) "
                f"must be a multiple of the {per_step} of an optimizer step "
                "(train_batch_size * train_gradient_accumulation_steps)"
            )

        return images // per_step

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

        `print(burnish.config.dump(...))` shows its TOML. Options that work differently in Burnish
        give a warning.

        Args:
            model: a hub id, a folder or zoo:NAME.
            prompts: in place of the prompt function, such as {"use": "animals"}.
            rewards: in place of the reward function, such as [{"use": "compressibility"}].
            use_lora: as in DefaultDDPOStableDiffusionPipeline.
            latent: D, scalars in a latent: 16384 for Stable Diffusion at 512 pixels.
            processes: of the run; TRL's batch sizes are those of one process.
            more: further keys of [model], such as rank.

        Raises:
            ValueError: an option that Burnish cannot follow; the message names it.
        """
        _refuse(self)
        for sentence in _differences(self):
            warnings.warn(sentence, stacklevel=2)

        return configuration.parse(
            {
                **self.tree(model, prompts, rewards, use_lora, **more),
                "advantage": _advantage(self),
                "objective": {"use": "clipped", "clip": self.train_clip_range * latent},
                "batch": _batch(self, processes),
            }
        )


_COUNTS = (
    "sample_batch_size",
    "sample_num_batches_per_epoch",
    "train_batch_size",
    "train_gradient_accumulation_steps",
)


def _sampler(config: Options) -> Table:
    guidance: Table = {"use": "none"}

    if config.sample_guidance_scale > 1:
        guidance = {"use": "cfg", "weight": config.sample_guidance_scale}
        if negative := _negative(config):
            guidance["negative"] = negative

    return {
        "steps": config.sample_num_steps,
        "kernel": {"use": "ddim", "eta": config.sample_eta},
        "guidance": guidance,
    }


def _advantage(config: DDPOConfig) -> Table:
    buffer = config.per_prompt_stat_tracking_buffer_size
    min_count = config.per_prompt_stat_tracking_min_count
    clip = config.train_adv_clip_max

    if config.per_prompt_stat_tracking and min_count <= buffer:
        return {"use": "tracker", "buffer": buffer, "min_count": min_count, "clip": clip}
    return {"use": "batch", "clip": clip}


def _optimizer(config: Options) -> Table:
    return {
        "lr": config.train_learning_rate,
        "betas": [config.train_adam_beta1, config.train_adam_beta2],
        "weight_decay": config.train_adam_weight_decay,
        "eps": config.train_adam_epsilon,
        "eight_bit": config.train_use_8bit_adam,
        "max_grad_norm": config.train_max_grad_norm,
    }


def _batch(config: DDPOConfig, processes: int) -> Table:
    transitions = int(config.sample_num_steps * config.train_timestep_fraction)
    return {
        "prompts": config.sample_batch_size * config.sample_num_batches_per_epoch * processes,
        "images_per_prompt": 1,
        "sample_batch": config.sample_batch_size,
        "train_batch": config.train_batch_size,
        "minibatches": config.updates,
        "epochs": config.train_num_inner_epochs,
        "transitions": 0 if transitions == config.sample_num_steps else transitions,
    }


def _run(config: Options) -> Table:
    return {
        "checkpoint_every": config.save_freq,
        "keep": config.project_kwargs.get("total_limit") or config.num_checkpoint_limit,
        "sample_every": 0,
        "trackers": [config.log_with] if config.log_with else [],
        "tracker_project": config.tracker_project_name,
        "tracker_folder": str(config.project_kwargs.get("logging_dir") or ""),
        "tracker_options": _toml_table(config.tracker_kwargs),
    }


def _negative(config: Options) -> str:
    """Return the negative prompt; TRL also takes None, and a list of one."""
    given: Any = config.negative_prompts or ""
    return given if isinstance(given, str) else str(given[0])


def refuse_shared(config: Options) -> None:
    """Raise ValueError for an option of all trainers that has no counterpart."""
    if config.mixed_precision not in PRECISIONS:
        raise ValueError(
            f'mixed_precision = "{config.mixed_precision}"; it must be "fp16", "bf16" or "no"'
        )
    negative: Any = config.negative_prompts or ""
    if not isinstance(negative, str) and len(negative) > 1:
        raise ValueError("negative_prompts has several texts; give one, which all images share")

    for table, known in (("accelerator_kwargs", ("cpu",)), ("project_kwargs", PROJECT_KEYS)):
        for key in getattr(config, table).keys() - set(known):
            raise ValueError(f'{table}: "{key}" means nothing here; accepted: {", ".join(known)}')


def _refuse(config: DDPOConfig) -> None:
    """Raise ValueError for an option that has no counterpart."""
    refuse_shared(config)
    fraction = config.train_timestep_fraction
    if not 0 < fraction <= 1 or config.sample_num_steps * fraction < 1:
        raise ValueError(
            f"train_timestep_fraction = {fraction} of {config.sample_num_steps} steps leaves no "
            "transition to train on, or more than there are; it must be between "
            "1 / sample_num_steps and 1"
        )

    if not config.train_cfg and config.sample_guidance_scale > 1:
        raise ValueError(
            "train_cfg = False trains another distribution than the guided one that is sampled, "
            "so that the ratio is not 1 before the first update; leave it True, "
            "or sample without guidance: sample_guidance_scale = 1"
        )


def shared_differences(config: Options) -> list[str]:
    """Return a sentence for each option of all trainers that works differently in Burnish."""
    if config.sample_guidance_scale <= 1 and _negative(config):
        return ["negative_prompts: without guidance they have no effect"]
    return []


def _differences(config: DDPOConfig) -> list[str]:
    """Return a sentence for each option that is set and works differently in Burnish."""
    buffer = config.per_prompt_stat_tracking_buffer_size
    min_count = config.per_prompt_stat_tracking_min_count
    weight = config.sample_guidance_scale
    sentences = shared_differences(config)

    if config.async_reward_computation and config.max_workers > 1:
        sentences.append(
            "max_workers: one thread computes the rewards, batch after batch, "
            "while the next images are sampled"
        )
    if weight < 1 and config.train_cfg:
        sentences.append(
            f"sample_guidance_scale = {weight}: TRL samples without guidance below 1 "
            "but trains with it; here none"
        )
    if config.per_prompt_stat_tracking and min_count > buffer:
        sentences.append(
            f"per_prompt_stat_tracking: no prompt ever has {min_count} of at most {buffer} "
            "rewards, so all are compared with the whole epoch, as in TRL"
        )

    return sentences


def _toml_table(table: Mapping[str, Any]) -> Table:
    """Return a tracker's arguments as TOML can hold them; None is the tracker's own default."""
    result: Table = {}

    for key, value in table.items():
        if isinstance(value, Mapping):
            result[str(key)] = _toml_table(value)
        elif isinstance(value, (str, int, float, bool)) or _is_flat_list(value):
            result[str(key)] = list(value) if isinstance(value, tuple) else value
        elif value is not None:
            raise ValueError(
                f"tracker_kwargs: {key} is a {type(value).__name__}; only texts, numbers, lists "
                "and tables can be written into a run's configuration"
            )

    return result


def _is_flat_list(value: Any) -> bool:
    """Return whether the value is a list of texts and numbers."""
    return isinstance(value, (list, tuple)) and all(
        isinstance(item, (str, int, float)) for item in value
    )
