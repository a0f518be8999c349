"""Advantages: how much better than expected each image was, from the rewards of one iteration.

Called with (scores, weights, group) and return (B,) float32. Every reward is brought to mean 0 and
variance 1 by itself before the weighted sum (GDPO, arXiv 2601.05242), so that the weights compare
rewards and not their units; the weights are scaled to unit length, so that independent rewards add
up to variance 1 again and a single reward keeps it. They differ in what "expected" means:

    batch     the mean of all images                                  (DDPO without tracking)
    group     the mean of the images of the same prompt               (GRPO, arXiv 2402.03300)
    tracker   the running mean of the same prompt over iterations     (DDPO, arXiv 2305.13301, appendix)

``weighted`` is the control of that choice: ``group`` of one reward, the weighted sum of the raw
ones, in which the loudest wins. `pareto` keeps the advantage of ``group`` for images that no other
beats in every reward. Where ``scores.target_reward`` says which reward an image was asked to please
(`identifiers`), the others have weight 0 for it.

For an objective that imitates (RWR) there are weights instead, none below 0 and 1 in the mean, of
the weighted sum R of the raw rewards (DDPO, arXiv 2305.13301, section 4.1):

    softmax        n softmax(beta R) over the images of the same prompt, or of the whole batch (``within``)
    top_fraction   n / k for the k best of n images, 0 for the others

``per_move`` then tells the moves of an image apart. All of them share its advantage (DDPO), though
a move late in a trajectory has no part in what was settled before it. What the reward says of the
network's guess of the picture before a move, x0 at x_t, is a baseline that depends on the move's
state alone, so subtracting it leaves the expected gradient as it is and takes out of its variance
what was settled (a control variate).

Standard deviations are the population's (ddof 0), in float64. Where all rewards are equal the
advantage is exactly 0 rather than rounding noise over epsilon. Rows with a score that is not finite
get 0 and enter no statistic.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from burnish.types import Advantage, Scores

SPREAD = 1e-6
"""Rewards whose std is below this share of their magnitude are all equal but for rounding."""


class BatchAdvantage(Advantage):
    """Against the mean and std of the whole batch. ``clip``: advantages are cut at +-clip."""

    def __init__(self, clip: float = 5.0) -> None:
        self.clip = _positive("clip", clip)

    def __call__(self, scores: Scores, weights: Tensor, group: Tensor) -> Tensor:
        """(B,) float32."""
        parts, valid = _valid(scores)
        return _combine(
            _by_group(parts, valid, torch.zeros_like(group)),
            valid,
            per_image(weights, scores),
            self.clip,
        )


class GroupAdvantage(BatchAdvantage):
    """Against the mean and std of the images of the same prompt: at least 4, better 8.

    ``spread = "batch"`` divides by the std within prompts of the whole batch instead: where all
    images of a prompt but one have the best value there is, a reward such as a scan rate has nearly
    nothing left to say there, and the others are heard; by the prompt's own std its last trifle
    would count as much as all else.
    """

    def __init__(self, clip: float = 5.0, spread: str = "prompt") -> None:
        super().__init__(clip)
        if spread not in ("prompt", "batch"):
            raise ValueError(f'advantage.spread must be "prompt" or "batch", not "{spread}".')
        self.spread = spread

    def __call__(self, scores: Scores, weights: Tensor, group: Tensor) -> Tensor:
        """(B,) float32; exactly 0 in groups whose rewards are all equal, such as groups of one."""
        parts, valid = _valid(scores)
        z = _by_group(parts, valid, group, pooled=self.spread == "batch")
        return _combine(z, valid, per_image(weights, scores), self.clip)


class WeightedAdvantage(BatchAdvantage):
    """The weighted sum of the raw rewards, against the images of the same prompt: the loudest
    reward wins.
    """

    def __call__(self, scores: Scores, weights: Tensor, group: Tensor) -> Tensor:
        """(B,) float32; exactly 0 in groups whose sums are all equal."""
        parts, valid = _valid(scores)
        summed = (parts * per_image(weights, scores)).sum(1, keepdim=True)
        return _combine(_by_group(summed, valid, group), valid, torch.ones(1), self.clip)


class TrackerAdvantage(Advantage):
    """Against the last ``buffer`` rewards of the same prompt, this batch's included.

    A prompt with fewer than ``min_count`` rewards so far is compared with the whole batch instead.
    The numbers in ``group`` are the prompts' names and must mean the same prompt in every call.
    """

    def __init__(self, buffer: int = 16, min_count: int = 16, clip: float = 5.0) -> None:
        if not 1 <= min_count <= buffer:
            raise ValueError(
                f"advantage.min_count must lie between 1 and advantage.buffer, but min_count = {min_count} and "
                f"buffer = {buffer}."
            )

        self.buffer = buffer
        self.min_count = min_count
        self.clip = _positive("clip", clip)
        self._seen: dict[int, deque[list[float]]] = {}

    def __call__(self, scores: Scores, weights: Tensor, group: Tensor) -> Tensor:
        """(B,) float32. Changes the state: call it once per batch."""
        parts, valid = _valid(scores)
        z = _by_group(parts, valid, torch.zeros_like(group))
        group = group.cpu()

        for number in group[valid].unique().tolist():
            rows = valid & (group == number)
            seen = self._seen.setdefault(number, deque(maxlen=self.buffer))
            seen.extend(parts[rows].tolist())

            if len(seen) >= self.min_count:
                mean, std = _moments(torch.tensor(list(seen), dtype=torch.float64))
                z[rows] = (parts[rows] - mean) / std

        return _combine(z, valid, per_image(weights, scores), self.clip)

    def state_dict(self) -> dict[str, Any]:
        """The buffers, ready for JSON: {prompt number as text: [[reward, ...], ...]}, oldest first."""
        return {"seen": {str(number): list(rows) for number, rows in self._seen.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what ``state_dict`` gave."""
        self._seen = {
            int(number): deque(rows, maxlen=self.buffer) for number, rows in state["seen"].items()
        }


class SoftmaxWeights(Advantage):
    """RWR's weights. ``beta`` is an inverse temperature: per unit of reward, or per standard
    deviation of it with ``standardise``. ``within`` is "prompt" or "batch".
    """

    imitates = True

    def __init__(
        self, beta: float = 0.2, within: str = "prompt", standardise: bool = False
    ) -> None:
        if not 0 <= beta < torch.inf:
            raise ValueError(f"advantage.beta must be 0 or more, not {beta}.")
        self.beta = beta
        self.within = _within(within)
        self.standardise = standardise

    def __call__(self, scores: Scores, weights: Tensor, group: Tensor) -> Tensor:
        """(B,) float32; in each group of rows with a finite score their mean is 1, 0 in all other
        rows.
        """
        sums = total(scores, weights)
        result = torch.zeros(len(group))

        for rows in _groups(sums, group, self.within):
            rewards = sums[rows]
            if self.standardise:
                rewards = rewards / _moments(rewards[:, None])[1]
            result[rows] = (len(rows) * (self.beta * rewards).softmax(0)).float()

        return result


class TopFractionWeights(Advantage):
    """Sparse RWR's weights: only the best ``fraction`` of the images of a prompt (or of the batch,
    by ``within``) is imitated, at least one; of equal images the first.
    """

    imitates = True

    def __init__(self, fraction: float = 0.1, within: str = "prompt") -> None:
        if not 0 < fraction <= 1:
            raise ValueError(f"advantage.fraction must lie in (0, 1], not {fraction}.")
        self.fraction = fraction
        self.within = _within(within)

    def __call__(self, scores: Scores, weights: Tensor, group: Tensor) -> Tensor:
        """(B,) float32; in each group of rows with a finite score their mean is 1, 0 in all other
        rows.
        """
        sums = total(scores, weights)
        result = torch.zeros(len(group))

        for rows in _groups(sums, group, self.within):
            count = max(1, round(self.fraction * len(rows)))
            best = sums[rows].sort(descending=True, stable=True).indices[:count]
            result[rows[best]] = len(rows) / count

        return result


def per_transition(adv: Tensor, previews: Tensor, weights: Tensor, group: Tensor) -> Tensor:
    """The advantage of each move: ``adv`` less what the picture expected before the move explains
    of it.

    In every column of moves z is the preview's z-score among the images of its prompt, and c the
    least-squares slope of ``adv`` on z over all images; the move's advantage is adv - c z.

    Args:
        adv: (B,) of the images.
        previews: (B, T, K) what the rewards say of the guess before each move; NaN where nobody
            asked.
        weights: (K,) of the rewards, or (B, K) of each image's.
        group: (B,) prompts.

    Returns:
        (B, T) float32; ``adv`` itself where there is no preview.
    """
    result = adv.detach().cpu().double()[:, None].repeat(1, previews.shape[1])

    for move, column in enumerate(previews.detach().cpu().double().unbind(1)):
        valid = column.isfinite().all(1)
        z = _by_group(torch.where(valid[:, None], column, 0.0), valid, group)
        z = _combine(z, valid, weights, clip=torch.inf).double()
        slope = (result[:, move] * z).sum() / (z**2).sum().clamp(min=1e-12)
        result[:, move] -= slope * z

    return result.float()


def per_image(weights: Tensor, scores: Scores) -> Tensor:
    """The weight of each reward for each image, (B, K) float64 from (K,): of the one it was asked
    for, if any, or all.

    Raises:
        ValueError: there are more or fewer weights than rewards.
    """
    if len(weights) != scores.parts.shape[1]:
        raise ValueError(
            f"{len(weights)} reward weights were given for {scores.parts.shape[1]} rewards."
        )

    rows = weights.detach().cpu().double().expand(scores.parts.shape)
    if scores.target_reward is None:
        return rows

    return rows * torch.nn.functional.one_hot(scores.target_reward.cpu(), len(weights))


def total(scores: Scores, weights: Tensor) -> Tensor:
    """The weighted sum of each image's raw rewards, (B,) float64; NaN where one is missing."""
    parts, valid = _valid(scores)
    return torch.where(valid, (parts * per_image(weights, scores)).sum(1), torch.nan)


def z_scores(scores: Scores, group: Tensor) -> Tensor:
    """Every reward's z-score among the images of the same prompt, (B, K) float64; NaN in rows with
    a missing one.
    """
    parts, valid = _valid(scores)
    return torch.where(valid[:, None], _by_group(parts, valid, group), torch.nan)


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"advantage.{name} must be > 0, not {value}.")
    return value


def _within(name: str) -> str:
    if name not in ("prompt", "batch"):
        raise ValueError(f'advantage.within must be "prompt" or "batch", not "{name}".')
    return name


def _groups(sums: Tensor, group: Tensor, within: str) -> list[Tensor]:
    """The rows of each group that have a finite sum."""
    numbers = group.cpu() if within == "prompt" else torch.zeros(len(sums))
    valid = sums.isfinite()
    found = [((numbers == number) & valid).nonzero().flatten() for number in numbers.unique()]
    return [rows for rows in found if len(rows)]


def _valid(scores: Scores) -> tuple[Tensor, Tensor]:
    """The scores (B, K) in float64 with 0 in place of bad rows, and which rows are good (B,)."""
    parts = scores.parts.detach().cpu().double()
    valid = parts.isfinite().all(1)
    return torch.where(valid[:, None], parts, 0.0), valid


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std (K,) of rows (n, K); std is infinite where the rows are equal, so that z-scores
    come out as 0.
    """
    std = rows.std(0, correction=0)
    return rows.mean(0), torch.where(std > SPREAD * rows.abs().amax(0), std, torch.inf)


def _by_group(parts: Tensor, valid: Tensor, group: Tensor, pooled: bool = False) -> Tensor:
    """Every column's z-score within its group: (B, K); 0 in bad rows and in groups without spread.
    ``pooled``: by the root of the mean variance of all groups with more than one row.
    """
    _, index = group.cpu().unique(return_inverse=True)
    groups = int(index.max()) + 1 if len(index) else 0
    weight = valid[:, None].double()
    # of valid rows, of each row's group
    counts = weight.new_zeros(groups, 1).index_add(0, index, weight)[index]

    def mean(values: Tensor) -> Tensor:
        sums = values.new_zeros(groups, values.shape[1]).index_add(0, index, values * weight)
        return sums[index] / counts.clamp(min=1)

    centred = parts - mean(parts)
    variance = mean(centred**2)
    size = parts.new_zeros(groups, parts.shape[1]).scatter_reduce(
        0, index[:, None].expand_as(parts), parts.abs(), "amax"
    )[index]
    differ = variance.sqrt() > SPREAD * size

    if pooled:
        rows = weight * (counts > 1)
        variance = ((variance * rows).sum(0) / rows.sum().clamp(min=1)).expand_as(parts)

    return torch.where(differ, centred / variance.sqrt(), 0.0) * weight


def _combine(z: Tensor, valid: Tensor, weights: Tensor, clip: float) -> Tensor:
    """The weighted sum of z-scores (B, K) with weights (K,) or (B, K), cut at +-clip."""
    weights = weights.detach().cpu().double()
    length = weights.norm(dim=-1, keepdim=True)
    summed = (z * (weights / torch.where(length > 0, length, 1.0))).sum(1)
    return torch.where(valid, summed, 0.0).clamp(-clip, clip).float()
