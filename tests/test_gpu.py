"""Tests of what a CUDA device alone can show: half precision, TF32, memory, its optimizer, bits.

    make gpu                                                     # skipped where there is no GPU
    BURNISH_GPU_TESTS_ON=cpu python -m pytest -m gpu tests/test_gpu.py

The second command runs the same tests on the CPU, so that anybody without a GPU can check that
their code runs; what is measured in GPU memory is skipped there. All models are tiny or embedded,
and nothing is downloaded.

Bits are compared under `torch.use_deterministic_algorithms`, because some backward passes of CUDA
add in any order. Ratios of float32 are compared with TF32 switched off, because torch lets
convolutions round to ten bits of mantissa.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

# read by cuBLAS when it starts; without it deterministic algorithms are refused
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch
from conftest import build_pipeline, build_sdxl, generator, log, perturb, tiny_model
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from test_first_iterations import TOLERANCES, differences, expected_record, first_record, matters
from test_policy import stock_images
from torch import Tensor, nn

from burnish import config as configuration
from burnish.config import Config, OptimizerConfig
from burnish.diffusion.frozen_linear import offload_weights, offloaded_tensors
from burnish.diffusion.guidance import CFG, NoGuidance
from burnish.diffusion.kernels import DDIM
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.rl.objectives import Clipped
from burnish.runs import Run
from burnish.tools.preflight import preflight
from burnish.training import checkpoint
from burnish.training.loop import train
from burnish.training.optimizer import adamw
from burnish.types import Prompt, Trajectory

# a warning of a driver, or of a library's CUDA part, is no failure
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

PROMPTS = [Prompt("a cat"), Prompt("a cat"), Prompt("two dogs"), Prompt("two dogs")]
GROUP = torch.tensor([0, 0, 1, 1])
STEPS = 10
TENTH = Clipped().clip / 10
"""Nats: what `burnish check` allows the ratio before the first update."""

HUB = {
    name: recipe
    for name, recipe in ((name, configuration.load(name)) for name in configuration.recipes())
    if not recipe.model.id.startswith("zoo:")
}
WITH_CONTROLNET = [name for name, recipe in HUB.items() if recipe.model.controlnet]
WITH_EXPANDER = [name for name, recipe in HUB.items() if recipe.expander.model]
PLAIN = [name for name in HUB if name not in (*WITH_CONTROLNET, *WITH_EXPANDER)]


SetTf32 = Callable[[bool], None]


@pytest.fixture
def set_tf32() -> Iterator[SetTf32]:
    """A function that allows or forbids TF32; the settings come back after the test."""
    matmul = torch.backends.cuda.matmul
    cudnn = torch.backends.cudnn
    before = (matmul.allow_tf32, cudnn.allow_tf32)

    def allow(allowed: bool) -> None:
        matmul.allow_tf32 = allowed
        cudnn.allow_tf32 = allowed

    yield allow
    matmul.allow_tf32, cudnn.allow_tf32 = before


@pytest.fixture
def exact(set_tf32: SetTf32) -> None:
    """Let float32 be float32."""
    set_tf32(False)


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Let every operation give the same bits each time."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def load(model: Path, folder: Path, device: str, *changes: str) -> Config:
    """Return the configuration of a small run on a tiny model."""
    path = folder / "tiny.toml"
    path.write_text(f"""
iterations = 1
model = {{ id = "{model}", device = "{device}" }}
sampler = {{ steps = 3, guidance = {{ use = "cfg", weight = 2.0 }} }}
prompts = {{ use = "list", texts = ["a cat", "a dog"] }}
rewards = [ {{ use = "compressibility" }} ]
optimizer = {{ lr = 1e-3 }}
batch = {{ prompts = 2, images_per_prompt = 4, sample_batch = 4, train_batch = 5, minibatches = 2 }}
evaluation = {{ images_per_prompt = 0 }}
run = {{ sample_every = 0 }}
""")
    return configuration.load(path, changes)


def rollout(policy: Policy, sampler: Sampler) -> Trajectory:
    return sampler.rollout(policy, policy.encode(PROMPTS), GROUP, generator(3))


@torch.no_grad()
def deviation(policy: Policy, sampler: Sampler, trajectory: Trajectory, at_once: int) -> float:
    """Return how far, in nats, a replay of `at_once` transitions an image is off at most."""
    count = trajectory.logp.shape[1]
    images = torch.arange(len(trajectory.group))
    worst = 0.0

    for chosen in torch.arange(count).split(at_once):
        transitions = chosen.expand(len(images), -1)
        replay = sampler.replay(policy, trajectory, images, transitions)
        assert replay.logp.isfinite().all()
        off = (replay.logp - replay.logp_old).abs().max()
        worst = max(worst, float(off) * replay.dims)

    return worst


# Precision ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("model", ["tiny_sd1", "tiny_sd2", "tiny_sdxl"])
def test_a_float32_trajectory_replays_to_ratio_one(
    model: str, device: str, request: pytest.FixtureRequest
) -> None:
    """Also in calls of another size than sampled, and with the adapter merged while sampling."""
    policy = Policy.load(request.getfixturevalue(model), device=device)
    assert policy.device.type == torch.device(device).type
    perturb(policy, 0.1)

    for guidance in (NoGuidance(), CFG(5.0)):
        sampler = Sampler(DDIM(), STEPS, guidance)
        trajectory = rollout(policy, sampler)
        assert trajectory.latent.device.type == torch.device(device).type
        dims = trajectory.latent[0].numel()
        assert deviation(policy, sampler, trajectory, 1) < 1e-5 * dims
        assert deviation(policy, sampler, trajectory, STEPS) < TENTH / 10


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("model", ["tiny_sd1", "tiny_sd2", "tiny_sdxl"])
def test_a_half_precision_trajectory_replays_to_ratio_one(
    model: str, dtype: str, device: str, request: pytest.FixtureRequest
) -> None:
    """In calls of the size that was sampled, the ratio is 1 up to a tenth of the clip range.

    Calls of another size may use other kernels, which round otherwise. If they shared no rounding
    at all, float16 would be up to 0.2 nats off here and bfloat16 up to 1.3. Most of it is shared,
    but bfloat16 gets the whole clip range, 1.64.
    """
    policy = Policy.load(request.getfixturevalue(model), dtype=dtype, device=device)
    perturb(policy, 0.1)
    sampler = Sampler(DDIM(), STEPS, CFG(2.0))
    trajectory = rollout(policy, sampler)
    assert trajectory.x.dtype == trajectory.logp.dtype == torch.float32
    assert deviation(policy, sampler, trajectory, 1) <= TENTH

    allowed = TENTH if dtype == "float16" else 10 * TENTH
    assert deviation(policy, sampler, trajectory, STEPS) <= allowed
    images = policy.decode(trajectory.latent)
    assert images.isfinite().all()
    assert images.dtype == torch.float32


def test_tf32_keeps_the_ratio_at_one(tiny_sd1: Path, device: str, set_tf32: SetTf32) -> None:
    policy = Policy.load(tiny_sd1, device=device)
    perturb(policy, 0.1)
    sampler = Sampler(DDIM(), STEPS, CFG(2.0))

    for allowed in (True, False):
        set_tf32(allowed)
        trajectory = rollout(policy, sampler)
        assert deviation(policy, sampler, trajectory, 1) <= TENTH
        assert deviation(policy, sampler, trajectory, STEPS) <= TENTH


@pytest.mark.parametrize("upcast", [True, False])
def test_the_decoder_of_a_float16_sdxl_is_upcast(upcast: bool, device: str, tmp_path: Path) -> None:
    """On a decoder that overflows in float16, as SDXL's does."""
    pipe: Any = build_sdxl()
    pipe.vae.register_to_config(force_upcast=upcast)
    with torch.no_grad():
        pipe.vae.post_quant_conv.weight.mul_(2e4)
        pipe.vae.decoder.conv_in.weight.mul_(1e2)
    pipe.save_pretrained(tmp_path)

    policy = Policy.load(tmp_path, dtype="float16", device=device)
    trajectory = rollout(policy, Sampler(DDIM(), STEPS, CFG(2.0)))
    if upcast:
        images = policy.decode(trajectory.latent)
        assert images.isfinite().all()
        assert float(images.std()) > 0
        assert policy.embed(images, generator()).isfinite().all()
    else:
        with pytest.raises(RuntimeError, match="the decoder overflows in float16"):
            policy.decode(trajectory.latent)


# Bits ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    dtype: str, tiny_sd1: Path, device: str, tmp_path: Path
) -> None:
    """Stopped after its first iteration; and a run that is repeated is the same run."""
    changes = [
        f"model.dtype={dtype}",
        "iterations=2",
        "optimizer.ema=0.9",
        "advantage={use='tracker',buffer=8,min_count=4}",
    ]
    config = load(tiny_sd1, tmp_path, device, *changes)
    whole = Run(train(config, tmp_path / "whole"))
    again = Run(train(config, tmp_path / "again"))

    stopped: list[int] = []
    parted = tmp_path / "parted"
    train(config, parted, on_record=lambda _: stopped.append(1), stop=lambda: bool(stopped))
    assert len(log(parted)) == 1
    train(config, parted, resume=True)

    for other in (again, Run(parted)):
        assert log(other.folder) == log(whole.folder)
        files = [
            load_file(run.checkpoints / "000002" / "tensors.safetensors") for run in (whole, other)
        ]
        assert files[0].keys() == files[1].keys()
        assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])


# Memory -------------------------------------------------------------------------------------------


def build_memory_pipeline(folder: Path) -> Path:
    """Write a pipeline whose activations are many times as large as all else; return its folder.

    A pair takes 28 MB of memory in training, and 10 MB with gradient checkpointing (counted on a
    CPU, with the same operations); the weights take 4 MB.
    """
    parts = dict(build_pipeline().components)  # type: ignore[attr-defined]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts["unet"] = UNet2DConditionModel(
            sample_size=32,
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=2,
            attention_head_dim=2,
            cross_attention_dim=8,
            norm_num_groups=8,
        ).eval()

    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)
    return folder


def peak(policy: Policy, sampler: Sampler, trajectory: Trajectory, batch: int) -> int:
    """Return the bytes that one replay of `batch` pairs and its gradient add at most."""
    images = torch.arange(batch) % len(trajectory.group)
    transitions = torch.zeros(batch, 1, dtype=torch.long)

    # the first call also allocates what the libraries keep for themselves
    for _ in range(2):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        sampler.replay(policy, trajectory, images, transitions).logp.sum().backward()
        torch.cuda.synchronize()
        added = torch.cuda.max_memory_allocated() - before
        for parameter in policy.trainable:
            parameter.grad = None

    return added


def test_memory_grows_with_the_batch_and_gradient_checkpointing_lowers_it(
    device: str, tmp_path: Path
) -> None:
    if device == "cpu":
        pytest.skip("it is GPU memory that is measured")

    folder = build_memory_pipeline(tmp_path / "model")
    sampler = Sampler(DDIM(), 2, NoGuidance())
    peaks: dict[tuple[bool, int], int] = {}

    for checkpointing in (False, True):
        policy = Policy.load(folder, device=device, gradient_checkpointing=checkpointing)
        trajectory = rollout(policy, sampler)
        for batch in (4, 16):
            peaks[checkpointing, batch] = peak(policy, sampler, trajectory, batch)

    assert peaks[False, 16] > 2 * peaks[False, 4], peaks
    assert peaks[True, 16] < 0.75 * peaks[False, 16], peaks


# Optimizer ----------------------------------------------------------------------------------------


def step(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], seed: int) -> None:
    """Take a step on random gradients."""
    for parameter in parameters:
        gradient = torch.randn(parameter.shape, generator=generator(seed))
        parameter.grad = gradient.to(parameter.device)
    optimizer.step()


def test_8_bit_adam_steps_like_adam_and_goes_on_from_its_state(device: str) -> None:
    pytest.importorskip("bitsandbytes")

    def parameters() -> list[nn.Parameter]:
        """A tensor that is expected_record in 8 bits, and one that is too small for it."""
        values = [torch.randn(shape, generator=generator()) for shape in ((128, 64), (7,))]
        return [nn.Parameter(value.to(device)) for value in values]

    start, ours, theirs, restored = (parameters() for _ in range(4))
    settings = OptimizerConfig(lr=1e-2, weight_decay=0.1, eight_bit=True)
    eight = adamw(settings)(ours)
    full = adamw(OptimizerConfig(lr=1e-2, weight_decay=0.1))(theirs)
    for seed in range(2):
        step(eight, ours, seed)
        step(full, theirs, seed)

    for before, a, b in zip(start, ours, theirs, strict=True):
        assert (a - b).norm() < 0.15 * (b - before).norm()
    memory = checkpoint.optimizer_tensors(eight)
    assert torch.uint8 in {tensor.dtype for tensor in memory.values()}

    other = adamw(settings)(restored)
    checkpoint.load_optimizer(other, memory)
    with torch.no_grad():
        for to, parameter in zip(restored, ours, strict=True):
            to.copy_(parameter)

    step(eight, ours, 2)
    step(other, restored, 2)
    assert all(torch.equal(a, b) for a, b in zip(ours, restored, strict=True))


def test_a_run_with_8_bit_adam(
    tiny_sd1: Path, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optim = pytest.importorskip("bitsandbytes.optim")
    # the tiny network has no tensor that would be expected_record in 8 bits otherwise
    monkeypatch.setattr(optim, "AdamW8bit", partial(optim.AdamW8bit, min_8bit_size=16))
    changes = ["model.train=full", "optimizer.eight_bit=true"]
    run = Run(train(load(tiny_sd1, tmp_path, device, *changes), tmp_path / "run"))
    assert run.records()[0]["grad_norm"] > 0
    state = checkpoint.restore(run.checkpoints)
    assert state is not None
    memory = checkpoint.under("optimizer.", state.learners["generator"])
    assert torch.uint8 in {tensor.dtype for tensor in memory.values()}


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_run_with_quantized_weights_and_text_encoders_on_the_cpu(
    kind: str, tiny_sdxl: Path, tmp_path: Path, device: str
) -> None:
    pytest.importorskip("bitsandbytes")
    policy = Policy.load(tiny_sdxl, device=device, quantization=kind, text_encoder="cpu")
    assert policy.pipe.text_encoder.device.type == "cpu"
    assert policy.device.type == torch.device(device).type
    plain = Policy.load(tiny_sdxl, device="cpu", quantization=kind)
    sampler = Sampler(DDIM(), STEPS, CFG(2.0))
    found, expected = (sampler.images(one, PROMPTS, generator()).cpu() for one in (policy, plain))
    assert torch.allclose(found, expected, atol=0.02)

    for place in ("cpu", "free"):
        changes = [f"model.quantization={kind}", f"model.text_encoder={place}"]
        (record,) = log(train(load(tiny_sdxl, tmp_path, device, *changes), tmp_path / place))
        assert record["ratio_deviation"] < TENTH
        assert record["grad_norm"] > 0


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("kind", ["", "nf4"])
def test_a_run_with_weights_in_main_memory_has_the_same_bits(
    kind: str, tiny_sdxl: Path, tmp_path: Path, device: str
) -> None:
    """And the device holds their copies one at a time, also while it trains."""
    if kind:
        pytest.importorskip("bitsandbytes")
    settings: dict[str, Any] = {"device": device, "dtype": "bfloat16", "quantization": kind}
    policy = Policy.load(tiny_sdxl, offload=True, **settings)
    stored = list(offloaded_tensors(policy.pipe.unet))
    assert stored and all(weight.device.type == "cpu" for weight in stored)
    assert all(weight.device.type == policy.device.type for weight in policy.trainable)
    assert policy.device.type == torch.device(device).type
    if device == "cuda":
        assert all(weight.is_pinned() for weight in stored)

    changes = ["model.dtype=bfloat16", f"model.quantization={kind}"]
    usual, offloaded = (
        train(
            load(tiny_sdxl, tmp_path, device, *changes, f"model.offload={value}"), tmp_path / value
        )
        for value in ("false", "true")
    )
    assert log(offloaded) == log(usual)
    assert log(offloaded)[0]["grad_norm"] > 0
    file = "adapter/pytorch_lora_weights.safetensors"
    assert (offloaded / file).read_bytes() == (usual / file).read_bytes()


def test_the_device_has_the_copy_of_one_layer_at_a_time(device: str) -> None:
    if device != "cuda":
        pytest.skip("GPU memory is measured")
    network = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(32)))
    offload_weights(network.requires_grad_(False), torch.device(device))
    network.to(device)
    x = torch.ones(1, 1024, device=device, requires_grad=True)
    network(x).sum().backward()  # what cuBLAS takes for itself
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    network(x).sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 2.5 * (4 << 20)


# Runs ---------------------------------------------------------------------------------------------


OBJECTIVES = {
    "rwr": ("objective={use='rwr'}", "advantage={use='softmax',beta=2,standardise=true}"),
    "rwr of encoded images": (
        "objective={use='rwr',data='encoded'}",
        "advantage={use='softmax',beta=2,standardise=true}",
    ),
    "awm": ("objective={use='awm'}",),
    "awm with a KL": ("objective={use='awm',kl=0.01}",),
    "rebel": ("objective={use='rebel'}",),
    "clipped with a KL": ("objective={use='clipped',kl=0.01}",),
}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_runs(
    name: str, dtype: str, tiny_sd1: Path, device: str, tmp_path: Path
) -> None:
    """On the sampled transitions, and on the forward process."""
    config = load(tiny_sd1, tmp_path, device, *OBJECTIVES[name], f"model.dtype={dtype}")
    (record,) = Run(train(config, tmp_path / "run")).records()
    assert record["images"] == 8
    assert ("kl" in record) == ("KL" in name)

    # in float16 the first steps may be left out, until the gradients' scale fits
    norm = record["grad_norm"]
    if norm is None:
        assert dtype == "float16"
    else:
        assert norm > 0


RUN_AN_ITERATION = ("emoji-qr", "emoji-parrot", "emoji-caption", "emoji-rwr", "emoji-gradient")


@pytest.mark.parametrize("recipe", RUN_AN_ITERATION)
def test_recipes_of_the_zoo_run_an_iteration(recipe: str, device: str, tmp_path: Path) -> None:
    """A ControlNet, an expander with token identifiers, a captioner, RWR and a reward gradient."""
    record = first_record(recipe, tmp_path / "run", f"model.device={device}")
    assert record.keys() == expected_record(recipe).keys()
    assert record["images"] == expected_record(recipe)["images"]
    assert record["grad_norm"] > 0
    assert record.get("ratio_deviation", 0) < 1e-3
    assert record.get("expander_ratio_deviation", 0) < 1e-3


@pytest.mark.usefixtures("exact")
def test_the_demo_has_the_first_iteration_of_a_cpu(device: str, tmp_path: Path) -> None:
    """Noise is drawn on the CPU, so the images are the same up to rounding."""
    record = first_record("demo", tmp_path / "run", f"model.device={device}")
    found = differences(expected_record("demo"), record)
    tolerance = 3 * TOLERANCES["demo"]
    assert [difference for difference in found if matters(difference, tolerance)] == []


# Recipes for models of the hub --------------------------------------------------------------------


def check(recipe: str, device: str, *changes: str) -> None:
    """Rehearse a recipe in the precision that it asks for; replays have the sampled size."""
    small = (
        f"model.device={device}",
        "model.variant=''",
        "model.size=0",
        "sampler.steps=4",
        "batch.sample_batch=4",
        "batch.train_batch=4",
        "batch.transitions=0",
    )
    findings = preflight(configuration.load(recipe, [*small, *changes]))
    assert len(findings) > 4
    assert [finding.text for finding in findings if finding.level == "error"] == []


@pytest.mark.parametrize("recipe", PLAIN)
def test_recipes_of_the_hub_on_a_tiny_model(
    recipe: str, device: str, request: pytest.FixtureRequest
) -> None:
    """Rewards that would download a model are left to their own tests."""
    model = request.getfixturevalue(tiny_model(recipe))
    changes = [f"model.id={model}", "model.size=32", "sampler.window.last=0"]
    use = HUB[recipe].rewards[0]["use"]
    if use not in ("compressibility", "incompressibility"):
        changes.append('rewards=[{use="compressibility"}]')

    check(recipe, device, *changes)


@pytest.mark.parametrize("recipe", WITH_CONTROLNET)
def test_recipes_of_codes_on_a_tiny_model(
    recipe: str, device: str, tiny_pipeline: Path, tiny_controlnet: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "base.png")
    changes = [
        f"model.id={tiny_pipeline}",
        f"model.controlnet={tiny_controlnet}",
        "model.size=64",
        "sampler.steps=6",
        "batch.transitions=2",
    ]
    for where in ("prompts", "evaluation.prompts"):
        changes += [f"{where}.length=5", f"{where}.random=12", f"{where}.base={tmp_path}/base.png"]
    for index, table in enumerate(HUB[recipe].rewards):
        if "similarity" in table["use"]:
            changes.append(f"rewards.{index}.model=zoo:emoji-clip")

    check(recipe, device, *changes)


@pytest.mark.parametrize("recipe", WITH_EXPANDER)
def test_recipes_with_an_expander_on_a_tiny_model(recipe: str, device: str, tiny_sd1: Path) -> None:
    changes = [
        f"model.id={tiny_sd1}",
        "expander.model=zoo:emoji-expander",
        "expander.tokens=6",
        "sampler.steps=6",
        "batch.transitions=2",
        "rewards.0.head=zoo:emoji-aesthetic",
        *(f"rewards.{index}.model=zoo:emoji-clip" for index in range(4)),
    ]
    check(recipe, device, *changes)


# Export -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("exact")
def test_an_exported_lora_gives_the_same_images_in_stock_diffusers_on_a_cpu(
    tiny_pipeline: Path, device: str, tmp_path: Path
) -> None:
    policy = Policy.load(tiny_pipeline, rank=2, alpha=2, device=device)
    perturb(policy)
    policy.save_adapter(tmp_path)

    def images(pipe: Any) -> Tensor:
        return stock_images(pipe).cpu()

    stock = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    plain = images(stock)
    stock.load_lora_weights(tmp_path)
    tuned = images(stock)
    assert not torch.allclose(tuned, plain, atol=1e-2)
    torch.testing.assert_close(images(policy.pipe), tuned, rtol=0, atol=1e-3)

    again = Policy.load(tiny_pipeline, rank=2, alpha=2, adapter=tmp_path, device=device)
    state = again.state()
    assert all(torch.equal(value, state[name]) for name, value in policy.state().items())
