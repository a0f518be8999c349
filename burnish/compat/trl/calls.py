"""The three functions of a TRL script, as Burnish's loop calls them.

prompt_function() -> (prompt, metadata)                        once an image
reward_function(images, prompts, metadata) -> (rewards, info)  once a sampling batch
image_samples_hook(batches, global_step, tracker)              once an epoch, before training

AlignProp's reward function is called once more, with a gradient, before training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from torch import Tensor

from burnish.training.collect import SampledImages
from burnish.types import Prompt

PromptFunction = Callable[[], tuple[str, Any]]
RewardFunction = Callable[[Tensor, tuple[str, ...], tuple[Any, ...]], tuple[Any, Any]]
Hook = Callable[[Any, int, Any], Any]


class Calls:
    """A source of prompts, a reward and a callback for images, made of a script's functions.

    `draw` is a Burnish source of prompts, `reward` a Burnish reward, and `train` calls `show` with
    the images. A drawn prompt carries TRL's metadata and its index in the epoch, by which `show`
    finds the reward function's info about a batch.
    """

    def __init__(
        self, reward: RewardFunction, prompt: PromptFunction, hook: Hook | None, batch: int
    ) -> None:
        for name, function in (("reward_function", reward), ("prompt_function", prompt)):
            if not callable(function):
                raise TypeError(f"{name} is a {type(function).__name__}; give a function")

        self.name = _name(reward)
        self.hook = hook
        self._reward = reward
        self._prompt = prompt
        self.batch = batch
        self._info: dict[int, Any] = {}  # by the index of the first prompt

    def draw(self, count: int) -> list[Prompt]:
        """Return `count` prompts by as many calls."""
        self._info.clear()
        return [self._draw_prompt(index) for index in range(count)]

    def reward(self, images: Tensor, prompts: Sequence[Prompt]) -> Any:
        """Return the rewards (B,) of a sampling batch."""
        answer = self._reward(images, *columns(prompts))
        if not isinstance(answer, (tuple, list)) or len(answer) != 2:
            raise TypeError(
                "reward_function must return two things, (rewards, metadata), as in TRL"
            )

        if self.hook is not None:
            self._info[prompts[0].metadata["index"]] = answer[1]

        return answer[0]

    def show(self, sampled: SampledImages) -> None:
        """Call the hook in the main process.

        Its batches are TRL's: [images, prompts, metadata, rewards, info].
        """
        rewards = sampled.scores.parts[:, 0].to(sampled.images.device, sampled.images.dtype)
        batches = []

        if self.hook is None or sampled.rank != 0:
            return

        for start in range(0, len(sampled.prompts), self.batch):
            rows = slice(start, start + self.batch)
            prompts, metadata = columns(sampled.prompts[rows])
            info = self._info.get(start)
            batches.append([sampled.images[rows], prompts, metadata, rewards[rows], info])

        tracker = sampled.trackers[0] if sampled.trackers else NoTracker()
        self.hook(batches, sampled.iteration - 1, tracker)

    def _draw_prompt(self, index: int) -> Prompt:
        answer = self._prompt()
        is_pair = isinstance(answer, (tuple, list)) and len(answer) == 2

        if not is_pair or not isinstance(answer[0], str):
            raise TypeError(
                "prompt_function must return (prompt, metadata), a text and anything, "
                f"not {answer!r}"
            )

        return Prompt(answer[0], {"metadata": answer[1], "index": index})


class NoTracker:
    """The tracker of a hook without log_with; TRL's trainer fails there with an IndexError."""

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"image_samples_hook wants {name} of a tracker, but there is none: "
            'set log_with = "tensorboard"'
        )


def columns(prompts: Sequence[Prompt]) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """Return the texts and TRL's metadata."""
    return tuple(prompt.text for prompt in prompts), tuple(
        prompt.metadata["metadata"] for prompt in prompts
    )


def _name(function: Any) -> str:
    """Return the name of the reward for logs: the innermost public one of its definition."""
    path = getattr(function, "__qualname__", type(function).__name__).split(".")
    public = [part for part in path if part.isidentifier() and not part.startswith("_")]
    return public[-1] if public else "reward"
