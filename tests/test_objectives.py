"""Objectives: identities of their gradients, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from burnish import catalog
from burnish.diffusion import kernels
from burnish.rl.objectives import DPPO, Clipped, Rebel, Reinforce
from burnish.types import Gaussian, Objective, Replay

DIMS = 256
C = 1.64 / DIMS
ALL = [
    *(
        catalog.build("objective", {"use": name, **more})
        for name in catalog.BUILTIN["objective"]
        if name not in ("rebel", "dgpo", "dpo")
        for more in ({}, {"kl": 0.1})
    ),
    Rebel(),
]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fitting(objective: Objective, adv: Tensor) -> Tensor:
    """Return the advantages, or weights where the objective imitates."""
    return adv.abs() if objective.imitates else adv


def replay(change: Tensor | float = 0.0, kl: Tensor | None = None) -> Replay:
    old = randn(6, 3)
    logp = (old + change).requires_grad_()
    mixture_errors = randn(6, 2, seed=4).abs() + 0.1
    kl_old = DIMS / 2 * (logp - old).square()
    return Replay(logp, old, DIMS, None, kl, kl_old, None, mixture_errors)


def gradient(objective: Objective, rows: Replay, adv: Tensor) -> Tensor:
    (grad,) = torch.autograd.grad(objective(rows, adv).value, rows.logp)
    return grad


def test_reinforce_and_clipped_agree_at_ratio_one() -> None:
    adv = randn(6, seed=1)
    expected = (-adv[:, None] / 18).expand(6, 3)
    torch.testing.assert_close(gradient(Reinforce(), replay(), adv), expected)
    torch.testing.assert_close(gradient(Clipped(), replay(), adv), expected)


@pytest.mark.parametrize(
    ("sign", "change", "learns"),
    [
        (1, 2 * C, False),  # a good transition that is already much likelier
        (1, -2 * C, True),  # a good transition that became unlikelier
        (-1, 2 * C, True),  # a bad transition that became likelier
        (-1, -2 * C, False),  # a bad transition that is already much unlikelier
        (1, C / 2, True),
        (-1, -C / 2, True),
    ],
)
def test_clip_stops_only_the_side_that_went_too_far(sign: int, change: float, learns: bool) -> None:
    grad = gradient(Clipped(1.64), replay(change), torch.full((6,), float(sign)))
    assert bool((grad != 0).all()) == learns and bool((grad == 0).all()) != learns


def test_clip_fraction_and_deviation_count_both_sides() -> None:
    change = torch.zeros(6, 3, dtype=torch.float64)
    change[0] = 2 * C
    change[1, 0] = -3 * C
    change[2] = C / 2
    metrics = Clipped(1.64)(replay(change), randn(6)).metrics
    assert metrics["clip_fraction"] == pytest.approx(4 / 18)
    assert metrics["ratio_deviation"] == pytest.approx(3 * C, rel=0.02)
    assert metrics["approx_kl"] == pytest.approx(0.5 * float(((change * DIMS) ** 2).mean()))


@pytest.mark.parametrize("objective", [one for one in ALL if not (one.kl or one.mixtures)])
def test_no_advantage_no_gradient(objective: Objective) -> None:
    assert not gradient(objective, replay(randn(6, 3, seed=2) * C), torch.zeros(6)).any()


@pytest.mark.parametrize("objective", ALL)
def test_micro_batches_add_up(objective: Objective) -> None:
    change = randn(6, 3, seed=2) * C
    kl = randn(6, 3, seed=3).abs()
    adv = fitting(objective, randn(6, seed=1))
    expected = gradient(objective, replay(change, kl), adv)
    parts = []

    for rows in (slice(0, 1), slice(1, 6)):
        full = replay(change, kl)
        logp = full.logp[rows].detach().requires_grad_()
        kl_old = DIMS / 2 * (logp - full.logp_old[rows]).square()
        errors = full.mixture_errors[rows] if full.mixture_errors is not None else None
        part = Replay(logp, full.logp_old[rows], DIMS, None, kl[rows], kl_old, None, errors)
        parts.append(gradient(objective, part, adv[rows]) * len(adv[rows]) / 6)

    torch.testing.assert_close(torch.cat(parts), expected)


def toy(mean: Tensor, first: Tensor, x: Tensor, old: Tensor) -> Replay:
    """Return a policy of one transition: a Gaussian around `mean` that took the actions `x`."""
    std = torch.full((len(x), 1, 1, 1), 0.3, dtype=torch.float64)
    now = Gaussian(mean.expand_as(x), std)
    before = Gaussian(first.expand_as(x), std)
    kl = kernels.kl(now, before)[:, None]
    errors = torch.ones(len(x), 2, dtype=torch.float64)
    return Replay(
        kernels.log_prob(now, x)[:, None], old[:, None], 36, None, kl, kl, std[:, :, 0, 0], errors
    )


@pytest.mark.parametrize("objective", ALL)
def test_a_small_step_raises_the_weighted_density(
    objective: Objective,
) -> None:
    first = randn(1, 4, 3, 3)
    x = first + 0.3 * randn(16, 4, 3, 3, seed=1)
    adv = fitting(objective, randn(16, seed=2))
    mean = first.clone().requires_grad_()
    old = toy(mean, first, x, torch.zeros(16)).logp.detach()[:, 0]
    objective(toy(mean, first, x, old), adv).value.backward()
    assert mean.grad is not None
    moved = mean.detach() - 1e-3 * mean.grad
    gain = (adv * (toy(moved, first, x, old).logp[:, 0] - old)).mean()
    assert gain > 0


@pytest.mark.parametrize("kind", [Reinforce, Clipped])
def test_kl_pulls_back_to_the_reference(
    kind: Callable[..., Objective],
) -> None:
    first = torch.zeros(1, 4, 3, 3, dtype=torch.float64)
    mean = torch.full((1, 4, 3, 3), 0.1, dtype=torch.float64)
    mean.requires_grad_()
    loss = kind(kl=2.0)(
        toy(mean, first, mean.detach().expand(8, -1, -1, -1), torch.zeros(8)), torch.zeros(8)
    )
    (grad,) = torch.autograd.grad(loss.value, mean)
    assert (grad > 0).all()
    assert loss.metrics["kl"] == pytest.approx(36 * 0.1**2 / (2 * 0.3**2))
    # per latent dimension: the unit in which published coefficients are given
    assert loss.value.item() == pytest.approx(2.0 * loss.metrics["kl"] / 36)


def test_kl_needs_a_reference() -> None:
    with pytest.raises(ValueError, match="reference=True"):
        Clipped(kl=0.1)(replay(), randn(6))


@pytest.mark.parametrize(
    "make", [lambda: Clipped(clip=0), lambda: Clipped(clip=-1), lambda: Reinforce(kl=-1)]
)
def test_settings_out_of_range(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="objective\\."):
        make()


def pairs_loss(s: Tensor, adv: Tensor, group: Tensor, rate: float) -> Tensor:
    """Return REBEL's loss as published: the mean over prompts of the mean over pairs."""
    means = []

    for number in group.unique():
        rows = (group == number).nonzero()[:, 0].tolist()
        square = [
            (rate * (s[i] - s[j]) - (adv[i] - adv[j])) ** 2 for i in rows for j in rows if i < j
        ]
        means.append(torch.stack(square).mean())

    return torch.stack(means).mean()


@pytest.mark.parametrize("images", [2, 3, 5])
@pytest.mark.parametrize("rate", [1.0, 7.0])
def test_rebel_has_the_gradient_of_all_pairs(images: int, rate: float) -> None:
    group = torch.tensor([4, 1, 9]).repeat_interleave(images)
    logp = (randn(3 * images, 2) * 0.1).requires_grad_()
    old = randn(3 * images, 2, seed=1) * 0.1
    adv = randn(3 * images, seed=2)
    change = logp - old
    (expected,) = torch.autograd.grad(pairs_loss(change.sum(1), adv, group, rate), logp)
    targets = Rebel(rate).targets(change.detach(), adv, group, transitions=2)
    loss = Rebel(rate)(Replay(logp, old, DIMS), targets)
    (grad,) = torch.autograd.grad(loss.value, logp)
    torch.testing.assert_close(grad, expected)


def test_rebel_rests_where_differences_agree() -> None:
    group = torch.tensor([0, 0, 1, 1])
    adv = randn(4, seed=2)
    # only differences within a prompt count
    offset = torch.tensor([3.0, 3.0, -1.0, -1.0], dtype=torch.float64)
    assert Rebel(2.0).targets((adv + offset)[:, None] / 2, adv, group, 3).abs().max() < 1e-12


def test_rebel_needs_two_images_of_a_prompt() -> None:
    with pytest.raises(ValueError, match="images_per_prompt to 2 or more"):
        Rebel().targets(torch.zeros(3, 1), torch.zeros(3), torch.tensor([0, 0, 1]), 1)
    with pytest.raises(ValueError, match="objective.rate must be > 0"):
        Rebel(0.0)


def moved(shift: float) -> tuple[Replay, Tensor, Gaussian, Gaussian, Tensor]:
    """Return the replay of 8 transitions whose means moved, their means and the noise drawn."""
    old_mean = randn(8, 2, 3, 3)
    std = randn(8, seed=9).abs()[:, None, None, None] + 0.2
    z = randn(8, 2, 3, 3, seed=1)
    mean = (old_mean + shift * randn(8, 2, 3, 3, seed=2)).requires_grad_()
    old = Gaussian(old_mean, std)
    now = Gaussian(mean, std)
    x = old_mean + std * z
    replay = Replay(
        logp=kernels.log_prob(now, x)[:, None],
        logp_old=kernels.log_prob(old, x)[:, None],
        dims=18,
        kl_old=kernels.kl(now, old)[:, None],
        std=std[:, :, 0, 0],
    )
    return replay, mean, now, old, z


def test_dppo_masks_by_the_divergence() -> None:
    """arXiv 2606.11025: kl = mean of (mu - mu_old)^2 / (2 std^2), compared with tau."""
    adv = randn(8, seed=3)
    replay, mean, now, old, _ = moved(0.3)
    ratio = (replay.logp - replay.logp_old).exp()[:, 0]
    kl = ((now.mean - old.mean) ** 2 / (2 * now.std**2)).flatten(1).mean(1).detach()
    tau = float(kl.median())
    far = (kl >= tau) & (((ratio > 1) & (adv > 0)) | ((ratio < 1) & (adv < 0)))
    (expected,) = torch.autograd.grad(-(adv * ratio * ~far).mean(), mean, retain_graph=True)
    loss = DPPO(divergence=tau * 18)(replay, adv)
    (gradient,) = torch.autograd.grad(loss.value, mean)
    torch.testing.assert_close(gradient, expected)
    assert 0 < int(far.sum()) < int((kl >= tau).sum())
    assert loss.metrics["clip_fraction"] == pytest.approx(float(far.double().mean()))


def test_a_normalised_ratio_is_the_noise_s_share_of_the_move() -> None:
    """GRPO-Guard, arXiv 2510.22319: log rho = mean(z d), whatever the std."""
    replay, mean, now, old, z = moved(0.2)
    expected = (z * (now.mean - old.mean)).flatten(1).mean(1)
    torch.testing.assert_close(Clipped(normalise=True).log_ratio(replay)[:, 0], expected)
    assert not torch.allclose(Clipped().log_ratio(replay)[:, 0], expected)

    # its clipped loss, by autograd
    adv = randn(8, seed=3)
    ratio = (z * (now.mean - old.mean)).flatten(1).mean(1).exp()
    c = 0.05
    surrogate = torch.minimum(adv * ratio, adv * ratio.clamp(1 - c, 1 + c))
    (wanted,) = torch.autograd.grad(-surrogate.mean(), mean, retain_graph=True)
    loss = Clipped(clip=c * 18, normalise=True)(replay, adv)
    (gradient,) = torch.autograd.grad(loss.value, mean)
    torch.testing.assert_close(gradient, wanted)
    outside = (ratio - 1).abs() > c
    assert 0 < int(outside.sum()) < 8


@pytest.mark.parametrize("objective", [DPPO(), Clipped(normalise=True)])
def test_what_a_replay_lacks_is_named(objective: Objective) -> None:
    with pytest.raises(ValueError, match=r"kl_old|std"):
        objective(Replay(randn(3, 1).requires_grad_(), randn(3, 1), DIMS), randn(3))
