"""Memory predicted without weights, against what torch's allocator gives real tensors."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from burnish import cli
from burnish import config as configuration
from burnish.config import Config
from burnish.diffusion import allocations, cpu, lora, shapes, weights
from burnish.diffusion.allocations import META, Allocations, GPUArithmetic
from burnish.diffusion.frozen_linear import FrozenLinear, offloaded_tensors
from burnish.diffusion.policy import Policy
from burnish.diffusion.weightless import NETWORK, TEXT
from burnish.diffusion.weights import enable_gradient_checkpointing
from burnish.runs import Run
from burnish.tools import memory, memory_table
from burnish.tools.memory import (
    GIB,
    LEARNED,
    MAIN_MEMORY,
    WORK,
    Forecast,
    Prediction,
    predict,
)
from burnish.tools.preflight import Rehearsal, chunk_prompts
from burnish.training.assembly import Overrides
from burnish.training.batch import RolloutBatch
from burnish.training.iteration_sampler import iteration_sampler
from burnish.training.job import prepare
from burnish.types import Scores
from burnish.world import World

CLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "projection_dim": 32}
QWEN = {
    **CLIP,
    "vocab_size": 300,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
VAE = {
    "block_out_channels": (4, 4, 8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 256,
}
REDUCED: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": {
        "unet": {
            "sample_size": 32,
            "block_out_channels": (32, 64, 128, 128),
            "layers_per_block": 1,
            "attention_head_dim": 4,
            "cross_attention_dim": 32,
        },
        "vae": VAE,
        "text_encoder": {**CLIP, "num_attention_heads": 2},
    },
    "sd35": {
        "transformer": {
            "sample_size": 32,
            "num_layers": 3,
            "attention_head_dim": 32,
            "num_attention_heads": 4,
            "joint_attention_dim": 64,
            "caption_projection_dim": 128,
            "pooled_projection_dim": 64,
            "pos_embed_max_size": 32,
            "dual_attention_layers": (0, 1),
        },
        "vae": VAE,
        "text_encoder": {**CLIP, "num_attention_heads": 2},
        "text_encoder_2": {**CLIP, "num_attention_heads": 2},
    },
    "zimage": {
        "transformer": {
            "dim": 128,
            "n_layers": 3,
            "n_refiner_layers": 1,
            "n_heads": 4,
            "n_kv_heads": 4,
            "cap_feat_dim": 32,
            "axes_dims": [8, 12, 12],
        },
        "vae": VAE,
        "text_encoder": QWEN,
    },
}
"""Widths of the real architectures that two cores compute in a moment."""


def reduced(name: str) -> shapes.Shape:
    return shapes.SHAPES[name].changed(REDUCED[name])


def recipe(model: str, *changes: str) -> Config:
    of_model = {"sd15": "sd15-compressibility", "sd35": "sd35-pickscore-ram"}
    return configuration.load(
        of_model.get(model, "zimage-pickscore-ram"),
        [
            f"model.id=reduced/{model}",
            "model.size=256",
            "model.dtype=float32",
            "model.device=cpu",
            "model.gradient_checkpointing=false",
            "rewards=[{use='compressibility'}]",
            "batch.prompts=2",
            "batch.images_per_prompt=2",
            "batch.transitions=2",
            "batch.minibatches=1",
            "sampler.steps=3",
            "evaluation.images_per_prompt=0",
            "evaluation.unseen={}",
            "run.sample_every=0",
            *changes,
        ],
    )


def allocated(work: Callable[[], Any]) -> int:
    """Return the bytes that torch's allocator gave at most at one time, above those before."""
    with torch.profiler.profile(profile_memory=True) as profile:
        work()
    events = profile.profiler.kineto_results.events()
    total = most = 0
    for event in events:
        if event.name() == "[memory]":
            total += event.nbytes()
            most = max(most, total)
    return most


def predicted_training(config: Config) -> dict[bool | str, int]:
    """Return the bytes of work that are predicted for a training call, by checkpointing.

    And those of the network.
    """
    with Allocations() as allocated, GPUArithmetic() as arithmetic:
        forecast = Forecast(config, allocated, arithmetic)
        policy = forecast.load()
        job = forecast.prepare(policy, forecast.load_rewards())
        batch = forecast.sample(job, *chunk_prompts(job.config, job.parts))
        forecast.train(job, batch)
        without = forecast.phases["training"][WORK]

        enable_gradient_checkpointing(policy.pipe, policy._family, arithmetic.checkpoint)
        forecast.train(job, batch)
        phase = forecast.phases["training"]
        return {False: without, True: phase[WORK], NETWORK: phase[NETWORK]}


@pytest.mark.parametrize(
    ("name", "quantization", "offload"),
    [
        *((name, "", False) for name in REDUCED),
        ("sd15", "nf4", True),
        ("sd35", "int8", False),
        ("zimage", "nf4", False),
    ],
)
def test_the_memory_of_training_is_that_of_real_tensors(
    name: str, quantization: str, offload: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = reduced(name)
    monkeypatch.setitem(shapes.KNOWN, f"reduced/{name}", shape)
    changes = (f"model.quantization={quantization}", f"model.offload={str(offload).lower()}")
    config = recipe(name, "batch.train_batch=4", *changes)
    predicted = predicted_training(config)

    # the kernels that a GPU has
    monkeypatch.setattr(weights, "optimize_for_cpu", lambda *_: None)
    monkeypatch.setattr(cpu, "LINEAR_BY_ONEDNN", False)
    if offload:  # to the device that it comes from
        monkeypatch.setattr(FrozenLinear, "fetched", lambda _, tensor, device: tensor.clone())
    pipe = shape.pipe({part: made.make() for part, made in shape.parts.items()})
    model = config.model
    policy = Policy.load(
        pipe,
        rank=model.rank,
        targets=tuple(model.targets),
        device="cpu",
        size=model.size,
        quantization=quantization,
        offload=offload,
    )
    network = policy._family.network_of(policy.pipe)
    frozen = [value for value in network.parameters() if not value.requires_grad]
    elsewhere = {id(value) for value in offloaded_tensors(network)}
    beside = [v for v in (*frozen, *network.buffers()) if id(v) not in elsewhere]
    stored = sum(allocations._rounded(value.nbytes) for value in beside)
    assert predicted[NETWORK] == pytest.approx(stored, rel=0.001)

    job = prepare(config, Run(Path("memory")), World(), overrides=Overrides(policy=policy))
    prompts, group = chunk_prompts(job.config, job.parts)
    trajectory, _ = Rehearsal(job).sample(iteration_sampler(job, 1), prompts, group)
    scores = Scores(torch.zeros(len(prompts), 1), ("compressibility",))
    batch = RolloutBatch(1, prompts, None, trajectory, scores, group, None, 0.0, 0.0)
    trained = sum(weight.nbytes for weight in policy.trainable)  # their gradients

    measured = allocated(lambda: Rehearsal(job).train(batch))
    assert predicted[False] + trained == pytest.approx(measured, rel=0.15)
    enable_gradient_checkpointing(policy.pipe, policy._family)
    less = allocated(lambda: Rehearsal(job).train(batch))
    assert predicted[True] + trained == pytest.approx(less, rel=0.15)
    assert less < 0.8 * measured


def test_the_command_predicts_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.KNOWN, "reduced/zimage", reduced("zimage"))
    file = ("model.id=mine.safetensors", "model.config=reduced/zimage")
    config = recipe("zimage", "batch.train_batch=4", "model.gradient_checkpointing=true", *file)
    found = predict(config).phases["training"][WORK]
    config = recipe("zimage", "batch.train_batch=4")
    assert predicted_training(config)[True] == pytest.approx(found, rel=0.02)


def test_text_encoders_take_no_memory_beside_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.KNOWN, "reduced/zimage", reduced("zimage"))
    keep, free, on_cpu = (
        predict(recipe("zimage", f"model.text_encoder={place}")).phases
        for place in ("keep", "free", "cpu")
    )
    weights = 4 * shapes.parameters(reduced("zimage"))["text_encoder"]
    assert keep["encoding"][TEXT] > keep["training"][TEXT] >= weights
    assert keep["encoding"][NETWORK] == keep["training"][NETWORK] > 0

    # the text encoders are alone while they encode, and gone when the network comes
    assert free["encoding"] == dict.fromkeys(memory.PURPOSES, 0) | {TEXT: keep["encoding"][TEXT]}
    assert free["training"][TEXT] <= keep["training"][TEXT] - weights
    assert on_cpu["training"][TEXT] == on_cpu["encoding"][TEXT] == 0
    for phase in ("sampling", "training"):
        for found in (free, on_cpu):
            assert found[phase] | {TEXT: 0} == pytest.approx(keep[phase] | {TEXT: 0}, rel=0.01)


def test_offloaded_weights_are_in_main_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = reduced("zimage")
    monkeypatch.setitem(shapes.KNOWN, "reduced/zimage", shape)
    live = []
    for value in ("false", "true"):
        with Allocations() as allocated, GPUArithmetic() as arithmetic:
            config = recipe("zimage", f"model.offload={value}")
            policy = Forecast(config, allocated, arithmetic).load()  # lives as long as its weights
            live.append(allocated.live.copy())
        layers = [
            layer
            for name, layer in policy.pipe.transformer.named_modules()
            if isinstance(layer, nn.Linear) and ".lora_" not in name
        ]

    weights = sum(allocations._rounded(layer.weight.nbytes) for layer in layers)
    usual, offloaded = live
    assert offloaded[MAIN_MEMORY] == weights
    assert usual[NETWORK] - offloaded[NETWORK] == pytest.approx(weights, rel=0.001)
    assert usual[MAIN_MEMORY] == 0 < offloaded[NETWORK] < weights / 100
    assert usual[LEARNED] == offloaded[LEARNED]


def test_the_memory_of_a_replay_is_that_of_a_process() -> None:
    """What a process took for a replay of one transition and its backward: benchmarks/README.md."""
    from diffusers import UNet2DConditionModel

    with META:
        network = UNet2DConditionModel(
            sample_size=48,
            block_out_channels=(128, 256, 512, 512),
            attention_head_dim=8,
            cross_attention_dim=64,
        )
    network.requires_grad_(False)
    lora.add_lora(network, 4, 4, ["to_q", "to_k", "to_v", "to_out.0"])

    with Allocations() as found, GPUArithmetic():
        x = torch.empty(2, 4, 48, 48, device=META)
        text = torch.empty(2, 24, 64, device=META)
        network(x, torch.empty(2, device=META), text).sample.sum().backward()

    assert found.peak.total() / 2**20 == pytest.approx(963, rel=0.15)


# What stands for a GPU --------------------------------------------------------------------------


def test_bytes_are_those_that_live_by_what_they_are_for() -> None:
    with Allocations() as memory:
        with memory.purpose("a"):
            first = torch.empty(1000, device=META)
        with memory.purpose("b"):
            second = first.view(10, 100).t() * 2
            del second
            third = first[:10] + 1
        assert memory.live == {"a": 4096, "b": 512}
        assert memory.peak == {"a": 4096, "b": 4096}

        memory.restart()
        del first
        memory.assign([third], "c")
        assert memory.live.total() == 512 and memory.live["c"] == 512
        assert memory.peak == {"a": 4096, "b": 512}


def test_what_is_remembered_of_an_operation_is_no_view() -> None:
    with Allocations() as memory:
        x = torch.empty(256, 4, device=META)
        views = [x.view(-1), x.view(-1), x.t(), x.t(), x.contiguous(), x.float()]
        assert memory.live.total() == 4096
        views += [x.t().contiguous(), x.t().contiguous()]
        assert memory.live.total() == 3 * 4096


def test_whole_numbers_keep_their_values_and_others_come_back_as_zeros() -> None:
    with Allocations(), GPUArithmetic():
        tokens = torch.tensor([3, 1, 2]).to(META)
        lengths = torch.tensor([len("abc")], device=META)
        assert (tokens.tolist(), lengths.tolist()) == ([3, 1, 2], [3])

        weight = torch.empty(5, 7, device=META)
        assert torch.nn.functional.embedding(tokens, weight).device == META
        assert weight[torch.tensor([True, False, True, True, False])].shape == (3, 7)
        assert weight.cpu().equal(torch.zeros(5, 7))
        assert bool(weight.isfinite().all()) and not bool((~weight.isfinite()).any())
        assert (weight + torch.ones(7)).device == META


def test_autocast_is_that_of_cuda() -> None:
    """The lists are those by which torch tests its own autocast."""
    file = Path(torch.__file__).parent / "testing/_internal/autocast_test_lists.py"
    (lists,) = [
        node
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == "AutocastTestLists"
    ]
    names: dict[str, set[str]] = {}
    for node in ast.walk(lists):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List):
            place = ast.unparse(node.targets[0]).removeprefix("self.")
            first = [item.elts[0] for item in node.value.elts if isinstance(item, ast.Tuple)]
            names[place] = {str(ast.literal_eval(one)) for one in first}

    half = names["torch_fp16"] | names["nn_fp16"] | names["methods_fp16"]
    wide = names["torch_fp32"] | names["nn_fp32"] | names["methods_fp32"]
    inner = {"_convolution", "convolution", "cudnn_convolution", "cudnn_convolution_transpose"}
    cells = {"lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"}
    renamed = {"nll_loss2d", "grid_sampler"}
    assert half - inner - cells <= allocations.HALF
    assert wide - renamed <= allocations.FLOAT32
    assert names["torch_need_autocast_promote"] - renamed <= allocations.WIDEST
    assert not allocations.HALF & allocations.FLOAT32


def test_casts_are_those_of_autocast() -> None:
    """The types on this CPU, whose autocast has the same halves; norms are CUDA's."""
    norm, layer = nn.GroupNorm(2, 4, device=META), nn.Linear(4, 4, device=META)
    x = torch.empty(3, 4, device=META)
    with Allocations() as memory, GPUArithmetic(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        before = memory.live.total()
        assert layer(x).dtype == torch.bfloat16  # the weight's copy is kept
        assert memory.live.total() == before
        assert norm(layer(x)).dtype == torch.float32
        assert torch.cat([x, layer(x)]).dtype == torch.float32
        assert (layer(x) * 2).dtype == torch.bfloat16


# The table --------------------------------------------------------------------------------------


def prediction(gib: float) -> Prediction:
    taken = dict.fromkeys(memory_table.COLUMNS, 0) | {WORK: int(gib * GIB)}
    return Prediction({"training": taken})


def test_a_card_needs_more_than_what_lives() -> None:
    found = Prediction({"sampling": {WORK: 3 * GIB}, "training": {WORK: GIB, LEARNED: GIB}})
    assert (found.phase, found.peak) == ("sampling", 3 * GIB)
    assert found.needed == pytest.approx(3 * 1.1 + 0.6)


def test_settings_that_save_nothing_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def predicted(config: Config) -> Prediction:
        saved = 2 * config.model.gradient_checkpointing + (config.batch.train_batch == 1)
        return prediction(10.0 - saved)

    monkeypatch.setattr(memory_table, "predict", predicted)
    config = recipe("sd15", "batch.train_batch=4")
    table = list(memory_table.rows(config))
    assert [row.name for row in table] == [
        "as it is",
        "+ batch.train_batch=1",
        "+ model.gradient_checkpointing=true",
    ]

    assert memory_table.verdict(config, table, 12) == "fits 12 GB as it is"
    changes = "--set batch.train_batch=1 --set model.gradient_checkpointing=true"
    both = f"fits 9 GB with {changes} (the price: "
    assert memory_table.verdict(config, table, 9).startswith(both)
    assert memory_table.verdict(config, table, 8).startswith("does not fit 8 GB: 8.3 are needed")
    only = "fits 9.5 GB with --set model.gradient_checkpointing=true (the price: a third more"
    assert memory_table.verdict(config, table, 9.5).startswith(only)


def test_the_command_ends_in_an_error_where_nothing_fits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory_table, "predict", lambda config: prediction(10))

    for card, code in (("24", 0), ("8", 1)):
        with pytest.raises(SystemExit) as ended:
            cli.main(["check", "sd15-pickscore", "--memory", card])
        assert ended.value.code == code

    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["as", "it", "is", *["0.0"] * 5, "10.0", "10.0", "11.6", "training"]
    assert "fits 24 GB as it is" in lines
    assert "does not fit 8 GB: 11.6 are needed even with all these settings" in lines
    assert "not measured" in lines[-1]


# Recipes for cards -------------------------------------------------------------------------------


BY_CARD = [name for name in configuration.recipes() if re.search(r"-\d+gb$", name)]
PAGE = (Path(__file__).parent.parent / "docs/memory.md").read_text("utf-8")


def stated(name: str) -> tuple[int, float]:
    """Return the card's GB that a recipe is for, and the GiB that it says it needs."""
    lines = configuration.recipe(name).read_text("utf-8").splitlines()
    comment = " ".join(line.removeprefix("# ") for line in lines if line.startswith("# "))
    found = re.search(r"for a card of (\d+) GB: .* Predicted, not measured: ([\d.]+) GiB", comment)
    assert found, comment
    assert "NOT run with the real weights or on a GPU" in comment
    assert f"`burnish check {name} --memory {found[1]}`" in comment
    return int(found[1]), float(found[2])


@pytest.mark.parametrize("name", BY_CARD)
def test_a_recipe_for_a_card_says_what_was_predicted(name: str) -> None:
    card, needed = stated(name)
    assert name.endswith(f"-{card}gb")
    assert needed <= card
    rows = [line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |")]
    (of_cards,) = [row for row in rows if " GB | " in row]
    assert f" | {needed:.1f} | {card} GB | " in of_cards


def test_flux_dev_has_the_twelve_billion_weights_that_its_page_says() -> None:
    counted = shapes.parameters(shapes.FLUX_1)
    assert counted["transformer"] == 11_901_408_320
    assert counted["text_encoder_2"] == 4_762_310_656  # T5 v1.1 XXL's encoder


@pytest.mark.parametrize(
    "name", ["sd15-pickscore-8gb", "klein-pickscore-ram-8gb", "flux-dev-pickscore-8gb"]
)
def test_what_a_recipe_says_is_what_is_predicted(name: str) -> None:
    assert predict(configuration.load(name, [])).needed == pytest.approx(stated(name)[1], abs=0.06)


@pytest.mark.parametrize("name", BY_CARD)
def test_a_recipe_for_a_card_learns_the_same_as_its_own(name: str) -> None:
    config, base = (configuration.load(one) for one in (name, name.rpartition("-")[0]))
    memory_only = {
        "model": ("quantization", "offload", "text_encoder", "gradient_checkpointing"),
        "batch": ("sample_batch", "train_batch"),
    }
    for section, keys in memory_only.items():
        same = {key: getattr(getattr(base, section), key) for key in keys}
        changed = replace(getattr(config, section), **same)
        config = replace(config, **{section: changed})
    for table in config.rewards:
        table.pop("device", None)
    assert config == base


def test_a_model_whose_configuration_is_unknown_is_one_sentence() -> None:
    for name, words in (
        ("somebody/something", r"model\.id: .* hf download somebody/something"),
        ("mine.safetensors", "which mine.safetensors does not have: set model.config"),
    ):
        with pytest.raises(ValueError, match=words):
            predict(configuration.load("sd15-compressibility", [f"model.id={name}"]))


def test_what_is_not_counted_is_said() -> None:
    config = recipe("sd15", "rewards=[{use='caption', model='x'}, {use='compressibility'}]")
    assert list(memory.left_out(config)) == ["reward caption"]
    config = recipe("sd15", "model.vae=somebody/vae")
    assert list(memory.left_out(config)) == ["model.vae (the model's own autoencoder is counted)"]
    config = recipe("sd15", "rewards=[{use='preference', device='cpu'}]")
    assert list(memory.left_out(config)) == []


@pytest.mark.parametrize(
    ("train", "divided"), [("lora", "1/N of network, and"), ("full", "1/N of network and learned,")]
)
def test_what_processes_share_is_said(train: str, divided: str) -> None:
    config = recipe("sd15", f"model.train={train}", "run.sharding=full")
    assert divided in memory_table.notes(config)[-1]
    assert len(memory_table.notes(recipe("sd15"))) == 1


def test_moments_of_eight_bits_are_two_bytes_a_weight() -> None:
    weights = [nn.Parameter(torch.empty(8192, device=META)), nn.Parameter(torch.empty(10))]
    sizes = [moment.nbytes for moment in memory.moments_in_eight_bits(weights)]
    assert sizes == [8192, 128, 8192, 128, 40, 40]
