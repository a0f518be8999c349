"""Rewards that fail: they raise, take too long, or leave images without a number.

An image without a number is *missing*: NaN, never 0, because 0 would be a judgement. First the
reward is called again, with the missing images only, after a pause that doubles each time. If
images are still missing then, either that is an error, which ends the run (saved, so that it can be
resumed), or they are masked: nothing is learned from such an image and it enters no statistic. A
reward that raises for several images is asked about each alone before they are masked.

A reward is called in a thread, and waited for in short steps: between them `poll` may end the wait,
when a signal asks the run to end, and after a minute a line says which reward is waited for. A call
that takes too long is left running in its thread, because Python cannot end it; a reward that may
take too long must therefore work while an earlier call is still under way. An output that is wrong
for every image alike, such as a wrong shape, is a mistake in the reward and never tolerated, nor is
a reward that ends the program (`sys.exit`).
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from burnish.errors import type_and_message
from burnish.types import Prompt, Reward
from burnish.user_code import (
    AsynchronousError,
    NotNumbersError,
    described,
    own_prompts,
    run_user,
    to_column,
)

LOG = logging.getLogger(__name__)
STEP = 0.1
"""Seconds between two calls of `poll`."""

SILENCE = 60.0
"""Seconds without an answer after which a line says which reward is waited for."""


class InvalidRewardOutput(ValueError):
    """A reward returned something other than one number an image, or did not return at all."""


def keep_waiting() -> None:
    """Do nothing; stands for a `poll` that never ends a wait."""


@dataclass(frozen=True)
class Tolerance:
    """Limits for a reward that fails: retries, time, and what becomes of missing images."""

    retries: int = 0  # further calls for the images that are missing
    timeout: float = 0.0  # seconds for one call; 0 waits for ever
    mask: bool = False  # leave missing images out; otherwise they are an error
    pause: float = 1.0  # seconds before the first retry; each further one waits twice as long
    poll: Callable[[], None] = keep_waiting  # called often while waiting; it may raise to end it

    # seconds that each reward took at most, by name: a slow one is not reported at every call
    _longest: dict[str, float] = field(default_factory=dict, compare=False, repr=False)

    def call(
        self, name: str, reward: Reward, images: Tensor, prompts: Sequence[Prompt]
    ) -> tuple[Tensor, str]:
        """Return a reward's value for every image, and why values are missing.

        Args:
            name: of the reward, for messages.
            reward: the callable.
            images: (B, 3, H, W) float32 in [0, 1].
            prompts: B prompts.

        Returns:
            (B,) float64 on the CPU, NaN where a value is missing; the reason, "" if none is
            missing.

        Raises:
            InvalidRewardOutput: the reward did not return B numbers, or ended the program.
            ValueError: an image is missing, and missing images are not masked.
        """
        values = torch.full((len(prompts),), torch.nan, dtype=torch.float64)
        failure: Exception | None = None

        for attempt in range(self.retries + 1):
            missing = (~values.isfinite()).nonzero().flatten()
            if attempt:
                self._sleep(self.pause * 2 ** (attempt - 1))

            remaining = images
            if len(missing) < len(values):
                remaining = images[missing.to(images.device)]

            chosen = [prompts[row] for row in missing.tolist()]
            output = self._output(name, reward, remaining, chosen)
            failure = output if isinstance(output, Exception) else None
            if not isinstance(output, Exception):
                values[missing] = output

            if bool(values.isfinite().all()):
                return values, ""

        if not self.mask:
            raise _missing_error(name, values, prompts, failure) from failure

        # one image that a library fails on must not cost the others theirs; a server that cannot
        # be reached would fail for each of them
        missing = (~values.isfinite()).nonzero().flatten()
        if failure is not None and not isinstance(failure, OSError) and len(missing) > 1:
            for row in missing.tolist():
                rows = slice(row, row + 1)
                values[rows] = self._alone(name, reward, images[rows], prompts[rows])

        return torch.where(values.isfinite(), values, torch.nan), _reason(values, failure)

    def _alone(
        self, name: str, reward: Reward, images: Tensor, prompts: Sequence[Prompt]
    ) -> Tensor | float:
        """Return the reward's value for one image, NaN where it raises."""
        output = self._output(name, reward, images, prompts)
        return torch.nan if isinstance(output, Exception) else output

    def _output(
        self, name: str, reward: Reward, images: Tensor, prompts: Sequence[Prompt]
    ) -> Tensor | Exception:
        """Return the reward's values, or the error that it raised; a TimeoutError after `timeout`.

        Raises:
            InvalidRewardOutput: the values are none, or the reward raised what ends programs.
        """
        outputs: list[Tensor] = []
        errors: list[BaseException] = []

        def call() -> None:
            try:
                with torch.no_grad():
                    outputs.append(_ask(name, reward, images, prompts))
            except BaseException as error:
                errors.append(error)

        # A daemon, unlike a thread of a pool: a reward that never returns must not keep the
        # program from ending.
        thread = threading.Thread(target=call, name="reward", daemon=True)
        thread.start()
        self._wait_for(thread, name)

        if outputs:
            return outputs[0]
        if not errors:
            return TimeoutError(f"no answer within {self.timeout:g} s")
        if isinstance(errors[0], InvalidRewardOutput):
            raise errors[0]
        if isinstance(errors[0], Exception):
            return errors[0]

        raise InvalidRewardOutput(_ends_programs(name, errors[0])) from errors[0]

    def _wait_for(self, thread: threading.Thread, name: str) -> None:
        """Wait until a reward's thread ends, or `timeout` is over."""
        started = time.monotonic()
        limit = self.timeout or math.inf
        patience = max(SILENCE, 2 * self._longest.get(name, 0.0))
        elapsed = 0.0

        while thread.is_alive() and elapsed < limit:
            thread.join(min(STEP, limit - elapsed))
            elapsed = time.monotonic() - started
            if not thread.is_alive():
                break

            self.poll()
            if elapsed > patience:
                patience = math.inf
                LOG.warning("%s", _still_waiting(name, elapsed, self.timeout))

        self._longest[name] = max(elapsed, self._longest.get(name, 0.0))

    def _sleep(self, seconds: float) -> None:
        while seconds > 0:
            time.sleep(min(STEP, seconds))
            seconds -= STEP
            self.poll()


def _still_waiting(name: str, elapsed: float, timeout: float) -> str:
    limit = f"scoring.timeout = {timeout:g} gives up on it"
    if timeout == 0:
        limit = "it is waited for until scoring.timeout = SECONDS sets a limit"
    return (
        f"reward '{name}' has not answered for {elapsed:.0f} s; {limit}; "
        "Ctrl+C saves the run and stops it"
    )


def _missing_error(
    name: str, values: Tensor, prompts: Sequence[Prompt], failure: Exception | None
) -> ValueError:
    """Return the error for values that are missing after the last try."""
    if failure is not None:
        return ValueError(
            f"reward '{name}' raised {described(failure)} -- "
            "try it alone with burnish.check_reward, or let such images be left out by "
            'scoring.missing = "mask"'
        )

    rows = (~values.isfinite()).nonzero().flatten().tolist()
    first = rows[0]
    return ValueError(
        f"reward '{name}' returned {values[first].item()} for {len(rows)} of {len(values)} images "
        f"(first: row {first}, prompt '{prompts[first].text}'); return a finite number for every "
        'image, or let such images be left out by scoring.missing = "mask"'
    )


def _ask(name: str, reward: Reward, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """Return a reward's values (B,) float64 on the CPU for copies of images and prompts.

    Raises:
        InvalidRewardOutput: the output is not one number an image; the message names the reward.
    """
    count = len(prompts)

    def answer() -> object:
        output: object = reward(images.clone(), own_prompts(prompts))
        return list(islice(output, count + 1)) if isinstance(output, Iterator) else output

    try:
        return to_column(run_user(f"reward '{name}'", answer), count)
    except AsynchronousError as error:
        raise InvalidRewardOutput(str(error)) from None
    except SystemExit as error:
        raise InvalidRewardOutput(_ends_programs(name, error)) from error
    except NotNumbersError as error:
        raise InvalidRewardOutput(
            f"reward '{name}' returned {error} for {count} images; it must return "
            f"shape ({count},), one number an image (None where there is none)"
        ) from None


def _ends_programs(name: str, error: BaseException) -> str:
    """Return the message about a reward that raised what ends programs."""
    return (
        f"reward '{name}' raised {described(error)}, which ends programs; it must return numbers, "
        "NaN for an image that it has none for"
    )


def _reason(values: Tensor, failure: Exception | None) -> str:
    """Return why values are missing; "" if none is."""
    if bool(values.isfinite().all()):
        return ""
    if failure is not None:
        return type_and_message(failure)
    return f"{int((~values.isfinite()).sum())} numbers were not finite"
