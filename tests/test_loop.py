"""The loop: the files of a run, a killed run that goes on bit for bit, and learning that learns."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TIMING, log
from safetensors.torch import load_file
from torch import Tensor

from burnish import config as configuration
from burnish.catalog import BUILTIN
from burnish.config import Config
from burnish.images import image_grid
from burnish.rl.objectives import Clipped
from burnish.runs import Run
from burnish.training import checkpoint
from burnish.training.baseline import x0_baseline
from burnish.training.batch import Credit, RolloutBatch
from burnish.training.collect import Collector
from burnish.training.credit import loss_scale
from burnish.training.job import Job, prepare
from burnish.training.learners import GeneratorLearner
from burnish.training.loop import train
from burnish.training.prompt_sampling import sample_prompt_numbers
from burnish.training.updates import GeneratorUpdates, minibatches
from burnish.types import Process, Replay, Scores
from burnish.world import World

BRIGHTNESS = '''
import os, time
def brightness(images, prompts):
    """Brightness; slow on demand, so that a test can kill the run within an iteration."""
    time.sleep(float(os.environ.get("SLOW", "0")))
    return images.mean((1, 2, 3))
'''
STATISTICS = {"mean", "std", "min", "max"}
WEIGHTS = "pytorch_lora_weights.safetensors"
FINAL_FILES = (
    "evaluation.json",
    "samples/000004.png",
    "checkpoints/000004/tensors.safetensors",
)
QUICK = ("evaluation.images_per_prompt=0", "run.sample_every=0")
"""Overrides that leave out evaluations and sample images."""


@pytest.fixture
def recipe(write_recipe: Callable[..., Path]) -> Path:
    return write_recipe(
        BRIGHTNESS,
        iterations=3,
        rewards=[{"use": "HERE/reward.py:brightness"}],
        advantage={"use": "tracker", "buffer": 8, "min_count": 4},
        optimizer={"lr": 1e-3},
        batch={
            "prompts": 2,
            "images_per_prompt": 4,
            "sample_batch": 4,
            "train_batch": 5,
            "minibatches": 2,
            "transitions": 2,
        },
        evaluation={"images_per_prompt": 2, "unseen": {"use": "list", "texts": ["a bee"]}},
        run={"sample_every": 2, "sample_prompts": 4},
    )


def load(recipe: Path, *overrides: str) -> Config:
    return configuration.load(recipe, overrides)


def first_batch(config: Config, folder: Path) -> tuple[Job, RolloutBatch, GeneratorUpdates]:
    """Return a job, its batch of the first iteration, and the updates of its generator."""
    job = prepare(config, Run.create(folder), World())
    learner = job.learners["generator"]
    assert isinstance(learner, GeneratorLearner)
    return job, Collector(job).collect(1), learner.updates


def file_names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def checkpoint_tensors(out: Path, iteration: int) -> dict[str, Tensor]:
    return load_file(Run(out).checkpoints / f"{iteration:06d}" / "tensors.safetensors")


def assert_same_tensors(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.equal(second[name]), name


def assert_same_files(first: Path, second: Path) -> None:
    for file in FINAL_FILES:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


def test_the_files_and_records_of_a_run(recipe: Path, tmp_path: Path) -> None:
    reported: list[dict] = []
    run = Run(train(load(recipe), tmp_path / "run", on_record=reported.append))
    records = run.records()
    assert reported == records
    assert [record["iteration"] for record in records] == [1, 2, 3]
    assert records[0]["images"] == 8
    gains = {"gain", "gain_std", "gain_images"}
    assert set(records[0]["rewards"]["brightness"]) == STATISTICS | gains
    assert records[0]["rewards"]["brightness"]["gain_images"] == 8

    for record in records:
        assert record["ratio_deviation"] < 1e-6, "before the first update the ratio is 1"
        for key in (*TIMING, "clip_fraction", "approx_kl", "grad_norm"):
            assert record[key] >= 0, key

    assert configuration.load(run.config) == load(recipe), "the saved one can be run again"
    assert sorted(file_names(run.checkpoints)) == ["000002", "000003"]
    assert (run.adapter / WEIGHTS).is_file()
    assert [run.sample_grid(n).is_file() for n in (0, 1, 2, 3)] == [True, False, True, True]
    assert json.loads((run.samples / "prompts.json").read_text())["columns"] == 2

    evaluation = json.loads(run.evaluation.read_text())
    keys = {"before", "after", "paired_mean", "ci95", "judge_before", "judge_after"}
    keys |= {"prompts", "images", "rewards"}
    assert set(evaluation) == {"train", "unseen"}
    assert all(set(comparison) == keys for comparison in evaluation.values())


def test_the_same_seed_is_the_same_run(recipe: Path, tmp_path: Path) -> None:
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    train(load(recipe, "iterations=2", *QUICK), first)
    train(load(recipe, "iterations=2", *QUICK), again)
    train(load(recipe, "iterations=2", *QUICK, "seed=1"), other)
    assert log(first) == log(again) != log(other)


def test_micro_batches_do_not_change_the_numbers(recipe: Path, tmp_path: Path) -> None:
    train(load(recipe, "iterations=2", *QUICK), tmp_path / "a")
    train(load(recipe, "iterations=2", *QUICK, "batch.train_batch=64"), tmp_path / "b")

    for a, b in zip(log(tmp_path / "a"), log(tmp_path / "b"), strict=True):
        assert a["rewards"]["brightness"] == pytest.approx(b["rewards"]["brightness"], abs=1e-6)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


def test_minibatches_cover_every_image_once_an_epoch(recipe: Path, tmp_path: Path) -> None:
    config = load(recipe, "batch.epochs=2", "batch.minibatches=3")
    parts: Any = SimpleNamespace(objective=Clipped())
    steps = list(minibatches(config, parts, 8, 5, 1, torch.zeros(8)))
    assert len(steps) == 6

    for epoch in (steps[:3], steps[3:]):
        pairs = [
            (int(image), int(transition))
            for images, transitions in epoch
            for image, transition in zip(images, transitions, strict=True)
        ]
        assert sorted({image for image, _ in pairs}) == list(range(8))
        assert len(set(pairs)) == len(pairs) == 16

    assert not torch.equal(steps[0][0], steps[3][0]), "each epoch has its own order"


def test_the_x0_baseline_trains_the_same_transitions_of_a_prompts_images(
    recipe: Path, tmp_path: Path
) -> None:
    config = load(recipe, "batch.baseline=x0_preview", "iterations=2")
    for record in Run(train(config, tmp_path / "run")).records():
        assert record["ratio_deviation"] < 1e-6
        assert record["grad_norm"] > 0

    config = load(recipe, "batch.baseline=x0_preview", "batch.minibatches=1")
    parts: Any = SimpleNamespace(objective=Clipped())
    ((images, columns),) = minibatches(config, parts, 8, 3, 1, torch.zeros(8))
    trained = [sorted(columns[images == i].tolist()) for i in range(8)]
    assert trained[:4] == [trained[0]] * 4
    assert trained[4:] == [trained[4]] * 4
    assert all(len(set(transitions)) == 2 for transitions in trained)


def test_the_x0_baseline_differs_by_transition(recipe: Path, tmp_path: Path) -> None:
    config = load(recipe, "batch.baseline=x0_preview")
    job, batch, _ = first_batch(config, tmp_path / "job")
    x0_pred = batch.trajectory.x0_pred
    assert x0_pred is not None and x0_pred.shape == (8, 3, 4, 8, 8)

    adv = job.parts.advantage(batch.scores, job.parts.weights, batch.group)
    images = torch.arange(8).repeat_interleave(2)
    columns = torch.tensor([0, 2] * 8)
    pairs = [(images, columns)]
    remaining, explained = x0_baseline(job.parts, batch, adv, torch.ones(8).bool(), pairs, 4)

    assert 0 < explained < 1
    assert remaining.shape == (8, 3)
    assert torch.equal(remaining[:, 1], adv), "the transition between was not scored"
    assert (remaining[:, 2] ** 2).sum() < (adv**2).sum(), "the last one explains most"


def test_stop_then_resume_is_the_uninterrupted_run(recipe: Path, tmp_path: Path) -> None:
    options = ["iterations=4", "run.checkpoint_every=2"]
    config = load(recipe, *options)
    uninterrupted = tmp_path / "uninterrupted"
    resumed = tmp_path / "resumed"
    train(config, uninterrupted)

    for calls in (3, 7, 4):  # before the first iteration, in the middle of two others
        answers = chain([False] * calls, repeat(True))
        train(config, resumed, resume=Run(resumed).exists(), stop=partial(next, answers))
        assert not Run(resumed).evaluation.exists()

    train(config, resumed, resume=True)
    assert log(resumed) == log(uninterrupted)
    assert_same_files(resumed, uninterrupted)
    assert_same_tensors(
        load_file(Run(resumed).adapter / WEIGHTS), load_file(Run(uninterrupted).adapter / WEIGHTS)
    )

    train(config, resumed, resume=True)  # nothing is left to do
    assert log(resumed) == log(uninterrupted)


def test_a_stop_before_an_evaluation_that_is_due_loses_nothing(
    recipe: Path, tmp_path: Path
) -> None:
    options = ["iterations=4", "evaluation.every=2", "run.sample_every=2"]
    config = load(recipe, *options)
    uninterrupted = Run(train(config, tmp_path / "uninterrupted"))
    resumed = Run(tmp_path / "resumed")

    records: list[Any] = []
    train(config, resumed.folder, on_record=records.append, stop=lambda: len(records) == 2)
    assert resumed.checkpoints.is_dir() and not resumed.evaluation_file(2).exists()

    train(config, resumed.folder, resume=True)
    for iteration in (0, 2, 4):
        path = resumed.evaluation_file(iteration)
        assert path.read_bytes() == uninterrupted.evaluation_file(iteration).read_bytes()
    assert log(resumed.folder) == log(uninterrupted.folder)
    assert_same_files(resumed.folder, uninterrupted.folder)


def test_kill_minus_nine_then_resume_is_the_uninterrupted_run(recipe: Path, tmp_path: Path) -> None:
    uninterrupted = tmp_path / "uninterrupted"
    killed = tmp_path / "killed"
    code = f"""
from burnish import config
from burnish.training import loop

def report(record):
    print(record["iteration"], flush=True)

settings = config.load({str(recipe)!r}, ["iterations=4"], trust=True)
loop.train(settings, {str(killed)!r}, on_record=report)
"""
    train(load(recipe, "iterations=4"), uninterrupted)
    slow = {**os.environ, "SLOW": "0.15"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=slow)
    assert process.stdout is not None

    while process.stdout.readline().strip() != b"2":
        assert process.poll() is None

    process.send_signal(signal.SIGKILL)  # in the middle of iteration 3, whose rewards are slow
    process.wait()
    process.stdout.close()

    with (killed / "log.jsonl").open("a") as file:
        file.write('{"iteration": 3, "rew')  # a line torn by a crash

    assert log(killed)[-1]["iteration"] == 2
    train(load(recipe, "iterations=4"), killed, resume=True)
    assert log(killed) == log(uninterrupted)
    assert_same_files(killed, uninterrupted)


FORWARD = ("rwr", "awm", "rvm", "ram", "nft", "dgpo", "dpo")
FORWARD_KERNELS = ("ddim", "ode", "lcm")  # whose images they learn from hardly matters
FLOW_KERNELS = ("flow_grpo", "dance_grpo")  # see test_flow_families


def fits(objective: str, kernel: str) -> bool:
    """Return whether an objective learns from images of a kernel."""
    if kernel in FLOW_KERNELS or (objective, kernel) == ("rwr", "lcm"):
        return False
    if objective in FORWARD:
        return kernel in FORWARD_KERNELS

    return {"latent": True, "fdfo": kernel == "churn"}.get(objective, kernel != "ode")


COMBINATIONS = [
    (objective, kernel)
    for objective in BUILTIN["objective"]
    for kernel in BUILTIN["kernel"]
    if fits(objective, kernel)
]
DIFFERENTIABLE = """
import burnish
@burnish.differentiable
def brightness(images, prompts):
    return images.mean((1, 2, 3))
"""


@pytest.mark.parametrize(("objective", "kernel"), COMBINATIONS)
def test_learning_learns_and_learning_rate_zero_does_not(
    recipe: Path, tmp_path: Path, objective: str, kernel: str
) -> None:
    advantage = "{use='group'}"
    special = []
    if objective == "rwr":
        advantage = "{use='softmax',beta=2,standardise=true}"
    elif objective == "latent":
        advantage = "{use='none'}"
        (tmp_path / "reward.py").write_text(DIFFERENTIABLE)
        special = [f"rewards.0.use={tmp_path}/reward.py:brightness", "batch.minibatches=1"]
    elif objective == "fdfo":
        special = ["sampler.kernel.gamma=0.1", "sampler.shared_noise=true", "objective.limit=1.0"]

    options = [
        f"objective.use={objective}",
        f"sampler.kernel.use={kernel}",
        f"model.scheduler={'lcm' if kernel == 'lcm' else ''}",
        "iterations=8",
        "model.train=full",  # an adapter on a random network's attention hardly changes an image
        f"advantage={advantage}",
        "batch={prompts=3,images_per_prompt=8,sample_batch=24,train_batch=72,minibatches=2}",
        "batch.transitions=0",
        "evaluation.images_per_prompt=8",
        "run={checkpoint_every=8,sample_every=0}",
        *special,
    ]
    learned = load(recipe, *options, "optimizer.lr=3e-3")
    unchanged = load(recipe, *options, "optimizer.lr=0", "iterations=1")

    gains = json.loads(Run(train(learned, tmp_path / "learned")).evaluation.read_text())
    assert gains["train"]["ci95"][0] > 0
    assert gains["unseen"]["paired_mean"] > 0

    zeros = json.loads(Run(train(unchanged, tmp_path / "unchanged")).evaluation.read_text())
    for comparison in zeros.values():
        assert comparison["paired_mean"] == 0
        assert comparison["ci95"] == [0, 0]
        assert comparison["before"] == comparison["after"]


@pytest.mark.parametrize(
    ("objective", "weights"),
    [
        ("{use='reinforce'}", "full"),
        ("{use='reinforce',kl=0.1}", "lora"),
        ("{use='clipped',kl=0.1}", "full"),
    ],
)
def test_every_objective_runs(recipe: Path, tmp_path: Path, objective: str, weights: str) -> None:
    options = [f"objective={objective}", f"model.train={weights}"]
    run = Run(train(load(recipe, "iterations=2", *options, *QUICK), tmp_path / "run"))
    last = run.records()[1]
    assert ("kl" in last) == ("kl" in objective)
    assert last["grad_norm"] > 0
    assert last["ratio_deviation"] < 1e-6


def test_every_prompt_is_drawn_equally_often(recipe: Path) -> None:
    job: Any = SimpleNamespace(
        config=load(recipe, "batch.prompts=4", "batch.images_per_prompt=2"),
        world=World(),
        parts=SimpleNamespace(prompts=[None] * 3),
    )
    batches = [sample_prompt_numbers(job, iteration) for iteration in range(1, 7)]
    assert torch.cat(batches).bincount().tolist() == [16, 16, 16]
    for numbers in batches:
        assert numbers.sort().values.equal(numbers)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs(recipe: Path, tmp_path: Path, dtype: str) -> None:
    options = [f"model.dtype={dtype}", *QUICK]
    run = Run(train(load(recipe, "iterations=2", *options), tmp_path / "run"))
    for record in run.records():
        assert record["ratio_deviation"] < 1e-5
        assert record["grad_norm"] > 0

    train(load(recipe, "iterations=3", *options), run.folder, resume=True)
    assert len(run.records()) == 3


def test_a_reward_that_fails_later_loses_nothing(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text(f"""
import pathlib
calls, repaired = [], pathlib.Path({str(tmp_path / "repaired")!r})
def brightness(images, prompts):
    calls.append(len(images))
    if len(calls) == 6 and not repaired.exists():  # in the second chunk of iteration 3
        raise ConnectionError("the server is gone")
    return images.mean((1, 2, 3))
""")
    options = [
        "iterations=4",
        "run={checkpoint_every=4,sample_every=0}",
        "evaluation.images_per_prompt=0",
        f"rewards.0.use={tmp_path}/fails.py:brightness",
    ]
    config = load(recipe, *options)
    resumed = tmp_path / "resumed"
    uninterrupted = tmp_path / "uninterrupted"

    message = "reward 'brightness' raised ConnectionError: the server is gone"
    with pytest.raises(ValueError, match=message):
        train(config, resumed)

    assert file_names(Run(resumed).checkpoints) == ["000002"]
    (tmp_path / "repaired").touch()
    train(config, resumed, resume=True)
    train(config, uninterrupted)
    assert log(resumed) == log(uninterrupted)


def test_the_moving_average_is_evaluated_and_exported_and_survives_a_resume(
    recipe: Path, tmp_path: Path
) -> None:
    """Against the same average, computed from the checkpoints of a run without one."""
    options = [
        "model.train=full",
        "run={checkpoint_every=1,keep=9,sample_every=0}",
        "batch.minibatches=1",
        "iterations=4",
    ]
    averaging = [*options, "optimizer.ema=0.5"]
    without = Run(train(load(recipe, *options), tmp_path / "without"))
    run = Run(train(load(recipe, *averaging), tmp_path / "run"))
    key = "generator/weights.conv_in.weight"
    states = [checkpoint_tensors(without.folder, iteration)[key] for iteration in range(1, 5)]
    job = prepare(load(recipe, *options), Run.create(tmp_path / "job"), World())
    average = job.parts.policy.state()["conv_in.weight"]

    for step, state in enumerate(states, 1):
        decay = 0.0
        if step > 1:
            decay = min(0.5, step / (9 + step))  # diffusers' warm-up
        average = decay * average + (1 - decay) * state

    tensors = checkpoint_tensors(run.folder, 4)
    saved = tensors["generator/average.conv_in.weight"]
    assert tensors[key].equal(states[-1]), "the training itself is the same"
    torch.testing.assert_close(saved, average)
    exported = load_file(run.adapter / "diffusion_pytorch_model.safetensors")
    assert exported["conv_in.weight"].equal(saved)
    assert run.evaluation.read_text() != without.evaluation.read_text()

    resumed = train(load(recipe, *averaging, "iterations=2"), tmp_path / "resumed")
    train(load(recipe, *averaging), resumed, resume=True)
    assert_same_tensors(checkpoint_tensors(resumed, 4), tensors)


MISSING = """
import torch
calls = []
def missing(images, prompts):
    \"\"\"Raises in iteration 1's second chunk, misses one image in the next, then all.\"\"\"
    calls.append(len(images))
    if len(calls) == 2:
        raise ConnectionError("gone")
    values = images.mean((1, 2, 3))
    values[{0: [], 1: [], 2: [], 3: [1]}.get(len(calls) - 1, slice(None))] = torch.nan
    return values
"""


@pytest.mark.parametrize("objective", ["clipped", "rebel", "rwr", "awm"])
def test_images_without_a_score_are_left_out_of_the_update(
    recipe: Path, tmp_path: Path, objective: str
) -> None:
    (tmp_path / "missing.py").write_text(MISSING)
    advantage = "{use='group'}"
    if objective == "rwr":
        advantage = "{use='top_fraction',fraction=0.25}"

    options = [
        f"rewards.0.use={tmp_path}/missing.py:missing",
        f"objective.use={objective}",
        "scoring={missing='mask',patience=2}",
        "batch.transitions=0",
        f"advantage={advantage}",
        "iterations=9",
        *QUICK,
    ]
    out = tmp_path / "run"

    message = "no image of the last 2 iterations got its rewards .missing: 4 numbers were"
    with pytest.raises(RuntimeError, match=message):
        train(load(recipe, *options), out)

    first, second, third = Run(out).records()
    assert first["missing"] == {"missing": 4}
    assert first["problems"] == ["missing: ConnectionError: gone"]
    assert second["missing"] == {"missing": 1}
    assert second["grad_norm"] > 0
    assert third["missing"] == {"missing": 8}
    assert "grad_norm" not in third
    assert third["rewards"]["missing"]["mean"] is None

    assert file_names(Run(out).checkpoints) == ["000002", "000003"]
    # without a score there is nothing to learn from
    assert_same_tensors(checkpoint_tensors(out, 2), checkpoint_tensors(out, 3))


@pytest.mark.parametrize("objective", ["reinforce", "rebel", "nft", "dgpo", "dpo"])
def test_a_masked_image_counts_neither_in_the_sum_nor_in_the_number(
    recipe: Path, tmp_path: Path, objective: str
) -> None:
    """The gradient with four of eight images masked is the gradient of the other four alone."""
    options = [
        "batch={prompts=2,images_per_prompt=4,sample_batch=8,train_batch=24,minibatches=1}",
        "advantage={use='group'}",
    ]
    config = load(recipe, *options, f"objective={{use='{objective}'}}", "optimizer.lr=0")
    job, batch, updates = first_batch(config, tmp_path / "job")
    norms = []

    for rows in (torch.arange(8), torch.arange(4, 8)):
        masked = batch.scores.parts.clone()
        masked[:4] = torch.nan
        scores = Scores(masked[rows], batch.scores.names)
        adv = job.parts.advantage(scores, job.parts.weights, batch.group[rows])
        scale = loss_scale(job.parts, adv, scores.valid)
        adv = torch.zeros(8).index_copy(0, rows, adv)

        pairs = rows.repeat_interleave(3), torch.arange(3).repeat(len(rows))
        process = updates.process(batch, [pairs])
        valid = torch.zeros(8, dtype=torch.bool).index_copy(0, rows, scores.valid)
        credit = Credit(adv, valid, batch.group, counted=valid, loss_scale=scale)
        metrics = updates.update(process, credit, pairs, first=True)
        norms.append(metrics["grad_norm"])

    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


SEVERAL_REWARDS = """
def bright(images, prompts):
    return images.mean((1, 2, 3))
def red(images, prompts):
    return images[:, 0].mean((1, 2)) - images.mean((1, 2, 3))
def contrast(images, prompts):
    return images.std((1, 2, 3))
"""


def load_two_rewards(recipe: Path, tmp_path: Path, *options: str) -> Config:
    """Return a configuration with two rewards and enough images to select from."""
    (tmp_path / "rewards.py").write_text(SEVERAL_REWARDS)
    rewards = ",".join(f"{{use='{tmp_path}/rewards.py:{name}'}}" for name in ("bright", "red"))
    overrides = [
        f"rewards=[{rewards}]",
        "batch={prompts=2,images_per_prompt=8,sample_batch=16,train_batch=7,minibatches=1}",
        "batch.transitions=0",
        "advantage={use='pareto'}",
    ]
    return load(recipe, *overrides, *options)


class CountingProcess:
    """A process that counts the pairs it replays."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.pairs = 0

    def replay(self, images: Tensor, transitions: Tensor, reference: bool = False) -> Replay:
        self.pairs += len(images)
        return self.process.replay(images, transitions, reference)


@pytest.mark.parametrize("kl", [0.0, 1e-9])
@pytest.mark.parametrize("objective", ["reinforce", "awm", "nft", "ram"])
def test_the_loss_is_the_mean_over_the_front(
    recipe: Path, tmp_path: Path, objective: str, kl: float
) -> None:
    """An update's gradient is that of its front alone, which alone is replayed."""
    options = [f"objective={{use='{objective}',kl={kl}}}", "optimizer.lr=0"]
    config = load_two_rewards(recipe, tmp_path, *options)
    job, batch, updates = first_batch(config, tmp_path / "job")
    scores = batch.scores
    scores.parts[3, 0] = torch.nan
    adv = job.parts.advantage(scores, job.parts.weights, batch.group)
    front = job.parts.advantage.front(scores, job.parts.weights, batch.group)
    assert 0 < front.sum() < len(front)
    assert not front[3]
    assert torch.equal(adv != 0, front)

    rows = front.nonzero().flatten()
    replayed = []
    norms = []

    for images, scale in ((torch.arange(16), loss_scale(job.parts, adv, front)), (rows, 1.0)):
        pairs = images.repeat_interleave(3), torch.arange(3).repeat(len(images))
        process = CountingProcess(updates.process(batch, [pairs]))
        credit = Credit(adv, scores.valid, batch.group, counted=front, loss_scale=scale)
        metrics = updates.update(process, credit, pairs, True)
        norms.append(metrics["grad_norm"])
        replayed.append(process.pairs)

    assert norms[0] > 0
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    assert replayed == [3 * len(rows)] * 2


def test_a_run_takes_the_mean_over_the_front(recipe: Path, tmp_path: Path) -> None:
    config = load_two_rewards(
        recipe, tmp_path, "objective={use='reinforce'}", "iterations=1", *QUICK
    )
    (record,) = Run(train(config, tmp_path / "run")).records()
    job, batch, updates = first_batch(config, tmp_path / "job")
    adv = job.parts.advantage(batch.scores, job.parts.weights, batch.group)
    front = job.parts.advantage.front(batch.scores, job.parts.weights, batch.group)
    rows = front.nonzero().flatten()
    pairs = rows.repeat_interleave(3), torch.arange(3).repeat(len(rows))
    process = updates.process(batch, [pairs])
    valid = torch.ones(16).bool()
    credit = Credit(adv, valid, batch.group, counted=valid, loss_scale=1.0)
    alone = updates.update(process, credit, pairs, first=True)
    assert record["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-3)


def test_a_reward_that_says_nothing_among_others_is_warned_of(recipe: Path, tmp_path: Path) -> None:
    module = tmp_path / "same.py"
    module.write_text("def same(images, prompts):\n    return images.new_zeros(len(images))\n")
    rewards: list[dict[str, Any]] = [
        {"use": "compressibility"},
        {"use": f"{module}:same", "name": "constant"},
        {"use": f"{module}:same", "name": "unused", "weight": 0.0},
    ]
    config = replace(configuration.load(recipe), rewards=rewards, iterations=1)
    with pytest.warns(UserWarning, match="reward 'constant' gave 0 to all") as warned:
        train(config, tmp_path / "run")
    assert not [one for one in warned if "unused" in str(one.message)]


def test_what_an_advantage_remembers_of_other_rewards_is_forgotten(
    recipe: Path, tmp_path: Path
) -> None:
    """The tracker knew one reward of each prompt; now there are two."""
    one = replace(
        load(recipe, "evaluation.images_per_prompt=0"),
        advantage={"use": "tracker", "buffer": 8, "min_count": 2},
        rewards=[{"use": "compressibility"}],
        iterations=1,
    )
    run = Run(train(one, tmp_path / "run"))
    both = [*one.rewards, {"use": "incompressibility"}]
    more = replace(one, rewards=both, iterations=2)
    train(more, run.folder, resume=True, accept_changes=True)
    state = checkpoint.restore(run.checkpoints)
    assert state is not None
    remembered = [row for rows in state.memory["advantage"]["seen"].values() for row in rows]
    images = run.records()[-1]["images"]
    assert len(remembered) == images and {len(row) for row in remembered} == {2}


def test_several_rewards_in_the_record(recipe: Path, tmp_path: Path) -> None:
    options = ["iterations=1", *QUICK]
    pareto = load_two_rewards(recipe, tmp_path, *options)
    weighted = load_two_rewards(recipe, tmp_path, *options, "advantage={use='weighted'}")
    single = load(recipe, *options)

    (selected,) = Run(train(pareto, tmp_path / "pareto")).records()
    assert set(selected["rewards"]) == {"bright", "red"}
    for statistics in selected["rewards"].values():
        assert set(statistics) == {*STATISTICS, "within"}
        assert 0 < statistics["within"] <= statistics["std"] * 1.5

    assert 2 / 16 <= selected["pareto_front"] < 1
    assert selected["zero_advantage"] == pytest.approx(1 - selected["pareto_front"])

    (record,) = Run(train(weighted, tmp_path / "weighted")).records()
    assert record["pareto_front"] == selected["pareto_front"], "it measures the rewards' conflict"
    assert record["rewards"] == selected["rewards"]
    assert record["zero_advantage"] == 0, "no image is left out"

    (record,) = Run(train(single, tmp_path / "single")).records()
    assert "pareto_front" not in record
    assert set(record["rewards"]["brightness"]) == STATISTICS


LENGTH = """
def length(images, prompts):
    return [float(len(prompt.text)) for prompt in prompts]
"""


def test_a_front_without_an_advantage_changes_and_breaks_nothing(
    recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "equal.py").write_text(LENGTH)
    options = [
        f"rewards=[{{use='{tmp_path}/equal.py:length'}}]",
        "prompts={use='list',texts=['a cat','a goose']}",
        "iterations=1",
        "evaluation.images_per_prompt=0",
    ]
    with pytest.warns(UserWarning, match="'length' gave the same .* in the only iteration"):
        run = train(load_two_rewards(recipe, tmp_path, *options), tmp_path / "run")
    (record,) = Run(run).records()
    assert record["zero_advantage"] == 1
    assert record["grad_norm"] == 0


@pytest.mark.parametrize("advantage", ["{use='pareto'}", "{use='normalised'}"])
def test_each_of_several_rewards_is_learned(recipe: Path, tmp_path: Path, advantage: str) -> None:
    options = [
        f"advantage={advantage}",
        "model.train=full",
        "iterations=12",
        "optimizer.lr=3e-3",
        f"rewards.1.use={tmp_path}/rewards.py:contrast",  # red is in conflict with brightness
        "batch={prompts=3,images_per_prompt=16,sample_batch=48,train_batch=144,minibatches=2}",
        "batch.transitions=0",
        "evaluation.images_per_prompt=8",
        "run={checkpoint_every=12,sample_every=0}",
    ]
    run = Run(train(load_two_rewards(recipe, tmp_path, *options), tmp_path / "run"))

    def scores(iteration: int) -> Tensor:
        evaluation = json.loads(run.evaluation_file(iteration).read_text())["train"]
        return torch.tensor(evaluation["parts"], dtype=torch.float64)

    gain = scores(12) - scores(0)
    assert (gain.mean(0) > 2 * gain.std(0) / len(gain) ** 0.5).all()


def test_a_damaged_checkpoint_is_made_anew(recipe: Path, tmp_path: Path) -> None:
    config = load(recipe, "iterations=2", *QUICK)
    run = Run(train(config, tmp_path / "run"))
    tensors = run.checkpoints / "000002" / "tensors.safetensors"
    intact = tensors.read_bytes()
    tensors.write_bytes(intact[:-50])

    with pytest.warns(UserWarning, match="000002: damaged"):
        train(config, run.folder, resume=True)

    assert tensors.read_bytes() == intact


def test_an_unknown_tracker_is_an_error(recipe: Path, tmp_path: Path) -> None:
    message = '"tensorbord" is unknown; accepted: tensorboard, wandb, trackio, mlflow'
    with pytest.raises(ValueError, match=message):
        train(load(recipe, "run.trackers=['tensorbord']"), tmp_path / "run")


def test_an_image_grid_is_a_png_file() -> None:
    file, columns = image_grid(torch.rand(5, 3, 4, 4))
    assert columns == 3
    assert file.startswith(b"\x89PNG")
