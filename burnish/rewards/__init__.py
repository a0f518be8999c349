"""Rewards: what "good" means, as a number per image.

A reward is any callable `(images, prompts) -> (B,)`: images (B, 3, H, W) float32 in [0, 1], prompts
a sequence of B `Prompt`, higher is better. Built-in rewards are factories that return such a
callable.

    def redness(images, prompts):
        return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))

    print(burnish.check_reward(redness))        # [] or what is wrong with it, one sentence each

`score` is the one place where a reward is called during training, so it is the one place where what
it returns is checked. NaN says "no answer" for an image; see `tolerance` for what becomes of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from burnish.rewards.tolerance import Tolerance
from burnish.types import Prompt, Reward, Scores

__all__ = ["STRICT", "Tolerance", "check_reward", "score"]

STRICT = Tolerance()
"""A reward that fails is an error at once."""


def score(
    rewards: Mapping[str, Reward],
    images: Tensor,
    prompts: Sequence[Prompt],
    tolerance: Tolerance = STRICT,
) -> Scores:
    """Ask every reward about every image.

    Args:
        rewards: reward by name; the order gives the columns.
        images: (B, 3, H, W) float32 in [0, 1].
        prompts: B prompts.
        tolerance: what happens if one fails; by default that is an error at once.

    Returns:
        Scores with parts (B, K) float64 on the CPU; NaN where a number is missing and `tolerance`
        masks it.

    Raises:
        ValueError: a reward failed beyond `tolerance`, or returned something other than B numbers;
            the message names
            it.
    """
    columns = []
    problems = []

    for name, reward in rewards.items():
        column, problem = tolerance.ask(name, reward, images, prompts)
        columns.append(column)
        problems += [f"{name}: {problem}"] if problem else []

    return Scores(torch.stack(columns, dim=1), tuple(rewards), tuple(problems))


def check_reward(
    reward: Reward, size: int = 64, prompts: Sequence[str | Prompt] | None = None
) -> list[str]:
    """Try a reward on made-up images and say what is wrong with it.

    Args:
        reward: the callable to try.
        size: height and width of the images in pixels.
        prompts: what to try it with, for a reward that knows only some texts or reads a prompt's
            metadata.

    Returns:
        One sentence a finding; an empty list means that nothing was found. Looked for: raising,
        shape, values that are not finite, writing into its input, a different answer the second
        time, dependence on the order or the company of an image in the batch, a batch of one, the
        same value for every image.
    """
    images, asked = _samples(size, prompts)
    kept = images.clone()

    try:
        first = STRICT.ask("reward", reward, images, asked)[0]
    except ValueError as error:
        return [str(error)]

    findings = []
    if not torch.equal(images, kept):
        findings.append(
            "the reward changes the images it is given: work on a copy (images.clone())"
        )

    everything = torch.arange(len(asked))
    shuffled = torch.randperm(len(asked), generator=torch.Generator().manual_seed(1))
    spread = float(first.max() - first.min())

    for rows, finding in (
        (
            everything,
            "the second time the same images get other values: seed the reward or remove the chance in it",
        ),
        (shuffled, "in another order the same images get other values: judge each image alone"),
        (everything[:1], "alone in its batch an image gets another value: judge each image alone"),
    ):
        try:
            again = STRICT.ask(
                "reward", reward, kept[rows].clone(), [asked[i] for i in rows.tolist()]
            )[0]
        except ValueError as error:
            findings.append(
                f"it worked on {len(asked)} images, then failed on {len(rows)}: {error}"
            )
            break

        if not torch.allclose(again, first[rows], rtol=1e-4, atol=max(1e-4 * spread, 1e-8)):
            findings.append(finding)
            break

    if spread == 0:
        findings.append(
            f"{len(asked)} very different images all get {first[0].item():g}: there is nothing to learn from"
        )

    return findings


def _samples(size: int, prompts: Sequence[str | Prompt] | None) -> tuple[Tensor, list[Prompt]]:
    """Eight images that differ in every way a reward may care about: plain, ramp, stripes, noise of
    three strengths.
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
    some = prompts or ("a cat", "a dog", "a red ball on the table", "two horses")
    asked = [prompt if isinstance(prompt, Prompt) else Prompt(prompt) for prompt in some]

    return torch.stack(images), [asked[i % len(asked)] for i in range(len(images))]
