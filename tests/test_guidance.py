"""Guidance: the formula, and the number of network rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from burnish.checked import checked_part
from burnish.diffusion.guidance import (
    CFG,
    DualGuidance,
    EmbeddedDualGuidance,
    EmbeddedGuidance,
    NoGuidance,
    Unguided,
)
from burnish.tools.gallery import _with_weight
from burnish.types import Cond, Guidance


class Network:
    """A function of its input that differs between conditions and times, and counts its rows."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.rows: list[int] = []
        self.dtype = dtype

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        self.rows.append(len(cond["text"]))
        times = len(cond["text"]) // len(x)
        x = torch.cat([x] * times)
        t = torch.cat([t] * times)
        return (x * cond["text"].sum((1, 2))[:, None, None, None] + t[:, None, None, None]).to(
            self.dtype
        )


X = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
T = torch.tensor([5, 6, 7])
COND = {"text": torch.arange(6.0).view(3, 1, 2)}
NULL = {"text": torch.ones(1, 1, 2).expand(3, -1, -1)}


def test_none_is_the_prompt_alone() -> None:
    network = Network()
    assert torch.equal(NoGuidance()(network, X, T, COND, NULL), Network()(X, T, COND))
    assert network.rows == [3]


@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_the_spread_is_brought_back_as_diffusers_does(rescale: float) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    out = CFG(5.0, rescale=rescale)(Network(), X, T, COND, NULL)
    with_prompt = Network()(X, T, COND)
    plain = CFG(5.0)(Network(), X, T, COND, NULL)
    torch.testing.assert_close(out, rescale_noise_cfg(plain, with_prompt, rescale))

    if rescale == 1:
        torch.testing.assert_close(out.std((1, 2, 3)), with_prompt.std((1, 2, 3)))
    with pytest.raises(ValueError, match=r"guidance.rescale must be between 0 and 1, not 1.5"):
        CFG(5.0, rescale=1.5)


def test_cfg_is_the_formula_in_one_call() -> None:
    network = Network()
    out = CFG(5.0)(network, X, T, COND, NULL)
    with_prompt = Network()(X, T, COND)
    without = Network()(X, T, NULL)
    torch.testing.assert_close(out, without + 5 * (with_prompt - without))
    assert network.rows == [6]


def test_cfg_at_weight_one_leaves_the_empty_prompt_out() -> None:
    network = Network()
    assert torch.equal(CFG(1.0)(network, X, T, COND, NULL), Network()(X, T, COND))
    assert network.rows == [3]


def test_cfg_at_weight_zero_is_the_empty_prompt() -> None:
    torch.testing.assert_close(CFG(0.0)(Network(), X, T, COND, NULL), Network()(X, T, NULL))


def test_cfg_combines_half_precision_in_float32() -> None:
    assert CFG(5.0)(Network(torch.bfloat16), X, T, COND, NULL).dtype == torch.float32


def test_weight_must_be_a_number() -> None:
    with pytest.raises(ValueError, match="guidance.weight"):
        CFG(float("nan"))


@pytest.mark.parametrize(
    "guidance", [NoGuidance(), CFG(5.0), CFG(0.0), DualGuidance(3.0, 2.0)], ids=repr
)
def test_unguided_is_the_prompt_alone(guidance: Guidance) -> None:
    network = Network()
    cond = {**COND, "original.text": COND["text"] + 1} if guidance.needs_original else COND
    out = Unguided(guidance)(network, X, T, cond, NULL)
    assert torch.equal(out, Network()(X, T, COND))
    assert network.rows == [3]


@pytest.mark.parametrize(
    ("guidance", "weight"),
    [(EmbeddedGuidance(6.0), 6.0), (EmbeddedDualGuidance(4.0, 1.0), 5.0)],
    ids=["embedded", "embedded_dual"],
)
def test_a_network_with_a_weight_input_keeps_it_unguided(guidance: Guidance, weight: float) -> None:
    seen: list[Cond] = []

    def network(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        seen.append(cond)
        return x

    cond = {**COND, "original.text": COND["text"] + 1} if guidance.needs_original else COND
    Unguided(guidance)(network, X, T, cond, NULL)
    (only,) = seen
    assert torch.equal(only["text"], COND["text"])
    assert only["guidance"].tolist() == [weight] * 3


def test_a_users_guidance_may_say_what_unguided_means() -> None:
    class Mine:
        def __call__(self, raw: Any, x: Tensor, t: Tensor, cond: Cond, null: Cond) -> Tensor:
            with_prompt = raw(x, t, cond)
            return with_prompt + 2 * (with_prompt - raw(x, t, null))

    class Both(Mine):
        def unguided(self, raw: Any, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
            return 3 * raw(x, t, cond)

    once = Network()(X, T, COND)
    plain = Unguided(checked_part("guidance", Mine(), "mine"))(Network(), X, T, COND, NULL)
    own = Unguided(checked_part("guidance", Both(), "both"))(Network(), X, T, COND, NULL)
    torch.testing.assert_close(plain, once)
    assert torch.equal(own, 3 * once)


@pytest.mark.parametrize("kind", [DualGuidance, EmbeddedDualGuidance])
def test_another_weight_is_shared_as_before(kind: Any) -> None:
    """`--guidance` of a run with two weights is their sum, and a negative prompt stays."""
    policy: Any = SimpleNamespace(takes_weight=kind is EmbeddedDualGuidance)
    changed = _with_weight(kind(3.0, 1.0), policy, 2.0)
    assert (changed.w1, changed.w2) == (1.5, 0.5)

    if kind is DualGuidance:
        assert _with_weight(kind(5.0, 5.0, "ugly"), policy, 3.0) == kind(1.5, 1.5, "ugly")
        assert _with_weight(kind(5.0, -5.0), policy, 3.0) == CFG(3.0)  # nothing to share
