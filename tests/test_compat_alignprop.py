"""TRL's AlignProp on Burnish's loop: its script runs, and its options mean what TRL means."""

from __future__ import annotations

import random
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import log
from diffusers import StableDiffusionPipeline
from torch import Tensor

from burnish.compat.trl import (
    AlignPropConfig,
    AlignPropTrainer,
    DefaultDDPOStableDiffusionPipeline,
)
from burnish.config import Config, dump, load
from burnish.runs import Run

# of trl/trainer/alignprop_config.py, version 0.23.1
DEFAULTS = """
run_name="" seed=0 log_with=None log_image_freq=1 tracker_kwargs={} accelerator_kwargs={}
project_kwargs={} tracker_project_name="trl" logdir="logs" num_epochs=100 save_freq=1
num_checkpoint_limit=5 mixed_precision="fp16" allow_tf32=True resume_from="" sample_num_steps=50
sample_eta=1.0 sample_guidance_scale=5.0 train_batch_size=1 train_use_8bit_adam=False
train_learning_rate=1e-3 train_adam_beta1=0.9 train_adam_beta2=0.999 train_adam_weight_decay=1e-4
train_adam_epsilon=1e-8 train_gradient_accumulation_steps=1 train_max_grad_norm=1.0
negative_prompts=None truncated_backprop_rand=True truncated_backprop_timestep=49
truncated_rand_backprop_minmax=(0,50) push_to_hub=False
""".split()

SMALL: dict[str, Any] = {
    "num_epochs": 2,
    "mixed_precision": "no",
    "sample_num_steps": 3,
    "sample_guidance_scale": 2.0,
    "train_batch_size": 2,
    "train_gradient_accumulation_steps": 2,
}

# examples/scripts/alignprop.py, with its import lines changed, shortened to what is called
SCRIPT = """
from dataclasses import dataclass, field
import numpy as np
from transformers import HfArgumentParser
from burnish.compat.trl import AlignPropConfig, AlignPropTrainer, DefaultDDPOStableDiffusionPipeline
from burnish.compat.trl import aesthetic_scorer

@dataclass
class ScriptArguments:
    pretrained_model: str = field(default="MODEL", metadata={"help": "the pretrained model to use"})
    pretrained_revision: str = field(default="main", metadata={"help": "its revision"})
    use_lora: bool = field(default=True, metadata={"help": "Whether to use LoRA."})

def prompt_fn():
    return np.random.choice(["cat", "dog", "horse"]), {}

def image_outputs_logger(image_pair_data, global_step, accelerate_logger):
    result = {}
    images, prompts = [image_pair_data["images"], image_pair_data["prompts"]]
    assert len(image_pair_data["rewards"]) == len(images)
    for i, image in enumerate(images[:4]):
        result[prompts[i]] = image.unsqueeze(0).float()
    accelerate_logger.log_images(result, step=global_step)

if __name__ == "__main__":
    parser = HfArgumentParser((ScriptArguments, AlignPropConfig))
    script_args, training_args = parser.parse_args_into_dataclasses()
    training_args.project_kwargs = {
        "logging_dir": "OUT/logs",
        "automatic_checkpoint_naming": True,
        "total_limit": 5,
        "project_dir": "OUT/save",
    }
    pipeline = DefaultDDPOStableDiffusionPipeline(
        script_args.pretrained_model,
        pretrained_model_revision=script_args.pretrained_revision,
        use_lora=script_args.use_lora,
    )
    trainer = AlignPropTrainer(
        training_args,
        aesthetic_scorer("zoo:emoji-aesthetic", "aesthetic-model.pth", clip="zoo:emoji-clip"),
        prompt_fn,
        pipeline,
        image_samples_hook=image_outputs_logger,
    )
    trainer.train()
    trainer.save_model(training_args.output_dir)
"""


def redness(images: Tensor, prompts: Any, metadata: Any) -> tuple[Tensor, dict[str, Any]]:
    return images[:, 0].mean((1, 2)), {}


def animal() -> tuple[str, Any]:
    return random.choice(["a cat", "a dog"]), {"legs": 4}


def translated(**options: Any) -> Config:
    return AlignPropConfig(**options).to_burnish(
        "zoo:emoji-sd", {"use": "animals"}, [{"use": "aesthetic"}], processes=2
    )


def trainer_of(
    tiny_pipeline: Path, folder: Path, hook: Any = None, reward: Any = redness, **options: Any
) -> AlignPropTrainer:
    config = AlignPropConfig(**{**SMALL, "logdir": str(folder), "run_name": "run", **options})
    pipeline = DefaultDDPOStableDiffusionPipeline(str(tiny_pipeline))
    return AlignPropTrainer(config, reward, animal, pipeline, hook)


def test_the_options_are_those_of_trl_with_their_defaults() -> None:
    expected = {name: eval(value) for name, value in (pair.split("=", 1) for pair in DEFAULTS)}
    options = asdict(AlignPropConfig())
    assert set(options) == {"exp_name", *expected} and {**options, **expected} == options


def test_every_option_has_its_line_in_the_docs() -> None:
    page = (Path(__file__).parent.parent / "docs" / "from-trl.md").read_text("utf-8")
    assert [name for name in asdict(AlignPropConfig()) if f"`{name}`" not in page] == []


@pytest.mark.filterwarnings("ignore:truncated_")
def test_what_the_options_become(tmp_path: Path) -> None:
    config = translated(train_batch_size=8, train_gradient_accumulation_steps=4)
    batch = config.batch
    assert (batch.prompts, batch.images_per_prompt, batch.minibatches) == (64, 1, 1)
    assert (batch.sample_batch, batch.train_batch, batch.transitions) == (8, 8, 0)
    assert (config.chain.last, config.chain.ramp, config.chain.normalise) == (50, True, False)
    assert (config.objective, config.advantage) == ({"use": "latent"}, {"use": "none"})
    assert config.optimizer.lr == 1e-3

    (tmp_path / "recipe.toml").write_text(dump(config))
    assert load(tmp_path / "recipe.toml") == config

    config = translated(truncated_backprop_rand=False)
    assert (config.chain.last, config.chain.ramp) == (1, False)
    assert translated(truncated_rand_backprop_minmax=(40, 50)).chain.last == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncated_rand_backprop_minmax": (60, 70)}, "the gradient begins at call 60"),
        (
            {"truncated_backprop_rand": False, "sample_num_steps": 20},
            "truncated_backprop_timestep: the gradient begins at call 49, and an image has 20",
        ),
        ({"train_batch_size": 0}, "train_batch_size = 0"),
        ({"mixed_precision": "fp8"}, 'mixed_precision = "fp8"'),
        ({"accelerator_kwargs": {"split_batches": True}}, 'accelerator_kwargs: "split_batches"'),
    ],
)
@pytest.mark.filterwarnings("ignore:truncated_")
def test_impossible_options_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        translated(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "the last 50 calls, but not through the states"),
        ({"truncated_rand_backprop_minmax": (0, 30)}, "all calls from 30 on count alike"),
    ],
)
@pytest.mark.filterwarnings("ignore:truncated_")
def test_options_that_work_differently_give_a_warning(
    options: dict[str, Any], message: str
) -> None:
    with pytest.warns(UserWarning, match=message):
        translated(**options)


@pytest.mark.filterwarnings("ignore:truncated_")
def test_the_documented_script_runs(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SCRIPT.replace("OUT", str(tmp_path)).replace("MODEL", str(tiny_pipeline))
    options = [part for name, value in SMALL.items() for part in (f"--{name}", str(value))]
    shown: list[Any] = []
    tracker = SimpleNamespace(log_images=lambda images, step: shown.append((step, images)))
    monkeypatch.setattr("burnish.compat.trl.alignprop.NoTracker", lambda: tracker)
    monkeypatch.setattr("sys.argv", ["script.py", *options, "--run_name", "run"])
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "script.py", "exec"), names)

    records = Run(tmp_path / "save" / "run").records()
    assert [record["images"] for record in records] == [4, 4]
    assert list(records[0]["rewards"]) == ["aesthetic"]
    assert all(record["grad_norm"] > 0 for record in records)
    assert [step for step, _ in shown] == [1, 2]
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "save" / "run-model")
    stock.load_lora_weights(tmp_path / "save" / "run-model")


@pytest.mark.filterwarnings("ignore:truncated_")
def test_the_hook_gets_the_last_batch_of_each_nth_epoch(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    seen: list[Any] = []

    def hook(batch: dict[str, Any], step: int, tracker: Any) -> None:
        seen.append(step)
        assert batch["images"].shape == (2, 3, 32, 32)
        assert batch["prompt_metadata"] == ({"legs": 4}, {"legs": 4})
        torch.testing.assert_close(batch["rewards"], batch["images"][:, 0].mean((1, 2)))

    trainer_of(tiny_pipeline, tmp_path, hook, num_epochs=4, log_image_freq=2).train()
    assert seen == [2, 4]


def test_one_step_is_trls(tiny_pipeline: Path, tmp_path: Path) -> None:
    """The gradient of 10 - mean(reward) through the last call, by diffusers and autograd."""
    trainer = trainer_of(
        tiny_pipeline,
        tmp_path,
        truncated_backprop_rand=False,
        truncated_backprop_timestep=2,
        num_epochs=1,
        train_batch_size=4,
        train_gradient_accumulation_steps=1,
        train_learning_rate=0.0,
    )
    policy: Any = trainer._policy
    calls: list[Any] = []
    latents: list[Tensor] = []
    predict = policy.predict
    decode = policy.decode

    def recorded(x: Tensor, t: Tensor, cond: Any, guidance: Any) -> Tensor:
        calls.append((x.detach(), t[0], cond))
        found: Tensor = predict(x, t, cond, guidance)
        return found

    def decoded(latent: Tensor, gradient: bool = False) -> Tensor:
        latents.append(latent.detach())
        found: Tensor = decode(latent, gradient)
        return found

    policy.predict = recorded
    policy.decode = decoded
    record = log(trainer.train())[0]

    pipe = policy.pipe
    x, t, cond = calls[2]
    texts = torch.cat([policy.null(4)["text"], cond["text"]])
    without, with_text = pipe.unet(torch.cat([x] * 2), t, texts, return_dict=False)[0].chunk(2)
    guided = without + 2.0 * (with_text - without)
    scheduler = trainer.sd_pipeline.scheduler
    scheduler.set_timesteps(3)
    latent = scheduler.step(guided, t, x, eta=1.0, variance_noise=0 * x).prev_sample
    latent = latent + (latents[0] - latent).detach()  # the noise that was drawn
    images = (pipe.vae.decode(latent / pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    loss = 10.0 - redness(images, (), ())[0].mean()
    gradients = torch.autograd.grad(loss, policy.trainable)
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    assert record["grad_norm"] == pytest.approx(float(norm), rel=1e-3)


@pytest.mark.filterwarnings("ignore:truncated_")
def test_a_reward_without_a_gradient_is_named(tiny_pipeline: Path, tmp_path: Path) -> None:
    def blind(images: Tensor, prompts: Any, metadata: Any) -> tuple[Tensor, dict[str, Any]]:
        return images.detach().mean((1, 2, 3)), {}

    with pytest.raises(ValueError, match="reward 'blind' says that it is differentiable, but"):
        trainer_of(tiny_pipeline, tmp_path, reward=blind).train()
