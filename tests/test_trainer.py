"""The loop: what it leaves behind, that a killed run goes on bit for bit, and that learning learns."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from burnish import config as configuration
from burnish.catalog import BUILTIN
from burnish.config import Config
from burnish.images import image_grid
from burnish.rl.objectives import Clipped
from burnish.runs import Run
from burnish.training.baseline import x0_baseline
from burnish.training.batch import RolloutBatch
from burnish.training.collect import Collector
from burnish.training.credit import loss_scale
from burnish.training.job import Job, prepare
from burnish.training.learners import GeneratorLearner
from burnish.training.loop import train
from burnish.training.updates import GeneratorUpdates, minibatches
from burnish.types import Scores
from burnish.world import World

BRIGHTNESS = '''
import os, time
def brightness(images, prompts):
    """How bright; slow on demand, so that a test can kill the run in the middle of an iteration."""
    time.sleep(float(os.environ.get("SLOW", "0")))
    return images.mean((1, 2, 3))
'''
TIMING = ("seconds_sampling", "seconds_scoring", "seconds_training")


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


def sampled(config: Config, folder: Path) -> tuple[Job, RolloutBatch, GeneratorUpdates]:
    """Return a job, its images of the first iteration, and the updates of its generator."""
    job = prepare(config, Run.create(folder), World())
    learner = job.learners["generator"]
    assert isinstance(learner, GeneratorLearner)
    return job, Collector(job).collect(1), learner.updates


def log(out: Path) -> list[dict]:
    """The log without what no two runs share."""
    return [
        {key: value for key, value in one.items() if key not in TIMING}
        for one in Run(out).records()
    ]


def test_what_a_run_leaves_behind(recipe: Path, tmp_path: Path) -> None:
    heard: list[dict] = []
    run = Run(train(load(recipe), tmp_path / "run", on_record=heard.append))
    records = run.records()
    assert heard == records and [record["iteration"] for record in records] == [1, 2, 3]
    assert records[0]["images"] == 8 and set(records[0]["rewards"]["brightness"]) == {
        "mean",
        "std",
        "min",
        "max",
    }
    assert all(record["ratio_deviation"] < 1e-6 for record in records), (
        "before the first update the ratio is 1"
    )
    assert all(
        record[key] >= 0
        for record in records
        for key in (*TIMING, "clip_fraction", "approx_kl", "grad_norm")
    )
    assert configuration.load(run.config) == load(recipe), (
        "the resolved configuration can be run again"
    )
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["000002", "000003"]
    assert (run.adapter / "pytorch_lora_weights.safetensors").is_file()
    assert [run.sample(n).is_file() for n in (0, 1, 2, 3)] == [True, False, True, True]
    assert json.loads((run.samples / "prompts.json").read_text())["columns"] == 2
    evaluation = json.loads(run.evaluation.read_text())
    keys = {"before", "after", "paired_mean", "ci95", "judge_before", "judge_after"}
    assert set(evaluation) == {"train", "unseen"} and all(
        set(one) == keys for one in evaluation.values()
    )


def test_the_same_seed_is_the_same_run(recipe: Path, tmp_path: Path) -> None:
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    small = ["iterations=2", "evaluation.images_per_prompt=0", "run.sample_every=0"]
    train(load(recipe, *small), first)
    train(load(recipe, *small), again)
    train(load(recipe, *small, "seed=1"), other)
    assert log(first) == log(again) != log(other)


def test_micro_batches_do_not_change_the_numbers(recipe: Path, tmp_path: Path) -> None:
    small = ["iterations=2", "evaluation.images_per_prompt=0", "run.sample_every=0"]
    train(load(recipe, *small), tmp_path / "a")
    train(load(recipe, *small, "batch.train_batch=64"), tmp_path / "b")

    for a, b in zip(log(tmp_path / "a"), log(tmp_path / "b"), strict=True):
        assert a["rewards"]["brightness"] == pytest.approx(b["rewards"]["brightness"], abs=1e-6)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


def test_minibatches_cover_every_image_once_an_epoch(recipe: Path, tmp_path: Path) -> None:
    config = load(recipe, "batch.epochs=2", "batch.minibatches=3")
    parts: Any = SimpleNamespace(objective=Clipped())
    found = list(minibatches(config, parts, 8, 5, 1, torch.zeros(8)))
    assert len(found) == 6

    for epoch in (found[:3], found[3:]):
        pairs = [
            (int(i), int(s)) for images, steps in epoch for i, s in zip(images, steps, strict=True)
        ]
        assert (
            sorted({i for i, _ in pairs}) == list(range(8)) and len(set(pairs)) == len(pairs) == 16
        )

    assert not torch.equal(found[0][0], found[3][0]), "each epoch has its own order"


def test_previews_train_the_same_moves_of_a_prompts_images(recipe: Path, tmp_path: Path) -> None:
    done = Run(
        train(load(recipe, "batch.baseline=x0_preview", "iterations=2"), tmp_path / "run")
    ).records()
    assert all(one["ratio_deviation"] < 1e-6 and one["grad_norm"] > 0 for one in done)
    config = load(recipe, "batch.baseline=x0_preview", "batch.minibatches=1")
    parts: Any = SimpleNamespace(objective=Clipped())
    ((images, columns),) = minibatches(config, parts, 8, 3, 1, torch.zeros(8))
    trained = [sorted(columns[images == i].tolist()) for i in range(8)]
    assert trained[:4] == [trained[0]] * 4
    assert trained[4:] == [trained[4]] * 4
    assert all(len(set(one)) == 2 for one in trained)


def test_previews_tell_the_moves_apart(recipe: Path, tmp_path: Path) -> None:
    config = load(recipe, "batch.baseline=x0_preview")
    job, batch, _ = sampled(config, tmp_path / "job")
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
    whole = tmp_path / "whole"
    parted = tmp_path / "parted"
    train(load(recipe, *options), whole)

    for asked in (3, 7, 4):  # before the first iteration, in the middle of two others
        answers = chain([False] * asked, repeat(True))
        train(
            load(recipe, *options), parted, resume=Run(parted).exists(), stop=partial(next, answers)
        )
        assert not Run(parted).evaluation.exists()

    train(load(recipe, *options), parted, resume=True)
    assert log(parted) == log(whole)

    for place in (
        "evaluation.json",
        "samples/000004.png",
        "checkpoints/000004/tensors.safetensors",
    ):
        assert (parted / place).read_bytes() == (whole / place).read_bytes(), place

    adapters = [
        load_file(out / "adapter" / "pytorch_lora_weights.safetensors") for out in (whole, parted)
    ]
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])
    train(load(recipe, *options), parted, resume=True)  # nothing is left to do
    assert log(parted) == log(whole)


def test_kill_minus_nine_then_resume_is_the_uninterrupted_run(recipe: Path, tmp_path: Path) -> None:
    code = f"""
from burnish import config
from burnish.training import loop
say = lambda record: print(record["iteration"], flush=True)
loop.train(config.load({str(recipe)!r}, ["iterations=4"]), {str(tmp_path / "killed")!r}, on_record=say)
"""
    whole = tmp_path / "whole"
    killed = tmp_path / "killed"
    train(load(recipe, "iterations=4"), whole)
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
    assert log(killed) == log(whole)

    for place in (
        "evaluation.json",
        "samples/000004.png",
        "checkpoints/000004/tensors.safetensors",
    ):
        assert (killed / place).read_bytes() == (whole / place).read_bytes(), place


FORWARD = ("rwr", "awm")


@pytest.mark.parametrize(
    ("objective", "kernel"),
    [
        (o, k)
        for o in BUILTIN["objective"]
        for k in BUILTIN["kernel"]
        if not (o in FORWARD and k == "lcm")
    ],
)
def test_learning_learns_and_learning_rate_zero_does_not(
    recipe: Path, tmp_path: Path, objective: str, kernel: str
) -> None:
    options = [
        f"objective.use={objective}",
        f"sampler.kernel.use={kernel}",
        f"model.scheduler={'lcm' if kernel == 'lcm' else ''}",
        "iterations=8",
        "model.train=full",  # an adapter on a random network's attention hardly changes a picture
        "advantage={use='softmax',beta=2,standardise=true}"
        if objective == "rwr"
        else "advantage={use='group'}",
        "batch={prompts=3,images_per_prompt=8,sample_batch=24,train_batch=72,minibatches=2,transitions=0}",
        "evaluation.images_per_prompt=8",
        "run={checkpoint_every=8,sample_every=0}",
    ]
    learned = Run(train(load(recipe, *options, "optimizer.lr=3e-3"), tmp_path / "learned"))
    control = Run(
        train(load(recipe, *options, "optimizer.lr=0", "iterations=1"), tmp_path / "control")
    )
    gains = json.loads(learned.evaluation.read_text())
    assert gains["train"]["ci95"][0] > 0 and gains["unseen"]["paired_mean"] > 0

    for one in json.loads(control.evaluation.read_text()).values():
        assert one["paired_mean"] == 0 and one["ci95"] == [0, 0] and one["before"] == one["after"]


@pytest.mark.parametrize(
    ("objective", "weights"),
    [
        ("{use='reinforce'}", "full"),
        ("{use='reinforce',kl=0.1}", "lora"),
        ("{use='clipped',kl=0.1}", "full"),
    ],
)
def test_every_objective_runs(recipe: Path, tmp_path: Path, objective: str, weights: str) -> None:
    run = Run(
        train(
            load(
                recipe,
                "iterations=2",
                f"objective={objective}",
                f"model.train={weights}",
                "evaluation.images_per_prompt=0",
                "run.sample_every=0",
            ),
            tmp_path / "run",
        )
    )
    last = run.records()[1]
    assert ("kl" in last) == ("kl" in objective) and last["grad_norm"] > 0
    assert last["ratio_deviation"] < 1e-6


def test_every_prompt_is_drawn_equally_often(recipe: Path) -> None:
    from burnish.training.prompt_sampling import sample_prompt_numbers

    class Shape:
        config = load(recipe, "batch.prompts=4", "batch.images_per_prompt=2")
        world = type("World", (), {"rank": 0, "count": 1})
        parts = type("Parts", (), {"prompts": [None] * 3})

    drawn = torch.cat([sample_prompt_numbers(Shape, iteration) for iteration in range(1, 7)])  # type: ignore[arg-type]
    assert drawn.bincount().tolist() == [16, 16, 16]
    assert all(
        (rows := sample_prompt_numbers(Shape, n)).sort().values.equal(rows) for n in range(1, 4)
    )  # type: ignore[arg-type]


def test_half_precision_runs(recipe: Path, tmp_path: Path) -> None:
    options = ["iterations=2", "evaluation.images_per_prompt=0", "run.sample_every=0"]

    for dtype in ("bfloat16", "float16"):
        run = Run(train(load(recipe, *options, f"model.dtype={dtype}"), tmp_path / dtype))
        assert all(
            record["ratio_deviation"] < 1e-5 and record["grad_norm"] > 0 for record in run.records()
        )
        train(
            load(recipe, *options, f"model.dtype={dtype}", "iterations=3"), run.folder, resume=True
        )
        assert len(run.records()) == 3


def test_a_reward_that_fails_later_loses_nothing(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text(f"""
import pathlib
calls, mended = [], pathlib.Path({str(tmp_path / "mended")!r})
def brightness(images, prompts):
    calls.append(len(images))
    if len(calls) == 6 and not mended.exists():  # in the second chunk of iteration 3
        raise ConnectionError("the server is gone")
    return images.mean((1, 2, 3))
""")
    options = [
        "iterations=4",
        "run={checkpoint_every=4,sample_every=0}",
        "evaluation.images_per_prompt=0",
    ]
    options += [f"rewards.0.use={tmp_path}/fails.py:brightness"]
    broken = tmp_path / "broken"
    whole = tmp_path / "whole"

    with pytest.raises(
        ValueError, match="reward 'brightness' raised ConnectionError: the server is gone"
    ):
        train(load(recipe, *options), broken)

    assert [path.name for path in Run(broken).checkpoints.iterdir()] == ["000002"]
    (tmp_path / "mended").touch()
    train(load(recipe, *options), broken, resume=True)
    train(load(recipe, *options), whole)
    assert log(broken) == log(whole)


def test_the_average_is_what_is_measured_and_exported_and_survives_a_resume(
    recipe: Path, tmp_path: Path
) -> None:
    """Against the same average made by hand from the checkpoints of a run without one."""
    options = [
        "model.train=full",
        "run={checkpoint_every=1,keep=9,sample_every=0}",
        "batch.minibatches=1",
        "iterations=4",
    ]
    plain = Run(train(load(recipe, *options), tmp_path / "plain"))
    run = Run(train(load(recipe, *options, "optimizer.ema=0.5"), tmp_path / "ema"))
    key = "generator/weights.conv_in.weight"
    states = [
        load_file(plain.checkpoints / f"{i:06d}" / "tensors.safetensors")[key] for i in range(1, 5)
    ]
    job = prepare(load(recipe, *options), Run.create(tmp_path / "job"), World())
    first = job.parts.policy.state()
    average = first["conv_in.weight"]

    for step, state in enumerate(states, 1):
        keep = min(0.5, (1 + step - 1) / (10 + step - 1)) if step > 1 else 0.0  # diffusers' warm-up
        average = keep * average + (1 - keep) * state

    mine = load_file(run.checkpoints / "000004" / "tensors.safetensors")
    assert mine[key].equal(states[-1]), "the training itself is the same"
    torch.testing.assert_close(mine["generator/average.conv_in.weight"], average)
    assert load_file(run.adapter / "diffusion_pytorch_model.safetensors")["conv_in.weight"].equal(
        mine["generator/average.conv_in.weight"]
    )
    assert run.evaluation.read_text() != plain.evaluation.read_text()
    again = train(load(recipe, *options, "optimizer.ema=0.5", "iterations=2"), tmp_path / "again")
    train(load(recipe, *options, "optimizer.ema=0.5"), again, resume=True)
    theirs = load_file(again / "checkpoints" / "000004" / "tensors.safetensors")
    assert all(theirs[name].equal(mine[name]) for name in mine)


HOLES = """
import torch
calls = []
def holes(images, prompts):
    \"\"\"Raises in the first iteration's second chunk, misses one image in the next, and then all.\"\"\"
    calls.append(len(images))
    if len(calls) == 2:
        raise ConnectionError("gone")
    values = images.mean((1, 2, 3))
    values[{0: [], 1: [], 2: [], 3: [1]}.get(len(calls) - 1, slice(None))] = torch.nan
    return values
"""


@pytest.mark.parametrize("objective", ["clipped", "rebel", "rwr", "awm"])
def test_what_has_no_score_is_left_out_of_the_update(
    recipe: Path, tmp_path: Path, objective: str
) -> None:
    (tmp_path / "holes.py").write_text(HOLES)
    options = [
        f"rewards.0.use={tmp_path}/holes.py:holes",
        "evaluation.images_per_prompt=0",
        "run.sample_every=0",
    ]
    options += [
        f"objective.use={objective}",
        "scoring={missing='mask',patience=2}",
        "batch.transitions=0",
    ]
    options += [
        "advantage={use='top_fraction',fraction=0.25}"
        if objective == "rwr"
        else "advantage={use='group'}"
    ]
    out = tmp_path / "run"

    with pytest.raises(
        RuntimeError,
        match="no image of the last 2 iterations got its rewards .holes: 4 numbers were",
    ):
        train(load(recipe, *options, "iterations=9"), out)

    first, second, third = Run(out).records()
    assert first["missing"] == {"holes": 4} and first["problems"] == [
        "holes: ConnectionError: gone"
    ]
    assert second["missing"] == {"holes": 1} and second["grad_norm"] > 0
    assert (
        third["missing"] == {"holes": 8}
        and "grad_norm" not in third
        and third["rewards"]["holes"]["mean"] is None
    )
    assert [path.name for path in Run(out).checkpoints.iterdir()] == ["000002", "000003"]
    weights = [
        load_file(Run(out).checkpoints / f"00000{i}" / "tensors.safetensors") for i in (2, 3)
    ]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0]), (
        "nothing was learned from nothing"
    )


@pytest.mark.parametrize("objective", ["reinforce", "rebel"])
def test_a_masked_image_counts_neither_in_the_sum_nor_in_the_number(
    recipe: Path, tmp_path: Path, objective: str
) -> None:
    """The gradient with four of eight images masked is the gradient of the other four alone."""
    options = [
        "batch={prompts=2,images_per_prompt=4,sample_batch=8,train_batch=24,minibatches=1}",
        "advantage={use='group'}",
    ]
    config = load(recipe, *options, "objective={use='reinforce'}", "optimizer.lr=0")
    job, batch, updates = sampled(config, tmp_path / "job")
    norms = []

    for rows in (torch.arange(8), torch.arange(4, 8)):
        masked = batch.scores.parts.clone()
        masked[:4] = torch.nan
        scores = Scores(masked[rows], batch.scores.names)
        adv = job.parts.advantage(scores, job.parts.weights, batch.group[rows])
        scale = loss_scale(job.parts, adv, scores.valid)
        adv = torch.zeros(8).index_copy(0, rows, adv * scale)

        pairs = rows.repeat_interleave(3), torch.arange(3).repeat(len(rows))
        process = updates.process(batch.trajectory, [pairs], 1)
        valid = torch.zeros(8, dtype=torch.bool).index_copy(0, rows, scores.valid)
        norms.append(updates.update(process, adv, valid, pairs, first=True)["grad_norm"])

    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


MANY = """
def bright(images, prompts):
    return images.mean((1, 2, 3))
def red(images, prompts):
    return images[:, 0].mean((1, 2)) - images.mean((1, 2, 3))
def contrast(images, prompts):
    return images.std((1, 2, 3))
"""


def many(recipe: Path, tmp_path: Path, *options: str) -> Config:
    """Two rewards, and images enough to choose from."""
    (tmp_path / "many.py").write_text(MANY)
    rewards = ",".join(f"{{use='{tmp_path}/many.py:{name}'}}" for name in ("bright", "red"))
    shape = "batch={prompts=2,images_per_prompt=8,sample_batch=16,train_batch=7,minibatches=1,transitions=0}"
    return load(recipe, f"rewards=[{rewards}]", shape, "advantage={use='pareto'}", *options)


@pytest.mark.parametrize("kl", [0.0, 1e-9])
@pytest.mark.parametrize("objective", ["reinforce", "awm"])
def test_the_loss_is_the_mean_over_the_front(
    recipe: Path, tmp_path: Path, objective: str, kl: float
) -> None:
    """The gradient of an update is that of its front alone, with or without replaying the others."""
    config = many(recipe, tmp_path, f"objective={{use='{objective}',kl={kl}}}", "optimizer.lr=0")
    job, batch, updates = sampled(config, tmp_path / "job")
    scores = batch.scores
    scores.parts[3, 0] = torch.nan
    adv = job.parts.advantage(scores, job.parts.weights, batch.group)
    front = job.parts.advantage.front(scores, job.parts.weights, batch.group)
    assert 0 < front.sum() < len(front) and not front[3] and torch.equal(adv != 0, front)
    rows = front.nonzero().flatten()
    scaled = adv * loss_scale(job.parts, adv, front)
    replayed = []
    norms = []

    for images, weights in ((torch.arange(16), scaled), (rows, adv)):
        pairs = images.repeat_interleave(3), torch.arange(3).repeat(len(images))
        process = updates.process(batch.trajectory, [pairs], 1)
        right = process.replay
        object.__setattr__(
            process,
            "replay",
            lambda rows, *a, right=right, **more: (
                replayed.append(len(rows)) or right(rows, *a, **more)
            ),
        )
        norms.append(updates.update(process, weights, scores.valid, pairs, True)["grad_norm"])
        replayed.append(0)

    assert norms[0] == pytest.approx(norms[1], rel=1e-3) and norms[0] > 0
    whole = sum(replayed[: replayed.index(0)])
    assert whole == (48 if kl else 3 * len(rows)), (
        "nothing is asked about the others, but for their KL"
    )


def test_a_run_takes_that_mean(recipe: Path, tmp_path: Path) -> None:
    options = [
        "objective={use='reinforce'}",
        "iterations=1",
        "evaluation.images_per_prompt=0",
        "run.sample_every=0",
    ]
    config = many(recipe, tmp_path, *options)
    (record,) = Run(train(config, tmp_path / "run")).records()
    job, batch, updates = sampled(config, tmp_path / "job")
    adv = job.parts.advantage(batch.scores, job.parts.weights, batch.group)
    front = job.parts.advantage.front(batch.scores, job.parts.weights, batch.group)
    rows = front.nonzero().flatten()
    pairs = rows.repeat_interleave(3), torch.arange(3).repeat(len(rows))
    process = updates.process(batch.trajectory, [pairs], 1)
    alone = updates.update(process, adv, torch.ones(16).bool(), pairs, first=True)
    assert record["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-3)


def test_several_rewards_in_the_record(recipe: Path, tmp_path: Path) -> None:
    options = ["iterations=1", "evaluation.images_per_prompt=0", "run.sample_every=0"]
    selected = Run(train(many(recipe, tmp_path, *options), tmp_path / "pareto")).records()[0]
    assert set(selected["rewards"]) == {"bright", "red"}
    assert all(
        set(one) == {"mean", "std", "min", "max", "within"} for one in selected["rewards"].values()
    )
    assert all(0 < one["within"] <= one["std"] * 1.5 for one in selected["rewards"].values())
    assert 2 / 16 <= selected["pareto_front"] < 1 and selected["zero_advantage"] == pytest.approx(
        1 - selected["pareto_front"]
    )
    compared = Run(
        train(many(recipe, tmp_path, *options, "advantage={use='weighted'}"), tmp_path / "sum")
    ).records()[0]
    assert (
        compared["pareto_front"] == selected["pareto_front"]
        and compared["rewards"] == selected["rewards"]
    )
    assert compared["zero_advantage"] == 0, (
        "that is how much the rewards are in conflict, and nobody is left out"
    )
    single = Run(train(load(recipe, *options), tmp_path / "single")).records()[0]
    assert "pareto_front" not in single and set(single["rewards"]["brightness"]) == {
        "mean",
        "std",
        "min",
        "max",
    }


def test_an_iteration_whose_front_has_no_advantage_changes_nothing_and_breaks_nothing(
    recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "equal.py").write_text(
        "def by_prompt(images, prompts):\n    return [float(len(prompt.text)) for prompt in prompts]\n"
    )
    options = [
        f"rewards=[{{use='{tmp_path}/equal.py:by_prompt'}}]",
        "prompts={use='list',texts=['a cat','a goose']}",
    ]
    options += ["iterations=1", "evaluation.images_per_prompt=0"]
    (record,) = Run(train(many(recipe, tmp_path, *options), tmp_path / "run")).records()
    assert record["zero_advantage"] == 1 and record["grad_norm"] == 0


@pytest.mark.parametrize("advantage", ["{use='pareto'}", "{use='normalised'}"])
def test_every_one_of_several_rewards_is_learned(
    recipe: Path, tmp_path: Path, advantage: str
) -> None:
    options = [f"advantage={advantage}", "model.train=full", "iterations=12", "optimizer.lr=3e-3"]
    # which is not in conflict with brightness, as red is
    options += [f"rewards.1.use={tmp_path}/many.py:contrast"]
    options += [
        "batch={prompts=3,images_per_prompt=16,sample_batch=48,train_batch=144,minibatches=2,transitions=0}"
    ]
    options += ["evaluation.images_per_prompt=8", "run={checkpoint_every=12,sample_every=0}"]
    run = Run(train(many(recipe, tmp_path, *options), tmp_path / "run"))
    first, last = (
        torch.tensor(
            json.loads(run.measured(number).read_text())["train"]["parts"], dtype=torch.float64
        )
        for number in (0, 12)
    )
    gain = last - first
    assert (gain.mean(0) > 2 * gain.std(0) / len(gain) ** 0.5).all()


def test_a_damaged_checkpoint_is_made_anew(recipe: Path, tmp_path: Path) -> None:
    options = ["iterations=2", "run.sample_every=0", "evaluation.images_per_prompt=0"]
    run = Run(train(load(recipe, *options), tmp_path / "run"))
    tensors = run.checkpoints / "000002" / "tensors.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-50])

    with pytest.warns(UserWarning, match="000002: damaged"):
        train(load(recipe, *options), run.folder, resume=True)

    assert tensors.read_bytes() == whole


def test_a_tracker_that_is_not_there(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r'"tensorbord" is unknown; accepted: tensorboard, wandb, trackio'
    ):
        train(load(recipe, "run.trackers=['tensorbord']"), tmp_path / "run")


def test_grid() -> None:
    picture, columns = image_grid(torch.rand(5, 3, 4, 4))
    assert columns == 3 and picture.startswith(b"\x89PNG")
