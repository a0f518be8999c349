"""`model.text_encoder`: prompts encoded once and text encoders gone, or in main memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from conftest import generator, log
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from burnish import Overrides
from burnish import config as configuration
from burnish.diffusion import loading
from burnish.diffusion import policy as policies
from burnish.diffusion.families import family_of
from burnish.diffusion.family import networks
from burnish.diffusion.policy import Policy
from burnish.diffusion.prompt_encoder import PromptEncoder
from burnish.runs import Run
from burnish.tools.evaluate_run import evaluate_run
from burnish.tools.gallery import open_source
from burnish.tools.preflight import preflight
from burnish.training import assembly
from burnish.training.job import prepare
from burnish.training.loop import train
from burnish.types import Prompt
from burnish.world import World

FREED = "model.text_encoder=free"
ON_CPU = "model.text_encoder=cpu"
PROMPTS = [Prompt("a cat"), Prompt("a dog")]
ENCODERS = ("text_encoder", "text_encoder_2")


@pytest.fixture(params=["tiny_sdxl", "tiny_klein"])
def recipe(
    request: pytest.FixtureRequest, write_recipe: Callable[..., Path]
) -> Callable[..., Path]:
    """A function that writes the recipe of a run with unseen prompts, samples and a negative one.

    The second reward is there for identifiers.
    """
    kernel = "ddim" if request.param == "tiny_sdxl" else "cps"

    def write(**sampler: Any) -> Path:
        guidance = {"use": "cfg", "weight": 3.0, "negative": "blue"}
        return write_recipe(
            "def bright(images, prompts):\n    return images.mean((1, 2, 3))\n",
            iterations=2,
            model={"id": str(request.getfixturevalue(request.param))},
            sampler={"steps": 3, "kernel": {"use": kernel}, "guidance": guidance, **sampler},
            rewards=[{"use": "compressibility"}, {"use": "HERE/reward.py:bright"}],
            batch={"prompts": 2, "images_per_prompt": 4},
            evaluation={
                "images_per_prompt": 1,
                "every": 1,
                "unseen": {"use": "list", "texts": ["a fox"]},
            },
            run={"sample_every": 1, "sample_prompts": 2, "checkpoint_every": 1},
        )

    return write


def files(run: Path) -> dict[str, bytes]:
    """Return what was learned, drawn and measured, by its path."""
    parts = [*run.glob("samples/*.png"), *run.glob("adapter/*.safetensors")]
    parts += run.glob("evaluation*.json")
    assert len(parts) > 4
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in parts}


def test_a_run_is_the_same_wherever_its_text_encoders_are(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    path = recipe(identifiers="words")
    usual = train(configuration.load(path), tmp_path / "usual", progress=False)
    for place in ("free", "cpu"):
        config = configuration.load(path, [f"model.text_encoder={place}"])
        run = train(config, tmp_path / place, progress=False)
        assert log(usual) == log(run)
        assert files(usual) == files(run)


def test_the_network_waits_until_the_prompts_are_encoded(
    tiny_sdxl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def load(*args: Any, device: Any, **settings: Any) -> Any:
        done.append(f"load on {device}")
        return loading.load_pipeline(*args, device=device, **settings)

    def place(pipe: Any, device: Any, texts: bool, left: Any = ()) -> None:
        done.append(f"place {'text encoders' if texts else 'others'}")

    def encode(encoder: PromptEncoder) -> None:
        done.append("encode")
        encoder.free([prompt.text for prompt in PROMPTS])

    monkeypatch.setattr(policies, "load_pipeline", load)
    monkeypatch.setattr(policies, "place_parts", place)
    policy = Policy.load(tiny_sdxl, device="cpu", encode_first=encode)
    assert done == ["load on cpu", "place text encoders", "encode", "place others"]
    assert policy.prompt_encoder.freed and policy.encode(PROMPTS)["text"].shape[0] == 2

    done.clear()
    Policy.load(tiny_sdxl, device="cpu", text_encoder="cpu")
    assert done == ["load on cpu", "place others"]


def test_what_is_encoded_before_the_network_comes_has_no_dropout(tiny_sd3: Path) -> None:
    """T5 from a single file is in training mode, as a pipeline in memory may be."""
    texts = [prompt.text for prompt in PROMPTS]
    states = []
    for first in (None, lambda encoder: encoder.free(texts)):
        pipe = DiffusionPipeline.from_pretrained(tiny_sd3)
        pipe.text_encoder_3.train()
        policy = Policy.load(pipe, device="cpu", encode_first=first)
        states.append(policy.encode(PROMPTS))
        assert policy.prompt_encoder.freed == (first is not None)

    before, freed = states
    assert all(torch.equal(before[name], freed[name]) for name in before)


def test_text_encoders_stay_on_the_cpu_and_their_states_travel(tiny_sdxl: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(tiny_sdxl)
    loading.place_parts(pipe, "meta", texts=False)
    devices = {name: getattr(pipe, name).device.type for name in ("unet", "vae", *ENCODERS)}
    assert devices == {"unet": "meta", "vae": "meta", **dict.fromkeys(ENCODERS, "cpu")}

    encoder = PromptEncoder(pipe, family_of(type(pipe).__name__), torch.device("meta"))
    for states in (encoder.encode(["a cat", "a dog"]), encoder.null(2), encoder.null(2, "blue")):
        assert {(len(value), value.device.type) for value in states.values()} == {(2, "meta")}


def test_who_draws_with_a_run_that_freed_them_has_them_in_main_memory(
    recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def load(*args: Any, **settings: Any) -> Any:
        seen.update(settings)
        return MagicMock()

    monkeypatch.setattr(assembly.Policy, "load", load)
    monkeypatch.setattr(assembly, "add_identifiers", lambda *_: None)
    assembly.load_policy(configuration.load(recipe(), [FREED]))
    assert (seen["text_encoder"], seen["encode_first"]) == ("cpu", None)


def test_keys_of_older_runs_are_read(recipe: Callable[..., Path]) -> None:
    path = recipe()
    for value, meaning in (("true", "free"), ("false", "keep")):
        config = configuration.load(path, [ON_CPU, f"model.free_text_encoder={value}"])
        assert config.model.text_encoder == meaning
    with pytest.raises(ValueError, match='unknown key "model.free_text_encoder"'):
        configuration.load(path, ["model.free_text_encoder=0"])


def test_a_run_goes_on_without_them_and_is_evaluated_and_sampled(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    path = recipe()
    whole = train(configuration.load(path), tmp_path / "whole", progress=False)
    train(configuration.load(path, ["iterations=1"]), tmp_path / "run", progress=False)
    config = configuration.load(path, [FREED])
    run = train(config, tmp_path / "run", resume=True, progress=False)
    assert log(run) == log(whole)

    before = (run / "evaluation.json").read_bytes()
    evaluate_run(Run(run))
    assert (run / "evaluation.json").read_bytes() == before

    policy, sampler = open_source(str(run))
    assert sampler.images(policy, [Prompt("a new one")], generator()).isfinite().all()


def test_prompts_before_expansion_are_encoded_too(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a red cat", "original": "a cat"}')
    path = write_recipe(
        sampler={"steps": 3, "guidance": {"use": "dual"}},
        prompts={"use": "jsonl", "path": "HERE/prompts.jsonl"},
    )
    findings = preflight(configuration.load(path, [FREED]))
    assert [finding.text for finding in findings if finding.level == "error"] == []
    assert any(finding.text.startswith("2 prompts are encoded") for finding in findings)


def test_the_check_knows_it(recipe: Callable[..., Path]) -> None:
    path = recipe(identifiers="words")
    findings = preflight(configuration.load(path, [FREED]))
    assert [finding.text for finding in findings if finding.level == "error"] == []
    # 4 texts: alone, with either identifier, with both
    assert any(
        finding.text.startswith("16 prompts are encoded, and the text encoders out of memory")
        for finding in findings
    )


ENCODED = ("sdxl", "sd3", "flux_dev", "qwen_image", "z_image", "klein", "sana")


@pytest.mark.parametrize("model", [f"tiny_{name}" for name in ENCODED])
def test_the_weights_are_freed(model: str, request: pytest.FixtureRequest) -> None:
    pipe = DiffusionPipeline.from_pretrained(request.getfixturevalue(model))
    policy = Policy.load(pipe)
    before = policy.encode(PROMPTS)
    null = policy.null(2, "blue")
    names = [name for name in pipe.components if name.startswith("text_encoder")]
    encoders = [weakref.ref(getattr(pipe, name)) for name in names]
    count = sum(p.numel() for network in networks(pipe) for p in network.parameters())
    in_encoders = sum(p.numel() for ref in encoders for p in ref().parameters())  # type: ignore[union-attr]

    policy.prompt_encoder.free([prompt.text for prompt in PROMPTS], ["", "blue"])
    gc.collect()
    assert [ref() for ref in encoders] == [None] * len(names)
    assert [getattr(pipe, name) for name in names] == [None] * len(names)
    left = sum(p.numel() for network in networks(pipe) for p in network.parameters())
    assert left == count - in_encoders

    for states, expected in ((policy.encode(PROMPTS), before), (policy.null(2, "blue"), null)):
        assert states.keys() == expected.keys()
        assert all(torch.equal(states[name], expected[name]) for name in states)
    with pytest.raises(ValueError, match='the prompt "an ox" was not encoded .* = "keep" or "cpu"'):
        policy.encode([Prompt("an ox")])
    with pytest.raises(ValueError, match='the prompt "red" was not encoded'):
        policy.null(1, "red")


def test_more_prompts_than_are_remembered_stay(
    tiny_sdxl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("burnish.diffusion.prompt_encoder.CACHED_TEXTS", 1)
    policy = Policy.load(tiny_sdxl)
    policy.prompt_encoder.free([prompt.text for prompt in PROMPTS])
    policy.encode(PROMPTS[:1])
    assert policy.encode(PROMPTS)["text"].shape[0] == 2


def test_states_that_do_not_fit_are_refused(
    tiny_sdxl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy.load(tiny_sdxl)
    row = policy.encode(PROMPTS[:1])
    size = sum(value.nbytes for value in row.values())
    monkeypatch.setattr("burnish.diffusion.prompt_encoder.free_memory", lambda: 2 * size - 1)
    with pytest.raises(ValueError, match=r"the states of 2 prompts take .* GB .* fewer prompts"):
        policy.prompt_encoder.free(["a cat", "a dog", "a cat"])
    assert policy.pipe.text_encoder is not None

    monkeypatch.setattr("burnish.diffusion.prompt_encoder.free_memory", lambda: 2 * size)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="take fewer prompts"):
        policy.prompt_encoder.free(["a cat", "a dog"])
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    policy.prompt_encoder.free(["a cat", "a dog"])
    with pytest.raises(ValueError, match="resize before"):
        policy.resize(64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("expander.model=zoo:emoji-expander", r"an expander \(expander.model\) writes new prompts"),
        ("sampler.identifiers=tokens", r'"tokens" are words of a text encoder'),
    ],
)
def test_where_text_encoders_are_needed(
    change: str, message: str, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_recipe(batch={"images_per_prompt": 4})
    config = configuration.load(path, [FREED, change])
    with pytest.raises(ValueError, match=rf'model.text_encoder = "free", but .*{message}'):
        train(config, tmp_path / "run", progress=False)


def test_prompts_that_a_function_draws_are_refused(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    def draw(count: int) -> list[Prompt]:
        return [Prompt("a cat")] * count

    config = configuration.load(write_recipe(), [FREED])
    with pytest.raises(ValueError, match="the prompts are drawn by a function"):
        train(config, tmp_path / "run", overrides=Overrides(source=draw), progress=False)


def test_an_adapter_with_layers_of_a_text_encoder_is_refused(
    tiny_sd1: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    Policy.load(tiny_sd1).save_adapter(tmp_path / "adapter")
    file = tmp_path / "adapter" / "pytorch_lora_weights.safetensors"
    layer = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    matrices = {f"{layer}.lora_{name}.weight": torch.rand(4, 8) for name in "AB"}
    matrices[f"{layer}.lora_B.weight"] = torch.rand(8, 4)
    save_file(load_file(file) | matrices, file)

    path = write_recipe(model={"id": str(tiny_sd1), "adapter": str(tmp_path / "adapter")})
    message = "the adapter has layers in a text encoder.* text_encoder is gone: set model.text_enc"
    with pytest.raises(ValueError, match=message):
        prepare(configuration.load(path, [FREED]), Run(tmp_path / "run"), World())

    policy = Policy.load(tiny_sd1, adapter=tmp_path / "adapter", text_encoder="cpu")
    with pytest.raises(ValueError, match="layers in a text encoder, which are written again"):
        policy.prompt_encoder.free(["a cat"])
