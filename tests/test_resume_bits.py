"""A run that was stopped and resumed is the uninterrupted run to the bit: every reward and kind.

The numbers of log.jsonl but for its times, the weights and the checkpoints' tensors are compared.
The resumed run has new parts, so whatever a part remembers outside of the checkpoint would show.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from conftest import log
from PIL import Image
from safetensors.torch import load_file

from burnish.config import Config, load
from burnish.runs import Run
from burnish.training.loop import train

if TYPE_CHECKING:
    from conftest import LocalServer

SMALL = (
    "iterations=3",
    "batch.prompts=2",
    "batch.images_per_prompt=2",
    "batch.sample_batch=2",
    "batch.train_batch=3",
    "evaluation.images_per_prompt=0",
    "guard.action=none",
    "run.sample_every=0",
    "run.checkpoint_every=1",
    "sampler.steps=3",
    "batch.transitions=0",
)
CLIP = "zoo:emoji-clip"
TEXTS = ["a cat", "two dogs", "a red car and a wolf", "an ant", "a tree on a blue background"]
REWARDS: dict[str, dict[str, Any]] = {
    "aesthetic": {"model": CLIP, "head": "zoo:emoji-aesthetic"},
    "caption": {"model": "zoo:emoji-captioner", "encoder": CLIP, "layer": 1},
    "clip_contrast": {"model": CLIP, "others": ["a cat", "a dog", "a pear"]},
    "clip_retrieval": {"model": CLIP, "others": ["a cat", "a dog", "a pear"]},
    "clip_similarity": {"model": CLIP},
    "code_distance": {"model": CLIP},
    "compressibility": {},
    "incompressibility": {},
    "picture_similarity": {"model": CLIP},
    "preference": {"model": CLIP},
    "qr_modules": {},
    "qr_scan": {},
    "question": {"model": "zoo:emoji-captioner"},
    "remote": {},
    "sentiment": {"model": CLIP},
}
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "DDPO with a moving average": ("demo", ("optimizer.ema=0.9",)),
    "RLCM": ("emoji-lcm-aesthetic", ()),
    "RWR": ("emoji-rwr", ("batch.minibatches=2",)),
    "expander and many rewards": (
        "emoji-parrot",
        ("batch.images_per_prompt=8", "batch.sample_batch=8"),
    ),
    "ControlNet": ("emoji-qr", ()),
    "an old policy that lags, and an anchor": (
        "demo",
        (
            "batch.baseline=",
            "batch.transitions=2",
            "objective={use='nft',kl=0.1}",
            "old_policy={decay=0.5,rise=0.2}",
            "forward.anchor=average",
            "optimizer.ema=0.9",
        ),
    ),
    "images of the reference as an anchor": (
        "demo",
        (
            "batch.baseline=",
            "batch.transitions=2",
            "objective={use='rvm',kl=0.1}",
            "forward.anchor=images",
        ),
    ),
    "RAM on a flow model": ("emoji-flow", ()),
    "DGPO": ("demo", ("batch.baseline=", "batch.transitions=2", "objective={use='dgpo'}")),
    "DPO": ("demo", ("batch.baseline=", "batch.transitions=2", "objective={use='dpo'}")),
    "normalised ratios": ("demo", ("batch.baseline=", "objective={use='clipped',normalise=true}")),
    "divergence": ("demo", ("batch.baseline=", "objective={use='dppo'}")),
    "reward gradients": (
        "emoji-gradient",
        ("batch.minibatches=2", "objective.kl=0.1", "chain={last=2,ramp=true}"),
    ),
    "rewards of predictions": ("emoji-gradient", ("chain={read='prediction',last=2}",)),
    "finite differences": (
        "emoji-lcm-aesthetic",
        ("objective={use='fdfo'}", "sampler.shared_noise=true", "batch.minibatches=2"),
    ),
    "guard": (
        "emoji-guard",
        (
            "guard.action=rollback",
            "evaluation.images_per_prompt=2",
            "evaluation.every=1",
            'evaluation.prompts={use="list", texts=["a cat", "two dogs"]}',
            "evaluation.unseen={}",
        ),
    ),
}


def tensors(run: Run) -> dict[str, dict[str, torch.Tensor]]:
    """Return the tensors of a run's adapter and newest checkpoint by file."""
    newest = max(run.checkpoints.iterdir())
    files = [*run.adapter.rglob("*.safetensors"), *newest.glob("*.safetensors")]
    return {str(path.relative_to(run.folder)): load_file(path) for path in files}


def interrupted(config: Config, folder: Path) -> Run:
    """Train in two starts: the first one is stopped after an iteration."""
    records: list[Any] = []
    train(config, folder, on_record=records.append, stop=lambda: len(records) == 1)
    assert len(log(folder)) == 1
    return Run(train(config, folder, resume=True))


def assert_same(config: Config, tmp_path: Path) -> None:
    """Train at once and in two starts, and compare."""
    whole = Run(train(config, tmp_path / "whole"))
    resumed = interrupted(config, tmp_path / "resumed")
    assert log(resumed.folder) == log(whole.folder)

    for path in sorted((whole.folder / "evaluations").glob("*.json")):
        other = resumed.folder / "evaluations" / path.name
        assert json.loads(other.read_text()) == json.loads(path.read_text())

    expected = tensors(whole)
    found = tensors(resumed)
    assert found.keys() == expected.keys() and len(found) >= 2
    for file, named in expected.items():
        assert found[file].keys() == named.keys()
        for name, tensor in named.items():
            assert torch.equal(found[file][name], tensor), f"{file}: {name}"


@pytest.mark.filterwarnings("ignore")
def test_every_reward(server: LocalServer, tmp_path: Path) -> None:
    """All in one run: each has numbers of its own in the log."""
    Image.linear_gradient("L").convert("RGB").resize((64, 64)).save(tmp_path / "base.png")
    metadata = {
        "payload": "AB1",
        "base": str(tmp_path / "base.png"),
        "questions": ["how many are there?"],
        "answers": ["two"],
    }
    lines = [json.dumps({"prompt": text, **metadata}) for text in TEXTS]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    server.answer = lambda body: (200, {"scores": [len(text) for text in body["images"]]})
    config = load("emoji-lcm-compressibility", [*SMALL, "advantage={use='group'}"])
    config = replace(
        config,
        prompts={"use": "jsonl", "path": str(tmp_path / "prompts.jsonl")},
        rewards=[
            {"use": name, **arguments, **({"url": server.url} if name == "remote" else {})}
            for name, arguments in REWARDS.items()
        ],
    )
    assert_same(config, tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kind: str, tmp_path: Path) -> None:
    recipe, changes = KINDS[kind]
    assert_same(load(recipe, [*SMALL, *changes]), tmp_path)


def test_every_reward_is_in_the_list() -> None:
    """But for those about pairs: test_voting resumes votes."""
    from burnish.catalog import BUILTIN

    assert {*REWARDS, "taste", "votes", "chosen"} == BUILTIN["reward"].keys()
