"""The tables of docs/votes.md, and what the aim is measured by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.votes import plan

AIM = 100  # votes
HALF = 0.5  # of the ceiling's gain
KEPT = 0.95  # of the images that were judged right before training

Point = dict[str, Any]
"""An evaluation of an arm: `iteration`, `votes`, `images`, `gain`, `ci95`, `by_seed`, `judge`."""


def after(curve: Sequence[Point], votes: int) -> Point | None:
    """Return the point of a curve after the iterations of so many votes; None if it ends before."""
    return next((point for point in curve if point["iteration"] == votes // plan.VOTES), None)


def at_aim(curve: Sequence[Point]) -> Point:
    """Return the point of a curve at which the aim is judged; SystemExit if it ends before."""
    point = after(curve, AIM)
    if point is None:
        raise SystemExit(f"a run ends before {AIM} votes: train all of them first")
    return point


def judge_share(curve: Sequence[Point], point: Point) -> float:
    """Return what the judge finds right at a point as a share of what it was before training."""
    return float(point["judge"] / curve[0]["judge"])


def ceilings(arms: Mapping[str, Any]) -> list[str]:
    """Return the ceilings that there are among the arms of a result."""
    return [name for name in plan.CEILINGS if name in arms]


def voted(result: Mapping[str, Any]) -> dict[str, list[Point]]:
    """Return the curves of the arms that learn from votes."""
    return {name: curve for name, curve in result["arms"].items() if asks(name)}


def asks(name: str) -> bool:
    """Return whether an arm learns from votes."""
    return plan.ARMS[name].votes and name != "control"


def budgets_table(result: Mapping[str, Any]) -> str:
    """Return each arm's gain and what the judge finds right by budget, as a Markdown table."""
    heads = " | ".join(f"{votes} votes" for votes in plan.BUDGETS)
    lines = [f"| learned from | {heads} |", "|---|" + "---|" * len(plan.BUDGETS)]

    for name, curve in voted(result).items():
        cells = [point_cell(after(curve, votes)) for votes in plan.BUDGETS]
        lines.append(f"| {plan.ARMS[name].label} | " + " | ".join(cells) + " |")

    return "\n".join(lines)


def point_cell(point: Point | None) -> str:
    """Return a gain with its interval, and what the judge finds right; "not run" for None."""
    if point is None:
        return "not run"
    low, high = point["ci95"]
    return f"{point['gain']:+.2f} [{low:.2f}, {high:.2f}], {percent(point['judge'])}"


def aim_table(result: Mapping[str, Any]) -> str:
    """Return how far the aim is met, as a Markdown table: each arm against the ceilings."""
    arms = result["arms"]
    highest = {name: at_aim(arms[name]) for name in ceilings(arms)}
    heads = [f"of the taste's from {point['images']} images" for point in highest.values()]
    heads = [f"after {AIM} votes", "images", "gain", *heads, "the judge keeps", "aim"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]

    for name in (*voted(result), *highest):
        curve, arm = arms[name], plan.ARMS[name]
        point = at_aim(curve)
        shares = [point["gain"] / ceiling["gain"] for ceiling in highest.values()]
        met = "met" if min(shares) >= HALF and judge_share(curve, point) >= KEPT else "missed"
        cells = [arm.label, str(point["images"]), f"{point['gain']:+.2f}"]
        cells += [percent(share) for share in shares]
        cells += [f"{100 * judge_share(curve, point):.1f} %"]
        lines.append("| " + " | ".join([*cells, met if arm.votes else ""]) + " |")

    return "\n".join(lines)


def fresh_table(result: Mapping[str, Any]) -> str:
    """Return how far the aim is met with the rates that were chosen anew, as a Markdown table."""
    curves = result["fresh"]
    ceiling = at_aim(curves["taste"])["gain"]
    heads = ["with fresh seeds", "rate", "gain", "of the taste's", "the judge keeps", "aim"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]

    for name, curve in curves.items():
        arm, point = plan.FRESH[name], at_aim(curve)
        low, high = point["ci95"]
        share, judged = point["gain"] / ceiling, judge_share(curve, point)
        met = "met" if share >= HALF and judged >= KEPT else "missed"
        cells = [arm.label, f"{arm.rate:g}", f"{point['gain']:+.2f} [{low:.2f}, {high:.2f}]"]
        cells += [percent(share), f"{100 * judged:.1f} %", met if arm.votes else ""]
        lines.append("| " + " | ".join(cells) + " |")

    return "\n".join(lines)


def percent(share: float) -> str:
    """Return a share in percent, as a person writes it."""
    return f"{100 * share:.0f} %"


def heads_table(result: Mapping[str, Any]) -> str:
    """Return how well heads know the taste, by what they read, as a Markdown table."""
    heads = " | ".join(f"{votes} votes" for votes in plan.BUDGETS)
    lines = [f"| a head reads | {heads} |", "|---|" + "---|" * len(plan.BUDGETS)]
    for which, by_votes in result["heads"].items():
        cells = [f"{by_votes[str(votes)]:.2f}" for votes in plan.BUDGETS]
        lines.append("| " + " | ".join([f"`{which}`", *cells]) + " |")
    return "\n".join(lines)


def with_table(page: str, table: str) -> str:
    """Return a page with a table in the place of the one that begins alike.

    Raises:
        ValueError: the page has none whose first column has this name.
    """
    name = table.split("|")[1]
    lines = page.splitlines(keepends=True)
    starts = [row for row, line in enumerate(lines) if line.startswith(f"|{name}|")]
    if len(starts) != 1:
        raise ValueError(f"the page has {len(starts)} tables that begin with '{name.strip()}'")

    start = end = starts[0]
    while end < len(lines) and lines[end].startswith("|"):
        end += 1
    return "".join([*lines[:start], f"{table}\n", *lines[end:]])


TABLES = (aim_table, fresh_table, budgets_table, heads_table)
