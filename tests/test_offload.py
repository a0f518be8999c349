"""`model.offload`: frozen weights in main memory, one layer's copy at a time on the device.

No test here has two devices with memory. Where weights are is tested with the meta device as the
GPU; what is computed, and how many bytes are copied at once, on the CPU with copies that are
counted while they live.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from conftest import generator, log, perturb
from test_policy import stock_images
from torch import Tensor, nn

from burnish import config as configuration
from burnish.diffusion import adapter_switch, cpu, frozen_linear, lora
from burnish.diffusion.families import family_of
from burnish.diffusion.frozen_linear import (
    FrozenLinear,
    computing_device,
    is_offloaded,
    offload_weights,
    offloaded_tensors,
    packed,
)
from burnish.diffusion.policy import Policy
from burnish.diffusion.quantization import KINDS, quantize
from burnish.runs import Run
from burnish.tools.export import export_run
from burnish.training.loop import train
from burnish.types import Prompt

MODELS = ("tiny_sd1", "tiny_sdxl", "tiny_sd3", "tiny_flux_schnell", "tiny_z_image", "tiny_klein")
CPU = torch.device("cpu")
META = torch.device("meta")
PROMPTS = [Prompt("a cat"), Prompt("a dog")]


class Copies:
    """The bytes of fetched weights that live at the same time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.live = self.most = self.count = 0
        monkeypatch.setattr(FrozenLinear, "fetched", self.fetched)

    def fetched(self, tensor: Tensor, device: torch.device | None) -> Tensor:
        copy = tensor.clone()
        size = copy.untyped_storage().nbytes()
        weakref.finalize(copy.untyped_storage(), self.gone, size)
        self.count += 1
        self.live += size
        self.most = max(self.most, self.live)
        return copy

    def gone(self, size: int) -> None:
        self.live -= size


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Copies:
    return Copies(monkeypatch)


def gradients(policy: Policy) -> tuple[Tensor, list[Tensor]]:
    """Return what a policy predicts of noise, and the gradients of its adapter."""
    cond = policy.encode(PROMPTS)
    x = policy.noise(2, generator())
    t = torch.tensor([300, 700])
    with torch.autocast("cpu", policy.dtype, enabled=policy.dtype != torch.float32):
        out = policy._family.call(policy.pipe, x.to(policy.dtype), t, cond)
    grads = torch.autograd.grad(out.float().square().sum(), policy.trainable, allow_unused=True)
    assert sum(grad is not None for grad in grads) >= 4
    return out.detach(), [grad for grad in grads if grad is not None]


# A layer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_computes_the_same_bits(dtype: torch.dtype, bias: bool, copies: Copies) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(24, 16, bias=bias, dtype=dtype).requires_grad_(False)
    layer = nn.Linear(24, 16, bias=bias, dtype=dtype).requires_grad_(False)
    layer.load_state_dict(plain.state_dict())
    offload_weights(layer, CPU)
    assert layer.state_dict().keys() == plain.state_dict().keys()

    weights = torch.randn(3, 5, 16, generator=generator(1), dtype=dtype)
    for shape in [(3, 5, 24), (5, 24), (24,)]:
        ours, theirs = (
            torch.randn(shape, generator=generator(), dtype=dtype).requires_grad_() for _ in "ab"
        )
        found, expected = layer(ours), plain(theirs)
        assert torch.equal(found, expected) and found.dtype == dtype
        (found * weights).sum().backward()
        (expected * weights).sum().backward()
        assert torch.equal(ours.grad, theirs.grad)  # type: ignore[arg-type]
    assert copies.count == 6 and copies.live == 0


def test_the_weight_stays_where_it_is_when_its_layer_is_moved() -> None:
    for kind in ("", *KINDS):
        if kind:
            pytest.importorskip("bitsandbytes")
        network = nn.Sequential(nn.Linear(64, 8), nn.LayerNorm(8)).requires_grad_(False)
        if kind:
            quantize(network, kind, CPU)
        offload_weights(network, META)
        before = list(offloaded_tensors(network))
        network.to(META)

        assert len(before) == (2 if kind else 1)
        assert all(a is b for a, b in zip(before, offloaded_tensors(network), strict=True))
        places = {name: value.device.type for name, value in network.state_dict().items()}
        assert [name for name, place in places.items() if place == "cpu"] == (
            ["0.weight", "0.scales"] if kind else ["0.weight"]
        )
        assert computing_device(network) == META
        x = torch.ones(2, 64, device="meta", requires_grad=True)
        if kind != "nf4":  # whose weights are only rebuilt where there is memory
            network(x).sum().backward()
            assert x.grad is not None and x.grad.device == META


# Networks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_a_network_computes_on_a_device_that_lacks_its_weights(
    model: str, request: pytest.FixtureRequest
) -> None:
    pipe = diffusers.DiffusionPipeline.from_pretrained(request.getfixturevalue(model))
    policy = Policy.load(pipe, device="cpu", train="none")
    cond = policy.encode(PROMPTS)
    network: Any = family_of(type(pipe).__name__).network_of(pipe)
    offload_weights(network, META)
    network.to(META)
    lora.add_lora(network, 2, 2, ("to_qkv_mlp_proj",) if model == "tiny_klein" else ("to_q",))

    for name, layer in network.named_modules():
        is_stored = isinstance(layer, nn.Linear) and ".lora_" not in name
        for own, value in layer.named_parameters(recurse=False):
            assert value.device == (CPU if is_stored and own == "weight" else META), name

    x = policy.noise(2, generator()).to(META)
    moved = {  # numbers of tokens are read
        name: value.to(META) if value.is_floating_point() else value for name, value in cond.items()
    }
    out = policy._family.call(pipe, x, torch.tensor([300, 700], device=META), moved)
    assert out.device == META
    out.sum().backward()
    assert all(
        value.grad.device == META for value in network.parameters() if value.grad is not None
    )


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize("model", ["tiny_sd1", "tiny_sd3", "tiny_z_image", "tiny_klein"])
def test_gradients_are_the_same_bits_and_one_layer_is_copied_at_a_time(
    model: str,
    is_checkpointed: bool,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    copies: Copies,
) -> None:
    monkeypatch.setattr(cpu, "LINEAR_BY_ONEDNN", False)
    # adapters that are not merged: in float32 the usual way is another order of sums
    monkeypatch.setattr(adapter_switch, "_can_merge", lambda _: False)
    targets = ("to_q", "to_k", "to_v", "to_out.0")
    targets = ("to_qkv_mlp_proj", "to_q") if model == "tiny_klein" else targets
    folder = request.getfixturevalue(model)
    found = []
    for offload in (False, True):
        policy = Policy.load(
            folder,
            device="cpu",
            offload=offload,
            targets=targets,
            gradient_checkpointing=is_checkpointed,
        )
        perturb(policy)
        copies.most = copies.count = 0
        found.append(gradients(policy))

    network = family_of(type(policy.pipe).__name__).network_of(policy.pipe)
    sizes = [tensor.nbytes for tensor in offloaded_tensors(network)]
    assert copies.most == max(sizes) < sum(sizes)
    assert copies.count > len(sizes) and copies.live == 0, "fetched again for gradients"

    (out, ours), (expected, theirs) = found
    assert torch.equal(out, expected)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_quantized_weights_are_offloaded_too(tiny_sd3: Path, kind: str, copies: Copies) -> None:
    pytest.importorskip("bitsandbytes")
    (out, ours), (expected, theirs) = (
        gradients(Policy.load(tiny_sd3, device="cpu", quantization=kind, offload=offload))
        for offload in (False, True)
    )
    assert torch.equal(out, expected)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert copies.count > 0 and copies.live == 0


def test_weights_of_an_adapter_and_small_ones_are_not_offloaded(tiny_sd1: Path) -> None:
    policy = Policy.load(tiny_sd1, device="cpu", offload=True)
    unet = policy.pipe.unet
    trained = {id(weight) for weight in policy.trainable}
    stored = {id(tensor) for tensor in offloaded_tensors(unet)}
    assert trained and stored and not trained & stored
    for name, layer in unet.named_modules():
        assert is_offloaded(layer) == (isinstance(layer, nn.Linear) and ".lora_" not in name)


def test_an_adapter_is_read_again(tiny_sd1: Path, tmp_path: Path) -> None:
    policy = Policy.load(tiny_sd1, offload=True, device="cpu")
    perturb(policy)
    policy.save_adapter(tmp_path)
    plain = Policy.load(tiny_sd1, adapter=tmp_path, device="cpu", train="none")
    expected = stock_images(plain.pipe)
    for mode in ("lora", "none"):
        again = Policy.load(tiny_sd1, offload=True, adapter=tmp_path, device="cpu", train=mode)
        assert torch.allclose(stock_images(again.pipe), expected, atol=1e-5)


# Runs -------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(write_recipe: Callable[..., Path]) -> Path:
    return write_recipe(
        iterations=2,
        model={"dtype": "bfloat16"},
        batch={"prompts": 2, "images_per_prompt": 2, "sample_batch": 4, "train_batch": 4},
        evaluation={"images_per_prompt": 0},
        run={"sample_every": 0},
    )


def test_a_run_learns_the_same(recipe: Path, tmp_path: Path) -> None:
    usual = train(configuration.load(recipe), tmp_path / "usual", progress=False)
    config = configuration.load(recipe, ["model.offload=true"])
    run = train(config, tmp_path / "run", progress=False)
    records = log(run)
    assert records == log(usual)
    assert records[0]["ratio_deviation"] == 0, "before the first update the ratio is 1"
    assert records[0]["grad_norm"] > 0
    file = "pytorch_lora_weights.safetensors"
    assert (run / "adapter" / file).read_bytes() == (usual / "adapter" / file).read_bytes()

    first = configuration.load(recipe, ["iterations=1"])
    part = train(first, tmp_path / "part", progress=False)
    train(config, part, resume=True, progress=False)  # it may be set on resume
    assert log(part) == records

    folder = export_run(Run(run), "merged")
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    assert not any(is_offloaded(layer) for layer in unet.modules())


def test_the_ratio_is_one_in_float32(recipe: Path, tmp_path: Path) -> None:
    changes = ["model.offload=true", "model.dtype=float32", "iterations=1"]
    (record,) = log(train(configuration.load(recipe, changes), tmp_path / "run", progress=False))
    assert record["ratio_deviation"] < 1e-6
    assert record["grad_norm"] > 0


# What is refused, and locked memory -------------------------------------------------------------


def test_what_is_refused(recipe: Path) -> None:
    changes = ["model.offload=true", "model.train=full"]
    with pytest.raises(ValueError, match='"full" they all learn; set train = "lora", or leave off'):
        configuration.load(recipe, changes)
    with pytest.raises(ValueError, match="model.offload needs weights that stay"):
        Policy.load("a/model-that-is-not-there", offload=True, train="full", device="cpu")


def test_packed_weights_are_the_same_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_linear, "SLAB", 4096)
    shapes = ((3, 5), (30, 30), (7,), (40, 40), (2, 2))
    tensors = [torch.randn(shape, generator=generator()) for shape in shapes]
    tensors += [tensors[0].bfloat16(), torch.arange(9, dtype=torch.uint8), tensors[1].t()]
    copies = list(packed(tensors, lock=False))
    assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True))
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(tensors, copies, strict=True))
    slabs = [copy.untyped_storage() for copy in copies]
    assert [slab.nbytes() for slab in slabs] == [4096, 4096, 4096, 6656, *[4096] * 4]
    assert len({slab.data_ptr() for slab in slabs}) == 6


def test_memory_that_cannot_be_locked_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(tensors: list[Tensor], lock: bool) -> Any:
        assert lock
        yield tensors[0].clone()
        raise RuntimeError("CUDA error: out of memory\nand more")

    monkeypatch.setattr(frozen_linear, "packed", lacking)
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).requires_grad_(False)
    expected = [weight.clone() for weight in network.parameters()]
    with pytest.warns(UserWarning, match=r"model\.offload: .* \(CUDA error: out of memory\); they"):
        offload_weights(network, torch.device("cuda"))
    assert all(map(is_offloaded, network))
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), expected, strict=True))
