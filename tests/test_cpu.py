"""The kernels for a CPU against the stock ones, in float64 and with gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import generator
from diffusers.models.attention_processor import Attention as Layer
from diffusers.models.attention_processor import AttnProcessor

from burnish.diffusion import cpu


@pytest.mark.parametrize("tokens", [None, 5])
def test_attention_is_that_of_diffusers(tokens: int | None) -> None:
    x = torch.randn(3, 7, 8, generator=generator(), dtype=torch.float64, requires_grad=True)
    text = None
    width = None

    if tokens is not None:
        width = 6
        text = torch.randn(3, tokens, width, generator=generator(), dtype=torch.float64)

    layer = Layer(query_dim=8, cross_attention_dim=width, heads=2, dim_head=4).double()
    results = []

    # without a stock processor it has nothing to fall back to
    for processor in (AttnProcessor(), cpu.PlainAttnProcessor(None)):
        layer.set_processor(processor)  # type: ignore[arg-type]
        out = layer(x, encoder_hidden_states=text)
        results.append((out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])))

    for expected, value in zip(*results, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"residual_connection": True},
        {"norm_num_groups": 2},
        {"rescale_output_factor": 2.0},
        {"upcast_softmax": True},
    ],
)
def test_special_layers_are_left_to_diffusers(options: dict[str, float]) -> None:
    layer = Layer(query_dim=8, heads=2, dim_head=4, **options).double()  # type: ignore[arg-type]
    x = torch.randn(3, 7, 8, generator=generator(), dtype=torch.float64)
    layer.set_processor(AttnProcessor())
    expected = layer(x)
    layer.set_processor(cpu.PlainAttnProcessor(AttnProcessor()))  # type: ignore[arg-type]
    assert torch.equal(layer(x), expected)


def test_a_mask_is_left_to_diffusers() -> None:
    layer = Layer(query_dim=8, heads=2, dim_head=4)
    x = torch.randn(3, 7, 8, generator=generator())
    mask = torch.zeros(3, 1, 7)
    mask[:, :, 4:] = -1e4
    layer.set_processor(AttnProcessor())
    expected = layer(x, attention_mask=mask)
    layer.set_processor(cpu.PlainAttnProcessor(AttnProcessor()))  # type: ignore[arg-type]
    assert torch.equal(layer(x, attention_mask=mask), expected)
    assert not torch.equal(layer(x), expected)


@pytest.mark.parametrize("convolutions", [False, True])
def test_linear_is_linear_whichever_library_multiplies(
    convolutions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_onednn = convolutions and torch.backends.mkldnn.is_available()
    monkeypatch.setattr(cpu, "LINEAR_BY_ONEDNN", by_onednn)
    noise = generator()
    x, weight, bias = (torch.randn(*shape, generator=noise) for shape in ((2, 5, 8), (6, 8), (6,)))

    for value in (x, weight, bias):
        value.requires_grad_()

    out = cpu.linear(x, weight, bias)
    expected = F.linear(x, weight, bias)
    torch.testing.assert_close(out, expected)

    grads = torch.autograd.grad(out.square().sum(), (x, weight, bias))
    expected_grads = torch.autograd.grad(expected.square().sum(), (x, weight, bias))
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-5)
