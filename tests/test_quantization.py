"""Frozen weights in 8 and 4 bits: the numbers of diffusers, gradients, runs, exports."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import torch.nn.functional as F
from conftest import generator, log, perturb
from diffusers.quantizers.bitsandbytes import bnb_quantizer
from test_policy import stock_images
from torch import Tensor, nn

from burnish import config as configuration
from burnish.diffusion.families import family_of
from burnish.diffusion.policy import Policy
from burnish.diffusion.quantization import KINDS, QuantizedLinear, quantization_of, quantize
from burnish.runs import Run
from burnish.tools.export import export_run
from burnish.training.assembly import check_policy, load_policy
from burnish.training.loop import train
from burnish.types import Prompt

pytest.importorskip("bitsandbytes")

CPU = torch.device("cpu")
SETTINGS = {
    "int8": diffusers.BitsAndBytesConfig(load_in_8bit=True),
    "nf4": diffusers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    ),
}


def stock(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a pipeline with a network that diffusers quantizes, here without a GPU."""
    for quantizer in ("BnB4BitDiffusersQuantizer", "BnB8BitDiffusersQuantizer"):
        monkeypatch.setattr(
            getattr(bnb_quantizer, quantizer), "validate_environment", lambda *_, **__: None
        )
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    part = family_of(type(pipe).__name__).network
    network = type(getattr(pipe, part)).from_pretrained(
        folder / part,
        quantization_config=SETTINGS[kind],
        torch_dtype=torch.float32,
        device_map={"": "cpu"},
    )
    for layer in network.modules():
        layer.support_avx512bf16_for_cpu = False  # a kernel that rounds what flows through
        if hasattr(layer, "state"):
            layer.state.is_training = True  # LLM.int8 for training on a CPU does not round it
            layer.forward = MethodForTraining(layer)
    setattr(pipe, part, network.requires_grad_(False))
    return pipe


class MethodForTraining:
    """The forward pass of bitsandbytes' layer in training, in a network that is not trained."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        self.layer.training = True
        return type(self.layer).forward(self.layer, x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["tiny_sd1", "tiny_sd3", "tiny_z_image", "tiny_klein"])
def test_weights_and_outputs_are_those_of_diffusers(
    model: str, kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = request.getfixturevalue(model)
    theirs = stock(folder, kind, monkeypatch)
    policy = Policy.load(folder, quantization=kind, device="cpu", train="none")
    assert policy.quantization == kind

    network = family_of(type(theirs).__name__).network
    ours = dict(getattr(policy.pipe, network).named_modules())
    count = 0
    for name, layer in getattr(theirs, network).named_modules():
        if type(layer).__name__ in ("Linear8bitLt", "Linear4bit"):
            state = layer.weight.SCB if kind == "int8" else layer.weight.quant_state.absmax
            assert torch.equal(ours[name].weight, layer.weight)
            assert torch.equal(ours[name].scales, state)
            count += 1
    assert count == sum(isinstance(layer, QuantizedLinear) for layer in ours.values()) > 5

    cond = policy.encode([Prompt("a cat"), Prompt("a dog")])
    x = policy.noise(2, generator())
    t = torch.tensor([300, 700])
    found, expected = (policy._family.call(pipe, x, t, cond) for pipe in (policy.pipe, theirs))
    assert torch.allclose(found, expected, atol=1e-5)

    plain = Policy.load(folder, device="cpu", train="none")
    rounded = (plain._family.call(plain.pipe, x, t, cond) - found).abs().max()
    assert rounded > 1e-4, "nothing was rounded"


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_those_of_the_stock_pipeline(
    tiny_sd1: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy.load(tiny_sd1, quantization=kind, device="cpu")
    expected = stock_images(stock(tiny_sd1, kind, monkeypatch))
    assert torch.allclose(stock_images(policy.pipe), expected, atol=1e-5)


# Layers -----------------------------------------------------------------------------------------


def layer_of(kind: str, bias: bool = True) -> tuple[nn.Module, nn.Linear]:
    """Return a quantized layer, and a plain one with the weight that it stands for."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(128, 32, bias=bias))
    quantize(network, kind, CPU)
    plain = nn.Linear(128, 32, bias=bias)
    quantized = network[0]
    assert isinstance(quantized, QuantizedLinear)
    plain.weight.data = quantized.rebuilt(torch.float32)
    if bias:
        plain.bias.data = quantized.bias.data
    return network, plain


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_computes_what_its_rebuilt_weight_would(kind: str) -> None:
    network, plain = layer_of(kind)
    ours, theirs = (torch.randn(3, 5, 128, generator=generator()).requires_grad_() for _ in "ab")
    weights = torch.randn(3, 5, 32, generator=generator(1))
    found, expected = network(ours), plain(theirs)
    assert torch.equal(found, expected)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "worst"), [("int8", 0.57 / 127), ("nf4", 0.16)])
def test_weights_are_rounded_to_their_steps(kind: str, worst: float) -> None:
    """int8: half of 1 / 127 of a row's largest, in float16; nf4: half of -1 to -0.6962."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(128, 32))
    weight = network[0].weight.detach().clone()
    weight[3] = 0
    network[0].weight.data = weight.clone()
    quantize(network, kind, CPU)

    blocks = weight if kind == "int8" else weight.reshape(-1, 64)
    error = (network[0].rebuilt(torch.float32) - weight).reshape(blocks.shape).abs()  # type: ignore[operator]
    bound = blocks.abs().amax(1, keepdim=True) * worst
    assert (error <= bound * 1.01 + 1e-7).all()
    assert (error[3] == 0).all() or kind == "nf4"


def test_the_rebuilt_weight_is_not_saved_for_the_gradient() -> None:
    for kind in KINDS:
        network, _ = layer_of(kind)
        saved: list[int] = []

        def pack(tensor: Tensor, saved: list[int] = saved) -> Tensor:
            saved.append(tensor.nbytes)
            return tensor

        x = torch.randn(4, 128).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(x)
        assert sum(saved) == 0


def test_a_layer_follows_autocast() -> None:
    for kind in KINDS:
        network, plain = layer_of(kind)
        x = torch.randn(4, 128)
        with torch.autocast("cpu", torch.bfloat16):
            assert network(x).dtype == plain(x).dtype == torch.bfloat16
            assert torch.allclose(network(x), plain(x), atol=0.02)
        assert network(x.bfloat16()).dtype == torch.bfloat16


def test_bytes() -> None:
    sizes = {}
    for kind in KINDS:
        (layer,) = layer_of(kind, bias=False)[0]
        sizes[kind] = sum(value.nbytes for value in (*layer.parameters(), *layer.buffers()))
    assert sizes == {"int8": 32 * 128 + 32 * 4, "nf4": 32 * 128 // 2 + 32 * 128 // 64 * 4}


# Training ---------------------------------------------------------------------------------------


@pytest.fixture
def recipe(write_recipe: Callable[..., Path]) -> Path:
    return write_recipe(
        iterations=2,
        batch={
            "prompts": 2,
            "images_per_prompt": 2,
            "sample_batch": 1,
            "train_batch": 4,
            "minibatches": 1,
        },
        evaluation={"images_per_prompt": 1},
        run={"sample_every": 1, "sample_prompts": 1},
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_run(recipe: Path, kind: str, tmp_path: Path) -> None:
    changes = [f"model.quantization={kind}"]
    run = train(configuration.load(recipe, changes), tmp_path / "run", progress=False)
    records = log(run)
    assert records[0]["ratio_deviation"] < 1e-6, "before the first update the ratio is 1"
    assert records[0]["grad_norm"] > 0

    part = train(
        configuration.load(recipe, [*changes, "iterations=1"]), tmp_path / "part", progress=False
    )
    train(configuration.load(recipe, changes), part, resume=True, progress=False)
    assert log(part) == records
    with pytest.raises(ValueError, match=r"model\.quantization"):
        train(configuration.load(recipe, ["iterations=3"]), part, resume=True, progress=False)

    card = (export_run(Run(run), "kohya") / "README.md").read_text()
    assert f"| float32, stored as {kind} in linear layers |" in card
    folder = export_run(Run(run), "merged")
    assert f"It was trained on weights stored as {kind}" in (folder / "README.md").read_text()
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    assert quantization_of(unet) == ""
    config = configuration.load(recipe, [])
    policy = Policy.load(config.model.id, adapter=run / "adapter", device="cpu")
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    layer: Any = policy.pipe.unet.get_submodule(name)
    delta = layer.get_delta_weight("default")
    assert delta.abs().max() > 0
    expected = layer.base_layer.weight + delta
    assert torch.allclose(unet.get_submodule(name).weight, expected, atol=1e-6)  # type: ignore[arg-type]


def test_an_adapter_of_a_quantized_base_is_read_again(tiny_sd1: Path, tmp_path: Path) -> None:
    policy = Policy.load(tiny_sd1, quantization="nf4", device="cpu")
    perturb(policy)
    policy.save_adapter(tmp_path)
    for train_as in ("lora", "none"):
        again = Policy.load(
            tiny_sd1, quantization="nf4", device="cpu", adapter=tmp_path, train=train_as
        )
        found, expected = (stock_images(one.pipe) for one in (again, policy))
        assert torch.allclose(found, expected, atol=1e-5)


def test_a_fused_lora_is_merged_before(tiny_sd1: Path, tmp_path: Path) -> None:
    trained = Policy.load(tiny_sd1, device="cpu")
    perturb(trained)
    trained.save_adapter(tmp_path)
    fused = Policy.load(tiny_sd1, device="cpu", train="none", fused_lora=tmp_path)
    quantize(fused.pipe.unet, "int8", CPU)
    policy = Policy.load(
        tiny_sd1, device="cpu", train="none", fused_lora=tmp_path, quantization="int8"
    )
    assert torch.allclose(stock_images(policy.pipe), stock_images(fused.pipe), atol=1e-5)


# What is refused --------------------------------------------------------------------------------


def test_what_is_refused(recipe: Path, tiny_sd1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match='"full" they all learn; set train = "lora", or leave'):
        configuration.load(recipe, ["model.quantization=int8", "model.train=full"])
    with pytest.raises(ValueError, match="model.quantization = 'fp4'; it must be"):
        configuration.load(recipe, ["model.quantization=fp4"])
    with pytest.raises(ValueError, match="set model.train to 'lora'"):
        Policy.load(tiny_sd1, quantization="int8", train="full", device="cpu")
    with pytest.raises(ValueError, match="must be one of int8, nf4, not 'fp4'"):
        Policy.load(tiny_sd1, quantization="fp4", device="cpu")
    config = configuration.load(recipe, ["model.quantization=nf4"])
    with pytest.raises(ValueError, match=r"model\.quantization say the same"):
        check_policy(config, Policy.load(tiny_sd1, device="cpu"))

    known = builtins.__import__

    def without(name: str, *args: Any, **settings: Any) -> Any:
        if name == "bitsandbytes":
            raise ImportError(name)
        return known(name, *args, **settings)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r'pip install "burnish\[eight-bit\]", or leave it out'):
        quantize(nn.Sequential(nn.Linear(4, 4)), "int8", CPU)
    with pytest.raises(ValueError, match="burnish"):
        Policy.load("a/model-that-is-not-there", quantization="nf4", device="cpu")
    quantize(nn.Sequential(nn.Linear(4, 4, device="meta")), "nf4", torch.device("meta"))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_without_memory_have_the_shapes_of_real_ones(kind: str) -> None:
    real, weightless = nn.Linear(33, 5), nn.Linear(33, 5, device="meta")
    quantize(nn.Sequential(real), kind, CPU)
    quantize(nn.Sequential(weightless), kind, torch.device("meta"))

    for name, value in real.state_dict().items():
        found = weightless.state_dict()[name]
        assert (found.shape, found.dtype) == (value.shape, value.dtype), name
    output = weightless(torch.ones(2, 33, device="meta"))
    assert output.shape == (2, 5)


def test_a_whole_network_is_refused_before_the_model_is_loaded(
    recipe: Path, tiny_sd1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Policy.load(tiny_sd1, train="full", device="cpu").save_adapter(tmp_path / "whole")
    monkeypatch.setattr(Policy, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    adapter = f"model.adapter={tmp_path / 'whole'}"
    for change, words in (
        ("model.quantization=nf4", r"whole network, and model\.quantization .* leave it out"),
        ("model.rank=4", r"holds a whole network: set model\.train = 'full'"),
    ):
        with pytest.raises(ValueError, match=words):
            load_policy(configuration.load(recipe, [adapter, change]))


@pytest.mark.parametrize("train", ["none", "lora"])
def test_a_whole_network_is_not_read_into_quantized_weights(
    tiny_sd1: Path, train: str, tmp_path: Path
) -> None:
    Policy.load(tiny_sd1, train="full", device="cpu").save_adapter(tmp_path)
    with pytest.raises(ValueError, match=r"whole network, and model\.quantization .* leave it out"):
        Policy.load(tiny_sd1, train=train, quantization="int8", adapter=tmp_path, device="cpu")


def test_layers_that_stay_in_float32_are_left() -> None:
    network = nn.ModuleDict({"norm": nn.Linear(64, 2), "other": nn.Linear(64, 2)})
    network._keep_in_fp32_modules = ["norm"]  # type: ignore[assignment]
    quantize(network, "int8", CPU)
    assert type(network["norm"]) is nn.Linear
    assert isinstance(network["other"], QuantizedLinear)
    x = torch.ones(1, 64)
    assert torch.allclose(
        network["other"](x),
        F.linear(x, network["other"].rebuilt(torch.float32)) + network["other"].bias,
    )
