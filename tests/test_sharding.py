"""Two processes that share the weights of a network learn what two with all weights learn.

They are launched by torchrun and exchange parts over gloo, on a CPU. Every run is made with and
without `run.sharding`; what differs is the order of some sums, and the layout of convolutions.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tomli_w
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

import burnish
from burnish.config import load
from burnish.diffusion.policy import Policy
from burnish.diffusion.sharding import bit_sum, gathered, held, is_sharded, part_of, stock_class
from burnish.runs import Run
from burnish.training.assembly import Overrides, assemble
from burnish.training.checkpoint import under
from burnish.training.forward import ForwardProcesses
from burnish.training.loop import train
from burnish.world import World, join_world

SCRIPT = """
import json
import sys
import warnings
from pathlib import Path
from torch import distributed
from burnish import config
from burnish.diffusion.policy import Policy
from burnish.evaluation import held_out
from burnish.training.loop import train
from burnish.training.record import Recorder

warnings.simplefilter("error", UserWarning)
warnings.filterwarnings("ignore", "over-optimisation")
held_out.KL_IMAGES = 2  # so that one process would measure it, and the other not

def end(self, ends=Recorder.end):
    ends(self)
    policy = self.job.parts.policy
    network = policy._family.network_of(policy.pipe)
    numbers = [getattr(one, "_local_tensor", one).numel() for one in network.parameters()]
    total = sum(one.numel() for one in network.parameters())
    held = {"held": sum(numbers), "total": total, "sharded": policy.sharded}
    Path(f"{self.job.run.folder}-{self.job.world.rank}.json").write_text(json.dumps(held))

Recorder.end = end
records = []
for step in json.loads(Path(sys.argv[1]).read_text()):
    records.clear()
    train(
        config.load(step["recipe"], step.get("set", []), trust=True),
        step["out"],
        progress=False,
        resume=step.get("resume", False),
        on_record=records.append,
        stop=lambda: step.get("stop", False) and len(records) > 0,
    )

# each has another model
rank = distributed.get_rank()
try:
    Policy.load(sys.argv[2 + rank], sharded=True, device="cpu")
except ValueError as error:
    Path(f"{sys.argv[1]}-{rank}").write_text(str(error))
"""
REWARDS = """
def bright(images, prompts):
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3)) ** 2

def incomplete(images, prompts):
    found = bright(images, prompts)
    found[: sum(prompt.text == "a cat" for prompt in prompts)] = float("nan")
    return found
"""
RUNS: dict[str, dict[str, Any]] = {
    # process 0 has one image to learn from where process 1 has four; three chunks are evaluated,
    # and of one image for the guard is measured more
    "lora": {
        "rewards": [{"use": "HERE/reward.py:incomplete"}],
        "scoring": {"missing": "mask"},
        "objective": {"use": "reinforce", "kl": 0.1},
        "batch": {"images_per_prompt": 4, "sample_batch": 4, "train_batch": 4},
        "evaluation": {"images_per_prompt": 3, "every": 2},
        "guard": {"action": "warn", "kl": 1e-9},
        "run": {"sample_every": 2, "sample_prompts": 2},
    },
    "full": {
        "model": {"id": "HERE/klein", "train": "full", "gradient_checkpointing": True},
        "sampler": {"kernel": {"use": "cps"}},
        "objective": {"use": "nft", "kl": 0.1},
        "old_policy": {"decay": 0.5, "rise": 0.5},
        "optimizer": {"ema": 0.9, "max_grad_norm": 0.1, "lr": 0.01},
        "batch": {"minibatches": 2},
    },
}
SHARDED = "run.sharding='full'"
SELDOM = "run.checkpoint_every=5"
GUARDED = [
    SHARDED,
    "guard={action='rollback',kl=0.0025}",
    "evaluation={images_per_prompt=1,every=1}",
]


def write_run(folder: Path, pipeline: Path, name: str) -> Path:
    """Write the recipe of a run of two iterations; Adam's eps makes its steps follow gradients."""
    tree: dict[str, Any] = {
        "iterations": 2,
        "model": {"id": str(pipeline), "device": "auto"},
        "sampler": {"steps": 2, "guidance": {"use": "cfg", "weight": 2.0}},
        "prompts": {"use": "list", "texts": ["a cat", "a dog", "an ox"]},
        "rewards": [{"use": "HERE/reward.py:bright"}],
        "advantage": {"use": "batch"},
        "batch": {"prompts": 2, "images_per_prompt": 2, "sample_batch": 2, "minibatches": 1},
        "evaluation": {"images_per_prompt": 0},
        "optimizer": {"eps": 0.01},
        "run": {"sample_every": 0},
    }
    for key, value in RUNS[name].items():
        merged = isinstance(value, dict) and "use" not in value
        tree[key] = {**tree.get(key, {}), **value} if merged else value

    path = folder / f"{name}.toml"
    path.write_text(tomli_w.dumps(tree).replace("HERE", str(folder)))
    return path


@pytest.fixture(scope="module")
def folder(tiny_pipeline: Path, tiny_klein: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with each run twice, and with one that goes on after a stop, in two ways."""
    folder = tmp_path_factory.mktemp("sharding")
    (folder / "reward.py").write_text(REWARDS)
    (folder / "both.py").write_text(SCRIPT)
    (folder / "klein").symlink_to(tiny_klein)
    steps: list[dict[str, Any]] = []

    for name in RUNS:
        recipe = str(write_run(folder, tiny_pipeline, name))
        steps += [
            {"recipe": recipe, "out": str(folder / f"{name}-whole")},
            {"recipe": recipe, "out": str(folder / f"{name}-sharded"), "set": [SHARDED]},
        ]
    step = {"recipe": str(folder / "full.toml")}
    steps.append({**step, "out": str(folder / "guarded"), "set": GUARDED})
    for name, before in (("again", [SHARDED]), ("changed", [])):
        step["out"] = str(folder / name)
        steps.append({**step, "set": [*before, SELDOM], "stop": True})
        steps.append({**step, "set": [SHARDED], "resume": True})

    other = shutil.copytree(tiny_pipeline, folder / "other")
    file = other / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_in.bias"][0] += 1e-6
    save_file(weights, file, metadata={"format": "pt"})

    (folder / "steps").write_text(json.dumps(steps))
    root = str(Path(burnish.__file__).parent.parent)  # also where it is not installed
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node=2")
    arguments = (folder / "both.py", folder / "steps", tiny_pipeline, other)
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return folder


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """Return what is in a run's newest checkpoint."""
    newest = max((run / "checkpoints").iterdir())
    return load_file(newest / "tensors.safetensors")


def assert_alike(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Check that two states have the same tensors, up to the rounding of their sums."""
    assert list(ours) == list(theirs)
    largest: dict[str, float] = {}
    for name, value in theirs.items():
        kind = name.rpartition(".")[2] if "optimizer" in name else "weights"
        largest[kind] = max(largest.get(kind, 0.0), float(value.abs().max()))
    assert largest["exp_avg"] > 0

    for name, value in theirs.items():
        kind = name.rpartition(".")[2] if "optimizer" in name else "weights"
        scale = 1e-6 if kind == "weights" else 1e-4 * largest[kind]
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=scale, msg=name)


@pytest.mark.parametrize("name", list(RUNS))
def test_sharded_processes_learn_what_others_learn(folder: Path, name: str) -> None:
    """Moments are means of the gradients, and of their squares; averages and weights follow."""
    assert_alike(tensors(folder / f"{name}-sharded"), tensors(folder / f"{name}-whole"))

    records = [Run(folder / f"{name}-{kind}").records() for kind in ("sharded", "whole")]
    for ours, theirs in zip(*records, strict=True):
        for key in ("grad_norm", "kl", "kl_old"):
            if key in theirs:
                assert ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-6), key


@pytest.mark.parametrize("name", list(RUNS))
def test_each_process_keeps_half_of_the_weights(folder: Path, name: str) -> None:
    for rank in range(2):
        stated = json.loads((folder / f"{name}-sharded-{rank}.json").read_text())
        adapter = 0 if name != "lora" else sum(map(torch.numel, learned(folder / "lora-whole")))
        assert stated["sharded"]
        assert 0.49 < (stated["held"] - adapter) / (stated["total"] - adapter) < 0.51

        whole = json.loads((folder / f"{name}-whole-{rank}.json").read_text())
        assert not whole["sharded"] and whole["held"] == whole["total"] == stated["total"]


def learned(run: Path) -> list[torch.Tensor]:
    """Return the weights in a run's newest checkpoint."""
    return list(under("generator/weights.", tensors(run)).values())


@pytest.mark.parametrize("name", list(RUNS))
def test_a_sharded_run_leaves_the_same_files(folder: Path, name: str) -> None:
    runs = [folder / f"{name}-{kind}" for kind in ("sharded", "whole")]
    ours, theirs = (sorted(str(path.relative_to(run)) for path in run.rglob("*")) for run in runs)
    assert ours == theirs and any(path.endswith(".safetensors") for path in ours)

    (exported,) = (path for path in ours if path.startswith("adapter/") and "safetensors" in path)
    files = [load_file(run / exported) for run in runs]
    assert files[0].keys() == files[1].keys()
    for key, value in files[1].items():
        torch.testing.assert_close(files[0][key], value, rtol=1e-4, atol=1e-6)
    if name != "lora":
        config = json.loads((runs[0] / "adapter" / "config.json").read_text())
        assert config == json.loads((runs[1] / "adapter" / "config.json").read_text())


def test_the_guard_goes_back_with_all_parts(folder: Path) -> None:
    run = folder / "guarded"
    guard = json.loads((run / "guard.json").read_text())
    assert (guard["iteration"], guard["best"]) == (2, 1)
    (newest,) = (run / "checkpoints").iterdir()
    assert newest.name == "000001"

    average = under("generator/average.", tensors(run))
    exported = load_file(run / "adapter" / "diffusion_pytorch_model.safetensors")
    assert average and all(exported[name].equal(value) for name, value in average.items())


def test_the_guard_measures_the_first_images(folder: Path) -> None:
    values = []
    for kind in ("sharded", "whole"):
        evaluation = json.loads((folder / f"lora-{kind}/evaluations/000002.json").read_text())
        values.append(evaluation["train"]["panel"]["kl"])
    assert values[0][2:] == values[1][2:] == [None] * 7
    assert values[0][:2] == pytest.approx(values[1][:2], rel=1e-3)


def test_a_stopped_run_goes_on_bit_for_bit(folder: Path) -> None:
    """The stop saved it: no checkpoint was due."""
    ours = tensors(folder / "again")
    theirs = tensors(folder / "full-sharded")
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(value) for name, value in theirs.items())


def test_a_run_with_whole_weights_goes_on_sharded(folder: Path) -> None:
    assert json.loads((folder / "changed-0.json").read_text())["sharded"]
    assert_alike(tensors(folder / "changed"), tensors(folder / "full-whole"))


def test_one_process_goes_on_with_a_sharded_run(folder: Path) -> None:
    run = Run(folder / "again")
    config = load(folder / "full.toml", ["iterations=3"], trust=True)
    before = learned(run.folder)
    train(config, run.folder, resume=True, accept_changes=True)
    assert len(run.records()) == 3
    after = learned(run.folder)
    moved = [float((new - old).abs().max()) for new, old in zip(after, before, strict=True)]
    assert 0 < max(moved) < 0.1


def test_processes_with_other_weights_are_refused_before_they_are_divided(folder: Path) -> None:
    for rank in range(2):
        stated = (folder / f"steps-{rank}").read_text()
        assert stated.startswith("processes 1 do not begin with the weights of process 0")


# Without other processes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.quantization='nf4'"], "run.sharding.*model.quantization"),
        (["model.offload=true"], "run.sharding.*model.offload"),
        (["optimizer.eight_bit=true", "model.train='full'"], "optimizer.eight_bit.*run.sharding"),
        (["sampler.shared_noise=true", "sampler.window.size=1"], "same calls; leave one of the"),
        (["run.sharding='half'"], "run.sharding = .half.; it must be"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    write_recipe: Callable[..., Path], options: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load(write_recipe(), [SHARDED, *options])


def test_a_single_process_is_refused(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    config = load(write_recipe(), [SHARDED])
    with pytest.raises(ValueError, match="this is a single one; start them by torchrun"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert join_world(sharding="") == World()


def test_a_given_policy_is_refused(write_recipe: Callable[..., Path], tiny_pipeline: Path) -> None:
    config = load(write_recipe(), [SHARDED])
    policy = Policy.load(tiny_pipeline)
    with pytest.raises(ValueError, match="overrides.policy is loaded"):
        assemble(config, overrides=Overrides(policy=policy), sharded=True)


def test_what_a_policy_cannot_divide_is_refused(
    tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="torch.distributed.*start several by torchrun"):
        Policy.load(tiny_pipeline, sharded=True)
    with pytest.raises(ValueError, match="model.quantization.*cannot be sharded"):
        Policy.load(tiny_pipeline, sharded=True, quantization="nf4")

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for whole in (True, False):
        pipe = DiffusionPipeline.from_pretrained(tiny_pipeline)
        if whole:
            pipe.unet = torch.compile(pipe.unet, backend="eager")
        else:
            pipe.unet.mid_block = torch.compile(pipe.unet.mid_block, backend="eager")
        with pytest.raises(ValueError, match="give a pipeline that is not compiled"):
            Policy.load(pipe, sharded=True)


class Second(World):
    """A process beside one with five calls."""

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return both numbers of calls."""
        return torch.cat([torch.tensor([5]), tensor])


@pytest.mark.parametrize("sharded", [True, False])
def test_a_process_with_fewer_calls_repeats_its_first(sharded: bool) -> None:
    """The shares of the calls, which weigh their losses, stay those of its pairs."""
    config: Any = SimpleNamespace(batch=SimpleNamespace(train_batch=2))
    parts: Any = SimpleNamespace(policy=SimpleNamespace(sharded=sharded))
    weights: Any = None
    calls = ForwardProcesses(config, Second(), parts, weights).calls(
        (torch.arange(5), torch.arange(5) + 10)
    )
    assert len(calls) == (5 if sharded else 3)
    assert [share for _, _, share in calls][:3] == [0.4, 0.4, 0.2]
    for rows, columns, share in calls[3:]:
        assert share == 0 and rows.equal(calls[0][0]) and columns.equal(calls[0][1])


def test_whole_weights_stay_as_they_are() -> None:
    layer = torch.nn.Linear(3, 2)
    value = torch.rand(2, 3)
    assert not is_sharded(layer.weight)
    assert held([layer.weight])[0] is layer.weight and part_of(value, layer.weight) is value
    assert gathered(layer.weight).equal(layer.weight) and stock_class(layer) is torch.nn.Linear


def test_the_sum_of_bits_notices_the_last_one() -> None:
    layer = torch.nn.Linear(3, 2).bfloat16()
    before = bit_sum(layer)
    with torch.no_grad():
        layer.bias.view(torch.int16)[1] += 1
    assert bit_sum(layer) == before + 1
