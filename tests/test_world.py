"""One process is the identity; two processes train one model together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import burnish
from burnish import config as configuration
from burnish.evaluation.paired import load_evaluation
from burnish.runs import Run, flat
from burnish.training.loop import train
from burnish.world import World, join_world


def test_alone_everything_is_the_identity() -> None:
    world = join_world()
    rows = torch.rand(3, 2)
    assert world == World() and world.main and world.device("auto") == "auto"
    assert world.gather(rows) is rows and world.gather_list([1, 2]) == [1, 2]
    assert world.any(True) and not world.any(False)
    world.average_gradients([])
    world.tracking.log({"iteration": 1}, 1)
    world.end()


def test_flat() -> None:
    assert flat({"a": {"b": {"c": 1}, "d": "text"}, "e": 2.5, "f": True}) == {"a/b/c": 1, "e": 2.5}


BRIGHT = """
def bright(images, prompts):
    return images.mean((1, 2, 3))
"""
ONE_REWARD = """
advantage = { use = "batch" }
[[rewards]]
use = "HERE/reward.py:bright"
"""
MANY_REWARDS = """
advantage = { use = "pareto" }
[[rewards]]
use = "HERE/reward.py:bright"
[[rewards]]
use = "compressibility"
"""
SCRIPT = """
from burnish import config, world
from burnish.training.loop import train
average_gradients = world.World.average_gradients
def average(self, parameters):
    average_gradients(self, parameters)
    total = sum(float(p.grad.abs().sum()) for p in parameters)
    open(f"HERE/rank{self.rank}.txt", "a").write(repr(total) + "\\n")
world.World.average_gradients = average
train(config.load("HERE/tiny.toml", trust=True), "HERE/two")
"""


def run_two(script: Path) -> None:
    """Run a script in two processes that know of each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    joined = {
        **os.environ,
        "PYTHONPATH": str(Path(burnish.__file__).parent.parent),  # also where it is not installed
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    ranks = [{**joined, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    processes = [
        subprocess.Popen([sys.executable, script], env=env, stderr=subprocess.PIPE) for env in ranks
    ]

    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors.decode()[-2000:]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    ("rewards", "identifiers"),
    [(ONE_REWARD, ""), (MANY_REWARDS, "tokens"), (MANY_REWARDS, "learned tokens")],
    ids=["one reward", "many rewards", "learned identifiers"],
)
def test_two_processes(tiny_pipeline: Path, tmp_path: Path, rewards: str, identifiers: str) -> None:
    (tmp_path / "reward.py").write_text(BRIGHT)
    images = 4 if identifiers else 2
    learns = identifiers.startswith("learned")
    tokens = f'identifiers = "{identifiers[-6:]}", identifiers_learn = {str(learns).lower()}'
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(f"""
iterations = 1
model = {{ id = "{tiny_pipeline}", device = "cpu" }}
sampler = {{ steps = 2, {tokens}, guidance = {{ use = "cfg", weight = 2.0 }} }}
prompts = {{ use = "list", texts = ["a cat", "a dog", "an ox"] }}
batch = {{ prompts = 2, images_per_prompt = {images}, sample_batch = 2, minibatches = 1 }}
evaluation = {{ images_per_prompt = 2 }}
run = {{ sample_every = 0 }}
{rewards.replace("HERE", str(tmp_path))}
""")
    script = tmp_path / "both.py"
    script.write_text(SCRIPT.replace("HERE", str(tmp_path)))
    run_two(script)

    gradients = [(tmp_path / f"rank{rank}.txt").read_text().split() for rank in (0, 1)]
    assert gradients[0] == gradients[1], "both step along the mean gradient"
    assert len(gradients[0]) == 1 + learns and all(float(norm) > 0 for norm in gradients[0])

    two = Run(tmp_path / "two")
    single = Run(train(configuration.load(recipe), tmp_path / "one"))
    assert two.records()[0]["images"] == single.records()[0]["images"] == 2 * images
    # the processes share the evaluation, and put it together in order
    assert load_evaluation(two.evaluation_file(0)) == load_evaluation(single.evaluation_file(0))


def test_a_missing_tracker_is_named_by_its_own_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.world.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="not installed; run: pip install tensorboard$"):
        join_world(["tensorboard"], None, "cpu")
