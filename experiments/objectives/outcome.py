"""The images and seconds in which an arm reaches the gain at which its baseline ended.

It is reached at the first evaluation that is not below it: whole iterations, whatever lies between
them. Where the baseline gained nothing that is certain, there is nothing to reach.
"""

from __future__ import annotations

from collections.abc import Mapping
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


def table(tasks: Mapping[str, Mapping[str, Mapping[str, Any]]], baseline: str) -> str:
    """Return a model's outcomes, by task and arm, as a Markdown table of docs/objectives.md.

    For pairs the change of what is judged right has its interval, in points.
    """
    lines = [
        "| task | objective | images | gain | unseen | judged right | images, seconds to the gain "
        f"of `{baseline}` | judged right there |",
        "|---|---|---|---|---|---|---|---|",
    ]

    for task, arms in tasks.items():
        for number, (name, row) in enumerate(arms.items()):
            low, high = row["ci95"]
            judged = f"{row['judge_before']:.0%} → {row['judge']:.0%}"
            if task == "alignment":
                least, most = (f"{100 * end:+.0f}" for end in row["judge_change_ci95"])
                judged += f" [{least}, {most}]"

            reached, judged_there = f"not within {row['images']}", ""
            if row["images_to_ddpo"] is not None:
                reached = f"{row['images_to_ddpo']}, {row['seconds_to_ddpo']:.0f}"
                judged_there = f"{row['judge_at_ddpo']:.0%}"

            gain = f"{row['mean']:.3f} [{low:.3f}, {high:.3f}]"
            cells = ["" if number else task, f"`{name}`", str(row["images"]), gain]
            cells += [f"{row['unseen']:.3f}", judged, reached, judged_there]
            lines.append("| " + " | ".join(cells) + " |")

    header, rows = lines[:2], lines[2:]
    return "\n".join([*header, *(row.replace("-", "−").replace("%", " %") for row in rows)])
