"""What an iteration learns: which (image, move) pairs, in which optimizer steps, and each of these
steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from burnish.diffusion.process import ForwardProcess, ReverseProcess
from burnish.rewards import score
from burnish.rl.advantages import per_transition
from burnish.seeds import generator
from burnish.training.job import Job
from burnish.types import Process, Prompt, Trajectory


def imitates(job: Job) -> bool:
    """Whether images are imitated by weights, rather than compared."""
    return job.parts.objective.imitates


def selects(job: Job) -> bool:
    """Whether only images of a front are learned from, and the others have an advantage of exactly
    0.
    """
    return job.parts.advantage.selects


def loss_scale(job: Job, adv: Tensor, there: Tensor) -> float:
    """What advantages are multiplied with, so that losses are means over the images that count:
    those `there`, which have a score (and are on the front, if the advantage `selects`), or, where
    images are imitated, those with a weight, because the others are left out of the batches. An
    objective that compares images regresses on the advantages as they are; `targets` sees to its
    mean.
    """
    if job.parts.objective.compares_images:
        return 1.0
    count = max(1, int(there.sum()))
    return float((adv != 0).sum()) / count if imitates(job) else len(there) / count


def moves(job: Job) -> int:
    """How many moves an image has to learn from; noised again, as many as are asked for."""
    if job.parts.objective.process == "forward":
        return job.config.batch.transitions or job.config.sampler.steps
    return job.parts.sampler.transitions(job.parts.policy, job.config.batch.least_noise)


def minibatches(
    job: Job, images: int, moves: int, *, iteration: int, adv: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each optimizer step the flat (image, move) pairs it learns from: two int64 tensors of one
    length.

    Each epoch shuffles the images, and draws `batch.transitions` different ones of its `moves` for
    each image; with previews the same for all images of a prompt, so that these can be compared. An
    objective that compares the images of a prompt gets them together, and one that imitates only
    those with a weight in ``adv``. Noised again, an image has other moves in each epoch.
    """
    count = job.config.batch.transitions or moves
    company = job.config.batch.images_per_prompt
    block = company if job.parts.objective.compares_images else 1
    alike = company if job.config.batch.baseline else 1
    forward = job.parts.objective.process == "forward"

    for epoch in range(job.config.batch.epochs):
        stream = generator(job.config.seed, iteration, "order", epoch, job.world.rank)
        order = torch.randperm(images // block, generator=stream)

        if adv is not None and imitates(job) and bool(adv.any()):
            order = order[adv[order] != 0]
            # an update needs an image
            order = order.repeat(math.ceil(job.config.batch.minibatches / len(order)))

        chosen = (
            torch.rand(images // alike, moves, generator=stream)
            .argsort(1)[:, :count]
            .repeat_interleave(alike, 0)
        )

        for blocks in order.tensor_split(job.config.batch.minibatches):
            rows = (blocks[:, None] * block + torch.arange(block)).flatten()
            yield (
                rows.repeat_interleave(count),
                chosen[rows].flatten() + (epoch * moves if forward else 0),
            )


def make_process(
    job: Job, trajectory: Trajectory, pairs: list[tuple[Tensor, Tensor]], iteration: int
) -> Process:
    """What the objective looks at: the sampled moves, or the finished images noised again."""
    parts = job.parts
    chunk = job.config.batch.sample_batch

    if not (parts.objective.process == "forward"):
        return ReverseProcess(parts.policy, parts.sampler, trajectory)

    latent = trajectory.latent.float().cpu()
    stream = generator(job.config.seed, iteration, "encode", job.world.rank)

    if parts.objective.data == "encoded":
        pictures = (parts.policy.decode(some) for some in trajectory.latent.split(chunk))
        latent = torch.cat([parts.policy.embed(some, stream).cpu() for some in pictures])

    key = (job.config.seed, iteration, "renoise", job.world.rank)
    process = ForwardProcess(parts.policy, parts.sampler, trajectory, latent, key)
    # with one update nothing has changed when it is asked
    return (
        process.remembering(pairs, chunk)
        if parts.objective.uses_ratio and len(pairs) > 1
        else process
    )


def x0_baseline(
    job: Job,
    prompts: list[Prompt],
    trajectory: Trajectory,
    adv: Tensor,
    there: Tensor,
    pairs: list[tuple[Tensor, Tensor]],
    asked: Tensor | None = None,
) -> tuple[Tensor, float]:
    """The advantage of each move (B, T), from the score of the picture that the network expected
    before it.

    An image without a score, not ``there`` (B,), has none, and nor have its previews. What was
    ``asked`` (B,) of an image is the reward that its previews are judged by. Also the share of the
    advantages' variance that was settled before the moves and is left out.
    """
    parts, (count, moves) = job.parts, trajectory.logp.shape
    assert trajectory.x0_pred is not None  # asked for, because the configuration says so
    previews = torch.full((count * moves, len(parts.weights)), torch.nan, dtype=torch.float64)
    chosen = torch.cat([images * moves + steps for images, steps in pairs]).unique()

    for places in chosen.split(job.config.batch.sample_batch):
        images = places // moves
        steps = places % moves
        shown = [prompts[image] for image in images.tolist()]
        pictures = parts.policy.decode(trajectory.x0_pred[images, steps])
        previews[places] = score(parts.rewards, pictures, shown, parts.tolerance).parts

    previews.view(count, moves, -1)[~there] = torch.nan
    weights = parts.weights if asked is None else parts.weights * one_hot(asked, len(parts.weights))
    left = per_transition(adv, previews.view(count, moves, -1), weights, trajectory.group)
    before = adv[chosen // moves].square().sum()

    return left, float(1 - left.flatten()[chosen].square().sum() / before) if before > 0 else 0.0


def set_rate(job: Job, iteration: int, number: int) -> None:
    """Gives the optimizer the learning rate of an iteration's update ``number``, the first being 0."""
    settings = job.config.optimizer
    batch = job.config.batch
    step = (iteration - 1) * batch.minibatches * batch.epochs + number + 1
    fallen = 1 - (1 - settings.final_lr) * (iteration - 1) / job.config.iterations

    for group in job.optimizer.param_groups:
        group["lr"] = settings.lr * fallen * min(1.0, step / max(1, settings.warmup))


def targets(
    job: Job,
    process: Process,
    adv: Tensor,
    there: Tensor,
    images: Tensor,
    steps: Tensor,
    first: bool,
) -> Tensor:
    """What an objective that compares whole images makes of the advantages (B,), for the ``images``
    of one update.

    Compared are only images ``there`` (B,), and only where a prompt has two of them; the loss is
    their mean.
    """
    assert isinstance(process, ReverseProcess)
    change = torch.zeros_like(adv)
    group = process.trajectory.group

    with torch.no_grad():
        for rows, columns in zip(
            *(each.split(job.config.batch.train_batch) for each in (images, steps)), strict=True
        ):
            if not first:  # before the first update nothing has changed
                replay = process.replay(rows, columns)
                change.index_add_(0, rows, (replay.logp - replay.logp_old)[:, 0].to(adv))

    asked = images.unique()
    result = torch.zeros_like(adv)
    moves = len(images) // len(asked)
    rows = asked[there[asked]]
    rows = rows[(group[rows][:, None] == group[rows]).sum(1) > 1]

    if len(rows):
        objective: Any = job.parts.objective
        result[rows] = objective.targets(change[rows], adv[rows], group[rows], moves) * (
            len(asked) / len(rows)
        )

    return result


def update(
    job: Job,
    process: Process,
    adv: Tensor,
    there: Tensor,
    images: Tensor,
    steps: Tensor,
    first: bool,
) -> dict[str, float]:
    """One optimizer step on the mean loss over all (image, move) pairs, some at a time; returns
    what it measured.

    `there`: (B,) the images that have their scores. `first`: of its iteration, so that the weights
    are still those that sampled. Images outside a selected front add nothing to the sum, only to
    the number it is divided by (`share`), and are not replayed, unless a KL penalty is to be had
    from them.
    """
    parts = job.parts
    policy = job.parts.policy
    total = len(images)
    needs_reference = parts.objective.kl > 0

    if parts.objective.compares_images:
        adv = targets(job, process, adv, there, images, steps, first)

    if selects(job) and not needs_reference:
        teach = adv[images] != 0
        teach[0] |= not teach.any()  # an update without a single pair would have no gradient at all
        images = images[teach]
        steps = steps[teach]

    pieces = math.ceil(len(images) / job.config.batch.train_batch)
    metrics: dict[str, float] = {}

    for rows, columns in zip(images.tensor_split(pieces), steps.tensor_split(pieces), strict=True):
        replay = process.replay(rows, columns, reference=needs_reference)
        own = adv[rows] if adv.dim() == 1 else adv[rows, columns]
        loss = parts.objective(replay, own)
        share = len(rows) / len(images)
        job.scaler.scale(loss.value * (len(rows) / total)).backward()

        # the largest deviation, the mean of everything else
        for name, value in loss.metrics.items():
            old = metrics.get(name, 0.0)
            largest = old if value <= old else value  # NaN too
            metrics[name] = largest if name == "ratio_deviation" else old + share * value

    job.world.average_gradients(policy.trainable)
    job.scaler.unscale_(job.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(policy.trainable, job.config.optimizer.max_grad_norm)

    # in float16 a step may be left out now and then, until the gradients' scale fits; at a scale of
    # 1 it never will
    if not norm.isfinite() and job.scaler.get_scale() <= 1:
        raise RuntimeError(
            "the gradient is not finite any more, so training ends here; earlier checkpoints are kept: start again "
            "with a lower optimizer.lr"
        )

    job.scaler.step(job.optimizer)
    job.scaler.update()

    if job.average is not None:
        job.average.step(policy.trainable)

    job.optimizer.zero_grad(set_to_none=True)
    return {**metrics, "grad_norm": float(norm), "lr": job.optimizer.param_groups[0]["lr"]}


def summary(updates: list[dict[str, float]]) -> dict[str, float]:
    """The mean over an iteration's updates; the ratio's deviation only before the first, where it
    must be 0.
    """
    if not updates:
        return {}

    means = {name: sum(one[name] for one in updates) / len(updates) for name in updates[0]}
    return {
        name: updates[0][name] if name == "ratio_deviation" else mean
        for name, mean in means.items()
    }
