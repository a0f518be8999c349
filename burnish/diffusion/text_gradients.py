"""Text gradients: those of an iteration's loss with respect to the text states of its images.

The images of a text share its states, so their gradients are summed by text, over all training
calls of an iteration. A rollout needs no gradient for that, and no text is encoded twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from burnish.diffusion.control import CONTROL_KEYS
from burnish.diffusion.guidance import ORIGINAL_PREFIX
from burnish.types import Cond, Prompt, Trajectory


class TextGradients:
    """Collects the gradients of an iteration's optimizer steps, until they are taken."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._numbers = torch.empty(0, dtype=torch.int64)  # (B,) the text of each image
        self._sums: Cond = {}  # (texts, ...) at least float32, on the CPU
        self._step: Cond = {}  # the same of the step that is being computed

    def watch(self, trajectory: Trajectory, prompts: Sequence[Prompt]) -> Trajectory:
        """Return a trajectory of B images, with B prompts, that leaves its gradients here."""
        texts = [prompt.generator_text for prompt in prompts]
        self._texts = list(dict.fromkeys(texts))
        self._numbers = torch.tensor([self._texts.index(text) for text in texts])
        self._sums = {}
        self._step = {}
        return replace(trajectory, watch=self._watched)

    def end_step(self, loss_scale: float = 1.0) -> None:
        """Take in the gradients of an optimizer step.

        Args:
            loss_scale: by which the loss was multiplied; with one, gradients that are not finite
                are left out, as the step itself is.
        """
        finite = all(bool(value.isfinite().all()) for value in self._step.values())
        if finite or loss_scale == 1:
            for name, value in self._step.items():
                self._sums[name] = self._sums.get(name, 0) + value / loss_scale

        self._step = {}

    def take(self) -> dict[str, Cond]:
        """Return the gradients by text, one row of each state by name, and forget them.

        It is {} where all of them are 0.
        """
        sums, self._sums = self._sums, {}
        if not any(bool(value.any()) for value in sums.values()):
            return {}

        return {
            text: {name: value[number : number + 1] for name, value in sums.items()}
            for number, text in enumerate(self._texts)
        }

    def _watched(self, cond: Cond, images: Tensor) -> Cond:
        """Return the condition of `images` (b,) with leaves in the place of the text states."""
        numbers = self._numbers[images.cpu()]
        watched = dict(cond)

        for name, value in cond.items():
            beside = name in CONTROL_KEYS or name.startswith(ORIGINAL_PREFIX)
            if value.is_floating_point() and not beside:
                leaf = value.detach().requires_grad_()
                leaf.register_post_accumulate_grad_hook(partial(self._add, name, numbers))
                watched[name] = leaf

        return watched

    @torch.no_grad()
    def _add(self, name: str, numbers: Tensor, leaf: Tensor) -> None:
        """Add the gradient of some images' states (b, ...) to the sums of their texts."""
        if leaf.grad is None:
            return

        grad, leaf.grad = leaf.grad, None
        grad = grad.to("cpu", torch.promote_types(grad.dtype, torch.float32))
        if name not in self._step:
            self._step[name] = grad.new_zeros(len(self._texts), *grad.shape[1:])
        self._step[name].index_add_(0, numbers, grad)
