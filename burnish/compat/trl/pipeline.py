"""TRL's pipeline class: a diffusers pipeline with the calls that TRL's scripts make on it.

TRL's class has its own sampler and its own way to make an adapter. Burnish's loop has both, so the
methods that only TRL's trainer calls raise an error: a script's version of them would never run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.diffusion import lora
from burnish.diffusion.families import family_of
from burnish.diffusion.loading import load_pipeline
from burnish.diffusion.lora import FILE
from burnish.diffusion.policy import TARGETS, Policy

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

TRAINERS = (
    "scheduler_step",
    "get_trainable_layers",
    "save_checkpoint",
    "load_checkpoint",
    "rgb_with_grad",
    "autocast",
)
"""The methods that TRL's own trainers call."""


class DefaultDDPOStableDiffusionPipeline:
    """A Stable Diffusion pipeline to fine-tune.

    A LoRA that lies beside the model as `pytorch_lora_weights.safetensors`, where `save_pretrained`
    writes it, is loaded, and trained further.

    Args:
        pretrained_model_name: a hub id, a folder, or zoo:NAME.
        pretrained_model_revision: branch, tag or commit of a hub id.
        use_lora: train an adapter; else every weight of the network.
        rank, alpha, targets: of the adapter. Not in TRL, where they took a subclass.
        adapter: a folder with a LoRA to go on from, such as one of TRL's checkpoints. Not in TRL.

    Attributes:
        sd_pipeline: diffusers' StableDiffusionPipeline.

    Example:
        >>> pipeline = DefaultDDPOStableDiffusionPipeline("zoo:emoji-sd")  # doctest: +SKIP
        >>> pipeline(["a fox", "a crab"]).images[0].save("fox.png")  # doctest: +SKIP
    """

    def __init__(
        self,
        pretrained_model_name: str,
        *,
        pretrained_model_revision: str = "main",
        use_lora: bool = True,
        rank: int = 4,
        alpha: int = 4,
        targets: Sequence[str] = TARGETS,
        adapter: str | Path | None = None,
    ) -> None:
        from diffusers import DDIMScheduler

        self.pretrained_model = str(pretrained_model_name)
        self.pretrained_revision = pretrained_model_revision
        self.sd_pipeline: StableDiffusionPipeline = load_pipeline(
            self.pretrained_model, revision=self.revision or None
        )
        self.sd_pipeline.scheduler = DDIMScheduler.from_config(self.sd_pipeline.scheduler.config)
        self.adapter = Path(adapter) if adapter else self._adapter_beside()
        self.use_lora = use_lora or self.adapter is not None
        self.rank = rank
        self.alpha = alpha
        self.targets = list(targets)
        self.policy: Policy | None = None

        if self.adapter:
            lora.read_adapter(self.sd_pipeline, "unet", self.sd_pipeline.unet, self.adapter, "none")

    def __init_subclass__(cls) -> None:
        for name in TRAINERS:
            if name in vars(cls):
                raise TypeError(
                    f"{cls.__name__}.{name} would never be called: an adapter is set by rank, "
                    "alpha and targets, and sampling is Burnish's own; leave it out"
                )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Sample images as diffusers does: `pipeline(prompts).images`."""
        return self.sd_pipeline(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Return a part of the pipeline: unet, vae, tokenizer, text_encoder, scheduler, ..."""
        if name in TRAINERS:
            raise AttributeError(
                f"{name} belongs to TRL's own trainers; Burnish's loop does that itself"
            )
        if name == "sd_pipeline":  # it could not be loaded
            raise AttributeError(name)

        return getattr(self.sd_pipeline, name)

    @property
    def revision(self) -> str:
        """The revision to load from the hub; "" for TRL's default."""
        return "" if self.pretrained_revision == "main" else self.pretrained_revision

    @property
    def dims(self) -> int:
        """The number of scalars in a latent."""
        return math.prod(family_of(type(self.sd_pipeline).__name__).latent_shape(self.sd_pipeline))

    def to_policy(self, dtype: str, device: str) -> Policy:
        """Return this pipeline as a policy: on the device, with its adapter, in `dtype`.

        Raises:
            ValueError: it is the policy of a trainer already.
        """
        if self.policy is not None:
            raise ValueError(
                "this pipeline belongs to another trainer already; make a new one of the same model"
            )

        if self.adapter:
            self.sd_pipeline.unload_lora_weights()

        self.policy = Policy.load(
            self.sd_pipeline,
            train="lora" if self.use_lora else "full",
            rank=self.rank,
            alpha=self.alpha,
            targets=self.targets,
            dtype=dtype,
            device=device,
            adapter=self.adapter,
        )
        return self.policy

    def save_pretrained(self, output_dir: str | Path) -> None:
        """Write the whole pipeline, and beside it the LoRA that was trained.

        `StableDiffusionPipeline.from_pretrained(output_dir)` loads the model before training,
        `load_lora_weights(output_dir)` the trained adapter. After full fine-tuning the pipeline
        itself has the trained weights.
        """
        if self.policy is None:
            self._save_untrained(Path(output_dir))
            return

        # without the adapter: no loader expects its layers in a network
        without_adapter = self.policy.reference() if self.use_lora else nullcontext()
        with without_adapter, lora.without_text_layers(self.sd_pipeline):
            self.sd_pipeline.save_pretrained(output_dir)
        if self.use_lora:
            self.policy.save_adapter(output_dir)

    def _save_untrained(self, folder: Path) -> None:
        if self.adapter is None:
            self.sd_pipeline.save_pretrained(folder)
            return

        self.sd_pipeline.unload_lora_weights()
        self.sd_pipeline.save_pretrained(folder)
        (folder / FILE).write_bytes((self.adapter / FILE).read_bytes())
        lora.read_adapter(self.sd_pipeline, "unet", self.sd_pipeline.unet, self.adapter, "none")

    def _adapter_beside(self) -> Path | None:
        """Return the folder of the model's LoRA, on disk or in the hub's cache; None without."""
        folder = Path(self.pretrained_model).expanduser()
        if folder.is_dir() or self.pretrained_model.startswith("zoo:"):
            return folder if (folder / FILE).is_file() else None

        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        revision = self.revision or None
        try:
            return Path(hf_hub_download(self.pretrained_model, FILE, revision=revision)).parent
        except EntryNotFoundError:
            return None
