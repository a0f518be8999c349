"""Rewards: what "good" means, as a number per image.

A reward is any callable `(images, prompts) -> (B,)`: images (B, 3, H, W) float32 in [0, 1], prompts
a sequence of B `Prompt`, higher is better. Built-in rewards are factories that return such a
callable.

    def redness(images, prompts):
        return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))

    print(burnish.check_reward(redness))        # [] or what is wrong with it, one sentence each

`score` is the one place where a reward is called during training, so it is the one place where the
values that it returns are checked. NaN means "no value" for an image; `tolerance` describes how
such images are handled. For objectives that follow a reward's gradient see `gradient`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from burnish.rewards.gradient import MARK, image_gradient
from burnish.rewards.tolerance import Tolerance
from burnish.types import Prompt, Reward, Scores, is_differentiable
from burnish.user_code import check_signature

__all__ = ["STRICT", "Tolerance", "check_reward", "score"]

STRICT = Tolerance()
"""A reward that fails is an error at once."""

NOT_REPEATABLE = (
    "the second time the same images get other values: "
    "seed the reward or remove the randomness in it"
)
ORDER_MATTERS = "in another order the same images get other values: judge each image alone"
BATCH_MATTERS = "alone in its batch an image gets another value: judge each image alone"
INPUT_CHANGED = "the reward changes the images it is given: work on a copy (images.clone())"
PROMPT_ALONE = (
    "all images of a prompt get the same value, so there is nothing to learn from: judge the image"
)
TEST_PROMPTS = ("a cat", "a dog", "a red ball on the table", "two horses")


def score(
    rewards: Mapping[str, Reward],
    images: Tensor,
    prompts: Sequence[Prompt],
    tolerance: Tolerance = STRICT,
) -> Scores:
    """Return the values of every reward for every image.

    Args:
        rewards: reward by name; the order gives the columns.
        images: (B, 3, H, W) float32 in [0, 1].
        prompts: B prompts.
        tolerance: what happens if a reward fails; by default that is an error at once.

    Returns:
        Scores with parts (B, K) float64 on the CPU; NaN where a number is missing and `tolerance`
        masks it.

    Raises:
        ValueError: a reward failed beyond `tolerance`, or returned something other than B numbers;
            the message names it.
    """
    columns = []
    problems = []

    for name, reward in rewards.items():
        column, problem = tolerance.call(name, reward, images, prompts)
        columns.append(column)
        if problem:
            problems.append(f"{name}: {problem}")

    return Scores(torch.stack(columns, dim=1), tuple(rewards), tuple(problems))


def check_reward(
    reward: Reward,
    size: int = 64,
    prompts: Sequence[str | Prompt] | None = None,
    gradient: bool = False,
) -> list[str]:
    """Try a reward on generated test images and return a list of what is wrong with it.

    It tries: other parameters than a reward's, raising, the shape, values that are not finite,
    writing into the input, other values the second time, values that depend on the order of the
    batch or on the other images in it, a batch of one, the same value for every image, or for every
    image of a prompt; and of a reward that says that it is differentiable, the gradient.

    Args:
        reward: the callable to try.
        size: height and width of the images in pixels.
        prompts: prompts to try it with, for a reward that knows only some texts or reads a
            prompt's metadata.
        gradient: find also that it is not differentiable, as objective "latent" needs it.

    Returns:
        One sentence a finding; an empty list means that nothing was found.
    """
    images, test_prompts = _test_batch(size, prompts)
    findings = []

    def watched(given: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Return the reward, which gets copies here as in training, and note what it writes."""
        before = given.clone()
        values = reward(given, prompts)
        if not torch.equal(given, before) and INPUT_CHANGED not in findings:
            findings.append(INPUT_CHANGED)
        return values

    try:
        check_signature("the reward", reward, ("images", "prompts"))
        values, _ = STRICT.call("reward", watched, images, test_prompts)
    except ValueError as error:
        return [str(error)]

    difference = _first_difference(reward, images, test_prompts, values)
    if difference:
        findings.append(difference)

    if values.max() == values.min():
        findings.append(
            f"{len(values)} very different images all get {values[0].item():g}: "
            "there is nothing to learn from"
        )
    elif _depends_on_the_prompt_alone(values, test_prompts):
        findings.append(PROMPT_ALONE)

    if gradient or is_differentiable(reward):
        findings += _gradient_findings(reward, images, test_prompts)
    return findings


def _gradient_findings(reward: Reward, images: Tensor, prompts: Sequence[Prompt]) -> list[str]:
    """Return what is wrong with a reward's gradient to the images."""
    try:
        found = image_gradient("reward", reward, images, prompts)
    except ValueError as error:
        says = is_differentiable(reward)
        return [str(error) if says else "it is not differentiable, so objective latent refuses it"]

    if not bool(found.any()):
        return ["its gradient to the images is 0 everywhere, so nothing can be learned from it"]
    if not is_differentiable(reward):
        return [f"it is differentiable, but does not say so: {MARK}"]
    return []


def _depends_on_the_prompt_alone(values: Tensor, prompts: Sequence[Prompt]) -> bool:
    """Return whether all images of a prompt have the same value, each of three prompts or more.

    Of two prompts that may be chance: a coarse reward finds nothing in most of the test images.
    """
    by_prompt: dict[str, set[float]] = {}
    for prompt, value in zip(prompts, values.tolist(), strict=True):
        by_prompt.setdefault(prompt.text, set()).add(value)

    repeated = 3 <= len(by_prompt) <= len(values) // 2
    return repeated and all(len(found) == 1 for found in by_prompt.values())


def _first_difference(
    reward: Reward, images: Tensor, prompts: Sequence[Prompt], values: Tensor
) -> str:
    """Return the first way in which `values` do not come again; "" if they always do."""
    everything = torch.arange(len(prompts))
    shuffled = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(1))
    spread = float(values.max() - values.min())

    for rows, finding in (
        (everything, NOT_REPEATABLE),
        (shuffled, ORDER_MATTERS),
        (everything[:1], BATCH_MATTERS),
    ):
        chosen = [prompts[row] for row in rows.tolist()]

        try:
            again, _ = STRICT.call("reward", reward, images[rows].clone(), chosen)
        except ValueError as error:
            return f"it worked on {len(prompts)} images, then failed on {len(rows)}: {error}"

        if not torch.allclose(again, values[rows], rtol=1e-4, atol=max(1e-4 * spread, 1e-8)):
            return finding

    return ""


def _test_batch(size: int, prompts: Sequence[str | Prompt] | None) -> tuple[Tensor, list[Prompt]]:
    """Return eight images that differ in every way a reward may depend on, and their prompts.

    They are plain, a ramp, stripes, and noise of three strengths.
    """
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 1, size)
    noise = torch.rand(3, 3, size, size, generator=generator)
    red = torch.zeros(3, size, size)
    red[0] = 0.8

    images = [
        torch.full((3, size, size), 0.95),
        torch.full((3, size, size), 0.05),
        red,
        ramp.expand(3, size, size),
        ((ramp * 16).floor() % 2).expand(3, size, size),
        noise[0],
        0.5 + 0.2 * (noise[1] - 0.5),
        (noise[2] > 0.5).float(),
    ]
    given = [
        prompt if isinstance(prompt, Prompt) else Prompt(prompt)
        for prompt in prompts or TEST_PROMPTS
    ]

    return torch.stack(images), [given[row % len(given)] for row in range(len(images))]
