"""The images and seconds in which an arm reaches the gain at which its baseline ended.

It is reached at the first evaluation that is not below it: whole iterations, whatever lies between
them. Where the baseline gained nothing that is certain, there is nothing to reach.
"""

from __future__ import annotations

from statistics import mean
from typing import Any

from burnish.evaluation.paired import Evaluation
from experiments.curves import Curve


def first_at(curve: Curve, target: float | None) -> dict[str, Any] | None:
    """Return the first evaluation whose gain is not below `target`, None if there is none."""
    if target is None:
        return None
    return next((point for point in curve if point["train"]["gain"] >= target), None)


def target_of(baseline: Curve) -> float | None:
    """Return the gain at which a baseline ended; None if its interval includes 0 or less."""
    end = baseline[-1]["train"]
    return end["gain"] if end["ci95"][0] > 0 else None


def right_by_prompt(evaluation: Evaluation) -> list[float]:
    """Return the share of each prompt's images that the judge found right."""
    judged = evaluation.measures()["judge"]
    each = len(judged) // len(evaluation.prompts)
    return [mean(judged[start : start + each]) for start in range(0, len(judged), each)]


def outcome(curve: Curve, baseline: Curve) -> dict[str, Any]:
    """Return an arm's end, and what it needs to reach the gain at which the baseline ended.

    Args:
        curve: the arm's.
        baseline: the baseline's.
    """
    last = curve[-1]
    reached = first_at(curve, target_of(baseline))
    ends = baseline[-1]["train"]["by_seed"]
    by_seed = [
        next((p["images"] for p in curve if p["train"]["by_seed"][seed] >= end), None)
        for seed, end in enumerate(ends)
    ]

    return {
        "mean": last["train"]["gain"],
        "ci95": last["train"]["ci95"],
        "by_seed": last["train"]["by_seed"],
        "judge_before": curve[0]["train"]["judge"],
        "judge": last["train"]["judge"],
        "unseen": last["unseen"]["gain"],
        "unseen_ci95": last["unseen"]["ci95"],
        "judge_unseen": last["unseen"]["judge"],
        "images": last["images"],
        "seconds": last["seconds"],
        "images_to_ddpo": reached and reached["images"],
        "seconds_to_ddpo": reached and reached["seconds"],
        "judge_at_ddpo": reached and reached["train"]["judge"],
        "images_to_ddpo_by_seed": by_seed,
    }
