"""From the measurements to `result.json`, the figure and the grid of images.

Gains are paired: the same prompt and the same noise as the model before training, which has no
expander. Intervals are rliable's stratified bootstrap over seeds and prompts. The hypervolume is
that of all images of the training prompts, in four rewards, each in standard deviations of the
model's before training and counted from two of them below its mean. Steering is in these units too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import moocore
import numpy as np
from torch import Tensor

from burnish.evaluation.paired import Evaluation
from burnish.files import dumps, write
from burnish.tools.gallery import draw, preferred
from burnish.types import Prompt
from experiments.figures import IMAGES, pyplot, save_figure, style
from experiments.image_rows import image_rows
from experiments.measurements import gain_interval, require_evaluation, share_right
from experiments.objectives.outcome import right_by_prompt
from experiments.parrot import plan
from experiments.parrot.measure import (
    STEERED,
    arm_seeds,
    measurement_path,
    open_arm,
    steering_path,
)
from experiments.parrot.prompts import by_kind
from experiments.parrot.simulate import LOWEST, load_pool, pool_path, simulate
from experiments.parrot.tables import TABLES
from experiments.running import run_folder

FOLDER = Path(__file__).parent
SHOWN = 2.4  # standard deviations up and down: the figure's scale
# arms that sums are compared with
SELECTING = ("front", "pareto", "pareto_longer", "no_expander", "parrot", "parrot_started")
GRID_PROMPTS = 8
GRID_ARMS = (
    "base",
    "ws1",
    "ws2",
    "normalised",
    "normalised_balanced",
    "no_expander",
    "expander_only",
    "no_original",
    "parrot",
)


def report(out: Path, budget: plan.Budget) -> None:
    """Write the results, draw the figures and print the tables.

    Those of the quick budget, which mean nothing, stay in the experiment's folder.
    """
    base = require_evaluation(out / "measured" / "base.json")
    rewards = reward_array(base["train"])
    mean = rewards.mean((0, 1))
    std = rewards.reshape(-1, rewards.shape[-1]).std(0)

    arms = {name: arm_result(out, name, base, mean, std, budget) for name in plan.arms(budget)}
    sums = [name for name in plan.SUMS if name in arms]
    result: dict[str, Any] = {
        "seeds": list(budget.seeds),
        "queries": budget.queries,
        "std": dict(zip(plan.REWARDS, std.tolist(), strict=True)),
        "arms": arms,
        "dominated_by": [name for name in sums if dominates(arms[name], arms["parrot"])],
        "sums_that_dominate": {
            arm: [name for name in rivals(arm, arms) if dominates(arms[name], arms[arm])]
            for arm in SELECTING
            if arm in arms
        },
        "highest_hypervolume": max(
            (name for name in arms if not name.startswith("only_") and name not in plan.LONGER),
            key=lambda name: arms[name]["hypervolume"],
        ),
        "alignment_recovered": alignment_recovered(arms),
        **steering(out, base, std, budget),
        "simulation": simulate(load_pool(pool_path(out, budget))),
    }

    images = out if budget.quick else IMAGES
    write((out if budget.quick else FOLDER) / "result.json", dumps(result, indent=1) + "\n")
    draw_gains(arms, std, images)
    draw_grid(out, images, budget)

    for table in TABLES:
        print(f"{table(result)}\n")
    for key in ("sums_that_dominate", "highest_hypervolume", "alignment_recovered"):
        print(f"{key}: {result[key]}")


def reward_array(evaluation: Evaluation) -> np.ndarray:
    """Return an evaluation's rewards, (prompts, images of each, rewards)."""
    rewards = np.array(evaluation.parts, dtype=float)
    return rewards.reshape(len(evaluation.prompts), evaluation.images_per_prompt, -1)


def arm_result(
    out: Path,
    name: str,
    base: dict[str, Evaluation],
    mean: np.ndarray,
    std: np.ndarray,
    budget: plan.Budget,
) -> dict[str, Any]:
    """Return all numbers of an arm; `mean` and `std` are those of the base's rewards."""
    paths = [measurement_path(out, name, seed) for seed in arm_seeds(name, budget)]
    measured = [require_evaluation(path) for path in paths]
    rewards = np.stack([reward_array(each["train"]) for each in measured])

    gain = gain_by_reward(measured, base, "train")
    volumes = [hypervolume(each, mean, std) for each in rewards]
    return {
        "gain": gain,
        "unseen": gain_by_reward(measured, base, "unseen"),
        "reward": dict(zip(plan.REWARDS, rewards.mean((0, 1, 2)).tolist(), strict=True)),
        "improved": sum(each["ci95"][0] > 0 for each in gain.values()),
        "hypervolume": float(np.mean(volumes)),
        "hypervolume_by_seed": volumes,
        "judged": float(np.mean([share_right(each["train"]) for each in measured])),
        "judged_unseen": float(np.mean([share_right(each["unseen"]) for each in measured])),
        "judged_by_kind": judged_by_kind([each["train"] for each in measured]),
        "judged_change": judged_change([each["train"] for each in measured], base["train"]),
    }


def judged_by_kind(evaluations: Sequence[Evaluation]) -> dict[str, float]:
    """Return the share of images that the judge found right, by the kind of prompt."""
    prompts = evaluations[0].prompts
    right = np.mean([right_by_prompt(each) for each in evaluations], 0)
    return {
        kind: float(right[[text in texts for text in prompts]].mean())
        for kind, texts in by_kind("train").items()
    }


def judged_change(evaluations: Sequence[Evaluation], before: Evaluation) -> dict[str, Any]:
    """Return by how much the share that is judged right changed, paired."""
    right = np.array([right_by_prompt(each) for each in evaluations])
    return mean_gain(right - np.array(right_by_prompt(before)))


def gain_by_reward(
    measured: Sequence[dict[str, Evaluation]], base: dict[str, Evaluation], split: str
) -> dict[str, Any]:
    """Return the mean gain over the base in each reward, with its interval."""
    gains = np.moveaxis(paired_gains([each[split] for each in measured], base[split]), -1, 0)
    return {
        name: {**mean_gain(gain), "by_seed": gain.mean(1).tolist()}
        for name, gain in zip(plan.REWARDS, gains, strict=True)
    }


def paired_gains(evaluations: Sequence[Evaluation], before: Evaluation) -> np.ndarray:
    """Return the gains of each prompt, (seeds, prompts, rewards)."""
    start = reward_array(before)
    return np.stack([(reward_array(each) - start).mean(1) for each in evaluations])


def mean_gain(gains: np.ndarray) -> dict[str, Any]:
    """Return the mean of (seeds, prompts) gains, with its interval."""
    return {"mean": float(gains.mean()), "ci95": gain_interval(gains)}


def hypervolume(rewards: np.ndarray, mean: np.ndarray, std: np.ndarray) -> float:
    """Return the hypervolume of images' rewards (prompts, images, rewards)."""
    points = (rewards.reshape(-1, rewards.shape[-1]) - mean) / std + LOWEST
    return float(moocore.hypervolume(-points, ref=np.zeros(points.shape[1])))


def dominates(arm: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return True if an arm's mean gains dominate another's."""
    pairs = [(arm["gain"][name]["mean"], other["gain"][name]["mean"]) for name in plan.REWARDS]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def rivals(arm: str, arms: Mapping[str, Any]) -> list[str]:
    """Return the sums that learned from as many images as an arm."""
    if arm in plan.LONGER:
        return [name for name in plan.LONGER if name != arm and name in arms]
    return [name for name in plan.SUMS if name in arms]


def alignment_recovered(arms: Mapping[str, Any]) -> dict[str, float]:
    """Return the share of the alignment lost by expansion that dual guidance brings back.

    That guidance is centred on the original prompt. Where expansion costs nothing the share means
    nothing.
    """
    triples = {
        "expander alone": ("base", "expander_only", "expander_only_dual"),
        "parrot, against itself without expander": ("no_expansion", "no_original", "parrot"),
    }
    alignment = {name: arm["gain"]["alignment"]["mean"] for name, arm in arms.items()}
    return {
        case: (alignment[dual] - alignment[plain]) / (alignment[before] - alignment[plain])
        for case, (before, plain, dual) in triples.items()
    }


def steering(
    out: Path, base: dict[str, Evaluation], std: np.ndarray, budget: plan.Budget
) -> dict[str, Any]:
    """Return the gains by asked identifier and reward, and how each column's diagonal stands out.

    Returns:
        `steering` and `steering_ci95`, a row an identifier and a column a reward, in standard
        deviations; `diagonal` with, for each reward, the `margin` of asking for it over the best
        other, paired, and its `ci95`.
    """
    by_identifier = []
    for name in plan.REWARDS:
        paths = [steering_path(out, name, seed) for seed in budget.seeds]
        evaluations = [require_evaluation(path)["train"] for path in paths]
        by_identifier.append(paired_gains(evaluations, base["train"]) / std)

    gains = np.stack(by_identifier)  # (asked, seeds, prompts, rewards)
    return {
        "steering": gains.mean((1, 2)).tolist(),
        "steering_ci95": [
            [gain_interval(column) for column in np.moveaxis(rows, -1, 0)] for rows in gains
        ],
        "diagonal": {
            name: margin(gains[..., number], number) for number, name in enumerate(plan.REWARDS)
        },
    }


def margin(gains: np.ndarray, own: int) -> dict[str, Any]:
    """Return by how much one row of (asked, seeds, prompts) gains exceeds the best other."""
    means = gains.mean((1, 2))
    means[own] = -np.inf
    best = int(means.argmax())
    over = mean_gain(gains[own] - gains[best])
    return {"margin": over["mean"], "ci95": over["ci95"], "over": plan.REWARDS[best]}


def draw_gains(arms: dict[str, Any], std: np.ndarray, folder: Path) -> None:
    """Draw the gain in every reward, one group of bars an arm."""
    figure, axis = pyplot.subplots(figsize=(16, 4.2))
    names = [name for name in arms if name != "base"]

    for number, reward in enumerate(plan.REWARDS):
        gains = [arms[name]["gain"][reward] for name in names]
        heights = np.array([gain["mean"] for gain in gains]) / std[number]
        low, high = np.array([gain["ci95"] for gain in gains]).T / std[number]
        axis.bar(
            np.arange(len(names)) + 0.2 * (number - 1.5),
            heights,
            0.18,
            label=reward,
            # percentiles of a bootstrap need not lie around the mean where all gains are the same
            yerr=[(heights - low).clip(0), (high - heights).clip(0)],
            error_kw={"linewidth": 0.8},
        )

        for place, height in enumerate(heights):
            if abs(height) > SHOWN:
                axis.text(
                    place + 0.2 * (number - 1.5),
                    0.8 * np.sign(height) * SHOWN,
                    f"{height:.1f}",
                    {"color": "white", "fontsize": 8, "rotation": 90, "ha": "center"},
                )

    axis.set_ylim(-SHOWN, SHOWN)
    axis.set_xticks(range(len(names)), [name.replace("_", "\n") for name in names], fontsize=7)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_ylabel("paired gain, standard deviations before")
    axis.legend(frameon=False, fontsize=8)
    style([axis], grid=False)
    save_figure(figure, "parrot.png", folder)


def draw_grid(out: Path, folder: Path, budget: plan.Budget) -> None:
    """Draw the same prompts and noise for some arms, and for each identifier; first seed."""
    shown = [name for name in GRID_ARMS if name in plan.arms(budget)]
    rows = {name: _grid_row(out, budget, name) for name in shown}
    rows |= {f"asked: {name}": _grid_row(out, budget, STEERED, name) for name in plan.REWARDS}
    image_rows(rows).save(folder / "parrot_grid.png")


def _grid_row(out: Path, budget: plan.Budget, arm: str, reward: str = "") -> Tensor:
    seed = budget.seeds[0]
    source = open_arm(out, plan.ARMS[arm], seed)

    template = source.template
    if reward:
        template = preferred(str(out / run_folder(plan.TASK, arm, seed)), reward)

    # of each kind the first, the second ...
    kinds = zip(*by_kind("train").values(), strict=False)
    texts = [text for each in kinds for text in each][:GRID_PROMPTS]
    prompts = [Prompt(text, template=template) for text in texts]
    return draw(source.policy, source.sampler, prompts, 1, 7, source.expander)
