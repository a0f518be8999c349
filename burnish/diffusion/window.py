"""A window of stochastic transitions, and starts that the images of a prompt share.

Of a sampler's transitions only those in a window of a few are the kernel's; before and after it the
ODE leads on without noise, and only the window is learned from:

    Flow-GRPO-Fast  a window of 1 or 2 transitions, drawn anew     github.com/yifan123/flow_grpo
    MixGRPO         a window that moves on by 1 every n iterations       arXiv 2507.21802

Where the images of a prompt start from the same noise (DanceGRPO, arXiv 2505.07818), they are the
same up to the window, so the ODE before it is followed once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from burnish.config import WindowConfig
from burnish.diffusion.policy import Policy
from burnish.seeds import generator
from burnish.types import Cond


def window_places(window: WindowConfig, transitions: int) -> int:
    """Return in how many places the window may lie.

    Args:
        window: of the configuration.
        transitions: that have noise, from the first on.

    Raises:
        ValueError: in none, or beyond the transitions with noise.
    """
    last = window.last or transitions
    if last > transitions:
        raise ValueError(
            f"sampler.window.last = {last}, but only the first {transitions} transitions have "
            "noise to learn from; lower it, or take 0 for the last of these"
        )

    places = last - window.first - window.size + 2
    if places < 1:
        raise ValueError(
            f"sampler.window.size = {window.size} does not fit into the transitions "
            f"{window.first} to {last}; lower it or sampler.window.first, or take more "
            "sampler.steps"
        )
    return places


def window_at(window: WindowConfig, iteration: int, transitions: int, seed: int) -> range:
    """Return the window of an iteration, as numbers of transitions from 0.

    It follows from these arguments alone, so a resumed run has the same windows.

    Args:
        window: of the configuration.
        iteration: from 1.
        transitions: that have noise, from the first on.
        seed: of the run.

    Raises:
        ValueError: see `window_places`.
    """
    places = window_places(window, transitions)
    number = (iteration - 1) // window.every
    place = 0

    if window.placement == "sliding":
        place = number % places
    elif window.placement == "random":
        place = int(torch.randint(places, (), generator=generator(seed, "window", number)))

    first = window.first - 1 + place
    return range(first, first + window.size)


@dataclass
class _Start:
    """The state that a group's noise leads to under one condition."""

    group: int
    cond: Cond  # without the dimension of the batch
    state: Tensor | None = None  # (*latent)

    def fits(self, group: int, cond: Cond) -> bool:
        """Return whether an image of `group` under `cond` starts here."""
        return group == self.group and all(
            torch.equal(value, cond[name]) for name, value in self.cond.items()
        )


@dataclass
class SharedStarts:
    """One start for all images of a group in an iteration, however they are split into chunks.

    The noise follows from the key and the group's number. The state at the window is computed once
    and remembered as long as chunks have images of the group; texts of an expander differ within
    a group, and each has a state of its own.

    Attributes:
        key: names the random streams, one a group.
    """

    key: tuple[object, ...]
    _known: list[_Start] = field(default_factory=list)

    def states(
        self,
        policy: Policy,
        group: Tensor,
        cond: Cond,
        to_window: Callable[[Tensor, Cond], Tensor],
    ) -> Tensor:
        """Return the states (B, *latent) of a chunk's images at the window.

        Args:
            policy: draws the noise.
            group: (B,) the prompt's number of each image.
            cond: B encoded prompts.
            to_window: (noise (n, *latent), n encoded prompts) -> the states at the window.
        """
        numbers = group.tolist()
        self._known = [start for start in self._known if start.group in numbers]
        conds = [{name: value[row] for name, value in cond.items()} for row in range(len(group))]
        starts = [self._find(*image) for image in zip(numbers, conds, strict=True)]
        new = [start for start in self._known if start.state is None]

        if new:
            streams = [generator(*self.key, start.group) for start in new]
            noise = torch.cat([policy.noise(1, stream) for stream in streams])
            stacked = {name: torch.stack([start.cond[name] for start in new]) for name in cond}
            for start, state in zip(new, to_window(noise, stacked), strict=True):
                start.state = state

        return torch.stack([start.state for start in starts if start.state is not None])

    def _find(self, group: int, cond: Cond) -> _Start:
        """Return the start of an image, which is remembered from now on."""
        for start in self._known:
            if start.fits(group, cond):
                return start

        start = _Start(group, cond)
        self._known.append(start)
        return start
