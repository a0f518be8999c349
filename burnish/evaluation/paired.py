"""Paired evaluation: the same prompts and the same noise, before and after, so that only the
weights differ.

    gain = mean over prompts of the mean over images of (reward after - reward before)

The 95 % interval is a bootstrap over prompts (10,000 resamples, percentiles): images of one prompt
resemble each other, so a prompt with all its images is what is drawn. With a single prompt its
images are drawn instead. Several rewards are added with their weights, in their own units.

A model trained with reward identifiers is asked with all of them. The model before training, to
which they mean
nothing, is asked without: what it can do is what a run has to beat, however the run asks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.evaluation.held_out import Panel
from burnish.prompts.expander import Expander
from burnish.rewards import STRICT, Tolerance, score
from burnish.runs import dumps, write
from burnish.seeds import generator
from burnish.types import Judge, Prompt, Reward
from burnish.world import World

RESAMPLES = 10_000


@dataclass(frozen=True)
class Evaluation:
    """What every image of an evaluation got; images of one prompt are neighbours."""

    prompts: list[str]
    images_per_prompt: int
    seed: int
    chunk: int  # images sampled at once: decides which noise an image gets
    rewards: list[str]  # names
    # an image's rewards, unweighted; None where a reward gave no answer
    parts: list[list[float | None]]
    judged: list[bool] | None  # whether the judge found what was asked
    # held-out measures of each image
    panel: Mapping[str, Sequence[float | None]] = field(default_factory=dict)

    def total(self, weights: Tensor) -> Tensor:
        """The weighted reward of each image, (prompts, images per prompt) float64; NaN where one is
        missing.
        """
        rows = [[math.nan if value is None else value for value in row] for row in self.parts]
        return (torch.tensor(rows, dtype=torch.float64) @ weights.double()).view(
            len(self.prompts), -1
        )

    def measures(self) -> dict[str, list[float]]:
        """What was not trained on, one number an image, NaN where there is none: the panel and the
        judge.
        """
        found = {
            name: [math.nan if v is None else v for v in values]
            for name, values in self.panel.items()
        }
        return (
            found
            if self.judged is None
            else {"judge": [float(right) for right in self.judged], **found}
        )


def evaluate(
    policy: Policy,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    rewards: Mapping[str, Reward],
    *,
    judge: Judge | None = None,
    tolerance: Tolerance = STRICT,
    panel: Panel | None = None,
    expander: Expander | None = None,
    images_per_prompt: int = 4,
    seed: int = 1234,
    chunk: int = 32,
    world: World | None = None,
    poll: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Sample `images_per_prompt` images of every prompt from fixed noise and score them.

    `chunk` images are sampled at once; the noise depends on it, so compare only evaluations with
    the same number. `poll` is called before each chunk and may raise to stop. With an `expander`
    each image has a text of its own, drawn from fixed chance too.
    """
    world = world or World()
    panel = panel or Panel()
    asked = [prompt for prompt in prompts for _ in range(images_per_prompt)]
    rows: list[tuple[int, list[float | None], bool | None, dict[str, float], list[float]]] = []

    for number, start in enumerate(range(0, len(asked), chunk)):
        if number % world.count == 0:
            poll()  # all processes together, then each takes one chunk
        if number % world.count != world.rank:
            continue

        some = asked[start : start + chunk]
        if expander is not None:
            some = expander.draw(some, generator(seed, "expansions", start)).prompts

        group = torch.arange(start, start + len(some)) // images_per_prompt
        trajectory = sampler.rollout(
            policy, sampler.encode(policy, some), group, generator(seed, "evaluation", start)
        )
        images = policy.decode(trajectory.latent)
        parts = score(rewards, images, some, tolerance).parts.tolist()
        judged = (
            judge(images, [prompt.unexpanded() for prompt in some]).tolist()
            if judge
            else [None] * len(some)
        )
        held_out = panel.measure(policy, sampler, trajectory, images, some, start)
        rows += zip(range(start, start + len(some)), parts, judged, *held_out, strict=True)

    rows = sorted(world.gather_list(rows), key=lambda row: row[0])
    _, columns, found, measured, embeddings = zip(*rows, strict=True)
    return Evaluation(
        prompts=[prompt.text for prompt in prompts],
        images_per_prompt=images_per_prompt,
        seed=seed,
        chunk=chunk,
        rewards=list(rewards),
        parts=list(columns),
        judged=[bool(judged) for judged in found] if judge else None,
        panel=panel.columns(measured, embeddings, images_per_prompt),
    )


def paired(before: Evaluation, after: Evaluation, weights: Tensor) -> dict[str, Any]:
    """The comparison of two evaluations on the same prompts and noise; a positive gain is a better
    reward.

    Returns `before, after, paired_mean, ci95: [low, high], judge_before, judge_after`; the judge's
        are shares of images found right, None without a judge. If there are any, `missing` are
        images without a reward before or after, which are in no number but the judge's, and `panel`
        has the first four numbers of each held-out measure. Raises ValueError if the two cannot be
        compared.
    """
    for key in ("prompts", "images_per_prompt", "seed", "chunk", "rewards"):
        if getattr(before, key) != getattr(after, key):
            raise ValueError(
                f"two evaluations with different {key} cannot be compared; evaluate both anew"
            )

    old = before.total(weights)
    new = after.total(weights)
    there = (new - old).isfinite()

    if not there.any():
        raise ValueError(
            "no image has a reward both before and after training; mend the reward and evaluate again"
        )

    return {
        "before": float(old[there].mean()),
        "after": float(new[there].mean()),
        "paired_mean": float((new - old)[there].mean()),
        "ci95": interval(new - old),
        "judge_before": _share(before.judged),
        "judge_after": _share(after.judged),
        **({} if there.all() else {"missing": int((~there).sum())}),
        **({"panel": panel} if (panel := _panel(before, after)) else {}),
    }


def interval(gain: Tensor) -> list[float]:
    """The 95 % interval of the mean of `gain` (prompts, images per prompt), by bootstrap over
    prompts; seeded.
    """
    clusters = gain.nanmean(1) if len(gain) > 1 else gain[0]
    clusters = clusters[clusters.isfinite()]
    drawn = torch.randint(
        len(clusters), (RESAMPLES, len(clusters)), generator=generator("bootstrap")
    )
    means = clusters[drawn].mean(1)
    return [float(means.quantile(q)) for q in (0.025, 0.975)]


def compare(
    before: Mapping[str, Evaluation], after: Mapping[str, Evaluation], weights: Tensor
) -> dict[str, Any]:
    """The contents of evaluation.json: {"train": {...}, "unseen": {...} or None}."""
    return {
        name: paired(before[name], after[name], weights) if name in before else None
        for name in ("train", "unseen")
    }


def save_evaluation(path: Path, measured: Mapping[str, Evaluation]) -> None:
    """Write what `measure` gave."""
    write(path, dumps({name: asdict(evaluation) for name, evaluation in measured.items()}))


def load_evaluation(path: Path) -> dict[str, Evaluation] | None:
    """Read what `keep` wrote; None if there is nothing."""
    if not path.exists():
        return None

    try:
        return {
            name: Evaluation(**fields)
            for name, fields in json.loads(path.read_text("utf-8")).items()
        }
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: not an evaluation of this version of Burnish; delete it and go on"
        ) from error


def _panel(before: Evaluation, after: Evaluation) -> dict[str, dict[str, Any]]:
    """The comparison of every held-out measure that both evaluations have."""
    first = before.measures()
    last = after.measures()
    return {
        name: described
        for name in first
        if name != "judge" and name in last
        for described in [change(first[name], last[name], before.images_per_prompt)]
        if described
    }


def change(first: Sequence[float], last: Sequence[float], each: int) -> dict[str, Any]:
    """The paired change of a measure over the images that have it both times, ``each`` of a prompt
    being neighbours: `before, after, paired_mean, ci95`, and `spread`, its standard deviation among
    images before; {} if none has.
    """
    old, new = (
        torch.tensor(values, dtype=torch.float64).view(-1, each) for values in (first, last)
    )
    there = (new - old).isfinite()

    if not there.any():
        return {}

    return {
        "before": float(old[there].mean()),
        "after": float(new[there].mean()),
        "paired_mean": float((new - old)[there].mean()),
        "ci95": interval(new - old),
        "spread": float(old[there].std(correction=0)),
    }


def _share(judged: list[bool] | None) -> float | None:
    return sum(judged) / len(judged) if judged else None
