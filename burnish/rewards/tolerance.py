"""What happens when a reward fails: it raises, hangs, or leaves images without a number.

An image without a number is *missing*: NaN, never 0, which would be a judgement. First the reward
is asked again, about the missing images only, with a pause that doubles. What is missing then is an
error, which ends the run (saved, so that it can be resumed), or it is masked: such an image teaches
nothing and enters no statistic.

A call that takes too long is left behind in its thread, because Python cannot end it; a reward that
may hang should therefore bear being asked again meanwhile. What is wrong with every image alike,
such as a wrong shape, is a mistake in the reward and never tolerated.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from burnish.types import Prompt, Reward


class InvalidRewardOutput(ValueError):
    """A reward returned something that is not one number an image."""


@dataclass(frozen=True)
class Tolerance:
    """How often and how long a reward is asked, and whether missing images are masked or an error."""

    retries: int = 0  # times it is asked again about what is missing
    timeout: float = 0.0  # seconds for one answer; 0 waits for ever
    mask: bool = False  # leave out what is missing; otherwise it is an error
    pause: float = 1.0  # seconds before the first retry; each further one waits twice as long

    def ask(
        self, name: str, reward: Reward, images: Tensor, prompts: Sequence[Prompt]
    ) -> tuple[Tensor, str]:
        """What a reward says of every image: (B,) float64 on the CPU, NaN where it is missing; and
        why, or "".

        Raises:
            Unfit: it did not return B numbers.
            ValueError: an image is missing, and that is not to be masked.
        """
        values = torch.full((len(prompts),), torch.nan, dtype=torch.float64)
        failure: Exception | None = None

        for attempt in range(self.retries + 1):
            rows = (~values.isfinite()).nonzero().flatten()
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))

            some = images if len(rows) == len(values) else images[rows.to(images.device)]
            asked = [prompts[row] for row in rows.tolist()]

            try:
                values[rows], failure = (
                    _column(name, self._in_time(reward, some, asked), len(asked)),
                    None,
                )
            except InvalidRewardOutput:
                raise
            except Exception as error:
                failure = error

            if bool(values.isfinite().all()):
                return values, ""

        return self._missing(name, values, prompts, failure), _reason(values, failure)

    def _in_time(self, reward: Reward, images: Tensor, prompts: Sequence[Prompt]) -> object:
        if self.timeout == 0:
            with torch.no_grad():
                return reward(images, prompts)

        answer: list[object] = []

        def call() -> None:
            try:
                with torch.no_grad():
                    answer.append(reward(images, prompts))
            except Exception as error:
                answer.append(error)

        # a daemon, unlike a pool's thread: a reward that never returns must not keep the program
        # from ending
        thread = threading.Thread(target=call, name="reward", daemon=True)
        thread.start()
        thread.join(self.timeout)

        if not answer:
            raise TimeoutError(f"no answer within {self.timeout:g} s")
        if isinstance(answer[0], Exception):
            raise answer[0]

        return answer[0]

    def _missing(
        self, name: str, values: Tensor, prompts: Sequence[Prompt], failure: Exception | None
    ) -> Tensor:
        """The values with NaN for all that is not finite, or the error that they are."""
        if self.mask:
            return torch.where(values.isfinite(), values, torch.nan)
        if failure is not None:
            raise ValueError(
                f"reward '{name}' raised {_said(failure)} -- try it alone with burnish.check_reward, or let such "
                'images be left out by scoring.missing = "mask"'
            ) from failure

        bad = (~values.isfinite()).nonzero().flatten().tolist()
        raise ValueError(
            f"reward '{name}' returned {values[bad[0]].item()} for {len(bad)} of {len(values)} images (first: row "
            f"{bad[0]}, prompt '{prompts[bad[0]].text}'); return a finite number for every image, or let such images "
            'be left out by scoring.missing = "mask"'
        )


def _column(name: str, values: object, count: int) -> Tensor:
    """What a reward returned as (B,) float64 on the CPU, if it is that."""
    if not isinstance(values, Tensor):
        try:
            values = torch.as_tensor(values, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            raise InvalidRewardOutput(
                f"reward '{name}' returned {_described(values)}; it must return {count} numbers, one an image"
            ) from None

    if values.is_complex() or values.shape != (count,):
        raise InvalidRewardOutput(
            f"reward '{name}' returned {_described(values)} for {count} images; "
            f"it must return shape ({count},), one number an image"
        )

    return values.detach().to(device="cpu", dtype=torch.float64)


def _described(values: object) -> str:
    if isinstance(values, Tensor):
        return f"a {str(values.dtype).removeprefix('torch.')} tensor of shape {tuple(values.shape)}"
    return f"a {type(values).__name__}"


def _reason(values: Tensor, failure: Exception | None) -> str:
    return (
        _said(failure)
        if failure is not None
        else f"{int((~values.isfinite()).sum())} numbers were not finite"
    )


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
