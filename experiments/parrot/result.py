"""From the measurements to `result.json`, the figure and the grid of images.

Gains are paired: the same prompt and the same noise as the model before training, which has no
expander. Intervals are rliable's stratified bootstrap over seeds and prompts. The hypervolume is
that of all images of the animals, in four rewards, each in standard deviations of the model's
before training and counted from two of them below its mean.
"""

from __future__ import annotations

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
from experiments.parrot import plan
from experiments.parrot.measure import is_trained, measurement_path, open_arm, preference_path
from experiments.running import run_folder

FOLDER = Path(__file__).parent
LOWEST = 2.0  # standard deviations below the mean from which hypervolumes count
NOUNS = ("cat", "horse", "bear", "fox", "spider", "duck", "lion", "llama")
GRID_ARMS = (
    "base",
    "ws1",
    "ws2",
    "normalised",
    "no_expander",
    "expander_only",
    "no_original",
    "parrot",
)


def report(out: Path) -> None:
    """Write the results, draw the figures and print the tables."""
    base = require_evaluation(out / "measured" / "base.json")
    rewards = reward_array(base["train"])
    mean = rewards.mean((0, 1))
    std = rewards.reshape(-1, rewards.shape[-1]).std(0)

    arms = {name: arm_result(out, name, base, mean, std) for name in plan.ARMS}
    compared = [name for name in plan.ARMS if "only_" not in name]
    result: dict[str, Any] = {
        "seeds": list(plan.SEEDS),
        "queries": plan.QUERIES,
        "std": dict(zip(plan.REWARDS, std.tolist(), strict=True)),
        "arms": arms,
        "dominated_by": [name for name in compared if dominates(arms[name], arms["parrot"])],
        "alignment_recovered": alignment_recovered(arms),
        "prefer": preference_gains(out, base),
    }
    write(FOLDER / "result.json", dumps(result, indent=1) + "\n")
    draw_gains(arms, std)
    draw_grid(out)

    print(table(arms, std))
    for key in ("dominated_by", "alignment_recovered"):
        print(f"{key}: {result[key]}")
    print(preference_table(result["prefer"], std))


def reward_array(evaluation: Evaluation) -> np.ndarray:
    """Return an evaluation's rewards, (prompts, images of each, rewards)."""
    rewards = np.array(evaluation.parts, dtype=float)
    return rewards.reshape(len(evaluation.prompts), evaluation.images_per_prompt, -1)


def arm_result(
    out: Path, name: str, base: dict[str, Evaluation], mean: np.ndarray, std: np.ndarray
) -> dict[str, Any]:
    """Return all numbers of an arm; `mean` and `std` are those of the base's rewards."""
    seeds = plan.SEEDS if is_trained(name) else plan.SEEDS[:1]
    measured = [require_evaluation(measurement_path(out, name, seed)) for seed in seeds]
    rewards = np.stack([reward_array(each["train"]) for each in measured])

    gain = gain_by_reward(measured, base, "train")
    unseen = gain_by_reward(measured, base, "unseen")
    volumes = [hypervolume(each, mean, std) for each in rewards]

    return {
        "gain": gain,
        "unseen": unseen,
        "reward": dict(zip(plan.REWARDS, rewards.mean((0, 1, 2)).tolist(), strict=True)),
        "improved": sum(each["ci95"][0] > 0 for each in gain.values()),
        "hypervolume": float(np.mean(volumes)),
        "hypervolume_by_seed": volumes,
        "judged": float(np.mean([share_right(each["train"]) for each in measured])),
    }


def gain_by_reward(
    measured: list[dict[str, Evaluation]], base: dict[str, Evaluation], split: str
) -> dict[str, Any]:
    """Return the mean gain over the base in each reward, with its interval."""
    before = reward_array(base[split])
    # (seeds, prompts, rewards)
    gains = np.stack([(reward_array(each[split]) - before).mean(1) for each in measured])
    return {
        name: {
            "mean": float(gain.mean()),
            "ci95": gain_interval(gain),
            "by_seed": gain.mean(1).tolist(),
        }
        for name, gain in zip(plan.REWARDS, np.moveaxis(gains, -1, 0), strict=True)
    }


def hypervolume(rewards: np.ndarray, mean: np.ndarray, std: np.ndarray) -> float:
    """Return the hypervolume of images' rewards (prompts, images, rewards)."""
    points = (rewards.reshape(-1, rewards.shape[-1]) - mean) / std + LOWEST
    return float(moocore.hypervolume(-points, ref=np.zeros(points.shape[1])))


def dominates(arm: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return True if an arm's mean gains dominate another's."""
    pairs = [(arm["gain"][name]["mean"], other["gain"][name]["mean"]) for name in plan.REWARDS]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def alignment_recovered(arms: dict[str, Any]) -> dict[str, float]:
    """Return the share of the alignment lost by expansion that dual guidance brings back.

    That guidance is centred on the original prompt.
    """
    triples = {
        "expander alone": ("base", "expander_only", "expander_only_dual"),
        "parrot, against itself without expander": ("no_expander", "no_original", "parrot"),
    }
    alignment = {name: arm["gain"]["alignment"]["mean"] for name, arm in arms.items()}
    return {
        case: (alignment[dual] - alignment[plain]) / (alignment[before] - alignment[plain])
        for case, (before, plain, dual) in triples.items()
    }


def preference_gains(out: Path, base: dict[str, Evaluation]) -> dict[str, dict[str, float]]:
    """Return the gains of Parrot without expander, first seed, with one reward's identifier."""
    paths = {name: preference_path(out, name) for name in plan.REWARDS}
    paths["all"] = measurement_path(out, "no_expander", plan.SEEDS[0])
    before = reward_array(base["train"])
    gains = {}

    for name, path in paths.items():
        after = reward_array(require_evaluation(path)["train"])
        gain = (after - before).mean((0, 1))
        gains[name] = dict(zip(plan.REWARDS, gain.tolist(), strict=True))

    return gains


def table(arms: dict[str, Any], std: np.ndarray) -> str:
    """Return the outcome as the Markdown table of the docs.

    Gains are in standard deviations of a reward among the images before training.
    """
    lines = [
        f"| arm | {' | '.join(plan.REWARDS)} | improved | hypervolume | judged right |",
        "|---" * 8 + "|",
    ]

    for name, arm in arms.items():
        cells = [
            f"{gain['mean'] / s:+.2f} [{gain['ci95'][0] / s:+.2f}, {gain['ci95'][1] / s:+.2f}]"
            for gain, s in zip(arm["gain"].values(), std, strict=True)
        ]
        cells += [f"{arm['improved']}", f"{arm['hypervolume']:.0f}", f"{arm['judged']:.0%}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")

    return "\n".join(lines)


def preference_table(gains: dict[str, dict[str, float]], std: np.ndarray) -> str:
    """Return the effect of a single target reward, in the same units."""
    lines = [f"| target reward | {' | '.join(plan.REWARDS)} |", "|---" * 5 + "|"]

    for name, gain in gains.items():
        cells = [f"{value / s:+.2f}" for value, s in zip(gain.values(), std, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")

    return "\n".join(lines)


def draw_gains(arms: dict[str, Any], std: np.ndarray) -> None:
    """Draw the gain in every reward, one group of bars an arm."""
    figure, axis = pyplot.subplots(figsize=(12, 4.2))
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
            yerr=[heights - low, high - heights],
            error_kw={"linewidth": 0.8},
        )

    axis.set_xticks(range(len(names)), [name.replace("_", "\n") for name in names], fontsize=8)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_ylabel("paired gain, standard deviations before")
    axis.legend(frameon=False, fontsize=8)
    style([axis], grid=False)
    save_figure(figure, "parrot.png")


def draw_grid(out: Path) -> None:
    """Draw the same nouns and noise for some arms, and for each identifier alone; first seed."""
    rows = {name: _grid_row(out, name) for name in GRID_ARMS}
    rows |= {f"asked: {reward}": _grid_row(out, "no_expander", reward) for reward in plan.REWARDS}
    image_rows(rows).save(IMAGES / "parrot_grid.png")


def _grid_row(out: Path, arm: str, reward: str = "") -> Tensor:
    seed = plan.SEEDS[0]
    source = open_arm(out, plan.ARMS[arm], seed)

    template = source.template
    if reward:
        template = preferred(str(out / run_folder(plan.TASK, arm, seed)), reward)

    prompts = [Prompt(f"a {noun}", template=template) for noun in NOUNS]
    return draw(source.policy, source.sampler, prompts, 1, 7, source.expander)
