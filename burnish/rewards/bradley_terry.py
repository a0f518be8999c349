"""A Bradley-Terry head: a taste, fitted to which of two images was preferred.

With x the features of an image (CLIP's embedding, of length 1) and d = x_1 - x_2 those of a pair,

    P(1 preferred)  =  sigmoid(w d),       w ~ N(0, scale^2 I / mean |d|^2)

so `scale` is the standard deviation, in nats, of the difference of two images before anything is
known. w is the most probable one, a convex problem, and its uncertainty Laplace's: a Gaussian whose
precision P is the Hessian there. An image is compared with m, the mean of the images that the
comparisons were about:

    mean      w (x - m)
    variance  (x - m) P^-1 (x - m)
    score     mean / sqrt(1 + pi variance / 8)       (MacKay 1992: the logit of the probability that
                                                      the image is preferred to the mean image)

So a score goes to 0 where the head does not know. What is unknown is sqrt(variance over that before
anything was known), between 0 and 1. The pair to ask about next is the one whose answer says most
about w (BALD, arXiv 1112.5745): of an uncertain difference that is nearly a tie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

SCALE = 2.0
"""Of a head that has too few comparisons to choose one."""

SCALES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Scales that cross-validation chooses from."""

ENOUGH = 20
"""Comparisons from which on it chooses."""

FOLDS = 5
MANY = 2000
"""Comparisons from which on a single fold is held out, which then is large enough."""

MOST_STEPS = 100
NO_GRADIENT = 1e-10
ROUNDING = 1e-12
"""Limits of Newton's method."""

PROBIT = math.sqrt(math.pi / 8)
"""Width of the normal distribution function that is nearest to a sigmoid."""


@dataclass(frozen=True)
class Comparisons:
    """Features of n preferred images and of those they were preferred to."""

    better: Tensor  # (n, D) float64
    worse: Tensor  # (n, D)
    unit: Tensor  # (n,) int64: same number = held out together, such as the same pair asked twice

    @property
    def differences(self) -> Tensor:
        """The features' differences (n, D), in which the preferred image is ahead."""
        return self.better - self.worse

    def rows(self, chosen: Tensor) -> Comparisons:
        """Return some of the comparisons, by a mask (n,) or indices."""
        return Comparisons(self.better[chosen], self.worse[chosen], self.unit[chosen])


@dataclass(frozen=True)
class Head:
    """A fitted taste."""

    weight: Tensor  # (D,) float64
    centre: Tensor  # (D,) the features of the mean image
    covariance: Tensor  # (D, D) of the weight
    prior: float  # variance of each weight before anything was known

    def score(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the score of each image, and how much of it is unknown, in [0, 1].

        Args:
            features: (B, D).

        Returns:
            Two tensors (B,) float64.
        """
        x = features.double() - self.centre
        variance = ((x @ self.covariance) * x).sum(1).clamp(min=0)
        before = self.prior * x.square().sum(1)
        score = (x @ self.weight) / (1 + math.pi * variance / 8).sqrt()
        unknown = (variance / before.clamp(min=1e-12)).sqrt().clamp(max=1)
        return score, unknown

    def without_answers(self) -> Head:
        """Return the head of the same features before anything was known."""
        identity = torch.eye(len(self.weight), dtype=torch.float64)
        return Head(torch.zeros_like(self.weight), self.centre, self.prior * identity, self.prior)


@dataclass(frozen=True)
class HeldOut:
    """The success of heads at comparisons that they were not fitted to."""

    accuracy: float  # share that it foretells right; half of one counts where it says nothing
    nats: float  # mean -log of the probability that it gave to what was preferred
    count: int  # comparisons held out


def blank(features: Tensor, scale: float = SCALE) -> Head:
    """Return the head that knows nothing, for images like some.

    Args:
        features: (B, D) of two or more images.
        scale: standard deviation of the difference of two of them, in nats.
    """
    x = features.double()
    centre = x.mean(0)
    spread = 2 * (x - centre).square().sum(1).mean()  # the mean square of a difference
    prior = scale**2 / float(spread.clamp(min=1e-12))
    identity = torch.eye(x.shape[1], dtype=torch.float64)
    return Head(torch.zeros_like(centre), centre, prior * identity, prior)


def fit(comparisons: Comparisons, scale: float | None = None) -> Head:
    """Return the head of comparisons.

    Args:
        comparisons: at least one.
        scale: standard deviation of the difference of two images before anything is known, in
            nats; None: cross-validation chooses it, if there are enough comparisons.
    """
    if scale is None:
        scale = best_scale(comparisons)

    d = comparisons.differences
    prior = scale**2 / float(d.square().sum(1).mean().clamp(min=1e-12))
    weight = most_probable(d, prior)
    p = (d @ weight).sigmoid()
    precision = (d.T * (p * (1 - p))) @ d
    precision += torch.eye(d.shape[1], dtype=torch.float64) / prior
    centre = torch.cat([comparisons.better, comparisons.worse]).mean(0)
    return Head(weight, centre, torch.cholesky_inverse(torch.linalg.cholesky(precision)), prior)


def most_probable(d: Tensor, prior: float) -> Tensor:
    """Return the weight (D,) at which -sum log sigmoid(w d) + |w|^2 / (2 prior) is least.

    Args:
        d: (n, D) float64.
        prior: variance of each weight.
    """
    # in units of the prior, in which the problem is well conditioned
    x = d * math.sqrt(prior)
    identity = torch.eye(x.shape[1], dtype=torch.float64)
    weight = x.new_zeros(x.shape[1])

    def loss(weight: Tensor) -> Tensor:
        return -logsigmoid(x @ weight).sum() + weight.square().sum() / 2

    for _ in range(MOST_STEPS):
        p = (x @ weight).sigmoid()
        gradient = weight - x.T @ (1 - p)
        if float(gradient.abs().max()) < NO_GRADIENT:
            break
        step = torch.linalg.solve(identity + (x.T * (p * (1 - p))) @ x, gradient)

        # Newton's step, halved until the loss falls; near the end it falls by less than rounding
        size = 1.0
        most = float(loss(weight)) * (1 + ROUNDING)
        while float(loss(weight - size * step)) > most:
            size /= 2
        weight = weight - size * step

    return weight * math.sqrt(prior)


def best_scale(comparisons: Comparisons) -> float:
    """Return the scale under which held-out comparisons are most probable."""
    if len(comparisons.unit) < ENOUGH:
        return SCALE

    comparisons = reduced(comparisons)
    return min(SCALES, key=lambda scale: held_out(comparisons, scale).nats)


def held_out(comparisons: Comparisons, scale: float | None = None) -> HeldOut:
    """Return how well heads foretell the comparisons that each was not fitted to.

    Of many comparisons one fold in five is held out; of fewer each fold once. With `scale` None
    each head chooses its own from what it is fitted to.

    Args:
        comparisons: of at least two units.
        scale: see `fit`.

    Raises:
        ValueError: there are fewer units.
    """
    folds = folds_of(comparisons.unit)
    if int(folds.max()) < 1:
        raise ValueError("nothing can be held out of a single comparison")

    comparisons = reduced(comparisons)
    tried = 1 if len(folds) >= MANY else int(folds.max()) + 1
    logits = []
    for fold in range(tried):
        head = fit(comparisons.rows(folds != fold), scale)
        d = comparisons.rows(folds == fold).differences
        variance = ((d @ head.covariance) * d).sum(1)
        logits.append((d @ head.weight) / (1 + math.pi * variance / 8).sqrt())

    found = torch.cat(logits)
    right = (found > 0).double() + 0.5 * (found == 0).double()
    return HeldOut(float(right.mean()), float(-logsigmoid(found).mean()), len(found))


def reduced(comparisons: Comparisons) -> Comparisons:
    """Return comparisons in the space that their differences span, where fits are the same.

    It has as many dimensions as there are comparisons, if these are fewer than the features.
    """
    d = comparisons.differences
    if len(d) >= d.shape[1]:
        return comparisons

    d = d @ torch.linalg.qr(d.T).Q
    return Comparisons(d, torch.zeros_like(d), comparisons.unit)


def folds_of(unit: Tensor) -> Tensor:
    """Return the fold (n,) of each comparison; those of one unit share it."""
    _, index = unit.unique(return_inverse=True)
    count = int(index.max()) + 1
    return index % min(FOLDS, count)


# Which pair to ask about ------------------------------------------------------------------------


def information(mean: Tensor, variance: Tensor) -> Tensor:
    """Return the information (b,) in nats that answers about differences have on the weight.

    Args:
        mean: (b,) of the differences.
        variance: (b,) of the differences.
    """
    m = mean * PROBIT
    v = variance * PROBIT**2
    p = torch.special.ndtr(m / (1 + v).sqrt())
    entropy = torch.special.entr(p) + torch.special.entr(1 - p)

    c = math.pi * math.log(2) / 2
    known = math.log(2) * (c / (v + c)).sqrt() * (-m.square() / (2 * (v + c))).exp()
    return (entropy - known).clamp(min=0)


def most_informative(
    head: Head, features: Tensor, candidates: Sequence[tuple[int, int]], count: int
) -> list[tuple[int, int]]:
    """Return the pairs to ask about, each the most informative one beside those before it.

    No image is in two of them, as long as others are left.

    Args:
        head: what is known.
        features: (B, D).
        candidates: pairs of rows.
        count: how many are wanted.
    """
    if not candidates:
        return []

    rows = torch.tensor(candidates)
    x = features.double()
    d = x[rows[:, 0]] - x[rows[:, 1]]
    mean = d @ head.weight
    shadow = d @ head.covariance  # (n, D)
    variance = (shadow * d).sum(1)
    uses = torch.zeros(len(features), dtype=torch.float64)
    free = torch.ones(len(rows), dtype=torch.bool)
    chosen: list[tuple[int, int]] = []

    while len(chosen) < min(count, len(candidates)):
        gain = information(mean, variance) - uses[rows].sum(1)
        best = int(torch.where(free, gain, -math.inf).argmax())
        chosen.append(candidates[best])
        free[best] = False
        uses[rows[best]] += 1  # more than any information

        # the covariance after an answer, whichever it is
        p = mean[best].sigmoid()
        weight = p * (1 - p)
        step = shadow[best] / (1 / weight + variance[best])
        along = d @ shadow[best]
        variance = (variance - along.square() / (1 / weight + variance[best])).clamp(min=0)
        shadow = shadow - along[:, None] * step

    return chosen
