"""DPO against autograd on Diffusion-DPO's published loss, in float64, and in a training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_forward_objectives import ADV, GROUP, B, Toy, check, randn
from test_loop import BRIGHTNESS, first_batch, load
from torch import Tensor
from torch.nn.functional import logsigmoid

from burnish.checked import checked_part
from burnish.rl.dpo import DPO, pair_signs
from burnish.training.batch import Credit, RolloutBatch
from burnish.training.image_choice import compared_pairs, drawn_together
from burnish.training.updates import GeneratorUpdates
from burnish.types import Loss, Replay


def published(toy: Toy, beta: float) -> Tensor:
    """Return arXiv 2311.12908, equation 14, over the pairs (0, 2) and (4, 5) of `ADV`."""
    model = toy.error(toy.now)
    reference = toy.error(toy.ref)
    losses = []

    for best, worst in ((0, 2), (4, 5)):
        model_diff = model[best] - model[worst]
        ref_diff = reference[best] - reference[worst]
        losses.append(-logsigmoid(-0.5 * beta * (model_diff - ref_diff)))

    return torch.stack(losses).mean()


@pytest.mark.parametrize("beta", [0.5, 20.0])
def test_dpo_is_the_published_loss_over_half_of_beta(beta: float) -> None:
    toy = Toy()
    objective = DPO(beta=beta)
    rows = objective.learns_from(ADV, GROUP)
    assert rows.nonzero()[:, 0].tolist() == [0, 2, 4, 5]

    replay = toy.replay()
    assert replay.logp_ref is not None
    change = (replay.logp - replay.logp_ref).detach()
    weights = objective.targets(change, ADV, GROUP, 1)
    # a mean over the images of pairs, of which there are half as many here
    check(objective, toy, weights[:, 0] * B / 4, published(toy, beta) * 2 / beta)


def test_each_time_has_a_margin_of_its_own() -> None:
    change = randn(B, 3, seed=7)
    whole = DPO(5.0).targets(change, ADV, GROUP, 3)
    alone = [DPO(5.0).targets(change[:, i : i + 1], ADV, GROUP, 1) for i in range(3)]
    torch.testing.assert_close(whole, torch.cat(alone, 1))


def test_equal_advantages_make_no_pair() -> None:
    adv = torch.tensor([1.0, 1.0, 2.0, 2.0, 0.5])
    assert pair_signs(adv, torch.tensor([3, 3, 1, 1, 1])).tolist() == [0, 0, 1, 0, -1]
    assert not DPO().targets(randn(2, 1), torch.ones(2), torch.zeros(2).long(), 1).any()


def test_the_metrics_are_those_of_the_pairs() -> None:
    toy = Toy()
    replay = toy.replay()
    assert replay.logp_ref is not None
    change = (replay.logp - replay.logp_ref).detach()
    objective = DPO(beta=4.0)
    margins = 2 * torch.stack([change[0] - change[2], change[4] - change[5]])
    metrics = objective(replay, objective.targets(change, ADV, GROUP, 1)[:, 0]).metrics
    assert metrics["preference_margin"] == pytest.approx(float(margins.mean()))
    assert metrics["preference_right"] == pytest.approx(float((margins > 0).double().mean()))


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"kl": -1.0}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"objective\.\w+ must be >"):
        DPO(**wrong)


def first_images(
    recipe: Path, folder: Path, *changes: str
) -> tuple[RolloutBatch, GeneratorUpdates]:
    """Return the first images of a run with DPO, and its updates, of which none changes weights."""
    dpo = ("objective={use='dpo'}", "advantage={use='group'}", "optimizer.lr=0")
    _, batch, updates = first_batch(load(recipe, *dpo, *changes), folder / "job")
    return batch, updates


def test_only_the_images_of_pairs_are_replayed(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """The gradient is that of all seven valid images, but a mean over the four in pairs."""
    recipe = write_recipe(BRIGHTNESS, rewards=[{"use": "HERE/reward.py:brightness"}])
    batch, updates = first_images(
        recipe,
        tmp_path,
        "batch={prompts=2,images_per_prompt=4,sample_batch=8,train_batch=24,minibatches=1}",
    )
    adv = torch.tensor([1.0, 0, 0, -1, 0, 2, -2, 0])
    valid = torch.ones(8, dtype=torch.bool)
    valid[5] = False  # the best of its prompt, but it lacks a reward
    credit = Credit(adv, valid, batch.group, counted=valid, loss_scale=1.0)

    whole = torch.arange(8).repeat_interleave(3), torch.arange(3).repeat(8)
    (some,) = compared_pairs(updates.parts.objective, credit, [whole])
    assert some[0].unique().tolist() == [0, 3, 4, 6]

    process = updates.process(batch, [whole])
    means = [updates.update(process, credit, pairs, first=True) for pairs in (whole, some)]
    assert means[0]["grad_norm"] / 4 * 7 == pytest.approx(means[1]["grad_norm"], rel=1e-4)
    # nothing has moved, however many images have no part
    assert [one["preference_margin"] for one in means] == pytest.approx([0, 0], abs=1e-5)


def test_a_prompt_that_is_drawn_twice_has_two_pairs() -> None:
    """Of images 0 and 1, and of 2 and 3, on which people voted; and each in its own step."""
    adv = torch.tensor([1.0, -1, -1, 1])
    everything = torch.ones(4).bool()
    together = drawn_together(torch.zeros(4).long(), 2)
    credit = Credit(adv, everything, together, everything, 1.0)
    steps = [(torch.tensor(rows), torch.zeros(2).long()) for rows in ([0, 1], [2, 3])]
    found = compared_pairs(DPO(), credit, steps)
    assert [images.tolist() for images, _ in found] == [[0, 1], [2, 3]]


def test_a_single_prompt_is_learned_from_in_every_step(
    write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(BRIGHTNESS, rewards=[{"use": "HERE/reward.py:brightness"}])
    batch, updates = first_images(
        recipe,
        tmp_path,
        "batch={prompts=4,images_per_prompt=2,sample_batch=8,train_batch=24,minibatches=4}",
        "prompts={use='list',texts=['a cat']}",
    )
    everything = torch.ones(8, dtype=torch.bool)
    adv = torch.tensor([1.0, -1] * 4)
    credit = Credit(adv, everything, batch.group, counted=everything, loss_scale=1.0)
    norms: list[float] = []
    update = updates.update

    def noted(*arguments: Any, **more: Any) -> dict[str, float]:
        metrics = update(*arguments, **more)
        norms.append(metrics["grad_norm"])
        return metrics

    monkeypatch.setattr(updates, "update", noted)
    updates.run(batch, credit)
    assert len(norms) == 4 and min(norms) > 0


def test_without_a_pair_a_single_image_is_left() -> None:
    pairs = torch.tensor([3, 3, 1]), torch.tensor([0, 1, 0])
    alike = torch.zeros(4)
    group = torch.zeros(4).long()
    credit = Credit(alike, torch.ones(4).bool(), group, torch.ones(4).bool(), 1.0)
    ((images, transitions),) = compared_pairs(DPO(), credit, [pairs])
    assert (images.tolist(), transitions.tolist()) == ([3, 3], [0, 1])


class Mine:
    """An objective of a user that learns from some images."""

    compares_images = True
    chosen: object = None

    def targets(self, change: Tensor, adv: Tensor, group: Tensor, transitions: int) -> Tensor:
        return adv

    def learns_from(self, adv: Tensor, group: Tensor) -> object:
        return self.chosen

    def __call__(self, replay: Replay, adv: Tensor) -> Loss:
        return Loss(-(adv[:, None] * replay.logp).mean(), {})


def test_the_choice_of_a_users_objective_is_checked() -> None:
    mine = Mine()
    part = checked_part("objective", mine, "mine")
    mine.chosen = torch.tensor([True, False])
    assert part.learns_from(torch.ones(2), torch.zeros(2)).tolist() == [True, False]

    mine.chosen = torch.tensor([1.0, 0.0])
    with pytest.raises(ValueError, match=r"mine\.learns_from returned torch.float32"):
        part.learns_from(torch.ones(2), torch.zeros(2))
