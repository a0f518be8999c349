"""The tables of docs/parrot.md, from `result.json`. Gains are in standard deviations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.parrot import plan

NUMBERS = ", ".join(f"{weight:g}" for weight in plan.SUM_WEIGHTS)
LABELS: Mapping[str, str] = {
    "base": "before training",
    **{f"only_{name}": f"{name} alone" for name in plan.REWARDS},
    "ws1": "WS1, raw sum 0.7, 0.1, 0.1, 0.1",
    "ws2": "WS2, raw sum 0.25 each",
    "normalised": "normalised sum",
    "normalised_balanced": f"normalised sum, weights {NUMBERS}",
    "front": "Pareto front alone, no identifiers",
    "pareto": "Pareto selection, no identifiers",
    "normalised_balanced_longer": "the searched sum, 5,120 images",
    "pareto_longer": "Pareto selection, 5,120 images",
    "no_expander": "Parrot without expander",
    "control": "the same, learning rate 0",
    "expander_untrained": "expander before training",
    "expander_only": "expander alone",
    "expander_only_dual": "expander alone, original-prompt guidance",
    "no_joint": "no joint training",
    "no_expansion": "trained with expander, asked without",
    "no_original": "no original-prompt guidance",
    "parrot": "Parrot, full",
    "started_no_expansion": "supervised start, asked without expander",
    "started_no_original": "supervised start, no original-prompt guidance",
    "parrot_started": "Parrot, full, supervised start",
}
SELECTIONS: Mapping[str, str] = {
    "pareto": "Pareto front",
    "sum": "largest sums",
    "balanced_sum": f"largest sums, weights {NUMBERS}",
}


def arms_table(result: Mapping[str, Any]) -> str:
    """Return every arm's gains, hypervolume, and what the judge sees."""
    rows = [
        [
            LABELS[name],
            *_gains(arm["gain"], result["std"], name == "base"),
            "" if name == "base" else str(arm["improved"]),
            f"{arm['hypervolume']:.0f}",
            f"{arm['judged']:.0%}",
        ]
        for name, arm in result["arms"].items()
    ]
    return _markdown(["arm", *plan.REWARDS, "improved", "hypervolume", "judged right"], rows)


def unseen_table(result: Mapping[str, Any]) -> str:
    """Return every arm's gains on unseen prompts."""
    rows = [
        [LABELS[name], *_gains(arm["unseen"], result["std"]), f"{arm['judged_unseen']:.0%}"]
        for name, arm in result["arms"].items()
        if name != "base"
    ]
    return _markdown(["arm", *plan.REWARDS, "judged right"], rows)


def kinds_table(result: Mapping[str, Any]) -> str:
    """Return what the judge sees in each kind of prompt."""
    kinds = list(result["arms"]["base"]["judged_by_kind"])
    rows = []

    for name, arm in result["arms"].items():
        shares = [f"{arm['judged_by_kind'][kind]:.0%}" for kind in kinds]
        low, high = (100 * end for end in arm["judged_change"]["ci95"])
        change = f"{100 * arm['judged_change']['mean']:+.0f} [{low:+.0f}, {high:+.0f}]"
        rows.append([LABELS[name], *shares, "" if name == "base" else change])

    return _markdown(["arm", *kinds, "change of all, points"], rows)


def steering_table(result: Mapping[str, Any]) -> str:
    """Return the gains in each reward, by the identifier that was asked for."""
    rows = []
    for name, means, intervals in zip(
        plan.REWARDS, result["steering"], result["steering_ci95"], strict=True
    ):
        cells = [_cell(mean, ends) for mean, ends in zip(means, intervals, strict=True)]
        rows.append([name, *cells])

    margins = [result["diagonal"][name] for name in plan.REWARDS]
    rows.append(["own less best other", *(_cell(each["margin"], each["ci95"]) for each in margins)])
    return _markdown(["asked for", *plan.REWARDS], rows)


def simulation_table(result: Mapping[str, Any]) -> str:
    """Return what selections of as many images lead to."""
    rows = []
    for size, outcome in result["simulation"].items():
        for key, label in SELECTIONS.items():
            chosen = outcome[key]
            share = f"{outcome['share']:.0%}"
            cells = [f"{chosen['z'][name]:+.2f}" for name in plan.REWARDS]
            rows.append([size, share, label, *cells, f"{chosen['hypervolume']:.0%}"])

    headings = ["images", "selected", "by", *plan.REWARDS, "hypervolume kept"]
    return _markdown(headings, rows)


def arrangements_table(gains: Mapping[str, Any]) -> str:
    """Return what each arrangement of a scene gains over the usual one (`arrangements.json`)."""
    units = dict.fromkeys(plan.REWARDS, 1.0)
    rows = [[name, *_gains(gain, units)] for name, gain in gains.items()]
    return _markdown(["arrangement", *plan.REWARDS], rows)


def _gains(
    gain: Mapping[str, Any], std: Mapping[str, float], without_interval: bool = False
) -> list[str]:
    if without_interval:
        return ["0"] * len(plan.REWARDS)
    return [
        _cell(gain[name]["mean"] / std[name], [end / std[name] for end in gain[name]["ci95"]])
        for name in plan.REWARDS
    ]


def _cell(mean: float, ends: Sequence[float]) -> str:
    return f"{mean:+.2f} [{ends[0]:+.2f}, {ends[1]:+.2f}]"


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("%", " %")


TABLES = (arms_table, unseen_table, kinds_table, steering_table, simulation_table)
