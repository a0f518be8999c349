"""The shared trunk: latents repeated late give what repeated latents give, and cost less."""

from __future__ import annotations

import pytest
import torch
from conftest import build_lcm, build_pipeline, generator
from torch import Tensor, nn

from burnish.diffusion.shared_trunk import share_guidance_trunk


def inputs(rows: int, texts: int) -> tuple[Tensor, Tensor, Tensor]:
    noise = generator()
    x = torch.randn(rows, 4, 8, 8, generator=noise, dtype=torch.float64)
    text = torch.randn(texts, 5, 8, generator=noise, dtype=torch.float64)
    return x, torch.randint(1000, (rows,), generator=noise), text


def network(leading: bool) -> nn.Module:
    """Return a UNet whose cross-attention comes at once, or only after a block without."""
    unet: nn.Module = build_pipeline().unet  # type: ignore[attr-defined]

    if leading:
        kinds = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
        unet = (
            type(unet)
            .from_config(  # type: ignore[attr-defined]
                {**unet.config, "down_block_types": kinds[:2], "up_block_types": kinds[2:]}  # type: ignore[dict-item]
            )
            .eval()
        )

    return unet.double()


@pytest.mark.parametrize("leading", [False, True])
@pytest.mark.parametrize("times", [1, 2, 3])
def test_it_is_the_network_on_repeated_rows(leading: bool, times: int) -> None:
    unet = network(leading)
    x, t, text = inputs(2, 2 * times)
    expected = unet(torch.cat([x] * times), torch.cat([t] * times), text).sample
    gradients = torch.autograd.grad(expected.square().sum(), list(unet.parameters()))
    share_guidance_trunk(unet)
    out = unet(x, t, text).sample
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)

    for grad, expected_grad in zip(
        torch.autograd.grad(out.square().sum(), list(unet.parameters())), gradients, strict=True
    ):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-9, atol=1e-12)


def test_it_holds_under_gradient_checkpointing() -> None:
    unet = network(leading=True)
    share_guidance_trunk(unet)
    x, t, text = inputs(2, 4)
    expected = torch.autograd.grad(unet(x, t, text).sample.square().sum(), list(unet.parameters()))
    unet.enable_gradient_checkpointing()  # type: ignore[operator]
    unet.train()
    grads = torch.autograd.grad(unet(x, t, text).sample.square().sum(), list(unet.parameters()))
    for grad, expected_grad in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-9, atol=1e-12)


def test_layers_before_the_text_are_computed_once() -> None:
    unet = network(leading=True)
    rows = {}
    share_guidance_trunk(unet)
    watched = {
        "first": unet.down_blocks[0].resnets[0].conv1,  # type: ignore[index, union-attr]
        "second": unet.down_blocks[1].resnets[0].conv1,  # type: ignore[index, union-attr]
        "text": unet.down_blocks[1].attentions[0].proj_in,  # type: ignore[index, union-attr]
    }

    for name, layer in watched.items():
        layer.register_forward_pre_hook(
            lambda _, args, name=name: rows.update({name: len(args[0])})
        )  # type: ignore[misc]

    unet(*inputs(3, 6))
    assert rows == {"first": 3, "second": 3, "text": 6}


def test_a_guidance_embedding_is_repeated_with_its_latent() -> None:
    unet = build_lcm().unet.double()  # type: ignore[attr-defined]
    share_guidance_trunk(unet)
    x, t, text = inputs(2, 4)
    weight = torch.randn(2, 16, dtype=torch.float64, generator=generator())
    weights = torch.cat([weight, weight])
    expected = unet(torch.cat([x, x]), torch.cat([t, t]), text, timestep_cond=weights).sample
    out = unet(x, t, text, timestep_cond=weight).sample
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
