"""Small images of the latest iteration and evaluation, with what each image got."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from burnish.config import load
from burnish.run_files import GroupsFile, read_evaluation, read_json
from burnish.runs import Run
from burnish.training import thumbnails
from burnish.training.collect import SampledImages
from burnish.training.loop import train
from burnish.training.thumbnails import Thumbnails

BRIGHTNESS = """
def brightness(images, prompts):
    return images.mean((1, 2, 3))
"""


def cells(path: Path, columns: int, side: int) -> np.ndarray:
    """Return the images of a grid, (B, side, side, 3) in [0, 1]."""
    with Image.open(path) as grid:
        sheet = np.asarray(grid, dtype=np.float64) / 255
    rows = sheet.shape[0] // side
    return sheet.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)


def test_they_are_the_images_that_got_these_rewards(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe(
        BRIGHTNESS,
        iterations=2,
        rewards=[{"use": "HERE/reward.py:brightness"}],
        batch={"prompts": 2, "images_per_prompt": 3, "sample_batch": 4},
        evaluation={"images_per_prompt": 2},
        run={"thumbnails": 8},
    )
    seen: list[SampledImages] = []
    run = Run(train(load(recipe), tmp_path / "run", on_images=seen.append, progress=False))

    names = sorted(path.name for path in run.groups.iterdir())
    assert names == [
        "000002.json",
        "000002.png",
        "evaluation-000002.json",
        "evaluation-000002.png",
    ]
    layout = read_json(run.groups / "000002.json", GroupsFile, "")
    assert layout["iteration"] == 2
    assert layout["texts"] == [prompt.text for prompt in seen[-1].prompts]
    assert [layout["group"][i : i + 3] for i in (0, 3)] == [[group] * 3 for group in (0, 1)]
    assert layout["rewards"] == ["brightness"]

    # the mean of an image is that of its small copy, and its reward
    small = cells(run.groups / "000002.png", layout["columns"], 8)[:6]
    rewards = [row[0] for row in layout["parts"]]
    assert small.mean((1, 2, 3)) == pytest.approx(rewards, abs=2 / 255)

    table = read_evaluation(run.evaluation_file(2))["train"]
    small = cells(run.groups / "evaluation-000002.png", 3, 8)[: len(table["parts"])]
    rewards = [row[0] for row in table["parts"]]
    assert small.mean((1, 2, 3)) == pytest.approx(rewards, abs=2 / 255)


def test_without_the_setting_there_are_none(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe(
        iterations=1, batch={"prompts": 1, "images_per_prompt": 2}, run={"thumbnails": 0}
    )
    run = Run(train(load(recipe, ["evaluation.images_per_prompt=1"]), tmp_path / "run"))
    assert not run.groups.exists()


def test_their_number_and_size_are_limited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(thumbnails, "MOST", 3)
    small = Thumbnails(4)
    for _ in range(2):
        small.add(torch.rand(2, 3, 8, 16))

    assert sum(map(len, small.images)) == 3
    assert small.images[0].shape == (2, 3, 2, 4)
    columns = small.write(tmp_path, "grid")
    with Image.open(io.BytesIO((tmp_path / "grid.png").read_bytes())) as grid:
        assert grid.width == 4 * columns
