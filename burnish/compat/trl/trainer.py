"""TRL's trainers on Burnish's loop.

It translates the options, gives the loop the user's functions, and calls `burnish.train`.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from burnish.catalog import IN_MEMORY
from burnish.compat.trl.calls import Calls, Hook, PromptFunction, RewardFunction
from burnish.compat.trl.options import DDPOConfig, Options
from burnish.compat.trl.pipeline import DefaultDDPOStableDiffusionPipeline
from burnish.config import Config
from burnish.files import write
from burnish.runs import Run
from burnish.seeds import seed_globals
from burnish.training import loop
from burnish.training.assembly import Overrides
from burnish.training.optimizer import adamw

LOOP = (
    "step",
    "loss",
    "calculate_loss",
    "compute_rewards",
    "_generate_samples",
    "_train_batched_samples",
)
"""Methods in which TRL's trainer has its loop."""


class Trainer:
    """The trainer of an `Options`: it differs in how the loop calls a script's functions."""

    def __init__(
        self,
        config: Options,
        reward_function: RewardFunction,
        prompt_function: PromptFunction,
        sd_pipeline: DefaultDDPOStableDiffusionPipeline,
        image_samples_hook: Hook | None = None,
    ) -> None:
        if not isinstance(sd_pipeline, DefaultDDPOStableDiffusionPipeline):
            raise TypeError(
                f"sd_pipeline is a {type(sd_pipeline).__name__}; give a "
                "DefaultDDPOStableDiffusionPipeline of burnish.compat.trl, made from the model's "
                "name or folder"
            )

        self.config = config
        self.sd_pipeline = sd_pipeline
        self._calls = self.calls(reward_function, prompt_function, image_samples_hook)
        self.recipe = translated(config, sd_pipeline, self._calls.name)
        self.run = resumed(config.resume_from) if config.resume_from else fresh(config.folder)
        self._epochs = 0  # of earlier calls of `train`

        if config.allow_tf32 and torch.cuda.is_available():
            torch.set_float32_matmul_precision("high")

        seed_globals(config.seed, "weights")
        self._policy = sd_pipeline.to_policy(self.recipe.model.dtype, self.recipe.model.device)

    def __init_subclass__(cls) -> None:
        for name in LOOP:
            if name in vars(cls):
                raise TypeError(
                    f"{cls.__name__}.{name} would never be called, because the loop is "
                    "burnish.train; write an objective or an advantage instead (docs/from-trl.md)"
                )

    def calls(self, reward: RewardFunction, prompt: PromptFunction, hook: Hook | None) -> Calls:
        """Return the script's functions as the loop calls them."""
        raise NotImplementedError

    def train(self, epochs: int | None = None) -> Path:
        """Train until `epochs` are done, and return the run directory.

        Args:
            epochs: by default num_epochs. Those of a resumed run count too; another call trains as
                many more.
        """
        resume = bool(self.config.resume_from) or (self._epochs > 0 and self.run.exists())
        self._epochs += self.config.num_epochs if epochs is None else epochs
        recipe = replace(self.recipe, iterations=self._epochs)

        calls = self._calls
        overrides = Overrides(self._policy, {calls.name: calls.reward}, calls.draw)
        on_images = calls.show if calls.hook else None

        loop.train(recipe, self.run.folder, resume=resume, overrides=overrides, on_images=on_images)

        return self.run.folder

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write the pipeline and its trained weights.

        See DefaultDDPOStableDiffusionPipeline.save_pretrained.
        """
        if main_process():
            self.sd_pipeline.save_pretrained(save_directory)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Fine-tuned with Burnish",
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload the files of `save_pretrained`, with a model card, to huggingface.co.

        It needs a login (`hf auth login`) or a `token`. Call it in one process only.

        Returns:
            The commit's address.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id

        if branch:
            api.create_branch(repo, branch=branch, exist_ok=True)

        with tempfile.TemporaryDirectory() as folder:
            self.sd_pipeline.save_pretrained(folder)
            write(Path(folder) / "README.md", card(repo, self.sd_pipeline))
            commit = api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                commit_message=commit_message,
                revision=branch,
                create_pr=create_pr,
            )

        return str(commit.commit_url)


class DDPOTrainer(Trainer):
    """A trainer that fine-tunes a pipeline as TRL 0.23.1's trainer of this name does.

    Args:
        config: the options.
        reward_function: (images (B, 3, H, W) in [0, 1], B prompts, B metadata) -> (B rewards,
            anything).
        prompt_function: () -> (prompt, metadata); called for every image.
        sd_pipeline: the pipeline to train.
        image_samples_hook: (batches, global_step, tracker), where a batch is [images, prompts,
            metadata, rewards, the reward function's second answer]; global_step counts the epochs
            that are done, as the trackers do.

    Attributes:
        config, sd_pipeline: as given.
        recipe: the Burnish configuration that the options mean.
        run: the run directory: checkpoints, log.jsonl, the adapter; `burnish report` shows it.

    Raises:
        ValueError, TypeError, FileExistsError: one sentence that says what is wrong with an option.

    Example:
        >>> config = DDPOConfig(mixed_precision="no")
        >>> trainer = DDPOTrainer(config, reward, prompt, pipeline)  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
        >>> trainer.save_pretrained("finetuned")  # doctest: +SKIP
    """

    config: DDPOConfig

    def calls(self, reward: RewardFunction, prompt: PromptFunction, hook: Hook | None) -> Calls:
        """Return the script's functions as the loop calls them."""
        return Calls(reward, prompt, hook, self.config.sample_batch_size)


def translated(
    config: Options, pipeline: DefaultDDPOStableDiffusionPipeline, reward: str
) -> Config:
    """Return the options as a Burnish configuration for this pipeline.

    The names of in-memory objects stand for the script's functions.
    """
    recipe = config.to_burnish(
        pipeline.pretrained_model,
        {"use": IN_MEMORY},
        [{"use": IN_MEMORY, "name": reward}],
        use_lora=pipeline.use_lora,
        latent=pipeline.dims,
        processes=int(os.environ.get("WORLD_SIZE", "1")),
        rank=pipeline.rank,
        alpha=pipeline.alpha,
        targets=pipeline.targets,
        revision=pipeline.revision,
        adapter=str(pipeline.adapter or ""),
    )

    on_cpu = recipe.model.device == "cpu" or not torch.cuda.is_available()
    if recipe.model.dtype == "float16" and on_cpu:
        raise ValueError(
            'mixed_precision = "fp16", TRL\'s default, needs a GPU; set mixed_precision = "no"'
        )

    adamw(recipe.optimizer)  # raises if the library for 8 bits is missing
    return recipe


def main_process() -> bool:
    """Return whether this process prints and writes for all that were launched together."""
    return os.environ.get("RANK", "0") == "0"


def fresh(folder: Path) -> Run:
    """Return a new run in the folder.

    Raises:
        FileExistsError: there is a run already.
    """
    if main_process() and Run(folder).exists():
        raise FileExistsError(
            f'{folder} already holds a run; go on with it by resume_from = "{folder}", '
            "or set another run_name"
        )
    return Run(folder)


def resumed(path: str) -> Run:
    """Return the run that resume_from names by its folder or by its newest checkpoint.

    Raises:
        ValueError: it names an older checkpoint, or a checkpoint of TRL.
        FileNotFoundError: there is no run.
    """
    given = Path(path).expanduser()
    candidates = (given, *given.parents[:2])
    run = next((Run(folder) for folder in candidates if Run(folder).exists()), None)

    if run is not None:
        newest = max((folder.name for folder in run.checkpoints.glob("[0-9]*")), default="")
        if given.parent == run.checkpoints and given.name != newest:
            raise ValueError(
                f"resume_from: a run goes on from its newest checkpoint, {newest}; "
                f"to go back to {given.name}, delete the later ones in {given.parent}"
            )

        return run

    if "checkpoint_" in given.name or any(given.glob("**/checkpoint_*")):
        raise ValueError(
            f"resume_from: {given} is TRL's, and its optimizer and random state are pickles, which "
            "Burnish does not read; start from its weights: "
            'DefaultDDPOStableDiffusionPipeline(..., adapter="FOLDER OF THE CHECKPOINT")'
        )

    raise FileNotFoundError(
        f"resume_from: {given} holds no run; give the folder that an earlier `train` returned"
    )


def card(repo: str, pipeline: DefaultDDPOStableDiffusionPipeline) -> str:
    """Return a model card: the metadata that the hub sorts by, and how to use the files."""
    model = pipeline.pretrained_model
    local = model.startswith("zoo:") or Path(model).expanduser().exists()
    base = "" if local else f"base_model: {model}\n"
    load_lora = f'pipe.load_lora_weights("{repo}")\n' if pipeline.use_lora else ""
    tags = "text-to-image, ddpo, burnish" + (", lora" if load_lora else "")

    return (
        f"---\nlibrary_name: diffusers\n{base}tags: [{tags}]\n---\n\n"
        "Fine-tuned against a reward by DDPO (https://arxiv.org/abs/2305.13301) with Burnish.\n\n"
        "```python\n"
        f'pipe = diffusers.StableDiffusionPipeline.from_pretrained("{repo}")\n{load_lora}```\n'
    )
