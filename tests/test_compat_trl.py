"""TRL's names on Burnish's loop: a script runs, and does what its options mean in TRL."""

from __future__ import annotations

import random
import warnings
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import log, perturb
from diffusers import StableDiffusionPipeline
from torch import Tensor

from burnish import catalog
from burnish.compat.trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline
from burnish.compat.trl.calls import Calls
from burnish.compat.trl.trainer import resumed
from burnish.config import Config, dump, load
from burnish.runs import Run
from burnish.training.collect import SampledImages
from burnish.training.updates import minibatches
from burnish.types import Replay, Scores

DEFAULTS = """
run_name="" seed=0 log_with=None tracker_kwargs={} accelerator_kwargs={} project_kwargs={}
tracker_project_name="trl" logdir="logs" num_epochs=100 save_freq=1 num_checkpoint_limit=5
mixed_precision="fp16" allow_tf32=True resume_from="" sample_num_steps=50 sample_eta=1.0
sample_guidance_scale=5.0 sample_batch_size=1 sample_num_batches_per_epoch=2 train_batch_size=1
train_use_8bit_adam=False train_learning_rate=3e-4 train_adam_beta1=0.9 train_adam_beta2=0.999
train_adam_weight_decay=1e-4 train_adam_epsilon=1e-8 train_gradient_accumulation_steps=1
train_max_grad_norm=1.0 train_num_inner_epochs=1 train_cfg=True train_adv_clip_max=5.0
train_clip_range=1e-4 train_timestep_fraction=1.0 per_prompt_stat_tracking=False
per_prompt_stat_tracking_buffer_size=16 per_prompt_stat_tracking_min_count=16
async_reward_computation=False max_workers=2 negative_prompts="" push_to_hub=False
""".split()

SMALL: dict[str, Any] = {
    "num_epochs": 2,
    "mixed_precision": "no",
    "sample_num_steps": 2,
    "sample_guidance_scale": 2.0,
    "sample_batch_size": 2,
    "sample_num_batches_per_epoch": 2,
    "train_batch_size": 2,
    "train_learning_rate": 1e-3,
}

SCRIPT = """
import io, random, sys
from PIL import Image
from transformers import HfArgumentParser
from burnish.compat.trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline

def jpeg_compressibility():
    def _fn(images, prompts, metadata):
        sizes = []
        for image in (images * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy():
            file = io.BytesIO()
            Image.fromarray(image).save(file, format="JPEG", quality=95)
            sizes.append(-file.tell() / 1000)
        return sizes, {}
    return _fn

def prompt_fn():
    return random.choice(["a cat", "a dog"]), {}

if __name__ == "__main__":
    (config,) = HfArgumentParser(DDPOConfig).parse_args_into_dataclasses()
    config.project_kwargs = {
        "project_dir": "OUT/save", "automatic_checkpoint_naming": True, "total_limit": 1
    }
    pipeline = DefaultDDPOStableDiffusionPipeline(
        "MODEL", pretrained_model_revision="main", use_lora=True
    )
    trainer = DDPOTrainer(config, jpeg_compressibility(), prompt_fn, pipeline)
    trainer.train()
    trainer.save_pretrained("OUT/model")
"""


def redness(
    images: Tensor, prompts: tuple[str, ...], metadata: tuple[Any, ...]
) -> tuple[Tensor, dict[str, Any]]:
    return images[:, 0].mean((1, 2)), {"prompts": prompts}


def animal() -> tuple[str, Any]:
    return random.choice(["a cat", "a dog", "an ox"]), {"legs": 4}


@pytest.fixture
def config(tmp_path: Path) -> DDPOConfig:
    return DDPOConfig(**SMALL, logdir=str(tmp_path / "logs"), run_name="run")


@pytest.fixture
def pipeline(tiny_pipeline: Path) -> DefaultDDPOStableDiffusionPipeline:
    return DefaultDDPOStableDiffusionPipeline(str(tiny_pipeline))


def burnish(config: DDPOConfig, **more: Any) -> Config:
    return config.to_burnish(
        "zoo:emoji-sd", {"use": "animals"}, [{"use": "compressibility"}], **more
    )


def sample(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    return pipe("a cat", num_inference_steps=3, generator=noise, output_type="np").images


# The options
# --------------------------------------------------------------------------------------------------


def test_the_options_are_those_of_trl_with_their_defaults() -> None:
    expected = {name: eval(value) for name, value in (pair.split("=", 1) for pair in DEFAULTS)}
    options = asdict(DDPOConfig())
    assert set(options) == {"exp_name", *expected} and {**options, **expected} == options


def test_every_option_has_its_line_in_the_docs() -> None:
    page = (Path(__file__).parent.parent / "docs" / "from-trl.md").read_text()
    assert [name for name in asdict(DDPOConfig()) if f"`{name}`" not in page] == []


def test_options_from_the_command_line() -> None:
    from transformers import HfArgumentParser

    arguments = (
        "--num_epochs 3 --no_train_cfg --log_with wandb --train_clip_range 2e-4 "
        "--per_prompt_stat_tracking"
    )
    (config,) = HfArgumentParser(DDPOConfig).parse_args_into_dataclasses(arguments.split())
    assert (config.num_epochs, config.train_cfg, config.log_with) == (3, False, "wandb")
    assert config.train_clip_range == 2e-4 and config.per_prompt_stat_tracking and config.allow_tf32

    config = DDPOConfig(project_kwargs={"project_dir": "save"})
    assert config.to_dict()["project_kwargs/project_dir"] == "save"


# By hand from TRL's loop: images an epoch = s n p; optimizer steps an epoch = s n / (b a) * inner
# epochs.
@pytest.mark.parametrize(
    ("s", "n", "b", "a", "inner", "processes", "images", "steps"),
    [
        (1, 2, 1, 1, 1, 1, 2, 2),  # TRL's defaults
        (8, 4, 4, 2, 1, 1, 32, 4),  # ddpo-pytorch's compressibility on one of its 8 GPUs
        (8, 4, 4, 2, 1, 8, 256, 4),  # and on all of them
        (3, 2, 3, 2, 1, 1, 6, 1),  # TRL's example
        (6, 6, 2, 3, 2, 1, 36, 12),
    ],
)
def test_images_and_optimizer_steps_of_an_epoch(
    s: int, n: int, b: int, a: int, inner: int, processes: int, images: int, steps: int
) -> None:
    config = burnish(
        DDPOConfig(
            sample_batch_size=s,
            sample_num_batches_per_epoch=n,
            train_batch_size=b,
            train_gradient_accumulation_steps=a,
            train_num_inner_epochs=inner,
        ),
        processes=processes,
    )
    batch = config.batch
    assert (batch.prompts, batch.images_per_prompt, batch.sample_batch) == (images, 1, s)

    parts: Any = SimpleNamespace(objective=catalog.build("objective", config.objective))
    local_images = images // processes
    pairs = list(minibatches(config, parts, local_images, 50, 1, torch.zeros(local_images)))
    assert len(pairs) == steps
    sizes = [len(rows) for rows, _ in pairs]
    assert sizes == [50 * local_images * inner // steps] * steps, "all steps are equally large"


@pytest.mark.parametrize(
    ("fraction", "steps", "transitions"),
    [(1.0, 50, 0), (0.5, 50, 25), (0.99, 50, 49), (0.35, 10, 3)],
)
def test_the_fraction_of_transitions_is_rounded_as_in_trl(
    fraction: float, steps: int, transitions: int
) -> None:
    config = DDPOConfig(sample_num_steps=steps, train_timestep_fraction=fraction)
    assert burnish(config).batch.transitions == transitions


def test_options_with_another_name() -> None:
    config = burnish(
        DDPOConfig(
            seed=3,
            mixed_precision="bf16",
            sample_eta=0.7,
            negative_prompts="ugly, blurred",
            train_adam_beta1=0.8,
            train_adam_epsilon=1e-7,
            train_max_grad_norm=0.5,
            train_use_8bit_adam=True,
            save_freq=4,
            project_kwargs={"logging_dir": "curves", "total_limit": None},
            log_with="tensorboard",
            tracker_kwargs={"wandb": {"entity": "me", "notes": None, "tags": ("a", "b")}},
            accelerator_kwargs={"cpu": True},
        ),
        use_lora=False,
    )
    assert config.seed == 3
    model = config.model
    assert (model.dtype, model.train, model.device) == ("bfloat16", "full", "cpu")
    assert config.sampler.kernel["eta"] == 0.7
    assert config.sampler.guidance == {"use": "cfg", "weight": 5.0, "negative": "ugly, blurred"}

    optimizer = config.optimizer
    assert optimizer.betas == [0.8, 0.999] and optimizer.eight_bit
    assert (optimizer.eps, optimizer.max_grad_norm) == (1e-7, 0.5)

    assert (config.run.checkpoint_every, config.run.keep) == (4, 5)
    assert config.run.trackers == ["tensorboard"]
    assert (config.run.tracker_project, config.run.tracker_folder) == ("trl", "curves")
    assert config.run.tracker_options == {"wandb": {"entity": "me", "tags": ["a", "b"]}}


def test_the_toml_of_the_options_loads(tmp_path: Path) -> None:
    config = burnish(DDPOConfig(per_prompt_stat_tracking=True, mixed_precision="no"))
    (tmp_path / "recipe.toml").write_text(dump(config))
    assert load(tmp_path / "recipe.toml") == config


REFUSED = [
    ({"train_cfg": False}, "train_cfg = False trains another distribution"),
    ({"train_timestep_fraction": 0.01}, "leaves no transition to train on"),
    ({"train_timestep_fraction": 1.5}, "or more than there are"),
    ({"mixed_precision": "fp8"}, 'mixed_precision = "fp8"'),
    ({"sample_eta": 0.0}, "kernel.eta must be > 0"),
    (
        {"accelerator_kwargs": {"dynamo_backend": "inductor"}},
        'accelerator_kwargs: "dynamo_backend" means nothing here',
    ),
    (
        {"project_kwargs": {"save_on_each_node": True}},
        'project_kwargs: "save_on_each_node" means nothing here',
    ),
    (
        {"tracker_kwargs": {"wandb": {"settings": object()}}},
        "tracker_kwargs: settings is a object; only texts",
    ),
    ({"negative_prompts": ["ugly", "blurred"]}, "negative_prompts has several texts"),
    (
        {"sample_batch_size": 3, "train_batch_size": 2},
        "sample_batch_size = 3 must be a multiple of train_batch_size",
    ),
    (
        {"train_gradient_accumulation_steps": 3},
        "an epoch's 2 images .* must be a multiple of the 3",
    ),
    ({"train_batch_size": 0}, "train_batch_size = 0; it must be at least 1"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_impossible_options_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        burnish(DDPOConfig(**options))


WARNED = [
    ({"async_reward_computation": True}, "max_workers: one thread computes the rewards"),
    ({"sample_guidance_scale": 0.5}, "TRL samples without guidance below 1"),
    (
        {"sample_guidance_scale": 1.0, "negative_prompts": "ugly"},
        "negative_prompts: without guidance",
    ),
    (
        {"per_prompt_stat_tracking": True, "per_prompt_stat_tracking_min_count": 17},
        "no prompt ever has 17",
    ),
]


@pytest.mark.parametrize(("options", "message"), WARNED)
def test_options_that_work_differently_give_a_warning(
    options: dict[str, Any], message: str
) -> None:
    with pytest.warns(UserWarning, match=message):
        burnish(DDPOConfig(**options))


def test_without_guidance_both_phases_go_without() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = burnish(DDPOConfig(sample_guidance_scale=1.0, train_cfg=False))
    assert config.sampler.guidance == {"use": "none"}


# The arithmetic
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tracking", "buffer", "least"), [(True, 6, 4), (True, 16, 16), (False, 16, 16), (True, 4, 5)]
)
@pytest.mark.filterwarnings("ignore:per_prompt_stat_tracking")
def test_advantages_are_those_of_trls_formula(tracking: bool, buffer: int, least: int) -> None:
    config = burnish(
        DDPOConfig(
            per_prompt_stat_tracking=tracking,
            per_prompt_stat_tracking_buffer_size=buffer,
            per_prompt_stat_tracking_min_count=least,
            train_adv_clip_max=1.5,
        )
    )
    advantage = catalog.build("advantage", config.advantage)
    history = defaultdict(list)
    rng = np.random.default_rng(0)

    for _ in range(6):
        prompts = rng.integers(0, 3, 12)
        rewards = rng.normal(3, 2, 12)
        expected = (rewards - rewards.mean()) / (rewards.std() + 1e-8)

        for prompt in set(prompts.tolist()) if tracking else ():
            rows = prompts == prompt
            history[prompt] = [*history[prompt], *rewards[rows]][-buffer:]
            known = rewards if len(history[prompt]) < least else np.array(history[prompt])
            expected[rows] = (rewards[rows] - known.mean()) / (known.std() + 1e-6)

        scores = Scores(torch.tensor(rewards)[:, None], ("reward",))
        actual = advantage(scores, torch.ones(1), torch.tensor(prompts)).numpy()
        np.testing.assert_allclose(actual, expected.clip(-1.5, 1.5), rtol=1e-5, atol=1e-6)


def test_the_loss_is_trls() -> None:
    dims = 256
    range_ = 1e-3
    config = burnish(DDPOConfig(train_clip_range=range_), latent=dims)
    objective = catalog.build("objective", config.objective)
    generator = torch.Generator().manual_seed(0)
    change, adv = (torch.randn(64, generator=generator, dtype=torch.float64) for _ in range(2))
    logp = (1e-3 * change).requires_grad_()
    ratio = logp.exp()
    expected = torch.maximum(-adv * ratio, -adv * ratio.clamp(1 - range_, 1 + range_)).mean()
    loss = objective(Replay(logp[:, None], torch.zeros(64, 1, dtype=torch.float64), dims), adv)
    torch.testing.assert_close(loss.value, expected)

    (gradient,) = torch.autograd.grad(loss.value, logp)
    (expected_gradient,) = torch.autograd.grad(expected, logp)
    torch.testing.assert_close(gradient, expected_gradient)
    clipped = ((ratio - 1).abs() > range_).double()
    assert loss.metrics["clip_fraction"] == pytest.approx(float(clipped.mean()))


# Scripts
# --------------------------------------------------------------------------------------------------


def test_a_script_runs_and_its_files_load_into_diffusers(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SCRIPT.replace("OUT", str(tmp_path)).replace("MODEL", str(tiny_pipeline))
    options = [part for name, value in SMALL.items() for part in (f"--{name}", str(value))]
    monkeypatch.setattr("sys.argv", ["script.py", *options, "--run_name", "run"])
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "script.py", "exec"), names)

    run = Run(tmp_path / "save" / "run")
    records = run.records()
    assert [record["images"] for record in records] == [4, 4]
    assert all(record["ratio_deviation"] < 1e-6 for record in records)
    assert all(record["grad_norm"] > 0 for record in records)
    assert list(records[0]["rewards"]) == ["jpeg_compressibility"]
    assert [path.name for path in run.checkpoints.iterdir()] == ["000002"], "total_limit"

    before = sample(StableDiffusionPipeline.from_pretrained(tiny_pipeline))
    trained = names["pipeline"]
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    stock.scheduler = trained.scheduler
    pndm = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    pndm.scheduler = trained.scheduler
    message = "the pipeline is the one before"
    np.testing.assert_allclose(sample(stock), sample(pndm), atol=1e-5, err_msg=message)

    stock.load_lora_weights(tmp_path / "model")
    np.testing.assert_allclose(sample(stock), sample(trained), atol=1e-5)
    assert np.abs(sample(stock) - before).max() > 1e-4, "it has learned something"


def test_optimizer_steps_of_a_run(
    config: DDPOConfig,
    pipeline: DefaultDDPOStableDiffusionPipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[float] = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, *a, **k: (taken.append(self.param_groups[0]["lr"]), step(self, *a, **k))[1],
    )
    options = replace(
        config,
        num_epochs=1,
        train_num_inner_epochs=2,
        train_batch_size=1,
        train_gradient_accumulation_steps=2,
    )
    DDPOTrainer(options, redness, animal, pipeline).train()
    assert taken == [1e-3] * 4, "2 passes x 4 images / (1 x 2)"


def test_the_hook_gets_the_same_arguments_as_in_trl(
    config: DDPOConfig, pipeline: DefaultDDPOStableDiffusionPipeline
) -> None:
    calls: list[tuple[list[list[Any]], int]] = []

    def hook(batches: list[list[Any]], step: int, tracker: Any) -> None:
        calls.append((batches, step))

    folder = DDPOTrainer(config, redness, animal, pipeline, hook).train()
    assert [step for _, step in calls] == [0, 1]

    for (batches, _), record in zip(calls, Run(folder).records(), strict=True):
        assert len(batches) == 2
        for images, prompts, metadata, rewards, info in batches:
            assert images.shape == (2, 3, 32, 32) and metadata == ({"legs": 4}, {"legs": 4})
            assert isinstance(prompts, tuple) and info == {"prompts": prompts}
            torch.testing.assert_close(rewards, images[:, 0].mean((1, 2)))

        mean = torch.cat([rewards for *_, rewards, _ in batches]).mean()
        assert record["rewards"]["redness"]["mean"] == pytest.approx(float(mean))


def test_a_hook_gets_the_tracker_or_an_error_that_names_the_option() -> None:
    used: list[Any] = []
    calls = Calls(redness, animal, lambda data, step, tracker: used.append(tracker.log_images), 2)
    prompts = calls.draw(2)
    images = torch.rand(2, 3, 4, 4)
    scores = Scores(calls.reward(images, prompts)[:, None], ("redness",))
    calls.show(SampledImages(1, images, prompts, scores, 0, [SimpleNamespace(log_images="theirs")]))
    calls.show(SampledImages(1, images, prompts, scores, 1, []))  # another process
    assert used == ["theirs"]

    with pytest.raises(
        AttributeError, match="image_samples_hook wants log_images of a tracker, but there is none"
    ):
        calls.show(SampledImages(1, images, prompts, scores, 0, []))


def test_a_resumed_script_is_the_uninterrupted_one(
    config: DDPOConfig, tiny_pipeline: Path, tmp_path: Path
) -> None:
    def trainer(**options: Any) -> DDPOTrainer:
        pipeline = DefaultDDPOStableDiffusionPipeline(str(tiny_pipeline))
        changed = replace(config, per_prompt_stat_tracking=True, **options)
        return DDPOTrainer(changed, redness, animal, pipeline)

    uninterrupted = trainer(run_name="uninterrupted").train()
    interrupted = trainer(run_name="interrupted").train(1)
    newest = Run(interrupted).checkpoints / "000001"
    assert trainer(resume_from=str(newest)).train() == interrupted
    assert log(uninterrupted) == log(interrupted)

    message = "goes on from its newest checkpoint, 000002; to go back to 000001, delete"
    with pytest.raises(ValueError, match=message):
        trainer(resume_from=str(newest))

    again = trainer(run_name="again")
    again.train(1)
    again.train(1)
    assert log(uninterrupted) == log(again.run.folder), "a second call trains on"

    with pytest.raises(FileExistsError, match="already holds a run; go on with it by resume_from"):
        trainer(run_name="again")


def test_checkpoints_of_trl_are_an_error(config: DDPOConfig, tmp_path: Path) -> None:
    (tmp_path / "save" / "checkpoints" / "checkpoint_3").mkdir(parents=True)
    for folder in (tmp_path / "save", tmp_path / "save" / "checkpoints" / "checkpoint_3"):
        message = "is TRL's, and its optimizer and random state are pickles"
        with pytest.raises(ValueError, match=message):
            resumed(str(folder))

    with pytest.raises(FileNotFoundError, match="holds no run; give the folder"):
        resumed(str(tmp_path / "nowhere"))


def test_a_saved_pipeline_is_loaded_and_trained_further(
    config: DDPOConfig, pipeline: DefaultDDPOStableDiffusionPipeline, tmp_path: Path
) -> None:
    first = DDPOTrainer(config, redness, animal, pipeline)
    perturb(pipeline.policy)
    first.save_pretrained(tmp_path / "model")
    loaded = DefaultDDPOStableDiffusionPipeline(str(tmp_path / "model"), use_lora=False)
    assert loaded.use_lora, "as in TRL, a LoRA beside the model is used"
    np.testing.assert_allclose(sample(loaded), sample(pipeline), atol=1e-5)
    loaded.save_pretrained(tmp_path / "copy")
    np.testing.assert_allclose(
        sample(DefaultDDPOStableDiffusionPipeline(str(tmp_path / "copy"))), sample(loaded)
    )
    DDPOTrainer(replace(config, run_name="second", num_epochs=1), redness, animal, loaded)
    np.testing.assert_allclose(
        sample(loaded), sample(pipeline), atol=1e-5, err_msg="training starts from it"
    )


def test_every_weight_is_trained_without_lora(
    config: DDPOConfig, tiny_pipeline: Path, tmp_path: Path
) -> None:
    pipeline = DefaultDDPOStableDiffusionPipeline(str(tiny_pipeline), use_lora=False)
    untrained = sample(pipeline)
    trainer = DDPOTrainer(replace(config, num_epochs=1), redness, animal, pipeline)
    trainer.train()
    trainer.save_pretrained(tmp_path / "model")
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    np.testing.assert_allclose(sample(stock), sample(pipeline), atol=1e-5)
    assert np.abs(sample(stock) - untrained).max() > 1e-4


def test_push_to_hub(
    config: DDPOConfig,
    pipeline: DefaultDDPOStableDiffusionPipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: dict[str, Any] = {}

    class Hub:
        def __init__(self, token: str | None) -> None:
            sent["token"] = token

        def create_repo(self, repo_id: str, private: bool | None, exist_ok: bool) -> Any:
            return SimpleNamespace(repo_id=f"me/{repo_id}")

        def upload_folder(self, repo_id: str, folder_path: str, **more: Any) -> Any:
            sent.update(
                files={path.name for path in Path(folder_path).iterdir()}, repo=repo_id, **more
            )
            sent["card"] = (Path(folder_path) / "README.md").read_text()
            return SimpleNamespace(commit_url="https://hub/commit")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    trainer = DDPOTrainer(config, redness, animal, pipeline)
    assert trainer.push_to_hub("mine", token="t") == "https://hub/commit"

    files = {"model_index.json", "unet", "pytorch_lora_weights.safetensors", "README.md"}
    assert files <= sent["files"]
    assert (sent["repo"], sent["token"]) == ("me/mine", "t")
    assert 'load_lora_weights("me/mine")' in sent["card"]
    assert "base_model" not in sent["card"], "the folder of a machine is no model of the hub"


# Mistakes
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["step", "calculate_loss"])
def test_a_subclass_with_its_own_loop_is_an_error(name: str) -> None:
    message = rf"Mine.{name} would never be called, because the loop is burnish.train"
    with pytest.raises(TypeError, match=message):
        type("Mine", (DDPOTrainer,), {name: lambda self: None})


def test_a_subclass_with_its_own_adapter_is_an_error(
    pipeline: DefaultDDPOStableDiffusionPipeline,
) -> None:
    methods = {"get_trainable_layers": lambda self: None}
    message = "Mine.get_trainable_layers would never be called: an adapter is set by rank"
    with pytest.raises(TypeError, match=message):
        type("Mine", (DefaultDDPOStableDiffusionPipeline,), methods)

    with pytest.raises(AttributeError, match="get_trainable_layers belongs to TRL's own trainers"):
        pipeline.get_trainable_layers()


@pytest.mark.parametrize(
    ("reward", "prompt", "message"),
    [
        (
            lambda images, prompts, metadata: images.mean((1, 2, 3)),
            animal,
            "must return two things",
        ),
        (redness, lambda: "a cat", r"prompt_function must return \(prompt, metadata\)"),
        (redness, lambda: (3, {}), r"prompt_function must return \(prompt, metadata\)"),
    ],
)
def test_functions_that_are_not_trls(
    config: DDPOConfig,
    pipeline: DefaultDDPOStableDiffusionPipeline,
    reward: Any,
    prompt: Any,
    message: str,
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        DDPOTrainer(config, reward, prompt, pipeline).train()


def test_mistakes_are_errors_before_any_training(
    config: DDPOConfig, pipeline: DefaultDDPOStableDiffusionPipeline
) -> None:
    half = replace(config, mixed_precision="fp16", accelerator_kwargs={"cpu": True})
    with pytest.raises(ValueError, match='mixed_precision = "fp16", TRL.s default, needs a GPU'):
        DDPOTrainer(half, redness, animal, pipeline)

    with pytest.raises(TypeError, match="sd_pipeline is a StableDiffusionPipeline; give a Default"):
        DDPOTrainer(config, redness, animal, pipeline.sd_pipeline)  # type: ignore[arg-type]

    DDPOTrainer(config, redness, animal, pipeline)
    with pytest.raises(ValueError, match="this pipeline belongs to another trainer already"):
        DDPOTrainer(config, redness, animal, pipeline)
    with pytest.raises(TypeError, match="prompt_function is a list; give a function"):
        DDPOTrainer(config, redness, ["a cat"], pipeline)  # type: ignore[arg-type]
