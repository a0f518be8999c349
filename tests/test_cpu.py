"""The kernels for a CPU against what they stand in for, in float64 and with gradients."""

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
    layer = Layer(
        query_dim=8, cross_attention_dim=None if tokens is None else 6, heads=2, dim_head=4
    ).double()
    x = torch.randn(3, 7, 8, generator=generator(), dtype=torch.float64, requires_grad=True)
    text = (
        None
        if tokens is None
        else torch.randn(3, tokens, 6, generator=generator(), dtype=torch.float64)
    )
    answers = []

    for processor in (AttnProcessor(), cpu.Attention(None)):  # which has nothing to fall back to
        layer.set_processor(processor)  # type: ignore[arg-type]
        out = layer(x, encoder_hidden_states=text)
        answers.append((out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])))

    for mine, theirs in zip(*answers, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"residual_connection": True},
        {"norm_num_groups": 2},
        {"rescale_output_factor": 2.0},
        {"upcast_softmax": True},
    ],
)
def test_what_is_special_is_left_to_diffusers(options: dict[str, float]) -> None:
    layer = Layer(query_dim=8, heads=2, dim_head=4, **options).double()  # type: ignore[arg-type]
    x = torch.randn(3, 7, 8, generator=generator(), dtype=torch.float64)
    layer.set_processor(AttnProcessor())
    expected = layer(x)
    layer.set_processor(cpu.Attention(AttnProcessor()))  # type: ignore[arg-type]
    assert torch.equal(layer(x), expected)


def test_a_mask_is_left_to_diffusers() -> None:
    layer = Layer(query_dim=8, heads=2, dim_head=4)
    x = torch.randn(3, 7, 8, generator=generator())
    mask = torch.zeros(3, 1, 7)
    mask[:, :, 4:] = -1e4
    layer.set_processor(AttnProcessor())
    expected = layer(x, attention_mask=mask)
    layer.set_processor(cpu.Attention(AttnProcessor()))  # type: ignore[arg-type]
    assert torch.equal(layer(x, attention_mask=mask), expected) and not torch.equal(
        layer(x), expected
    )


@pytest.mark.parametrize("convolutions", [False, True])
def test_linear_is_linear_whichever_library_multiplies(
    convolutions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        cpu, "ONEDNN_MULTIPLIES", convolutions and torch.backends.mkldnn.is_available()
    )
    noise = generator()
    x, weight, bias = (torch.randn(*shape, generator=noise) for shape in ((2, 5, 8), (6, 8), (6,)))

    for value in (x, weight, bias):
        value.requires_grad_()

    mine = cpu.linear(x, weight, bias)
    theirs = F.linear(x, weight, bias)
    torch.testing.assert_close(mine, theirs)

    for a, b in zip(
        *(torch.autograd.grad(y.square().sum(), (x, weight, bias)) for y in (mine, theirs)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
