"""Advantages against brute force: one plain loop per definition."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from burnish.rl.advantages import (
    BatchAdvantage,
    GroupAdvantage,
    SoftmaxWeights,
    TopFractionWeights,
    TrackerAdvantage,
    per_transition,
)
from burnish.types import Scores

GROUP = torch.tensor([7, 7, 7, 7, 2, 2, 2, 2, 9, 9, 9, 9])
ONE = torch.ones(1)


def rewards(k: int = 1, seed: int = 0) -> torch.Tensor:
    return (
        torch.randn(12, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
        + 5
    )


def scores(parts: torch.Tensor) -> Scores:
    return Scores(parts, tuple(f"r{i}" for i in range(parts.shape[1])))


def z(value: float, among: np.ndarray) -> float:
    return float((value - among.mean()) / among.std()) if among.std() > 0 else 0.0


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("kind", [BatchAdvantage, GroupAdvantage])
def test_against_brute_force(kind: type, k: int) -> None:
    parts = rewards(k)
    weights = torch.tensor([1.0, -2.0, 0.5])[:k]
    got = kind(clip=1.2)(scores(parts), weights, GROUP)
    r = parts.numpy()

    for i in range(12):
        rows = np.ones(12, bool) if kind is BatchAdvantage else (GROUP[i] == GROUP).numpy()
        total = sum(float(weights[j]) * z(r[i, j], r[rows, j]) for j in range(k)) / math.sqrt(
            (weights**2).sum()
        )
        assert got[i].item() == pytest.approx(min(max(total, -1.2), 1.2), abs=1e-6)

    assert got.dtype == torch.float32


def test_pooled_spread_against_brute_force() -> None:
    """A prompt of equal rewards, a single image and one without score widen no other spread."""
    parts = rewards(2)
    weights = torch.tensor([1.0, 0.5])
    numbers = torch.tensor([7, 7, 7, 7, 2, 2, 2, 2, 9, 9, 5, 9])
    parts[4:8, 0] = 0.1
    parts[9, 1] = math.nan
    got = GroupAdvantage(spread="batch")(scores(parts), weights, numbers)
    r = parts.numpy()
    valid = parts.isfinite().all(1).numpy()
    groups = [np.flatnonzero((numbers.numpy() == number) & valid) for number in (7, 2, 9, 5)]
    squares = [
        [(r[i, k] - r[rows, k].mean()) ** 2 for rows in groups if len(rows) > 1 for i in rows]
        for k in (0, 1)
    ]

    for rows in groups:
        for i in rows:
            total = sum(
                float(weights[k]) * (r[i, k] - r[rows, k].mean()) / math.sqrt(np.mean(squares[k]))
                for k in (0, 1)
            )
            assert got[i].item() == pytest.approx(total / math.sqrt(1.25), abs=1e-6)

    assert got[9] == 0 and got[10] == 0


def test_where_one_reward_is_nearly_always_full_the_others_decide() -> None:
    """One image in eight scans a little worse, and is better by the other reward."""
    scan = torch.ones(16)
    quality = torch.rand(16, generator=torch.Generator().manual_seed(0)) * 0.1
    scan[0] = 0.9
    scan[8:12] = 0.0
    quality[0] = 0.2
    parts = torch.stack([scan, quality], 1).double()
    numbers = torch.arange(16) // 8
    assert GroupAdvantage()(scores(parts), torch.tensor([1.0, 0.5]), numbers)[0] < 0
    assert GroupAdvantage(spread="batch")(scores(parts), torch.tensor([1.0, 0.5]), numbers)[0] > 0


@pytest.mark.parametrize("kind", [BatchAdvantage, GroupAdvantage, TrackerAdvantage])
def test_a_single_weight_is_a_sign(kind: type) -> None:
    plain = kind()(scores(rewards()), ONE, GROUP)
    assert torch.equal(kind()(scores(rewards()), 7 * ONE, GROUP), plain)
    assert torch.equal(kind()(scores(rewards()), -ONE, GROUP), -plain)
    assert torch.equal(kind()(scores(rewards()), 0 * ONE, GROUP), torch.zeros(12))


def test_units_of_rewards_do_not_matter() -> None:
    parts = rewards(2)
    scaled = parts * torch.tensor([1e4, 1e-3], dtype=torch.float64) + 100
    weights = torch.tensor([1.0, 1.0])
    torch.testing.assert_close(
        GroupAdvantage()(scores(scaled), weights, GROUP),
        GroupAdvantage()(scores(parts), weights, GROUP),
    )


@pytest.mark.parametrize("value", [0.1, 1e6 + 0.1, 0.0, -3.3e-9])
@pytest.mark.parametrize("kind", [BatchAdvantage, GroupAdvantage, TrackerAdvantage])
def test_equal_rewards_give_exactly_nothing(kind: type, value: float) -> None:
    parts = torch.full((12, 1), value, dtype=torch.float64)
    assert torch.equal(kind()(scores(parts), ONE, GROUP), torch.zeros(12))


def test_one_equal_group_is_exactly_zero_and_leaves_the_others() -> None:
    parts = rewards()
    expected = GroupAdvantage()(scores(parts), ONE, GROUP)
    parts[4:8] = 0.3
    got = GroupAdvantage()(scores(parts), ONE, GROUP)
    assert torch.equal(got[4:8], torch.zeros(4))
    assert torch.equal(got[:4], expected[:4]) and torch.equal(got[8:], expected[8:])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", [BatchAdvantage, GroupAdvantage, lambda: TrackerAdvantage(4, 2)])
def test_bad_rows_get_zero_and_count_for_nothing(kind: object, bad: float) -> None:
    parts = rewards(2)
    keep = torch.ones(12, dtype=torch.bool)
    keep[[1, 6]] = False
    weights = torch.ones(2)
    expected = kind()(scores(parts[keep]), weights, GROUP[keep])  # type: ignore[operator]
    parts[1, 0] = bad
    parts[6, 1] = bad
    got = kind()(scores(parts), weights, GROUP)  # type: ignore[operator]
    torch.testing.assert_close(got[keep], expected)
    assert torch.equal(got[~keep], torch.zeros(2))


def test_nothing_but_bad_rows() -> None:
    for kind in (BatchAdvantage(), GroupAdvantage(), TrackerAdvantage()):
        assert torch.equal(kind(scores(rewards() * math.nan), ONE, GROUP), torch.zeros(12))


def test_order_of_rows_does_not_matter() -> None:
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    for kind in (BatchAdvantage, GroupAdvantage, TrackerAdvantage):
        got = kind()(scores(rewards()), ONE, GROUP)
        torch.testing.assert_close(kind()(scores(rewards()[order]), ONE, GROUP[order]), got[order])


def test_tracker_against_brute_force() -> None:
    track = TrackerAdvantage(buffer=6, min_count=5)
    history = dict[int, list[float]]()

    for iteration in range(4):
        parts = rewards(seed=iteration)
        # groups 2 and 7 come every time, 9 only now and then, so that it stays below min_count for
        # longer
        rows = torch.arange(12 if iteration == 2 else 8)
        got = track(scores(parts[rows]), ONE, GROUP[rows])
        r = parts[rows, 0].numpy()

        for number in GROUP[rows].unique().tolist():
            added = r[(GROUP[rows] == number).numpy()].tolist()
            history[number] = (history.get(number, []) + added)[-6:]

        for i in rows.tolist():
            among = np.array(history[int(GROUP[i])])
            assert got[i].item() == pytest.approx(
                z(r[i], among if len(among) >= 5 else r), abs=1e-5
            )


def test_tracker_state_survives_json() -> None:
    first = TrackerAdvantage(4, 2)
    second = TrackerAdvantage(4, 2)
    first(scores(rewards()), ONE, GROUP)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.state_dict() == first.state_dict()
    following = scores(rewards(seed=5))
    assert torch.equal(first(following, ONE, GROUP), second(following, ONE, GROUP))


def test_tracker_forgets_rewards_that_leave_the_buffer() -> None:
    track = TrackerAdvantage(buffer=4, min_count=4)
    for seed in range(3):
        track(scores(rewards(seed=seed)), ONE, GROUP)
    assert track.state_dict()["seen"]["7"] == rewards(seed=2)[:4].tolist()


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match='spread must be "prompt" or "batch", not "all"'):
        GroupAdvantage(spread="all")
    with pytest.raises(ValueError, match="advantage.clip"):
        GroupAdvantage(clip=0)
    with pytest.raises(ValueError, match="advantage.min_count"):
        TrackerAdvantage(buffer=4, min_count=5)
    with pytest.raises(ValueError, match="2 reward weights were given for 1 rewards"):
        GroupAdvantage()(scores(rewards()), torch.ones(2), GROUP)


def test_per_transition_against_brute_force() -> None:
    adv = rewards(seed=1)[:, 0]
    x0_rewards = torch.stack([rewards(2, seed) for seed in (2, 3)], 1)  # (12, 2, 2)
    x0_rewards[3, 0] = math.nan
    weights = torch.tensor([2.0, -1.0])
    got = per_transition(adv, x0_rewards, weights, GROUP)

    for transition in range(2):
        valid = [i for i in range(12) if not x0_rewards[i, transition].isnan().any()]
        p = x0_rewards[:, transition].numpy()
        total = {
            i: sum(
                float(weights[k])
                * z(p[i, k], np.array([p[j, k] for j in valid if GROUP[j] == GROUP[i]]))
                for k in range(2)
            )
            / math.sqrt(5)
            for i in valid
        }
        slope = sum(float(adv[i]) * total[i] for i in valid) / sum(v**2 for v in total.values())

        for i in range(12):
            assert got[i, transition].item() == pytest.approx(
                float(adv[i]) - slope * total.get(i, 0.0), abs=1e-6
            )


def test_per_transition_uses_only_the_target_rewards_of_x0_pred() -> None:
    adv = rewards(seed=1)[:, 0]
    x0_rewards = torch.stack([rewards(2, seed) for seed in (2, 3)], 1)
    target = torch.tensor([0, 1]).repeat_interleave(2).repeat(3)
    weights = torch.tensor([2.0, -1.0]) * torch.nn.functional.one_hot(target)
    got = per_transition(adv, x0_rewards, weights, GROUP)
    alone = torch.zeros(12, 2, dtype=torch.float64)

    for i in range(12):
        for transition in range(2):
            column = x0_rewards[GROUP[i] == GROUP, transition, target[i]].numpy()
            sign = 1 if target[i] == 0 else -1
            alone[i, transition] = sign * z(float(x0_rewards[i, transition, target[i]]), column)

    slope = (adv[:, None] * alone).sum(0) / (alone**2).sum(0)
    torch.testing.assert_close(got.double(), adv[:, None] - slope * alone, rtol=0, atol=1e-5)


def test_per_transition_without_rewards_of_x0_pred_is_the_images_advantage() -> None:
    adv = rewards()[:, 0].float()
    assert torch.equal(
        per_transition(adv, torch.full((12, 3, 1), math.nan), ONE, GROUP),
        adv[:, None].expand(12, 3),
    )
    same = per_transition(adv, torch.full((12, 3, 1), 7.0, dtype=torch.float64), ONE, GROUP)
    assert torch.equal(same, adv[:, None].expand(12, 3)), "equal rewards of x0_pred change nothing"


def test_per_transition_keeps_the_expected_gradient_and_takes_out_variance() -> None:
    """Two transitions, x1 = e1 and x2 = x1 + e2 / 3, with reward x2.

    With unit scores e the gradients are as 1 to 1 / 3.
    """
    groups = 4000
    images = 8
    noise = torch.randn(
        groups * images, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    x1 = noise[:, 0]
    x2 = noise[:, 0] + noise[:, 1] / 3
    group_of = torch.arange(groups).repeat_interleave(images)
    adv = GroupAdvantage()(scores(x2[:, None]), ONE, group_of)
    # the reward that is expected before each transition
    x0_rewards = torch.stack([torch.zeros_like(x1), x1], 1)[..., None]
    gradients = {
        name: (value * noise).view(groups, images, 2).mean(1)
        for name, value in (
            ("image", adv[:, None].double()),
            ("transition", per_transition(adv, x0_rewards, ONE, group_of).double()),
        )
    }
    mean = {name: value.mean(0) for name, value in gradients.items()}
    error = {name: value.std(0) / groups**0.5 for name, value in gradients.items()}
    assert torch.equal(mean["image"][0], mean["transition"][0]), (
        "nothing is known before the first transition"
    )
    assert (mean["image"] - mean["transition"])[1].abs() < 4 * error["image"][1]
    assert mean["transition"][0] / mean["transition"][1] == pytest.approx(3, rel=0.05)
    assert error["transition"][1] < 0.6 * error["image"][1]


@pytest.mark.parametrize("within", ["prompt", "batch"])
def test_softmax_weights_by_brute_force(within: str) -> None:
    parts = rewards(2)
    weights = torch.tensor([1.0, -0.5])
    parts[5, 1] = math.nan
    got = SoftmaxWeights(beta=0.3, within=within)(scores(parts), weights, GROUP)
    total = (parts.numpy() * weights.numpy()).sum(1)

    for i in range(12):
        rows = [j for j in range(12) if j != 5 and (within == "batch" or GROUP[i] == GROUP[j])]
        share = math.exp(0.3 * total[i]) / sum(math.exp(0.3 * total[j]) for j in rows)
        expected = 0 if i == 5 else len(rows) * share
        assert got[i].item() == pytest.approx(expected, rel=1e-5)


def test_softmax_at_its_ends() -> None:
    parts = rewards()
    assert SoftmaxWeights(beta=0.0)(scores(parts), ONE, GROUP).tolist() == [1.0] * 12
    greedy = SoftmaxWeights(beta=1e4)(scores(parts), ONE, GROUP)
    assert greedy.tolist() == TopFractionWeights(fraction=0.01)(scores(parts), ONE, GROUP).tolist()
    scaled = SoftmaxWeights(beta=1.0, standardise=True)
    assert torch.allclose(
        scaled(scores(parts), ONE, GROUP), scaled(scores(parts * 100 + 7), ONE, GROUP)
    )
    assert scaled(scores(torch.ones(12, 1)), ONE, GROUP).tolist() == [1.0] * 12


@pytest.mark.parametrize(("fraction", "count"), [(0.1, 1), (0.5, 2), (0.9, 4)])
def test_top_fraction_keeps_the_best_of_each_prompt(fraction: float, count: int) -> None:
    parts = rewards()
    got = TopFractionWeights(fraction)(scores(parts), ONE, GROUP)

    for number in (7, 2, 9):
        rows = (number == GROUP).nonzero().flatten().tolist()
        best = sorted(rows, key=lambda row: -float(parts[row, 0]))[:count]
        assert [got[row].item() for row in rows] == [
            4 / count if row in best else 0 for row in rows
        ]

    ties = TopFractionWeights(0.25)(scores(torch.ones(12, 1)), ONE, GROUP)
    assert ties.tolist() == [4.0, 0, 0, 0] * 3


def test_wrong_settings_of_weights_are_named() -> None:
    for make in (
        lambda: SoftmaxWeights(beta=-1),
        lambda: TopFractionWeights(0),
        lambda: SoftmaxWeights(within="image"),
    ):
        with pytest.raises(ValueError, match="advantage"):
            make()

    with pytest.raises(ValueError, match="2 reward weights were given for 1"):
        SoftmaxWeights()(scores(rewards()), torch.ones(2), GROUP)
