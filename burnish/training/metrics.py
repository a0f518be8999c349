"""Metrics: of the micro-batches of an update, the updates of an iteration, and all learners."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from burnish.checked import RECORD_KEYS


def merged_metrics(
    metrics: dict[str, float], new: Mapping[str, float], weight: float
) -> dict[str, float]:
    """Add a micro-batch's metrics: the largest ratio deviation, the mean of everything else."""
    merged = dict(metrics)
    for name, value in new.items():
        old = metrics.get(name, 0.0)
        if name == "ratio_deviation":
            merged[name] = old if value <= old else value  # NaN too
        else:
            merged[name] = old + weight * value

    return merged


def summary(updates: list[dict[str, float]]) -> dict[str, float]:
    """Return the means over an iteration's updates.

    Of the ratio deviation it is the value before the first update, where it must be 0 up to
    rounding.
    """
    if not updates:
        return {}

    means = {}
    for name in dict.fromkeys(name for update in updates for name in update):
        values = [update[name] for update in updates if name in update]
        means[name] = sum(values) / len(values)

    if "ratio_deviation" in updates[0]:
        means["ratio_deviation"] = updates[0]["ratio_deviation"]
    return means


def with_metrics(
    metrics: Mapping[str, Any], learner: str, new: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the metrics with a learner's, under their names in the record.

    The generator's have no prefix.

    Raises:
        ValueError: the record has such a name already.
    """
    prefix = "" if learner == "generator" else f"{learner}_"
    added = {f"{prefix}{name}": value for name, value in new.items()}
    taken = (RECORD_KEYS if prefix else metrics.keys()) | metrics.keys()
    if clash := taken & added.keys():
        raise ValueError(
            f'learner {learner}: the record has "{min(clash)}" already; rename this metric'
        )
    return {**metrics, **added}
