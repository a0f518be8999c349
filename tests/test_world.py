"""One process is the identity; two processes train one model together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import burnish
from burnish import config as configuration
from burnish.evaluation.paired import load_evaluation
from burnish.runs import Run
from burnish.training.loop import train
from burnish.world import World, flat


def test_alone_everything_is_the_identity() -> None:
    world = World.start()
    rows = torch.rand(3, 2)
    assert world == World() and world.main and world.device("auto") == "auto"
    assert (
        world.gather(rows) is rows
        and world.gather_list([1, 2]) == [1, 2]
        and world.any(True)
        and not world.any(False)
    )
    world.average_gradients([])
    world.log({"iteration": 1})
    world.end()


def test_flat() -> None:
    assert flat({"a": {"b": {"c": 1}, "d": "text"}, "e": 2.5, "f": True}) == {"a/b/c": 1, "e": 2.5}


BRIGHT = {"use": "HERE/reward.py:bright"}


@pytest.mark.parametrize(
    ("tables", "kind"),
    [
        ({"advantage": {"use": "batch"}, "rewards": [BRIGHT]}, ""),
        (
            {"advantage": {"use": "pareto"}, "rewards": [BRIGHT, {"use": "compressibility"}]},
            "tokens",
        ),
    ],
    ids=["one reward", "many rewards"],
)
def test_two_processes(
    tmp_path: Path, write_recipe: Callable[..., Path], tables: dict[str, Any], kind: str
) -> None:
    recipe = write_recipe(
        "def bright(images, prompts):\n    return images.mean((1, 2, 3))\n",
        iterations=1,
        sampler={"steps": 2, "identifiers": kind},
        batch={
            "prompts": 2,
            "images_per_prompt": 4 if kind else 2,
            "sample_batch": 2,
            "minibatches": 1,
        },
        evaluation={"images_per_prompt": 2},
        run={"sample_every": 0},
        **tables,
    )
    code = tmp_path / "both.py"
    code.write_text(f"""
import os
from burnish import config, world
from burnish.training.loop import train
seen = world.World.average_gradients
def average(self, parameters):
    seen(self, parameters)
    total = sum(float(p.grad.abs().sum()) for p in parameters)
    open({str(tmp_path)!r} + f"/rank{{self.rank}}.txt", "w").write(repr(total))
world.World.average_gradients = average
train(config.load({str(recipe)!r}), {str(tmp_path / "two")!r})
""")

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    joined = {
        **os.environ,
        "PYTHONPATH": str(Path(burnish.__file__).parent.parent),  # also where it is not installed
        **{"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
    }
    ranks = [{**joined, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    processes = [
        subprocess.Popen([sys.executable, code], env=env, stderr=subprocess.PIPE) for env in ranks
    ]

    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors.decode()[-2000:]
    finally:
        for process in processes:
            process.kill()
            process.communicate()

    gradients = [(tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1)]
    assert gradients[0] == gradients[1] and float(gradients[0]) > 0, (
        "both step along the mean gradient"
    )
    two = Run(tmp_path / "two")
    one = Run(train(configuration.load(recipe), tmp_path / "one"))
    assert two.records()[0]["images"] == one.records()[0]["images"] == (8 if kind else 4)
    assert load_evaluation(two.measured(0)) == load_evaluation(one.measured(0)), (
        "evaluation is shared out, and put together in order"
    )
