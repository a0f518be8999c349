"""Bad input, through the command line: one clear sentence, exit code 2, and no file is lost."""

from __future__ import annotations

import errno
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from burnish import cli
from burnish import config as configuration
from burnish.diffusion.policy import Policy
from burnish.runs import Run
from burnish.tools.gallery import open_source
from burnish.training import checkpoint
from burnish.training.loop import train

REWARDS = """
import torch
def bright(images, prompts):
    return images.mean((1, 2, 3))
def nan(images, prompts):
    return images.mean((1, 2, 3)) * float("nan")
def shape(images, prompts):
    return images.mean((1, 2))
def constant(images, prompts):
    return torch.full((len(images),), 0.5)
def raises(images, prompts):
    return images["bright"]
"""
Attempt = Callable[..., str]


@pytest.fixture
def recipe(write_recipe: Callable[..., Path]) -> Path:
    return write_recipe(
        REWARDS,
        iterations=1,
        sampler={"steps": 2},
        prompts={"use": "list", "texts": ["a cat", "a dog"]},
        rewards=[{"use": "HERE/reward.py:bright"}],
        batch={"prompts": 2, "images_per_prompt": 2, "minibatches": 1},
        evaluation={"images_per_prompt": 0},
        run={"sample_every": 0},
    )


@pytest.fixture
def fails(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Attempt:
    """A function that trains into `out`, expects exit code 2, and returns the error message.

    It is called as `fails(*overrides, resume=False)`.
    """

    def attempt(*overrides: str, resume: bool = False) -> str:
        options = ["--out", str(tmp_path / "out")]
        for change in overrides:
            options += ["--set", change.replace("HERE", str(tmp_path))]
        if resume:
            options.append("--resume")

        capsys.readouterr()
        with warnings.catch_warnings():
            warnings.simplefilter("always")  # the command line prints warnings in its own way
            with pytest.raises(SystemExit) as ended:
                cli.main(["train", str(recipe), *options])

        lines = [
            line for line in capsys.readouterr().err.splitlines() if line.startswith("burnish: ")
        ]
        errors = [line for line in lines if not line.startswith("burnish: warning: ")]
        assert ended.value.code == 2 and len(errors) == 1, errors

        return errors[0].removeprefix("burnish: ")

    return attempt


@pytest.fixture
def trained(recipe: Path, tmp_path: Path) -> Path:
    """A run of one iteration in `out`."""
    return train(configuration.load(recipe), tmp_path / "out")


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_misspelt_key(fails: Attempt) -> None:
    assert 'unknown key "batch.promts"; did you mean "prompts"?' in fails("batch.promts=2")


def test_wrong_type(fails: Attempt) -> None:
    assert "optimizer.lr = 'fast' is of the wrong type; it wants a number" in fails(
        "optimizer.lr=fast"
    )


def test_zero_steps(fails: Attempt) -> None:
    assert "sampler.steps = 0; it must be at least 1" in fails("sampler.steps=0")


def test_eta_zero_with_a_policy_gradient(fails: Attempt) -> None:
    assert "eta must be > 0" in fails('sampler.kernel={use="ddim",eta=0.0}')


def test_more_transitions_than_steps(fails: Attempt) -> None:
    assert "batch.transitions = 9, but an image of 2 steps has only 2 noisy transitions" in fails(
        "batch.transitions=9"
    )
    message = fails("batch.transitions=2", "batch.least_noise=0.03")
    assert (
        "only 1 noisy transitions with the noise that batch.least_noise = 0.03 demands" in message
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no prompts in it; write one prompt a line"),
        (b"a cat\n\x00\xff\x01", "row 2: not UTF-8 text"),
        (b"a cat\na dog\n" + b"x" * 10_000, "row 3: 10000 characters in one line"),
    ],
    ids=["empty", "binary", "long line"],
)
def test_prompt_file(fails: Attempt, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "prompts.txt").write_bytes(content)
    error = fails('prompts={use="lines",path="HERE/prompts.txt"}')
    assert f"{tmp_path}/prompts.txt" in error and message in error


def test_model_folder_without_a_part(fails: Attempt, tiny_pipeline: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_pipeline, tmp_path / "model", ignore=shutil.ignore_patterns("vae"))
    assert "vae" in fails("model.id=HERE/model")
    assert "vae" in fails("model.id=HERE/model"), "the failed start left no run behind"


def test_no_such_model(fails: Attempt) -> None:
    assert "zoo:emoji-sd" in fails("model.id=zoo:emoji-ds")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(fails: Attempt) -> None:
    message = fails("model.device=cuda", "rewards=[{use='compressibility'}]")
    assert 'model.device = "cuda", but PyTorch finds no CUDA device here' in message
    assert 'set it to "auto" or "cpu"' in message
    assert 'model.device = "cuda:7"' in fails("model.device=cuda:7")
    clip = "{use='clip_similarity',model='zoo:emoji-clip',device='cuda'}"
    assert 'rewards.0.device = "cuda"' in fails(f"rewards=[{clip}]")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_run_from_a_machine_with_a_gpu_is_drawn_from(trained: Path) -> None:
    config = Run(trained).config
    config.write_text(config.read_text().replace('device = "cpu"', 'device = "cuda"'))
    with pytest.warns(UserWarning, match='"auto" is taken'):
        assert open_source(str(trained))[0].device.type == "cpu"


def test_adapter_of_another_rank(fails: Attempt, recipe: Path, tmp_path: Path) -> None:
    train(configuration.load(recipe), tmp_path / "other")
    message = fails("model.adapter=HERE/other/adapter", "model.rank=2")
    assert "rank" in message and "4" in message and "2" in message


def test_truncated_checkpoint(trained: Path, recipe: Path, fails: Attempt) -> None:
    tensors = Run(trained).checkpoints / "000001" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    before = files(trained)
    message = fails("iterations=2", resume=True)
    assert "none of its 1 checkpoints is intact (" in message
    assert message.endswith("train again with another --out")
    assert files(trained) == before


def test_foreign_checkpoint(trained: Path, recipe: Path) -> None:
    foreign = Run(trained).checkpoints / "000009"
    foreign.mkdir()
    (foreign / "pytorch_model.bin").write_bytes(b"something else")

    with pytest.warns(UserWarning, match="000009: not an intact checkpoint"):
        train(configuration.load(recipe, ["iterations=2"]), trained, resume=True)

    assert [record["iteration"] for record in Run(trained).records()] == [1, 2]


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("nan", "reward 'nan' returned nan for 4 of 4 images (first: row 0, prompt 'a cat')"),
        (
            "shape",
            "reward 'shape' returned a float32 tensor of shape (4, 32) for 4 images; "
            "it must return shape (4,)",
        ),
        ("constant", "reward 'constant' gave [0.5] to all 4 images of the first iteration"),
        ("raises", "reward 'raises' raised"),
    ],
)
def test_reward(fails: Attempt, reward: str, message: str) -> None:
    assert message in fails(f"rewards.0.use=HERE/reward.py:{reward}")


def test_full_disk(trained: Path, fails: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {
        name: content
        for name, content in files(trained).items()
        if name.startswith(("checkpoints", "adapter"))
    }

    def full(tensors: dict, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    message = fails("iterations=2", resume=True)
    assert (
        "checkpoints/000002 could not be written: the disk is full" in message
        and "--resume" in message
    )
    assert {name: files(trained)[name] for name in before} == before
    assert not [name for name in files(trained) if "part" in name]


def test_full_disk_under_the_adapter(
    trained: Path, fails: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (Run(trained).adapter / "pytorch_lora_weights.safetensors").read_bytes()

    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(Policy, "save_adapter", full)
    assert "out/adapter could not be written: the disk is full" in fails(
        "iterations=2", resume=True
    )
    assert (Run(trained).adapter / "pytorch_lora_weights.safetensors").read_bytes() == before


def test_output_directory_in_use(trained: Path, fails: Attempt) -> None:
    before = files(trained)
    with Run(trained).lock():
        assert "is in use by process" in fails(resume=True)
    assert {**files(trained), "lock": b""} == {**before, "lock": b""}


def test_output_directory_that_holds_a_run(trained: Path, fails: Attempt) -> None:
    before = files(trained)
    assert "already holds a run; go on with it (--resume, in Python resume=True)" in fails()
    assert files(trained) == before


def test_resume_with_another_configuration(trained: Path, fails: Attempt) -> None:
    before = files(trained)
    message = fails("iterations=3", "optimizer.lr=1e-2", "seed=5", resume=True)
    assert "was trained with another seed, optimizer.lr; leave that as it was" in message
    assert {**files(trained), "lock": b""} == {**before, "lock": b""}


def test_resume_of_nothing(fails: Attempt) -> None:
    assert "holds no run" in fails(resume=True)


def test_unknown_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "dmeo"])
    assert ended.value.code == 2 and 'did you mean "demo"?' in capsys.readouterr().err


def test_a_pickled_lora_is_not_read(tiny_pipeline: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    from burnish.diffusion.lora import merge_lora

    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    state = {f"unet.{name}": tensor for name, tensor in list(pipe.unet.state_dict().items())[:2]}
    torch.save(state, tmp_path / "pytorch_lora_weights.bin")
    with pytest.raises(ValueError, match=r"cannot be merged: .*safetensors"):
        merge_lora(pipe, tmp_path)
