"""`benchmarks.gpu`: models of the published sizes, and tiny ones that run through the same code."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_models, gpu_worker
from benchmarks.gpu_worker import Answer, NetworkCalls, Task
from burnish.diffusion import shapes

PUBLISHED = {
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sdxl": {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder_2": 694_659_840},
    "sd35": {"transformer": 2.24e9, "text_encoder": 123.65e6, "text_encoder_2": 694_659_840},
    "klein": {"transformer": 3.88e9, "text_encoder": 4.02e9},
    "zimage": {"transformer": 6.15e9, "text_encoder": 4.02e9},
}


class InProcess(gpu.Processes):
    """Does everything in this process, and says "no memory" for 8 GiB."""

    def call(self, do: str, task: Task, seconds: float) -> dict[str, Any]:
        values = Answer(self.scratch / "answer.json")
        if task.gib == 8:
            return {"error": "CUDA out of memory", "out_of_memory": True}
        gpu_worker.CALLS[do](task, values)
        return values._values


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_a_model_has_its_published_size(name: str) -> None:
    counted = shapes.parameters(gpu_models.shape_of(name))

    for part, size in PUBLISHED[name].items():
        exact = isinstance(size, int)
        assert counted[part] == (size if exact else pytest.approx(size, rel=0.003)), part


def test_every_model_has_a_tiny_one_and_a_recipe() -> None:
    assert list(shapes.SHAPES) == list(gpu_models.TINY) == list(gpu_worker.CASES)


def test_a_tiny_model_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "CAPS", (24, 8, 4))
    task = Task("sd35", tmp_path / "model", tmp_path, "cpu", tiny=True)
    result = gpu.run_model(InProcess(tmp_path, tmp_path / "log"), task, share=100, left=100)

    assert "error" not in result
    assert result["images"] == 8
    assert result["settings"]["size"] == 64
    assert result["iteration_s"] == pytest.approx(result["sampling_s"] + result["training_s"])
    assert 0 < result["network_s"] < 3 * result["iteration_s"]
    assert result["runs_within"]["24"] == {"runs": "yes"}
    assert result["runs_within"]["8"] == {"runs": "no", "error": "CUDA out of memory"}
    assert "4" not in result["runs_within"]
    assert not (tmp_path / "model").exists()

    # 3 steps of 8 guided images; 8 noised ones, two a call: for the anchor, for the old policy that
    # lags, and with gradient for the prompts alone
    assert sorted(result["network_calls"], key=str) == [
        {"images": 2, "texts": 2, "gradient": False, "calls": 8},
        {"images": 2, "texts": 2, "gradient": True, "calls": 4},
        {"images": 8, "texts": 16, "gradient": False, "calls": 3},
    ]


def test_the_network_alone_is_all_calls_by_a_part_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    policy: Any = SimpleNamespace(_family=None)
    calls = NetworkCalls(policy)
    calls.counts = {(8, 16, False): 50, (2, 2, False): 3, (2, 2, True): 7}
    timed = {}

    def seconds_of(kind: tuple[int, int, bool], count: int) -> float:
        timed[kind] = count
        return count * kind[0]

    monkeypatch.setattr(calls, "time", seconds_of)

    assert calls.seconds() == {False: 50 * 8 + 3 * 2, True: 7 * 2}
    assert timed == {(8, 16, False): 13, (2, 2, False): 1, (2, 2, True): 2}


@pytest.mark.parametrize("name", ["sd15", "sdxl", "klein", "zimage"])
def test_a_tiny_model_is_written_and_loaded(name: str, tmp_path: Path) -> None:
    task = Task(name, tmp_path / "model", tmp_path, "cpu", tiny=True)
    gpu_worker.build(task, Answer(tmp_path / "answer.json"))
    policy = gpu_worker.load_policy(task.config(short=True))

    assert policy.latent_shape[-1] * policy.latent_pixel == 64
    assert policy.trainable


def test_a_process_that_fails_stops_or_dies_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(task: Task, values: Answer) -> None:
        values.add(seconds_load=2.0)
        try:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        except torch.OutOfMemoryError as error:
            raise ValueError("the model cannot be loaded") from error

    calls = {
        "full": full,
        "wrong": lambda task, values: 1 / 0,
        "late": lambda task, values: time.sleep(60),
        "dead": lambda task, values: os._exit(7),
    }
    monkeypatch.setattr(gpu_worker, "CALLS", {**gpu_worker.CALLS, **calls})
    processes = gpu.Processes(tmp_path, tmp_path / "log")
    task = Task("", tmp_path, tmp_path, "cpu")

    def call(do: str, seconds: float = 30) -> dict[str, Any]:
        return processes.call(do, task, seconds)

    assert call("full") == {
        "seconds_load": 2.0,
        "error": "ValueError: the model cannot be loaded",
        "out_of_memory": True,
    }
    assert call("wrong") == {
        "error": "ZeroDivisionError: division by zero",
        "out_of_memory": False,
    }
    assert call("late", 0.5) == {"error": "stopped after 0 s"}
    assert call("dead") == {"error": "the process ended with exit code 7"}
    assert processes.probe(task) == {"device": "cpu", "memory_gib": 0.0, "processes": "fork"}
