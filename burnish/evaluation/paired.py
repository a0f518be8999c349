"""Paired evaluation: the same prompts and noise before and after; only the weights differ.

    gain = mean over prompts of the mean over images of (reward after - reward before)

The 95 % interval is a bootstrap over prompts (10,000 resamples, percentiles): images of one prompt
resemble each other, so a prompt is drawn with all its images. With a single prompt its images are
drawn instead. Several rewards are added with their weights, in their own units.

A model that was trained with reward identifiers is given all of them. The model before training, to
which they mean nothing, is given none: a run has to beat what that model can do, with whatever
prompts the run uses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from burnish.checked import check_tensor, name_of
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.evaluation.held_out import Panel
from burnish.files import dumps, write
from burnish.prompts.expander import Expander
from burnish.rewards import STRICT, Tolerance, score
from burnish.run_files import read_evaluation
from burnish.seeds import generator
from burnish.stages import advance
from burnish.types import Judge, Prompt, Reward
from burnish.user_code import call_user, own_prompts
from burnish.world import World

RESAMPLES = 10_000
DRAWN_AT_ONCE = 2**22  # numbers of a bootstrap in memory: 10,000 prompts would take 1.6 GB


@dataclass(frozen=True)
class Evaluation:
    """The rewards and measures of every image; images of one prompt are neighbours."""

    prompts: list[str]
    images_per_prompt: int
    seed: int
    chunk: int  # images sampled at once: it decides which noise an image gets
    rewards: list[str]  # names
    # each image's rewards, unweighted; None where a reward gave no answer
    parts: list[list[float | None]]
    judged: list[bool] | None  # whether the judge says that the image shows its prompt
    # held-out measures of each image
    panel: Mapping[str, Sequence[float | None]] = field(default_factory=dict)

    def total(self, weights: Tensor) -> Tensor:
        """Return the weighted rewards (prompts, images per prompt), float64, NaN where missing."""
        rows = torch.tensor([_with_nan(row) for row in self.parts], dtype=torch.float64)
        return (rows @ weights.double()).view(len(self.prompts), -1)

    def reward(self, name: str) -> list[float]:
        """Return one reward of each image, unweighted, NaN where missing."""
        column = self.rewards.index(name)
        return _with_nan([row[column] for row in self.parts])

    def measures(self) -> dict[str, list[float]]:
        """Return all that was not trained on by name, one number an image, NaN where missing.

        These are the measures of the panel and, if there is one, "judge".
        """
        panel = {name: _with_nan(values) for name, values in self.panel.items()}
        if self.judged is None:
            return panel
        return {"judge": [float(right) for right in self.judged], **panel}


class _Image(NamedTuple):
    """The rewards and measures of one image, as they cross between processes."""

    number: int
    rewards: list[float | None]
    judged: bool | None
    measures: dict[str, float]
    embedding: list[float]


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
    on_images: Callable[[Tensor], None] = lambda images: None,
) -> Evaluation:
    """Sample `images_per_prompt` images of every prompt from fixed noise and score them.

    Args:
        policy: the weights to evaluate.
        sampler: how images are sampled.
        prompts: at least one.
        rewards: by name.
        judge: says whether an image shows its prompt.
        tolerance: of missing rewards.
        panel: the held-out measures.
        expander: expands the prompt of each image on its own, from a fixed random stream too.
        images_per_prompt: of every prompt.
        seed: of the noise.
        chunk: images sampled at once. The noise depends on it, so compare only evaluations with
            the same number.
        world: the processes that share the chunks.
        poll: called before each chunk; it may raise to stop.
        on_images: called with each chunk (b, 3, H, W) that this process has sampled, in order.
    """
    world = world or World()
    panel = panel or Panel()
    repeated = [prompt for prompt in prompts for _ in range(images_per_prompt)]
    rows: list[_Image] = []

    starts = range(0, len(repeated), chunk)
    for first in range(0, len(starts), world.count):
        poll()  # all processes together, then each takes one chunk
        idle = first + world.rank >= len(starts)
        if idle and not policy.sharded:
            continue

        # with a sharded network all make the same calls
        start = starts[min(first + world.rank, len(starts) - 1)]

        # expanded here, not all at once, so that the processes share this work too
        batch = repeated[start : start + chunk]
        if expander is not None:
            batch = expander.draw(batch, generator(seed, "expansions", start)).prompts

        indices = torch.arange(start, start + len(batch))
        noise = generator(seed, "evaluation", start)
        group = indices // images_per_prompt
        trajectory, images = sampler.sample(policy, batch, group, noise)
        kl = panel.divergence(policy, sampler, trajectory, start, starts[first])
        if idle:
            continue

        on_images(images)
        parts = score(rewards, images, batch, tolerance).parts.tolist()
        judged = _judged(judge, images, batch)
        held_out = panel.measure(images, batch, kl)
        columns = zip(indices.tolist(), parts, judged, *held_out, strict=True)
        rows += [_Image(*values) for values in columns]
        advance(len(batch) * world.count)  # the other processes take as many meanwhile

    rows = sorted(world.gather_list(rows), key=lambda row: row.number)
    measures = [row.measures for row in rows]
    embeddings = [row.embedding for row in rows]

    return Evaluation(
        prompts=[prompt.text for prompt in prompts],
        images_per_prompt=images_per_prompt,
        seed=seed,
        chunk=chunk,
        rewards=list(rewards),
        parts=[row.rewards for row in rows],
        judged=[bool(row.judged) for row in rows] if judge else None,
        panel=panel.columns(measures, embeddings, images_per_prompt),
    )


def paired(before: Evaluation, after: Evaluation, weights: Tensor) -> dict[str, Any]:
    """Return the comparison of two evaluations on the same prompts and noise.

    Returns:
        `before, after, paired_mean, ci95: [low, high], judge_before, judge_after` of the weighted
        sum of the rewards. A positive mean is a better reward. The judge's numbers are the
        fractions of images that it calls right, None without a judge. `prompts` and `images` are
        their numbers, and `rewards` has the first four numbers of each reward by itself, not
        weighted, beside its `weight`. If any images have no reward before or after, `missing` is
        their number; they are in no number but the judge's. If there are held-out measures, `panel`
        has the first four numbers of each.

    Raises:
        ValueError: the two cannot be compared.
    """
    for key in ("prompts", "images_per_prompt", "seed", "chunk", "rewards"):
        if getattr(before, key) != getattr(after, key):
            raise ValueError(
                f"two evaluations with different {key} cannot be compared; evaluate both anew"
            )

    old = before.total(weights)
    new = after.total(weights)
    valid = (new - old).isfinite()

    if not valid.any():
        raise ValueError(
            "no image has a reward both before and after training; "
            "fix the reward and evaluate again"
        )

    comparison = {
        "before": float(old[valid].mean()),
        "after": float(new[valid].mean()),
        "paired_mean": float((new - old)[valid].mean()),
        "ci95": interval(new - old),
        "judge_before": _fraction(before.judged),
        "judge_after": _fraction(after.judged),
        "prompts": len(before.prompts),
        "images": len(before.parts),
        "rewards": _compare_rewards(before, after, weights),
    }

    if not valid.all():
        comparison["missing"] = int((~valid).sum())
    if panel := _compare_panels(before, after):
        comparison["panel"] = panel

    return comparison


def interval(gain: Tensor) -> list[float]:
    """Return the 95 % interval of the mean of `gain` (prompts, images per prompt).

    It is a bootstrap over prompts from a fixed seed.
    """
    clusters = gain.nanmean(1) if len(gain) > 1 else gain[0]
    clusters = clusters[clusters.isfinite()]

    stream = generator("bootstrap")
    rows = max(1, DRAWN_AT_ONCE // len(clusters))
    means = torch.cat(
        [
            clusters[torch.randint(len(clusters), (count, len(clusters)), generator=stream)].mean(1)
            for count in map(len, torch.arange(RESAMPLES).split(rows))
        ]
    )
    return [float(means.quantile(q)) for q in (0.025, 0.975)]


def compare(
    before: Mapping[str, Evaluation], after: Mapping[str, Evaluation], weights: Tensor
) -> dict[str, Any]:
    """Return the contents of evaluation.json: {"train": {...}, "unseen": {...} or None}."""
    return {
        name: paired(before[name], after[name], weights) if name in before else None
        for name in ("train", "unseen")
    }


def save_evaluation(path: Path, evaluations: Mapping[str, Evaluation]) -> None:
    """Write evaluations by name ("train", "unseen") to a JSON file."""
    write(path, dumps({name: asdict(evaluation) for name, evaluation in evaluations.items()}))


def load_evaluation(path: Path) -> dict[str, Evaluation] | None:
    """Return what `save_evaluation` wrote; None if there is no such file.

    Raises:
        ValueError: the file is not an evaluation.
    """
    if not path.exists():
        return None

    tables = read_evaluation(path)
    try:
        return {name: _evaluation(table) for name, table in tables.items()}
    except TypeError as error:
        raise ValueError(
            f"{path}: not an evaluation of this version of Burnish; delete it and go on"
        ) from error


def paired_change(
    first: Sequence[float], last: Sequence[float], images_per_prompt: int
) -> dict[str, Any]:
    """Return the paired change of a measure over the images that have it both times.

    Args:
        first: the values before, one an image; images of one prompt are neighbours.
        last: the values after.
        images_per_prompt: of all prompts.

    Returns:
        `before, after, paired_mean, ci95` and `spread`, the standard deviation among the images
        before; {} if no image has both values.
    """
    old = torch.tensor(first, dtype=torch.float64).view(-1, images_per_prompt)
    new = torch.tensor(last, dtype=torch.float64).view(-1, images_per_prompt)
    valid = (new - old).isfinite()

    if not valid.any():
        return {}

    return {
        "before": float(old[valid].mean()),
        "after": float(new[valid].mean()),
        "paired_mean": float((new - old)[valid].mean()),
        "ci95": interval(new - old),
        "spread": float(old[valid].std(correction=0)),
    }


def _evaluation(table: Mapping[str, Any]) -> Evaluation:
    names = {field.name for field in fields(Evaluation)}
    return Evaluation(**{name: value for name, value in table.items() if name in names})


def _compare_rewards(
    before: Evaluation, after: Evaluation, weights: Tensor
) -> dict[str, dict[str, Any]]:
    """Return the comparison of each reward by itself; one that is nowhere known is left out."""
    compared = {}

    for name, weight in zip(before.rewards, weights.tolist(), strict=True):
        old = before.reward(name)
        new = after.reward(name)
        if change := paired_change(old, new, before.images_per_prompt):
            compared[name] = {"weight": weight, **change}

    return compared


def _compare_panels(before: Evaluation, after: Evaluation) -> dict[str, dict[str, Any]]:
    """Return the comparison of every held-out measure that both evaluations have."""
    first = before.measures()
    last = after.measures()
    panel = {}

    for name in first:
        if name == "judge" or name not in last:
            continue
        if change := paired_change(first[name], last[name], before.images_per_prompt):
            panel[name] = change

    return panel


def _judged(judge: Judge | None, images: Tensor, prompts: Sequence[Prompt]) -> list[bool | None]:
    """Return the judge's answers about the prompts before expansion; None without a judge."""
    if judge is None:
        return [None] * len(prompts)

    name = f"the judge {name_of(judge)}"
    shown = [prompt.unexpanded() for prompt in own_prompts(prompts)]
    answers = call_user(name, judge, images.clone(), shown)
    return check_tensor(answers, (len(prompts),), name, boolean=True).tolist()


def _with_nan(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _fraction(judged: list[bool] | None) -> float | None:
    return sum(judged) / len(judged) if judged else None
