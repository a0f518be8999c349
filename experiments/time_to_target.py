"""The times at which learning curves reach the level at which another ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.curves import Curve


def time_to_target(
    seconds: Sequence[float], values: Sequence[float], target: float
) -> float | None:
    """Return the second at which a curve first reaches `target`, or None if it never does.

    The curve is a straight line between its points.
    """
    for i, value in enumerate(values):
        if value < target:
            continue
        if i == 0:
            return seconds[0]

        part = (target - values[i - 1]) / (value - values[i - 1])
        return seconds[i - 1] + part * (seconds[i] - seconds[i - 1])

    return None


def compare(ddpo: Curve, rlcm: Curve, value: str) -> dict[str, Any]:
    """Return the seconds that both need for DDPO's last `value`, and their ratio.

    Args:
        ddpo: the curve whose end is the target.
        rlcm: the curve that should reach it sooner.
        value: "reward" or "gain", of the training prompts.

    Returns:
        `target`, `ddpo_seconds`, `rlcm_seconds` and `ratio`. The ratio is None if DDPO
        gained nothing, or RLCM never reaches the target, or was above it before it began.
    """
    target = ddpo[-1]["train"][value]
    if target <= ddpo[0]["train"][value]:  # nothing was gained, so there is no target
        return {"target": target, "ddpo_seconds": None, "rlcm_seconds": None, "ratio": None}

    ddpo_seconds = _curve_seconds(ddpo, value, target)
    rlcm_seconds = _curve_seconds(rlcm, value, target)

    ratio = None
    if ddpo_seconds and rlcm_seconds:
        ratio = ddpo_seconds / rlcm_seconds

    return {
        "target": target,
        "ddpo_seconds": ddpo_seconds,
        "rlcm_seconds": rlcm_seconds,
        "ratio": ratio,
    }


def _curve_seconds(curve: Curve, value: str, target: float) -> float | None:
    seconds = [point["seconds"] for point in curve]
    values = [point["train"][value] for point in curve]
    return time_to_target(seconds, values, target)
