"""The three functions of a TRL script as Burnish's loop calls them.

prompt_function() -> (prompt, metadata)                              once an image
reward_function(images, prompts, metadata) -> (rewards, info)        once a sampling batch
image_samples_hook(batches, global_step, tracker)                    once an epoch, before it is learned from
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from torch import Tensor

from burnish.training.collect import SampledImages
from burnish.types import Prompt

PromptFunction = Callable[[], tuple[str, Any]]
RewardFunction = Callable[[Tensor, tuple[str, ...], tuple[Any, ...]], tuple[Any, Any]]
Hook = Callable[[list[list[Any]], int, Any], Any]


class Calls:
    """`draw` is a Burnish source of prompts, `reward` a Burnish reward, `show` what `train` calls
    with pictures.

    A drawn prompt carries TRL's metadata and its place in the epoch, by which `show` finds what the
    reward function said of a batch besides the rewards.
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
        self._batch = batch
        self._said: dict[int, Any] = {}

    def draw(self, count: int) -> list[Prompt]:
        """`count` prompts by as many calls."""
        self._said.clear()
        return [self._drawn(self._prompt(), place) for place in range(count)]

    def reward(self, images: Tensor, prompts: Sequence[Prompt]) -> Any:
        """The rewards (B,) of a sampling batch."""
        answer = self._reward(images, *_columns(prompts))
        if not isinstance(answer, (tuple, list)) or len(answer) != 2:
            raise TypeError(
                "reward_function must return two things, (rewards, metadata), as in TRL"
            )

        if self.hook is not None:
            self._said[prompts[0].metadata["place"]] = answer[1]

        return answer[0]

    def show(self, pictures: SampledImages) -> None:
        """Calls the hook in the main process, with batches as TRL's: [images, prompts, metadata,
        rewards, info].
        """
        rewards = pictures.scores.parts[:, 0].to(pictures.images.device, pictures.images.dtype)
        batches = []

        if self.hook is None or pictures.rank != 0:
            return

        for start in range(0, len(pictures.prompts), self._batch):
            rows = slice(start, start + self._batch)
            some = pictures.prompts[rows]
            batches.append(
                [pictures.images[rows], *_columns(some), rewards[rows], self._said.get(start)]
            )

        tracker = pictures.trackers[0] if pictures.trackers else NoTracker()
        self.hook(batches, pictures.iteration - 1, tracker)

    def _drawn(self, answer: Any, place: int) -> Prompt:
        if (
            not isinstance(answer, (tuple, list))
            or len(answer) != 2
            or not isinstance(answer[0], str)
        ):
            raise TypeError(
                f"prompt_function must return (prompt, metadata), a text and anything, not {answer!r}"
            )

        return Prompt(answer[0], {"metadata": answer[1], "place": place})


class NoTracker:
    """What a hook is given without log_with; TRL's trainer fails there with an IndexError."""

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f'image_samples_hook wants {name} of a tracker, but there is none: set log_with = "tensorboard"'
        )


def _columns(prompts: Sequence[Prompt]) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """Texts and TRL's metadata."""
    return tuple(prompt.text for prompt in prompts), tuple(
        prompt.metadata["metadata"] for prompt in prompts
    )


def _name(function: Any) -> str:
    """What the reward is called in logs: the innermost public name that the function was defined
    under.
    """
    path = getattr(function, "__qualname__", type(function).__name__).split(".")
    public = [part for part in path if part.isidentifier() and not part.startswith("_")]
    return public[-1] if public else "reward"
