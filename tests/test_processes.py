"""Several processes train one model together.

As threads of the test, the mean of their gradients is that of one process with all their images; as
processes that torchrun and accelerate launch, they end with the same weights.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tomli_w
import torch
from test_expander import build_language
from test_voting import GROUP, PROMPTS, images_of, with_head, without_head
from torch import Tensor

import burnish
from burnish import votes as files
from burnish.config import Config, load
from burnish.diffusion.sampler import join_trajectories
from burnish.evaluation.paired import load_evaluation
from burnish.rewards.votes import Votes
from burnish.runs import Run
from burnish.training.assembly import Overrides
from burnish.training.batch import RolloutBatch
from burnish.training.collect import Collector
from burnish.training.credit import assign_credit, gather_scores
from burnish.training.job import Job, check_folder, check_weights, prepare
from burnish.training.loop import train
from burnish.training.metrics import of_all_processes
from burnish.training.scoring import join_scores
from burnish.training.voting import with_votes
from burnish.types import Scores, differentiable
from burnish.world import World

COUNT = 2


class Exchange:
    """The collectives of a run's processes, as threads of this one."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(COUNT, timeout=60)
        self.given: dict[int, Any] = {}

    def all(self, rank: int, value: Any) -> list[Any]:
        """Return what every thread gave, by rank."""
        self.given[rank] = value
        self.barrier.wait()
        found = [self.given[rank] for rank in range(COUNT)]
        self.barrier.wait()
        return found


@dataclass(frozen=True)
class Recording(World):
    """A single process that keeps its gradients."""

    gradients: list[Tensor] = field(default_factory=list)

    def average_gradients(self, parameters: Any) -> None:
        """Average the gradients and keep them."""
        super().average_gradients(parameters)
        grads = (
            torch.zeros_like(one) if one.grad is None else one.grad for one in list(parameters)
        )
        self.gradients.append(torch.cat([grad.flatten() for grad in grads]))


@dataclass(frozen=True)
class Thread(Recording):
    """One of two processes, a thread of this one."""

    count: int = COUNT
    exchange: Exchange = field(default_factory=Exchange)

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the rows of both threads."""
        return torch.cat(self.exchange.all(self.rank, tensor))

    def gather_list(self, items: list[Any]) -> list[Any]:
        """Return the items of both threads."""
        return [item for given in self.exchange.all(self.rank, items) for item in given]

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of both threads' values."""
        assert values.dim() == 1
        return torch.stack(self.exchange.all(self.rank, values.clone())).mean(0)


@differentiable
def redness(images: Tensor, prompts: Any) -> Tensor:
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3)) ** 2


OBJECTIVES = {
    "reinforce": "{use='reinforce',kl=0.1}",
    "clipped": "{use='clipped'}",
    "rebel": "{use='rebel'}",
    "dppo": "{use='dppo'}",
    "dpo": "{use='dpo'}",
    "rwr": "{use='rwr'}",
    "rwr of few": "{use='rwr',kl=0.1}",
    "awm": "{use='awm'}",
    "rvm": "{use='rvm'}",
    "ram": "{use='ram'}",
    "nft": "{use='nft'}",
    "dgpo": "{use='dgpo'}",
    "latent": "{use='latent'}",
    "fdfo": "{use='fdfo'}",
}
OPTIONS = {
    "rwr": ["advantage={use='softmax'}"],
    "rwr of few": ["advantage={use='top_fraction',fraction=0.4}"],
    "latent": ["advantage={use='none'}"],
    "fdfo": ["sampler.shared_noise=true", "sampler.kernel={use='churn',gamma=0.01}"],
}


def config_of(recipe: Path, name: str) -> Config:
    """Return the configuration of one update an iteration."""
    small = [
        "advantage={use='batch'}",
        "sampler.steps=2",
        "batch={prompts=4,images_per_prompt=2,minibatches=1,train_batch=16,sample_batch=4}",
        "prompts.texts=['a cat','a dog','an ox','a bee']",
        "evaluation.images_per_prompt=0",
    ]
    return load(recipe, [*small, f"objective={OBJECTIVES[name]}", *OPTIONS.get(name, [])])


def prepared(config: Config, folder: Path, world: World) -> Job:
    """Return the job of one process."""
    overrides = Overrides(rewards={"redness": redness})
    torch.manual_seed(0)
    return prepare(overrides.apply_to(config), Run(folder), world, overrides=overrides)


def learn(job: Job, batch: RolloutBatch) -> Tensor:
    """Learn from a process's images; return the gradient of the optimizer step."""
    scores = gather_scores(batch.scores, job.world)
    credit = assign_credit(job.parts, batch, scores, job.world)
    job.learners["generator"].learn(batch, credit)
    world: Any = job.world
    (gradient,) = world.gradients
    return gradient


def joined(batches: list[RolloutBatch]) -> RolloutBatch:
    """Return the images of all processes as those of one."""
    return replace(
        batches[0],
        prompts=[prompt for batch in batches for prompt in batch.prompts],
        trajectory=join_trajectories([batch.trajectory for batch in batches]),
        scores=join_scores([batch.scores for batch in batches], None),
        group=torch.cat([batch.group for batch in batches]),
    )


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the jobs be prepared one after the other: they start from the same random numbers."""
    monkeypatch.setattr("burnish.training.job.check_folder", lambda run, world: None)


def gradients(config: Config, folder: Path, missing: int = 0) -> tuple[Tensor, Tensor]:
    """Return the gradients of two processes, and of one with all their images.

    The first `missing` images of the second process have no reward.
    """
    exchange = Exchange()
    jobs = [prepared(config, folder, Thread(rank=rank, exchange=exchange)) for rank in range(COUNT)]

    with ThreadPoolExecutor(COUNT) as threads:
        batches = list(threads.map(lambda job: Collector(job).collect(1), jobs))
        batches[1].scores.parts[:missing] = torch.nan
        found = list(threads.map(learn, jobs, batches))
    assert found[0].equal(found[1])
    states = [job.learners["generator"].state() for job in jobs]
    assert all(states[1][key].equal(value) for key, value in states[0].items())

    whole = learn(prepared(config, folder, Recording()), joined(batches))
    assert whole.abs().max() > 0
    return found[0], whole


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_two_processes_follow_the_gradient_of_all_images(
    write_recipe: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    found, whole = gradients(config_of(write_recipe(), name), tmp_path)
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4 * float(whole.abs().max()))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("name", ["clipped", "rwr of few", "latent", "rebel", "dpo", "dgpo"])
def test_images_without_rewards_count_in_no_process(
    write_recipe: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    found, whole = gradients(config_of(write_recipe(), name), tmp_path, missing=2)
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4 * float(whole.abs().max()))


def test_a_machine_that_does_not_see_the_run_directory_is_named(
    write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("burnish.training.job.LONGEST_DELAY", 0.0)
    monkeypatch.setattr("platform.node", lambda: "second")
    exchange = Exchange()
    worlds = [Thread(rank=rank, exchange=exchange) for rank in range(COUNT)]
    folders = (tmp_path, tmp_path / "elsewhere")

    def refused(world: Thread, folder: Path) -> None:
        with pytest.raises(ValueError, match="second cannot see the run directory"):
            check_folder(Run(folder), world)

    with ThreadPoolExecutor(COUNT) as threads:
        list(threads.map(refused, worlds, folders))
    check_folder(Run(tmp_path / "elsewhere"), World())  # alone, it may not be there yet


@pytest.mark.usefixtures("at_once")
def test_processes_that_begin_with_other_weights_are_named(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    config = config_of(write_recipe(), "clipped")
    exchange = Exchange()
    jobs = [
        prepared(config, tmp_path, Thread(rank=rank, exchange=exchange)) for rank in range(COUNT)
    ]
    with ThreadPoolExecutor(COUNT) as threads:
        list(threads.map(check_weights, jobs))

    def refused(job: Job) -> None:
        with pytest.raises(ValueError, match="processes 1 do not begin with the weights of"):
            check_weights(job)

    with torch.no_grad():
        next(jobs[1].parts.policy.pipe.vae.parameters())[0, 0, 0, 0] += 1e-6
    with ThreadPoolExecutor(COUNT) as threads:
        list(threads.map(refused, jobs))


@dataclass(frozen=True)
class Second(Thread):
    """The second of two processes; in the main one every weight is 0.5."""

    rank: int = 1

    def of_main(self, values: Tensor) -> Tensor:
        """Return the main process's values."""
        return torch.full_like(values, 0.5)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("start", ["", "pairs.jsonl"])
def test_an_expander_starts_with_the_main_process_s_imitation(
    write_recipe: Callable[..., Path], tmp_path: Path, start: str
) -> None:
    """Without `expander.start` its files are the same, which is checked, and nothing crosses."""
    language = write_language(tmp_path)
    expander = {"model": str(language), "rank": 2, "expansions": 2, "tokens": 4}
    if start:
        expander["start"] = str(tmp_path / start)
    config = config_of(write_recipe(expander=expander, optimizer={"ema": 0.5}), "clipped")
    job = prepared(config, tmp_path, Second())

    parts = job.parts.expander
    assert parts is not None
    state = job.learners["expander"].state()
    averaged = [value for name, value in state.items() if name.startswith("average.")]
    assert averaged and all(bool((value == 0.5).all()) == bool(start) for value in averaged)
    assert all(bool((value == 0.5).all()) == bool(start) for value in parts.trainable)
    with parts.reference():
        assert all(bool((p == 0.5).all()) == bool(start) for p in parts.trainable)


def write_language(folder: Path) -> Path:
    """Save a tiny language model, and a text that it is to imitate; return the model's folder."""
    model, tokenizer = build_language()
    model.save_pretrained(folder / "language")
    tokenizer.save_pretrained(folder / "language")
    (folder / "pairs.jsonl").write_text('{"prompt": "a cat", "expansion": "a cat in the snow"}\n')
    return folder / "language"


def test_the_record_s_metrics_are_those_of_all_processes() -> None:
    everybody: list[dict[str, Any]] = [
        {"kl": 1.0, "lr": 0.1, "ratio_deviation": 0.5, "expander_texts": ["a"]},
        {"kl": 2.0, "lr": 0.1, "ratio_deviation": 0.2, "expander_texts": ["b"]},
        {"lr": 0.1, "ratio_deviation": 0.3, "expander_texts": ["c"], "clip_fraction": 0.25},
    ]
    assert of_all_processes(everybody) == {
        "kl": 1.5,
        "lr": 0.1,
        "ratio_deviation": 0.5,
        "expander_texts": ["a"],
        "clip_fraction": 0.25,
    }
    everybody[2]["ratio_deviation"] = math.nan
    assert math.isnan(of_all_processes(everybody)["ratio_deviation"])
    assert of_all_processes(everybody[:1]) == everybody[0]


# Votes ------------------------------------------------------------------------------------------


def voted(world: World, folder: Path, reward: Votes, rows: slice) -> Tensor:
    """Return the rewards (2, b) of a process's images in two iterations."""
    job: Any = SimpleNamespace(
        run=Run(folder),
        world=world,
        parts=SimpleNamespace(rewards={"votes": reward}),
        config=SimpleNamespace(seed=5, batch=SimpleNamespace(images_per_prompt=4)),
        poll=lambda: None,
    )
    images = [images_of(iteration)[rows] for iteration in (1, 2)]
    blank = Scores(torch.zeros(len(images[0]), 1, dtype=torch.float64), ("votes",))
    scores = [
        with_votes(job, number, shown, PROMPTS[rows], GROUP[rows], blank)
        for number, shown in enumerate(images, 1)
    ]
    return torch.stack([score.parts[:, 0] for score in scores])


@pytest.mark.parametrize("make", [with_head, without_head])
def test_votes_are_about_the_images_of_all_processes(
    tmp_path: Path, make: Callable[..., Votes]
) -> None:
    folders = [tmp_path / name for name in ("two", "one")]
    for folder in folders:
        folder.mkdir()
    exchange = Exchange()
    worlds = [Thread(rank=rank, exchange=exchange) for rank in range(COUNT)]

    with ThreadPoolExecutor(COUNT) as threads:
        found = threads.map(
            lambda world: voted(
                world, folders[0], make(), slice(4 * world.rank, 4 * world.rank + 4)
            ),
            worlds,
        )
        values = torch.cat(list(found), 1)

    whole = voted(World(), folders[1], make(), slice(8))
    torch.testing.assert_close(values, whole, rtol=0, atol=0, equal_nan=True)
    assert values[1].isfinite().any()
    listed = [files.questions(Run(folder)) for folder in folders]
    assert listed[0] == listed[1]
    assert {question.prompt for question in listed[0]} == {"prompt 0", "prompt 1"}


# Launched ---------------------------------------------------------------------------------------

SCRIPT = """
import os
import sys
from pathlib import Path
from safetensors.torch import save_file
from burnish import config
from burnish.training import assembly
from burnish.training.loop import train
from burnish.training.record import Recorder

def imitate(expander, pairs, epochs, lr, seed, imitate=assembly.imitate):
    # different GPUs compute different weights
    return imitate(expander, pairs, epochs, lr * (1 + int(os.environ["RANK"])), seed)

assembly.imitate = imitate

def end(self, ends=Recorder.end):
    ends(self)
    states = {name: learner.state() for name, learner in self.job.learners.items()}
    named = {f"{name}/{key}": value for name in states for key, value in states[name].items()}
    save_file(named, f"{self.job.run.folder}-{self.job.world.rank}")
    assert self.job.world.count == 2

Recorder.end = end
for recipe in sorted(Path(sys.argv[1]).glob("*.toml")):
    read = config.load(recipe, trust=True)
    begun = sys.argv[2] == "begun"
    train(read, recipe.with_suffix(""), progress=False, resume=begun, accept_changes=begun)
"""
REWARDS = """
from burnish import differentiable
@differentiable
def bright(images, prompts):
    return images.mean((1, 2, 3))
"""
BRIGHT = {"use": "HERE/reward.py:bright"}
TWO_REWARDS = {
    "rewards": [BRIGHT, {"use": "compressibility"}],
    "advantage": {"use": "pareto"},
    "batch": {"images_per_prompt": 4},
}
TORCHRUN: dict[str, dict[str, Any]] = {
    "clipped": {"evaluation": {"images_per_prompt": 2}},
    "dpo": {"objective": {"use": "dpo"}},
    "latent": {"objective": {"use": "latent"}, "advantage": {"use": "none"}},
    "nft": {"objective": {"use": "nft"}, "old_policy": {"decay": 0.5, "rise": 0.5}},
    "rwr": {"objective": {"use": "rwr"}, "advantage": {"use": "top_fraction", "fraction": 0.3}},
    "tokens": {**TWO_REWARDS, "sampler": {"identifiers": "tokens"}},
    "learned": {**TWO_REWARDS, "sampler": {"identifiers": "tokens", "identifiers_learn": True}},
    "expander": {"expander": {"model": "HERE/language", "rank": 2, "tokens": 4, "expansions": 2}},
    "imitation": {
        "expander": {
            "model": "HERE/language",
            "rank": 2,
            "tokens": 4,
            "expansions": 2,
            "start": "HERE/pairs.jsonl",
        }
    },
}
ACCELERATE: dict[str, dict[str, Any]] = {"ram": {"objective": {"use": "ram"}}}
LEARNERS = {
    "learned": ["generator", "identifiers"],
    "expander": ["generator", "expander"],
    "imitation": ["generator", "expander"],
}


def write_small(folder: Path, pipeline: Path, name: str, tables: dict[str, Any]) -> Path:
    """Write the recipe of a run of two iterations."""
    tree: dict[str, Any] = {
        "iterations": 2,
        "model": {"id": str(pipeline), "device": "auto"},
        "sampler": {"steps": 2, "guidance": {"use": "cfg", "weight": 2.0}},
        "prompts": {"use": "list", "texts": ["a cat", "a dog", "an ox"]},
        "rewards": [BRIGHT],
        "advantage": {"use": "batch"},
        "batch": {"prompts": 2, "images_per_prompt": 2, "sample_batch": 2, "minibatches": 1},
        "evaluation": {"images_per_prompt": 0},
        "run": {"sample_every": 0},
    }
    for key, value in tables.items():
        merged = isinstance(value, dict) and "use" not in value
        tree[key] = {**tree.get(key, {}), **value} if merged else value

    path = folder / f"{name}.toml"
    path.write_text(tomli_w.dumps(tree).replace("HERE", str(folder)))
    return path


def launch(folder: Path, runs: str, *launcher: str) -> None:
    """Train all recipes of a folder by two processes; the runs are "new" or "begun"."""
    (folder / "both.py").write_text(SCRIPT)
    root = str(Path(burnish.__file__).parent.parent)  # also where it is not installed
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *launcher, str(folder / "both.py"), str(folder), runs]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def launched(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs by torchrun, and of one that accelerate goes on with."""
    folder = tmp_path_factory.mktemp("launched")
    write_language(folder)
    (folder / "reward.py").write_text(REWARDS)

    for name, tables in TORCHRUN.items():
        write_small(folder, tiny_pipeline, name, tables)
    launch(folder, "new", "torch.distributed.run", "--standalone", "--nproc-per-node=2")

    other = folder / "accelerate"
    other.mkdir()
    shutil.copy(folder / "reward.py", other)
    for name, tables in ACCELERATE.items():
        begun = load(write_small(other, tiny_pipeline, name, tables), ["iterations=1"], trust=True)
        train(begun, other / name)
    free_port = "--main_process_port=0"
    launcher = ("accelerate.commands.launch", "--multi_gpu", "--num_processes=2", free_port)
    launch(other, "begun", *launcher)
    return folder


@pytest.mark.parametrize("name", [*TORCHRUN, *(f"accelerate/{name}" for name in ACCELERATE)])
def test_launched_processes_end_with_the_same_weights(launched: Path, name: str) -> None:
    states = [(launched / f"{name}-{rank}").read_bytes() for rank in range(COUNT)]
    assert states[0] == states[1]

    records = Run(launched / name).records()
    assert len(records) == 2
    assert all(
        record["images"] == (8 if name in ("tokens", "learned") else 4) for record in records
    )
    for learner in LEARNERS.get(name, ["generator"]):
        norm = "grad_norm" if learner == "generator" else f"{learner}_grad_norm"
        assert all(record[norm] > 0 for record in records)


def test_launched_processes_share_an_evaluation(launched: Path, tmp_path: Path) -> None:
    config = load(launched / "clipped.toml", ["iterations=1"], trust=True)
    alone = Run(train(config, tmp_path / "alone"))
    two = Run(launched / "clipped")
    assert load_evaluation(two.evaluation_file(0)) == load_evaluation(alone.evaluation_file(0))


def test_one_process_goes_on_with_what_two_have_begun(launched: Path, tmp_path: Path) -> None:
    run = Run(shutil.copytree(launched / "clipped", tmp_path / "clipped"))
    config = load(launched / "clipped.toml", ["iterations=3"], trust=True)
    with pytest.raises(ValueError, match="number of processes.*it was 2, and is 1 now.*accept"):
        train(config, run.folder, resume=True)

    train(config, run.folder, resume=True, accept_changes=True)
    assert [record["images"] for record in run.records()] == [4, 4, 4]
