"""TRL 0.23.1's DDPOConfig: its fields and defaults, and the Burnish configuration that means the
same.

An epoch of TRL is an iteration here. With s = sample_batch_size, n = sample_num_batches_per_epoch,
b = train_batch_size, a = train_gradient_accumulation_steps, p processes and D scalars in a latent:

    batch.prompts = s n p, one image each       batch.minibatches = s n / (b a)       objective.clip = train_clip_range * D

because TRL clips the ratio of densities averaged over D, and Burnish states the same bound in nats
per image. Every
option is kept, translated, warned about or refused: nothing is dropped in silence.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from burnish import config as configuration
from burnish.config import Config, Table

LATENT = 4 * 64 * 64
"""D of Stable Diffusion at 512 pixels."""

PRECISIONS = {"no": "float32", None: "float32", "fp16": "float16", "bf16": "bfloat16"}
PROJECT_KEYS = ("project_dir", "logging_dir", "automatic_checkpoint_naming", "total_limit")


def option(default: Any, help: str, **more: Any) -> Any:
    """A field with the line that `--help` of transformers' HfArgumentParser shows."""
    return field(default=default, metadata={"help": help, **more})


# Optional, not "| None": HfArgumentParser of every version reads it
@dataclass
class DDPOConfig:
    """TRL's options with TRL's defaults; `to_burnish` translates them, and the trainer does so by
    itself.

    Example:
        >>> config = DDPOConfig(sample_batch_size=8, sample_num_batches_per_epoch=4,
        train_batch_size=4)
        >>> config.updates
        8
    """

    exp_name: str = option(
        Path(sys.argv[0]).stem if sys.argv[0].endswith(".py") else "",
        "Name of the experiment: the script's.",
    )
    run_name: str = option("", "Name of this run, and of its folder; the experiment's if empty.")
    seed: int = option(0, "Seed of all chance.")
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
    sample_eta: float = option(1.0, "Share of DDPM's noise in each DDIM move, above 0.")
    sample_guidance_scale: float = option(
        5.0, "Weight of classifier-free guidance; 1 or less: none."
    )
    sample_batch_size: int = option(1, "Images sampled at once in each process.")
    sample_num_batches_per_epoch: int = option(2, "Such batches in an epoch.")
    train_batch_size: int = option(1, "Images trained on at once in each process.")
    train_use_8bit_adam: bool = option(False, "Optimizer state in 8 bits.")
    train_learning_rate: float = option(3e-4, "Learning rate of AdamW.")
    train_adam_beta1: float = option(0.9, "Decay of Adam's first moment.")
    train_adam_beta2: float = option(0.999, "Decay of Adam's second moment.")
    train_adam_weight_decay: float = option(1e-4, "Weight decay.")
    train_adam_epsilon: float = option(1e-8, "Adam's epsilon.")
    train_gradient_accumulation_steps: int = option(1, "Training batches in an optimizer step.")
    train_max_grad_norm: float = option(1.0, "Norm that gradients are scaled down to.")
    train_num_inner_epochs: int = option(1, "Passes over an epoch's images.")
    train_cfg: bool = option(True, "Guidance while training too.")
    train_adv_clip_max: float = option(5.0, "Largest advantage.")
    train_clip_range: float = option(
        1e-4, "PPO's clip range, on densities averaged over the latent."
    )
    train_timestep_fraction: float = option(1.0, "Share of an image's moves that is trained on.")
    per_prompt_stat_tracking: bool = option(
        False, "Compare rewards with earlier ones of the same prompt."
    )
    per_prompt_stat_tracking_buffer_size: int = option(16, "Rewards remembered of each prompt.")
    per_prompt_stat_tracking_min_count: int = option(
        16, "Rewards from which on a prompt has statistics of its own."
    )
    async_reward_computation: bool = option(False, "Rewards in threads.")
    max_workers: int = option(2, "Such threads.")
    negative_prompts: str = option("", "The negative prompt of all images.")
    push_to_hub: bool = option(False, "For the script to ask; the trainer does not.")

    def to_dict(self) -> dict[str, Any]:
        """All options by name; those inside of a table as "table/name"."""
        found: dict[str, Any] = {}

        for name, value in asdict(self).items():
            found |= (
                {f"{name}/{key}": inner for key, inner in value.items()}
                if isinstance(value, dict)
                else {name: value}
            )

        return found

    @property
    def updates(self) -> int:
        """Optimizer steps in one pass over an epoch's images; ValueError if the batches do not
        divide each other.
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
        each = trained * self.train_gradient_accumulation_steps

        if images % each:
            raise ValueError(
                f"an epoch's {images} images (sample_batch_size * sample_num_batches_per_epoch) must be a multiple of "
                f"the {each} of an optimizer step (train_batch_size * train_gradient_accumulation_steps)"
            )

        return images // each

    @property
    def folder(self) -> Path:
        """The run directory: PROJECT_DIR/RUN_NAME."""
        home = self.project_kwargs.get("project_dir") or self.logdir
        return Path(home).expanduser() / (self.run_name or self.exp_name or "ddpo")

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
        """The configuration that means the same; `print(burnish.config.dump(...))` is its TOML.

        Args:
            model: a hub id, a folder or zoo:NAME.
            prompts: in place of the prompt function, such as {"use": "animals"}.
            rewards: in place of the reward function, such as [{"use": "compressibility"}].
            use_lora: as DefaultDDPOStableDiffusionPipeline was told.
            latent: D, scalars in a latent: 16384 for Stable Diffusion at 512 pixels.
            processes: of the run; TRL's batch sizes are those of one.
            more: further keys of [model], such as rank.

        Warns about what is done differently; raises ValueError, a sentence, for what cannot be
        done.
        """
        self._refuse()
        for remark in self._remarks():
            warnings.warn(remark, stacklevel=2)

        train = {"train": "lora" if use_lora else "full", "dtype": PRECISIONS[self.mixed_precision]}
        device = {"device": "cpu"} if self.accelerator_kwargs.get("cpu") else {}
        return configuration.parse(
            {
                "seed": self.seed,
                "iterations": self.num_epochs,
                "model": {"id": model, **train, **device, **more},
                "sampler": self._sampler(),
                "prompts": prompts,
                "rewards": list(rewards),
                "advantage": self._advantage(),
                "objective": {"use": "clipped", "clip": self.train_clip_range * latent},
                "optimizer": self._optimizer(),
                "batch": self._batch(processes),
                "evaluation": {"images_per_prompt": 0},  # TRL has none; nor sample grids
                "run": self._keeping(),
            }
        )

    def _sampler(self) -> Table:
        guidance: Table = {"use": "none"}
        if self.sample_guidance_scale > 1:
            guidance = {"use": "cfg", "weight": self.sample_guidance_scale}
            if negative := self._negative():
                guidance["negative"] = negative

        return {
            "steps": self.sample_num_steps,
            "kernel": {"use": "ddim", "eta": self.sample_eta},
            "guidance": guidance,
        }

    def _advantage(self) -> Table:
        buffer = self.per_prompt_stat_tracking_buffer_size
        least = self.per_prompt_stat_tracking_min_count

        if self.per_prompt_stat_tracking and least <= buffer:
            return {
                "use": "tracker",
                "buffer": buffer,
                "min_count": least,
                "clip": self.train_adv_clip_max,
            }

        return {"use": "batch", "clip": self.train_adv_clip_max}

    def _optimizer(self) -> Table:
        return {
            "lr": self.train_learning_rate,
            "betas": [self.train_adam_beta1, self.train_adam_beta2],
            "weight_decay": self.train_adam_weight_decay,
            "eps": self.train_adam_epsilon,
            "eight_bit": self.train_use_8bit_adam,
            "max_grad_norm": self.train_max_grad_norm,
        }

    def _batch(self, processes: int) -> Table:
        moves = int(self.sample_num_steps * self.train_timestep_fraction)
        return {
            "prompts": self.sample_batch_size * self.sample_num_batches_per_epoch * processes,
            "images_per_prompt": 1,
            "sample_batch": self.sample_batch_size,
            "train_batch": self.train_batch_size,
            "minibatches": self.updates,
            "epochs": self.train_num_inner_epochs,
            "transitions": 0 if moves == self.sample_num_steps else moves,
        }

    def _keeping(self) -> Table:
        return {
            "checkpoint_every": self.save_freq,
            "keep": self.project_kwargs.get("total_limit") or self.num_checkpoint_limit,
            "sample_every": 0,
            "trackers": [self.log_with] if self.log_with else [],
            "tracker_project": self.tracker_project_name,
            "tracker_folder": str(self.project_kwargs.get("logging_dir") or ""),
            "tracker_options": _plain(self.tracker_kwargs),
        }

    def _negative(self) -> str:
        given: Any = self.negative_prompts or ""  # TRL also takes None, and a list of one
        return given if isinstance(given, str) else str(given[0])

    def _refuse(self) -> None:
        """ValueError for what has no counterpart."""
        if self.mixed_precision not in PRECISIONS:
            raise ValueError(
                f'mixed_precision = "{self.mixed_precision}"; it must be "fp16", "bf16" or "no"'
            )
        if (
            not 0 < self.train_timestep_fraction <= 1
            or self.sample_num_steps * self.train_timestep_fraction < 1
        ):
            raise ValueError(
                f"train_timestep_fraction = {self.train_timestep_fraction} of {self.sample_num_steps} steps leaves no "
                "move to train on, or more than there are; it must be between 1 / sample_num_steps and 1"
            )
        if not self.train_cfg and self.sample_guidance_scale > 1:
            raise ValueError(
                "train_cfg = False trains another distribution than the guided one that is sampled, so that the ratio "
                "is not 1 before the first update; leave it True, or sample without guidance: sample_guidance_scale = 1"
            )
        if not isinstance(self.negative_prompts or "", str) and len(self.negative_prompts) > 1:
            raise ValueError("negative_prompts has several texts; give one, which all images share")

        for table, known in (("accelerator_kwargs", ("cpu",)), ("project_kwargs", PROJECT_KEYS)):
            for key in getattr(self, table).keys() - set(known):
                raise ValueError(
                    f'{table}: "{key}" means nothing here; accepted: {", ".join(known)}'
                )

    def _remarks(self) -> list[str]:
        """A sentence for each option that is set and done differently."""
        buffer = self.per_prompt_stat_tracking_buffer_size
        least = self.per_prompt_stat_tracking_min_count
        weight = self.sample_guidance_scale
        asks = self.async_reward_computation
        remarks = (
            (
                asks and self.max_workers > 1,
                "max_workers: one thread computes the rewards, batch after batch, while the next images are sampled",
            ),
            (
                weight < 1 and self.train_cfg,
                f"sample_guidance_scale = {weight}: TRL samples without guidance below 1 but trains with it; here none",
            ),
            (
                weight <= 1 and bool(self._negative()),
                "negative_prompts: without guidance they have no effect",
            ),
            (
                self.per_prompt_stat_tracking and least > buffer,
                f"per_prompt_stat_tracking: no prompt ever has {least} of at most {buffer} rewards, so all are "
                "compared with the whole epoch, as in TRL",
            ),
        )

        return [sentence for holds, sentence in remarks if holds]


_COUNTS = (
    "sample_batch_size",
    "sample_num_batches_per_epoch",
    "train_batch_size",
    "train_gradient_accumulation_steps",
)


def _plain(table: Mapping[str, Any]) -> Table:
    """A tracker's arguments as TOML can hold them; None means the tracker's own default."""
    result: Table = {}

    for key, value in table.items():
        if isinstance(value, Mapping):
            result[str(key)] = _plain(value)
        elif isinstance(value, (str, int, float, bool)) or _texts(value):
            result[str(key)] = list(value) if isinstance(value, tuple) else value
        elif value is not None:
            raise ValueError(
                f"tracker_kwargs: {key} is a {type(value).__name__}; only texts, numbers, lists and tables can be "
                "written into a run's configuration"
            )

    return result


def _texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(item, (str, int, float)) for item in value
    )
