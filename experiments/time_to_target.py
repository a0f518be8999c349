"""The seconds in which a learning curve reaches the level at which another ended.

A level is reached at the first evaluation that is not below it: whole iterations, whatever lies
between them.
"""

from __future__ import annotations

from typing import Any

from experiments.curves import Curve


def compare(baseline: Curve, curve: Curve, value: str) -> dict[str, Any]:
    """Return the seconds that both need for the baseline's last `value`, and their ratio.

    Args:
        baseline: the curve whose end is the target.
        curve: the curve that should reach it sooner.
        value: "reward" or "gain", of the training prompts.

    Returns:
        `target`, `baseline_seconds`, `seconds`, `judge` (the share judged right there), `unseen`
        (gain on unseen prompts there), `ratio` of the seconds, and `bound`, which the ratio is at
        least (it is above the target before it began) or at most (it does not reach it). Where
        the baseline's gain is not surely above 0 there is no target and all are None.
    """
    end = baseline[-1]
    if end["train"]["gain_ci95"][0] <= 0:
        names = ("target", "baseline_seconds", "seconds", "judge", "unseen", "ratio", "bound")
        return dict.fromkeys(names)

    target = end["train"][value]
    reached = next((point for point in curve if point["train"][value] >= target), None)
    found: dict[str, Any] = {
        "target": target,
        "baseline_seconds": end["seconds"],
        "seconds": reached and reached["seconds"],
        "judge": reached and reached["train"]["judge"],
        "unseen": reached and reached["unseen"]["gain"],
        "ratio": None,
        "bound": None,
    }

    if reached is None:
        return found | {"bound": f"< {end['seconds'] / curve[-1]['seconds']:.1f}"}
    if not reached["seconds"]:
        return found | {"bound": f"> {end['seconds'] / curve[1]['seconds']:.1f}"}

    return found | {"ratio": end["seconds"] / reached["seconds"]}
