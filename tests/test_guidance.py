"""Guidance: the formula, and the number of network rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from burnish.diffusion.guidance import CFG, NoGuidance
from burnish.types import Cond


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
