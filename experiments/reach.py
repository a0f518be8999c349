"""How much sooner one learning curve comes to where another ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Curve = list[dict[str, Any]]
"""Points with "seconds" and, in "train", a "reward" and a "gain"."""


def reached(seconds: Sequence[float], values: Sequence[float], target: float) -> float | None:
    """When a curve first comes to ``target``, in a straight line between its points; None if never."""
    for i, value in enumerate(values):
        if value >= target:
            if i == 0:
                return seconds[0]
            part = (target - values[i - 1]) / (value - values[i - 1])
            return seconds[i - 1] + part * (seconds[i] - seconds[i - 1])

    return None


def compare(ddpo: Curve, rlcm: Curve, value: str) -> dict[str, Any]:
    """The seconds both need for DDPO's last ``value`` ("reward" or "gain"), and their ratio: None
    if DDPO gained nothing, or RLCM never comes there, or was there before it began.
    """
    target = ddpo[-1]["train"][value]
    if target <= ddpo[0]["train"][value]:  # nothing was gained, so there is nothing to come to
        return {"target": target, "ddpo_seconds": None, "rlcm_seconds": None, "ratio": None}

    taken = {
        name: reached([p["seconds"] for p in points], [p["train"][value] for p in points], target)
        for name, points in (("ddpo", ddpo), ("rlcm", rlcm))
    }
    ratio = taken["ddpo"] / taken["rlcm"] if taken["ddpo"] and taken["rlcm"] else None
    return {
        "target": target,
        "ddpo_seconds": taken["ddpo"],
        "rlcm_seconds": taken["rlcm"],
        "ratio": ratio,
    }
