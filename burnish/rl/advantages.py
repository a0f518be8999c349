"""Advantages: how much better than expected each image was, from the rewards of one iteration.

Called with (scores, weights, group) and return (B,) float32. Every reward is brought to mean 0 and
variance 1 by itself before the weighted sum (GDPO, arXiv 2601.05242), so that the weights compare
rewards and not their units; the weights are scaled to unit length, so that independent rewards add
up to variance 1 again and a single reward keeps it. They differ in what "expected" means:

    batch     the mean of all images                                  (DDPO without tracking)
    group     the mean of the images of the same prompt               (GRPO, arXiv 2402.03300)
    tracker   the running mean of the same prompt over iterations     (DDPO, arXiv 2305.13301,
                                                                       appendix)

`weighted` is the control of that choice: `group` of one reward, the weighted sum of the raw
ones, in which the reward with the largest spread wins. `pareto` keeps the advantage of `group`
for images that no other beats in every reward. `none` compares nothing and is always 1. Where an
image has a target reward (`scores.target_reward`, by `identifiers`), the others have weight 0 for
it.

For an objective that imitates (RWR) there are weights instead, none below 0 and 1 in the mean, of
the weighted sum R of the raw rewards (DDPO, arXiv 2305.13301, section 4.1):

    softmax        n softmax(beta R) over the images of the same prompt, or of the whole batch
                   (`within`)
    top_fraction   n / k for the k best of n images, 0 for the others

`per_transition` then gives each transition of an image an advantage of its own. In DDPO all of
them share the image's, although a late transition has no part in what was decided before it. The
reward of x0_pred, the image that the network predicts from x_t, is a baseline that depends on the
transition's state alone. Subtracting it leaves the expected gradient as it is, and takes out of its
variance what was decided before (a control variate).

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
"""Rewards whose std is below this fraction of their magnitude are all equal but for rounding."""


class NoAdvantage(Advantage):
    """The advantage 1 of every image that has its rewards: nothing is compared.

    For an objective that follows the rewards' own gradients.
    """

    uniform = True

    def __init__(self) -> None:
        """Take no settings."""

    def __call__(self, scores: Scores, weights: Tensor, group: Tensor) -> Tensor:
        """Return 1 for each image, 0 where a reward is missing, (B,)."""
        return scores.valid.float()


class BatchAdvantage(Advantage):
    """The advantage over the mean and std of the whole batch.

    Args:
        clip: advantages are limited to [-clip, clip].
    """

    def __init__(self, clip: float = 5.0) -> None:
        self.clip = _positive("clip", clip)

    def __call__(self, scores: Scores, weights: Tensor, group: Tensor) -> Tensor:
        """Return the advantages, (B,) float32."""
        parts, valid = _valid_parts(scores)
        z = _z_by_group(parts, valid, torch.zeros_like(group))
        return _combine(z, valid, weights_per_image(weights, scores), self.clip)


class GroupAdvantage(BatchAdvantage):
    """The advantage over the images of the same prompt: at least 4 of them, better 8.

    `spread = "batch"` divides by the std within prompts of the whole batch instead of the
    prompt's own. Where all images of a prompt but one have the highest possible value, a reward
    such as a scan rate has nearly nothing left to say about that prompt, and the other rewards are
    heard; divided by the prompt's own std, its last small difference would count as much as all
    else.

    Args:
        clip: advantages are limited to [-clip, clip].
        spread: "prompt" or "batch".
    """

    compares_images = True

    def __init__(self, clip: float = 5.0, spread: str = "prompt") -> None:
        super().__init__(clip)
        if spread not in ("prompt", "batch"):
            raise ValueError(f'advantage.spread must be "prompt" or "batch", not "{spread}"')
        self.spread = spread

    def __call__(self, scores: Scores, weights: Tensor, group: Tensor) -> Tensor:
        """Return the advantages, (B,) float32; exactly 0 in groups whose rewards are all equal.

        A group of one image is such a group.
        """
        parts, valid = _valid_parts(scores)
        z = _z_by_group(parts, valid, group, pooled=self.spread == "batch")
        return _combine(z, valid, weights_per_image(weights, scores), self.clip)


class WeightedAdvantage(BatchAdvantage):
    """The weighted sum of the raw rewards, over the images of the same prompt.

    The reward with the largest spread wins.
    """

    compares_images = True

    def __call__(self, scores: Scores, weights: Tensor, group: Tensor) -> Tensor:
        """Return the advantages, (B,) float32; exactly 0 in groups whose sums are all equal."""
        parts, valid = _valid_parts(scores)
        sums = (parts * weights_per_image(weights, scores)).sum(1, keepdim=True)
        return _combine(_z_by_group(sums, valid, group), valid, torch.ones(1), self.clip)


class TrackerAdvantage(Advantage):
    """The advantage over the last rewards of the same prompt, this batch's included.

    A prompt with fewer than `min_count` rewards so far is compared with the whole batch instead.
    The numbers in `group` are the prompts' names and must mean the same prompt in every call.

    Args:
        buffer: rewards that are remembered of each prompt.
        min_count: of them, after which the prompt is compared with itself.
        clip: advantages are limited to [-clip, clip].
    """

    def __init__(self, buffer: int = 16, min_count: int = 16, clip: float = 5.0) -> None:
        if not 1 <= min_count <= buffer:
            raise ValueError(
                "advantage.min_count must lie between 1 and advantage.buffer, but "
                f"min_count = {min_count} and buffer = {buffer}"
            )

        self.buffer = buffer
        self.min_count = min_count
        self.clip = _positive("clip", clip)
        self._history: dict[int, deque[list[float]]] = {}

    def __call__(self, scores: Scores, weights: Tensor, group: Tensor) -> Tensor:
        """Return the advantages, (B,) float32. Changes the state: call it once per batch."""
        parts, valid = _valid_parts(scores)
        z = _z_by_group(parts, valid, torch.zeros_like(group))
        group = group.cpu()

        for number in group[valid].unique().tolist():
            rows = valid & (group == number)
            history = self._history.setdefault(number, deque(maxlen=self.buffer))
            history.extend(parts[rows].tolist())

            if len(history) >= self.min_count:
                mean, std = _moments(torch.tensor(list(history), dtype=torch.float64))
                z[rows] = (parts[rows] - mean) / std

        return _combine(z, valid, weights_per_image(weights, scores), self.clip)

    def state_dict(self) -> dict[str, Any]:
        """Return the buffers, ready for JSON.

        They are {prompt number as text: [[reward, ...], ...]}, oldest first.
        """
        return {"seen": {str(number): list(rows) for number, rows in self._history.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._history = {
            int(number): deque(rows, maxlen=self.buffer) for number, rows in state["seen"].items()
        }


class SoftmaxWeights(Advantage):
    """The weights of RWR.

    Args:
        beta: inverse temperature per unit of reward, or per standard deviation of it.
        within: "prompt" or "batch": the images that share a softmax.
        standardise: divide rewards by their standard deviation first.
    """

    imitates = True

    def __init__(
        self, beta: float = 0.2, within: str = "prompt", standardise: bool = False
    ) -> None:
        if not 0 <= beta < torch.inf:
            raise ValueError(f"advantage.beta must be 0 or more, not {beta}")
        self.beta = beta
        self.within = checked_within(within)
        self.compares_images = within == "prompt"
        self.standardise = standardise

    def __call__(self, scores: Scores, weights: Tensor, group: Tensor) -> Tensor:
        """Return the weights, (B,) float32.

        In each group of rows with a finite score their mean is 1; all other rows have 0.
        """
        sums = weighted_sum(scores, weights)
        result = torch.zeros(len(group))

        for rows in _groups(sums, group, self.within):
            rewards = sums[rows]
            if self.standardise:
                rewards = rewards / _moments(rewards[:, None])[1]
            result[rows] = (len(rows) * (self.beta * rewards).softmax(0)).float()

        return result


class TopFractionWeights(Advantage):
    """The weights of sparse RWR: only the best images are imitated.

    Args:
        fraction: of the images that is imitated, at least one; of equal images the first.
        within: "prompt" or "batch": the images that are compared.
    """

    imitates = True

    def __init__(self, fraction: float = 0.1, within: str = "prompt") -> None:
        if not 0 < fraction < 1:
            raise ValueError(f"advantage.fraction must lie in (0, 1), not {fraction}")
        self.fraction = fraction
        self.within = checked_within(within)
        self.compares_images = within == "prompt"

    def __call__(self, scores: Scores, weights: Tensor, group: Tensor) -> Tensor:
        """Return the weights, (B,) float32.

        In each group of rows with a finite score their mean is 1; all other rows have 0.
        """
        sums = weighted_sum(scores, weights)
        result = torch.zeros(len(group))

        for rows in _groups(sums, group, self.within):
            count = max(1, round(self.fraction * len(rows)))
            best = sums[rows].sort(descending=True, stable=True).indices[:count]
            result[rows[best]] = len(rows) / count

        return result


def per_transition(adv: Tensor, x0_rewards: Tensor, weights: Tensor, group: Tensor) -> Tensor:
    """Return the advantage of each transition: `adv` less what x0_pred explains of it.

    In every column of transitions z is the z-score of x0_pred's reward among the images of its
    prompt, and c the least-squares slope of `adv` on z over all images; the transition's
    advantage is adv - c z.

    Args:
        adv: (B,) of the images.
        x0_rewards: (B, T, K) rewards of x0_pred before each transition; NaN where it has none.
        weights: (K,) of the rewards, or (B, K) of each image's.
        group: (B,) prompts.

    Returns:
        (B, T) float32; `adv` itself where x0_pred has no rewards.
    """
    result = adv.detach().cpu().double()[:, None].repeat(1, x0_rewards.shape[1])

    for transition, column in enumerate(x0_rewards.detach().cpu().double().unbind(1)):
        valid = column.isfinite().all(1)
        z = _z_by_group(torch.where(valid[:, None], column, 0.0), valid, group)
        z = _combine(z, valid, weights, clip=torch.inf).double()
        slope = (result[:, transition] * z).sum() / (z**2).sum().clamp(min=1e-12)
        result[:, transition] -= slope * z

    return result.float()


def weights_per_image(weights: Tensor, scores: Scores, others: float = 0.0) -> Tensor:
    """Return the weight of each reward for each image, (B, K) float64.

    Args:
        weights: (K,), or (B, K) of each image.
        scores: of the images.
        others: the part of its weight that a reward keeps for images with another target.

    Raises:
        ValueError: there are more or fewer weights than rewards.
    """
    if weights.shape[-1] != scores.parts.shape[1]:
        raise ValueError(
            f"{weights.shape[-1]} reward weights were given for {scores.parts.shape[1]} rewards"
        )

    rows = weights.detach().cpu().double().expand(scores.parts.shape)
    if scores.target_reward is None:
        return rows

    target = torch.nn.functional.one_hot(scores.target_reward.cpu(), rows.shape[1])
    return rows * (others + (1 - others) * target)


def weighted_sum(scores: Scores, weights: Tensor) -> Tensor:
    """Return the weighted sum of each image's raw rewards, (B,) float64; NaN if one is missing."""
    parts, valid = _valid_parts(scores)
    sums = (parts * weights_per_image(weights, scores)).sum(1)
    return torch.where(valid, sums, torch.nan)


def z_scores(scores: Scores, group: Tensor) -> Tensor:
    """Return every reward's z-score among the images of the same prompt, (B, K) float64.

    Rows with a missing reward are NaN.
    """
    parts, valid = _valid_parts(scores)
    return torch.where(valid[:, None], _z_by_group(parts, valid, group), torch.nan)


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"advantage.{name} must be > 0, not {value}")
    return value


def checked_within(name: str) -> str:
    """Return `name`; raise ValueError if it is neither "prompt" nor "batch"."""
    if name not in ("prompt", "batch"):
        raise ValueError(f'advantage.within must be "prompt" or "batch", not "{name}"')
    return name


def _groups(sums: Tensor, group: Tensor, within: str) -> list[Tensor]:
    """Return the rows of each group that have a finite sum."""
    numbers = group.cpu() if within == "prompt" else torch.zeros(len(sums))
    valid = sums.isfinite()
    groups = [((numbers == number) & valid).nonzero().flatten() for number in numbers.unique()]
    return [rows for rows in groups if len(rows)]


def _valid_parts(scores: Scores) -> tuple[Tensor, Tensor]:
    """Return the scores (B, K) in float64, 0 in place of bad rows, and the good rows (B,)."""
    parts = scores.parts.detach().cpu().double()
    valid = parts.isfinite().all(1)
    return torch.where(valid[:, None], parts, 0.0), valid


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and std (K,) of rows (n, K).

    The std is infinite where the rows are equal, so that z-scores come out as 0.
    """
    std = rows.std(0, correction=0)
    return rows.mean(0), torch.where(std > SPREAD * rows.abs().amax(0), std, torch.inf)


def _z_by_group(parts: Tensor, valid: Tensor, group: Tensor, pooled: bool = False) -> Tensor:
    """Return every column's z-score within its group, (B, K).

    It is 0 in bad rows and in groups without spread. `pooled` divides by the root of the mean
    variance of all groups with more than one row.
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
    columns = index[:, None].expand_as(parts)
    largest = parts.new_zeros(groups, parts.shape[1])
    magnitude = largest.scatter_reduce(0, columns, parts.abs(), "amax")[index]
    differ = variance.sqrt() > SPREAD * magnitude

    if pooled:
        rows = weight * (counts > 1)
        variance = ((variance * rows).sum(0) / rows.sum().clamp(min=1)).expand_as(parts)

    return torch.where(differ, centred / variance.sqrt(), 0.0) * weight


def _combine(z: Tensor, valid: Tensor, weights: Tensor, clip: float) -> Tensor:
    """Return the weighted sum of z-scores (B, K), weights (K,) or (B, K), within +-clip."""
    weights = weights.detach().cpu().double()
    length = weights.norm(dim=-1, keepdim=True)
    summed = (z * (weights / torch.where(length > 0, length, 1.0))).sum(1)
    return torch.where(valid, summed, 0.0).clamp(-clip, clip).float()
