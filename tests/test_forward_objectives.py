"""Objectives on the forward process against autograd on their published formulas, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from burnish.rl.forward_objectives import AWM, DGPO, NFT, RAM, RVM, RWR, mixture_error
from burnish.types import Objective, Replay

B = 8  # pairs
D = 24  # dimensions of a latent
ADV = torch.tensor([1.5, -0.5, -1.0, 0.25, 12.0, -11.0, 0.0, -1.0], dtype=torch.float64)
GROUP = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass
class Toy:
    """Predictions (B, D) of noised images: the current ones with gradient, and their target."""

    near: float = 0.3  # how far the current policy has moved

    def __post_init__(self) -> None:
        self.target = randn(B, D)
        self.ref = randn(B, D, seed=1)
        self.old = self.ref + 0.3 * randn(B, D, seed=2)
        self.now = (self.old + self.near * randn(B, D, seed=3)).requires_grad_()

    def error(self, v: Tensor) -> Tensor:
        return (v - self.target).square().mean(1)

    def replay(self, mixtures: tuple[float, ...] = (), time: float = 1.0) -> Replay:
        """Return the replay with errors times `time`, as of x0 where the target is a velocity."""

        def square(v: Tensor) -> Tensor:
            return (time * v).square().mean(1, keepdim=True)

        mixed = [(1 - c) * self.old + c * self.now.detach() for c in mixtures]
        errors = [(time * (v - self.target)).abs().mean(1) for v in mixed]
        return Replay(
            logp=-square(self.now - self.target),
            logp_old=-square(self.old - self.target),
            dims=D,
            logp_ref=-square(self.ref - self.target),
            kl=D / 2 * square(self.now - self.ref),
            kl_old=D / 2 * square(self.now - self.old),
            mixture_errors=torch.stack(errors, 1) if mixtures else None,
        )


def check(objective: Objective, toy: Toy, adv: Tensor, published: Tensor, **more: float) -> None:
    """Compare the gradients of an objective and of a published loss."""
    (expected,) = torch.autograd.grad(published, toy.now)
    loss = objective(toy.replay(objective.mixtures, **more), adv)
    (gradient,) = torch.autograd.grad(loss.value, toy.now)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("c", [1.0, -1.0, 0.1, -0.1, 2.5])
def test_the_error_of_a_mixture_is_known_from_three_errors(c: float) -> None:
    toy = Toy()
    mixed = (1 - c) * toy.old + c * toy.now
    torch.testing.assert_close(mixture_error(toy.replay(), c)[:, 0], toy.error(mixed))


def test_rwr_is_weighted_regression() -> None:
    toy = Toy()
    weights = ADV.abs()
    check(RWR(), toy, weights, (weights * toy.error(toy.now)).mean())


def test_awm_is_ppo_with_the_error_in_place_of_the_likelihood() -> None:
    """arXiv 2509.25050: rho = exp(-e + e_old), clipped at 1 +- c."""
    toy = Toy(near=0.2)
    ratio = (toy.error(toy.old) - toy.error(toy.now)).exp()
    c = 0.05
    published = torch.maximum(-ADV * ratio, -ADV * ratio.clamp(1 - c, 1 + c)).mean()
    check(AWM(clip=c * D), toy, ADV, published)


def test_rvm_is_the_weighted_error_with_an_anchor() -> None:
    """arXiv 2608.23664: the gradient is A d(e) / 2 + beta d(d_ref) / 2."""
    toy = Toy()
    anchor = (toy.now - toy.ref).square().mean(1)
    check(RVM(kl=0.4), toy, ADV, (ADV * toy.error(toy.now) / 2 + 0.4 * anchor / 2).mean())


@pytest.mark.parametrize("kl", [1.0, 0.25])
def test_ram_is_regression_on_the_moved_reference(kl: float) -> None:
    """arXiv 2605.10759: |v - sg(v_ref + m A (v* - v_old))|^2; another kl divides m by it."""
    toy = Toy()
    moved = toy.ref + 3.0 / kl * ADV[:, None] * (toy.target - toy.old)
    published = kl * (toy.now - moved).square().mean(1)
    check(RAM(strength=3.0, kl=kl), toy, ADV, published.mean() / 2)


@pytest.mark.parametrize("mix", [1.0, 0.1])
def test_nft_is_its_two_mixtures(mix: float) -> None:
    """arXiv 2509.16117, with x0 = x_t - t v and its adaptive weights."""
    toy = Toy()
    t = 0.7
    most = 5.0
    noised = randn(B, D, seed=5)
    clean = noised - t * toy.target
    r = (ADV / (2 * most) + 0.5).clamp(0, 1)
    terms = []

    for c, part in ((mix, r), (-mix, 1 - r)):
        x0 = noised - t * ((1 - c) * toy.old + c * toy.now)
        weight = (x0 - clean).abs().mean(1).detach().clamp(min=1e-5)
        terms.append(part / mix * (x0 - clean).square().mean(1) / weight)

    kl = (t * (toy.now - toy.ref)).square().mean(1)
    check(NFT(mix, most, kl=2e-2), toy, ADV, (most * sum(terms) + 1e-2 * kl).mean(), time=t)
    assert set(r.tolist()) >= {0.0, 1.0}


def dgpo_loss(toy: Toy, beta: float) -> Tensor:
    """-log sigmoid(-beta sum of A (e - e_ref) / G) of each prompt, by autograd over all images."""
    change = ADV * (toy.error(toy.now) - toy.error(toy.ref))
    groups = torch.stack([change[number == GROUP].mean() for number in (0, 1)])
    return -torch.nn.functional.logsigmoid(-beta * groups).mean() / beta


@pytest.mark.parametrize("beta", [0.1, 3.0])
def test_dgpo_is_a_preference_of_groups(beta: float) -> None:
    """arXiv 2510.08425; the published loss is divided by beta, as its code's weight is."""
    toy = Toy()
    objective = DGPO(beta=beta, clip=1e9)
    replay = toy.replay()
    assert replay.logp_ref is not None
    change = (replay.logp - replay.logp_ref).detach()
    targets = objective.targets(change, ADV, GROUP, 1)
    assert targets.shape == (B, 1)
    check(objective, toy, targets[:, 0], dgpo_loss(toy, beta))


def test_dgpo_weighs_each_transition_by_its_own_group() -> None:
    change = randn(B, 3, seed=7)
    whole = DGPO(2.0).targets(change, ADV, GROUP, 3)
    alone = [DGPO(2.0).targets(change[:, i : i + 1], ADV, GROUP, 1) for i in range(3)]
    assert whole.equal(torch.cat(alone, 1))


def test_dgpo_leaves_out_what_has_gone_too_far() -> None:
    toy = Toy()
    replay = toy.replay()
    ratio = (replay.logp - replay.logp_old).exp().detach()[:, 0]
    loss = DGPO(clip=0.1 * D)(replay, ADV)
    (gradient,) = torch.autograd.grad(loss.value, toy.now)
    gone = ((ADV > 0) & (ratio > 1.1)) | ((ADV < 0) & (ratio < 0.9))
    assert 0 < int(gone.sum()) < B
    assert (gradient.abs().sum(1) == 0).equal(gone | (ADV == 0))
    assert loss.metrics["clip_fraction"] == pytest.approx(float(gone.double().mean()))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: RAM(strength=0.0),
        lambda: RAM(kl=-1.0),
        lambda: NFT(mix=0.0),
        lambda: NFT(most=float("inf")),
        lambda: DGPO(beta=-1.0),
        lambda: DGPO(clip=0.0),
        lambda: RVM(kl=float("nan")),
    ],
)
def test_numbers_out_of_range_are_refused(wrong: Callable[[], Objective]) -> None:
    with pytest.raises(ValueError, match=r"objective\.\w+ must be >"):
        wrong()
