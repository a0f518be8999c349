"""Pareto selection against brute force, with ties, duplicates and missing rewards."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from burnish import catalog
from burnish.rl.advantages import GroupAdvantage, WeightedAdvantage
from burnish.rl.pareto import ParetoAdvantage, expected_share, nondominated
from burnish.types import Scores

GROUP = torch.arange(5).repeat_interleave(8)


def scores(parts: torch.Tensor, target: torch.Tensor | None = None) -> Scores:
    return Scores(parts, tuple(f"r{i}" for i in range(parts.shape[1])), target_reward=target)


def rewards(k: int, seed: int = 0, ties: bool = True) -> torch.Tensor:
    """Return rewards (40, k): with ties five different numbers, equal rows and missing rewards."""
    stream = torch.Generator().manual_seed(seed)
    if not ties:
        return torch.rand(40, k, generator=stream, dtype=torch.float64)

    parts = torch.randint(5, (40, k), generator=stream).double()
    parts[1] = parts[0]
    parts[9] = parts[8]
    parts[3, 0] = math.nan
    parts[10, k - 1] = math.inf
    parts[11, 0] = -math.inf
    return parts


def brute(values: list[list[float]], number: list[int]) -> list[bool]:
    """Return the front by the definition, pair by pair."""
    good = [all(math.isfinite(value) for value in row) for row in values]
    front = []

    for i, row in enumerate(values):
        dominated = False

        for j, other in enumerate(values):
            if good[j] and good[i] and number[i] == number[j]:
                pairs = list(zip(other, row, strict=True))
                at_least = all(a >= b for a, b in pairs)
                dominated = dominated or (at_least and any(a > b for a, b in pairs))

        front.append(good[i] and not dominated)

    return front


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 7])
def test_the_front_is_that_of_brute_force(k: int, ties: bool) -> None:
    for seed in range(20):
        parts = rewards(k, seed, ties)
        mixed = GROUP[torch.randperm(40, generator=torch.Generator().manual_seed(seed))]

        for number in (GROUP, torch.zeros(40), mixed):
            front = nondominated(parts, number).tolist()
            assert front == brute(parts.tolist(), number.tolist())
            assert 0 < sum(front) <= 40 - (k < 4)


def test_one_reward_selects_every_copy_of_the_best() -> None:
    front = nondominated(torch.tensor([[1.0], [3.0], [2.0], [3.0], [math.nan]]), torch.zeros(5))
    assert front.tolist() == [False, True, False, True, False]


def test_equal_rows_do_not_dominate_each_other() -> None:
    assert nondominated(torch.full((6, 3), 0.7), torch.zeros(6)).all()
    assert nondominated(torch.tensor([[0.0, 1.0]]), torch.zeros(1)).tolist() == [True]
    assert nondominated(torch.empty(0, 3), torch.empty(0)).tolist() == []
    assert not nondominated(torch.full((6, 3), math.nan), torch.zeros(6)).any()


@pytest.mark.parametrize("k", [1, 3])
def test_the_front_keeps_its_advantage_and_all_others_have_exactly_none(k: int) -> None:
    parts = rewards(k)
    weights = torch.tensor([1.0, 2.0, 0.5])[:k]
    adv = ParetoAdvantage()(scores(parts), weights, GROUP)
    front = torch.tensor(brute(parts.tolist(), GROUP.tolist()))
    assert torch.equal(
        adv, torch.where(front, GroupAdvantage()(scores(parts), weights, GROUP), 0.0)
    )
    assert adv.dtype == torch.float32 and adv[~front].eq(0).all() and adv[front].ne(0).any()


def test_of_a_reward_with_a_negative_weight_less_is_better_and_weight_zero_does_not_count() -> None:
    parts = rewards(3, ties=False)
    turned = parts * torch.tensor([1, -1, 0])
    front = ParetoAdvantage().front(scores(parts), torch.tensor([2.0, -0.5, 0.0]), GROUP)
    assert front.tolist() == brute(turned[:, :2].tolist(), GROUP.tolist())


def test_a_reward_that_differs_by_rounding_alone_does_not_count() -> None:
    parts = rewards(3, ties=False)
    parts[:, 2] = 0.9 + 1e-9 * parts[:, 2]
    front = ParetoAdvantage().front(scores(parts), torch.ones(3), GROUP)
    expected = brute(parts[:, :2].tolist(), GROUP.tolist())
    assert front.tolist() == expected != brute(parts.tolist(), GROUP.tolist())


def test_over_the_batch_images_are_compared_by_rewards_normalised_in_their_group() -> None:
    parts = rewards(2, ties=False)
    easy = parts + 100 * (GROUP == 3)[:, None]  # one prompt scores high with every image

    for unit in (parts, easy):
        front = ParetoAdvantage(within="batch").front(scores(unit), torch.ones(2), GROUP)
        groups = [parts[8 * n : 8 * n + 8] for n in range(5)]
        z = torch.cat([(rows - rows.mean(0)) / rows.std(0, correction=0) for rows in groups])
        assert front.tolist() == brute(z.tolist(), [0] * 40)

    assert front.sum() < ParetoAdvantage().front(scores(parts), torch.ones(2), GROUP).sum()


def test_the_papers_weight_is_the_raw_reward_of_the_identifier() -> None:
    parts = rewards(3)
    target = torch.arange(40) // 8 % 3
    adv = ParetoAdvantage(standardise=False)(scores(parts, target), torch.ones(3), GROUP)
    front = brute(parts.tolist(), GROUP.tolist())

    for i in range(40):
        assert adv[i].item() == (parts[i, target[i]].item() if front[i] else 0.0)

    plain = ParetoAdvantage(standardise=False)(scores(parts), torch.tensor([1.0, 2.0, 0.5]), GROUP)
    for i in range(40):
        expected = parts[i, 0] + 2 * parts[i, 1] + 0.5 * parts[i, 2] if front[i] else 0.0
        assert plain[i].item() == float(expected)


@pytest.mark.parametrize(
    "kind", ["batch", "group", "normalised", "weighted", "tracker", "softmax", "top_fraction"]
)
def test_an_image_with_a_target_reward_is_judged_by_that_one_alone(kind: str) -> None:
    """Each image's advantage is what a run with its reward alone would give."""
    parts = rewards(3)
    weights = torch.tensor([1.0, -2.0, 0.5])
    target = GROUP % 3
    adv = catalog.build("advantage", {"use": kind})(scores(parts, target), weights, GROUP)
    valid = parts.isfinite().all(1, keepdim=True)

    for k in range(3):
        # one missing reward is one too many, as ever
        column = torch.where(valid, parts[:, k : k + 1], math.nan)
        alone = catalog.build("advantage", {"use": kind})(scores(column), weights[k : k + 1], GROUP)
        torch.testing.assert_close(adv[target == k], alone[target == k])


def test_avoided_images_keep_what_is_below_zero_and_the_front_what_is_above() -> None:
    parts = rewards(3)
    weights = torch.tensor([1.0, 2.0, 0.5])
    plain = GroupAdvantage()(scores(parts), weights, GROUP).tolist()
    front = brute(parts.tolist(), GROUP.tolist())

    advantage = ParetoAdvantage(dominated="avoided")
    adv = advantage(scores(parts), weights, GROUP)
    expected = [max(a, 0) if best else min(a, 0) for a, best in zip(plain, front, strict=True)]
    assert adv.tolist() == expected and min(expected) < 0 < max(expected)
    both = zip(plain, front, strict=True)
    assert {(a > 0, best) for a, best in both if a} == set(
        itertools.product([False, True], repeat=2)
    )
    assert ParetoAdvantage().selects and not advantage.selects


@pytest.mark.parametrize("others", [0.0, 0.25, 1.0])
def test_rewards_that_are_not_the_target_keep_a_part_of_their_weights(others: float) -> None:
    parts = rewards(3, ties=False)
    weights = torch.tensor([1.0, 2.0, 4.0])
    target = torch.arange(40) // 8 % 3
    adv = ParetoAdvantage(others=others)(scores(parts, target), weights, GROUP)
    raw = ParetoAdvantage(others=others, standardise=False)(scores(parts, target), weights, GROUP)
    front = brute(parts.tolist(), GROUP.tolist())

    for i in range(40):
        rows = parts[i // 8 * 8 :][:8]
        z = (parts[i] - rows.mean(0)) / rows.std(0, correction=0)
        own = [float(w) * (1 if k == target[i] else others) for k, w in enumerate(weights)]
        summed = sum(w * float(value) for w, value in zip(own, z, strict=True)) / math.hypot(*own)
        added = sum(w * float(value) for w, value in zip(own, parts[i], strict=True))
        assert adv[i].item() == pytest.approx(summed if front[i] else 0.0, abs=1e-6)
        assert raw[i].item() == pytest.approx(added if front[i] else 0.0, abs=1e-6)


def test_weighted_adds_first_and_lets_the_largest_spread_win() -> None:
    parts = rewards(2, ties=False) * torch.tensor([100.0, 1.0])
    weights = torch.tensor([1.0, 2.0])
    adv = WeightedAdvantage(clip=1.1)(scores(parts), weights, GROUP)

    for i in range(40):
        sums = [float(a + 2 * b) for a, b in parts[i // 8 * 8 :][:8]]
        mean = sum(sums) / 8
        std = math.sqrt(sum((value - mean) ** 2 for value in sums) / 8)
        z = (float(parts[i, 0] + 2 * parts[i, 1]) - mean) / std
        assert adv[i].item() == pytest.approx(min(max(z, -1.1), 1.1), abs=1e-6)

    adv = WeightedAdvantage()(scores(parts), weights, GROUP)
    wide = GroupAdvantage()(scores(parts[:, :1]), torch.ones(1), GROUP)
    assert torch.corrcoef(torch.stack([adv, wide]))[0, 1] > 0.999
    fair = catalog.build("advantage", {"use": "normalised"})(scores(parts), torch.ones(2), GROUP)
    assert torch.corrcoef(torch.stack([fair, wide]))[0, 1] < 0.95


def test_weighted_of_equal_and_missing_rewards_is_nothing() -> None:
    equal = torch.full((40, 2), 0.3, dtype=torch.float64)
    assert WeightedAdvantage()(scores(equal), torch.tensor([1.0, -1.0]), GROUP).eq(0).all()
    assert WeightedAdvantage()(scores(rewards(2) * math.nan), torch.ones(2), GROUP).eq(0).all()
    assert WeightedAdvantage()(scores(rewards(2)), torch.zeros(2), GROUP).eq(0).all()


def test_the_expected_share_is_that_of_random_rewards_and_of_the_formula() -> None:
    harmonic = sum(1 / m for m in range(1, 9))
    assert expected_share(8, 1) == 1 / 8 and expected_share(1, 5) == 1
    assert expected_share(8, 2) == pytest.approx(harmonic / 8)

    for (images, kinds), share in {
        (8, 4): 0.73,
        (32, 4): 0.46,
        (256, 4): 0.17,
        (64, 2): 0.074,
    }.items():
        assert expected_share(images, kinds) == pytest.approx(share, abs=0.006)

    drawn = torch.rand(3000 * 6, 3, generator=torch.Generator().manual_seed(0))
    share = nondominated_share(drawn)
    assert share == pytest.approx(expected_share(6, 3), abs=0.015)


def nondominated_share(values: torch.Tensor) -> float:
    rows = values.split(6)
    shares = [float(nondominated(part, torch.zeros(6)).double().mean()) for part in rows]
    return sum(shares) / len(shares)


def test_exactly_right_where_all_orders_can_be_listed() -> None:
    """Four images, two rewards: every pair of rankings; the mean share is the formula's."""
    shares = [
        sum(brute([[float(a), float(b)] for a, b in zip(range(4), order, strict=True)], [0] * 4))
        / 4
        for order in itertools.permutations(range(4))
    ]
    assert sum(shares) / len(shares) == pytest.approx(expected_share(4, 2))


def test_settings_out_of_range() -> None:
    with pytest.raises(
        ValueError, match='advantage.within must be "prompt" or "batch", not "image"'
    ):
        ParetoAdvantage(within="image")

    with pytest.raises(ValueError, match="advantage.clip"):
        ParetoAdvantage(clip=0)
    with pytest.raises(ValueError, match='dominated must be "ignored" or "avoided", not "kept"'):
        ParetoAdvantage(dominated="kept")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="advantage.others must lie in"):
        ParetoAdvantage(others=1.5)
    with pytest.raises(ValueError, match="raw rewards have none"):
        ParetoAdvantage(dominated="avoided", standardise=False)
    with pytest.raises(ValueError, match="2 reward weights were given for 3"):
        ParetoAdvantage()(scores(rewards(3)), torch.ones(2), GROUP)


def test_selected_images_that_are_pushed_away_are_warned_of() -> None:
    """The raw reward of the best of several negative ones is negative."""
    parts = torch.tensor([[-2.0, -3.0], [-1.0, -4.0], [-3.0, -5.0]])
    raw = ParetoAdvantage(standardise=False)
    with pytest.warns(UserWarning, match="they are pushed away; use rewards above 0"):
        adv = raw(scores(parts), torch.ones(2), GROUP[:3])
    assert adv.tolist() == [-5, -5, 0]
