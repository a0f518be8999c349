"""Gradients of rewards to the images, for rewards that are differentiable.

A reward says that it is by `burnish.differentiable` or by an attribute of that name. It is given
copies, like everywhere, and what it returns is checked: one number an image, with a finite gradient
to the images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from burnish.errors import type_and_message
from burnish.types import Prompt, Reward, describe_value, is_differentiable
from burnish.user_code import call_user, own_prompts

MARK = (
    "mark it with @burnish.differentiable if all that it does to the images is torch's and has a "
    "gradient"
)


def check_differentiable(rewards: Mapping[str, Reward], unused: Iterable[str] = ()) -> None:
    """Refuse rewards without a gradient for an objective that follows it.

    Args:
        rewards: by name.
        unused: names of those that have weight 0.

    Raises:
        ValueError: one does not say that it is differentiable; the message names it.
    """
    for name, reward in rewards.items():
        if name not in unused and not is_differentiable(reward):
            raise ValueError(
                f"reward '{name}' is not differentiable, and objective 'latent' follows the "
                f"rewards' gradients; take objective 'fdfo' or another one, or {MARK}"
            )


def image_gradient(name: str, reward: Reward, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """Return the gradient (B, 3, H, W) of a reward's values to the images.

    Args:
        name: of the reward, for messages.
        reward: a differentiable one.
        images: (B, 3, H, W) float32 in [0, 1].
        prompts: B prompts.

    Raises:
        ValueError: the reward raises, or returns no tensor (B,) with a finite gradient; the message
            names it.
    """
    label = f"reward '{name}'"
    given = images.detach().clone().requires_grad_()

    with torch.enable_grad():
        values = call_user(label, reward, given, own_prompts(prompts))

    if not isinstance(values, Tensor) or tuple(values.shape) != (len(prompts),):
        raise ValueError(
            f"{label} returned {describe_value(values)}; to be differentiable it must return a "
            f"tensor of shape ({len(prompts)},)"
        )

    found = None
    if values.requires_grad:
        try:
            found = torch.autograd.grad(values.sum(), given, allow_unused=True)[0]
        except Exception as error:  # of a function of the user's, in its way back
            raise ValueError(
                f"{label} fails where its gradient is taken: {type_and_message(error)}; change no "
                "tensor in place, and look at your own autograd functions"
            ) from error
    if found is None:
        raise ValueError(
            f"{label} says that it is differentiable, but its values have no gradient to the "
            "images: leave out torch.no_grad, .detach(), .item() and numpy, or the mark"
        )

    bad = ~found.flatten(1).isfinite().all(1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"the gradient of {label} is not finite for {int(bad.sum())} of {len(bad)} images "
            f"(first: row {row}, prompt '{prompts[row].text}'); add a small number inside of "
            "square roots and divisions"
        )
    return found
