"""Metrics: of the micro-batches of an update, the updates of an iteration, and all learners."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

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


def of_all_processes(everybody: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the metrics of all processes as one's: the largest ratio deviation, other means.

    Args:
        everybody: by rank; a number that a process has not measured is left out of the mean, and
            what is no number is the first one's.
    """
    found = dict(everybody[0])
    for name in dict.fromkeys(name for metrics in everybody for name in metrics):
        given = [metrics[name] for metrics in everybody if name in metrics]
        if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in given):
            continue
        if name.endswith("ratio_deviation"):
            found[name] = max(given, key=lambda value: (math.isnan(value), value))
        elif len(set(given)) > 1:
            found[name] = sum(given) / len(given)
        else:
            found[name] = given[0]

    return found


def own_numbers(returned: object, record: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers by name that `on_record` returned; {} if it returned something else.

    Raises:
        ValueError: the record has such a name already, or a value is no number.
    """
    if not isinstance(returned, Mapping):
        return {}

    numbers = {str(name): plain_number(value) for name, value in returned.items()}
    for name, value in numbers.items():
        if name in record or name in RECORD_KEYS:
            raise ValueError(f'on_record: the record has "{name}" already; rename this number')
        if not isinstance(value, (int, float)):
            raise ValueError(
                f"on_record returned {name} = {value!r}; return numbers by name, or nothing"
            )
    return numbers


def plain_number(value: Any) -> Any:
    """Return a number for a tensor or an array of one number; anything else as it is."""
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else value
    return value.item() if type(value).__module__ == "numpy" and value.size == 1 else value


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
