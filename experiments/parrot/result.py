"""From the measurements to `result.json`, the figure and the grid of pictures.

Gains are paired: the same prompt and the same noise as the model before training, which has no
expander. Intervals are rliable's stratified bootstrap over seeds and prompts. The hypervolume is
that of all pictures of the animals, in four rewards, each in standard deviations of the model's
before training and counted from two of them below its mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import moocore
import numpy as np
from matplotlib import pyplot
from torch import Tensor

from burnish.evaluation.paired import Evaluation, load_evaluation
from burnish.runs import dumps, write
from burnish.tools.gallery import draw as paint
from burnish.tools.gallery import preferred
from burnish.types import Prompt
from experiments.parrot import plan
from experiments.parrot.measure import artist, learned, where
from experiments.reading import interval, share
from experiments.running import place
from experiments.sheet import sheet

matplotlib.use("Agg")
HERE = Path(__file__).parent
PICTURES = HERE.parent.parent / "docs" / "images"
LOWEST = 2.0  # standard deviations below the mean from which hypervolumes count
NOUNS = ("cat", "horse", "bear", "fox", "spider", "duck", "lion", "llama")
# in the grid
SHOWN = (
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
    """Everything that is written down."""
    base = read(out / "measured" / "base.json")
    rows = values(base["train"])
    mean = rows.mean((0, 1))
    std = rows.reshape(-1, rows.shape[-1]).std(0)
    arms = {name: describe(out, name, base, mean, std) for name in plan.ARMS}
    result: dict[str, Any] = {
        "seeds": list(plan.SEEDS),
        "queries": plan.QUERIES,
        "std": dict(zip(plan.REWARDS, std.tolist(), strict=True)),
        "arms": arms,
        "dominated_by": [
            name for name in plan.ARMS if "only_" not in name and beats(arms[name], arms["parrot"])
        ],
        "alignment_recovered": recovered(arms),
        "prefer": prefer(out, base),
    }
    write(HERE / "result.json", dumps(result, indent=1) + "\n")
    chart(arms, std)
    grid(out)
    print(table(arms, std))

    for key in ("dominated_by", "alignment_recovered"):
        print(f"{key}: {result[key]}")

    print(prefer_table(result["prefer"], std))


def read(path: Path) -> dict[str, Evaluation]:
    """A measurement; SystemExit if it was not made."""
    found = load_evaluation(path)
    if found is None:
        raise SystemExit(f"{path} is missing: run the experiment again, it goes on where it was")
    return found


def values(seen: Evaluation) -> np.ndarray:
    """(prompts, images of each, rewards)."""
    return np.array(seen.parts, dtype=float).reshape(len(seen.prompts), seen.images_per_prompt, -1)


def describe(
    out: Path, name: str, base: dict[str, Evaluation], mean: np.ndarray, std: np.ndarray
) -> dict[str, Any]:
    """All numbers of an arm."""
    seeds = plan.SEEDS if learned(name) else plan.SEEDS[:1]
    found = [read(where(out, name, seed)) for seed in seeds]
    pictures = np.stack([values(one["train"]) for one in found])
    gain, unseen = (
        by_reward(np.stack([(values(one[split]) - values(base[split])).mean(1) for one in found]))
        for split in base
    )
    volumes = [volume(values(one["train"]), mean, std) for one in found]

    return {
        "gain": gain,
        "unseen": unseen,
        "reward": dict(zip(plan.REWARDS, pictures.mean((0, 1, 2)).tolist(), strict=True)),
        "improved": sum(one["ci95"][0] > 0 for one in gain.values()),
        "hypervolume": float(np.mean(volumes)),
        "hypervolume_by_seed": volumes,
        "judged": float(np.mean([share(one["train"]) for one in found])),
    }


def by_reward(gains: np.ndarray) -> dict[str, Any]:
    """The mean gain of (seeds, prompts, rewards) in each reward, with its interval."""
    return {
        name: {
            "mean": float(gain.mean()),
            "ci95": interval(gain) if gain.any() else [0.0, 0.0],
            "by_seed": gain.mean(1).tolist(),
        }
        for name, gain in zip(plan.REWARDS, np.moveaxis(gains, -1, 0), strict=True)
    }


def volume(seen: np.ndarray, mean: np.ndarray, std: np.ndarray) -> float:
    """The hypervolume of the pictures (prompts, images, rewards)."""
    points = (seen.reshape(-1, seen.shape[-1]) - mean) / std + LOWEST
    return float(moocore.hypervolume(-points, ref=np.zeros(points.shape[1])))


def beats(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether an arm's mean gains dominate another's."""
    pairs = [(one["gain"][name]["mean"], other["gain"][name]["mean"]) for name in plan.REWARDS]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def recovered(arms: dict[str, Any]) -> dict[str, float]:
    """The share of the alignment lost by expansion that guidance centred on the original prompt
    brings back.
    """
    lost = {
        "expander alone": ("base", "expander_only", "expander_only_dual"),
        "parrot, against itself without expander": ("no_expander", "no_original", "parrot"),
    }
    at = {name: arm["gain"]["alignment"]["mean"] for name, arm in arms.items()}
    return {
        what: (at[dual] - at[plain]) / (at[before] - at[plain])
        for what, (before, plain, dual) in lost.items()
    }


def prefer(out: Path, base: dict[str, Evaluation]) -> dict[str, dict[str, float]]:
    """Parrot without expander, first seed, asked for one reward: the gain in each."""
    asked = {name: out / "measured" / f"prefer-{name}.json" for name in plan.REWARDS}
    asked["all"] = where(out, "no_expander", plan.SEEDS[0])
    before = values(base["train"])
    gains = {
        name: (values(read(path)["train"]) - before).mean((0, 1)) for name, path in asked.items()
    }

    return {
        name: dict(zip(plan.REWARDS, gain.tolist(), strict=True)) for name, gain in gains.items()
    }


def table(arms: dict[str, Any], std: np.ndarray) -> str:
    """The outcome in Markdown, as the docs have it: gains in standard deviations of a reward among
    pictures before.
    """
    lines = [
        f"| arm | {' | '.join(plan.REWARDS)} | improved | hypervolume | judged right |",
        "|---" * 8 + "|",
    ]

    for name, arm in arms.items():
        cells = [
            f"{one['mean'] / s:+.2f} [{one['ci95'][0] / s:+.2f}, {one['ci95'][1] / s:+.2f}]"
            for one, s in zip(arm["gain"].values(), std, strict=True)
        ]
        lines.append(
            f"| {name} | {' | '.join(cells)} | {arm['improved']} | {arm['hypervolume']:.0f} | {arm['judged']:.0%} |"
        )

    return "\n".join(lines)


def prefer_table(found: dict[str, dict[str, float]], std: np.ndarray) -> str:
    """What asking for a single reward does, in the same units."""
    lines = [f"| asked for | {' | '.join(plan.REWARDS)} |", "|---" * 5 + "|"]
    for name, gain in found.items():
        cells = [f"{value / s:+.2f}" for value, s in zip(gain.values(), std, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def chart(arms: dict[str, Any], std: np.ndarray) -> None:
    """The gain in every reward, one group of bars an arm."""
    figure, axis = pyplot.subplots(figsize=(12, 4.2))
    names = [name for name in arms if name != "base"]

    for number, reward in enumerate(plan.REWARDS):
        gains = [arms[name]["gain"][reward] for name in names]
        heights = np.array([one["mean"] for one in gains]) / std[number]
        low, high = np.array([one["ci95"] for one in gains]).T / std[number]
        at = np.arange(len(names)) + 0.2 * (number - 1.5)
        axis.bar(
            at,
            heights,
            0.18,
            label=reward,
            yerr=[heights - low, high - heights],
            error_kw={"linewidth": 0.8},
        )

    axis.set_xticks(range(len(names)), [name.replace("_", "\n") for name in names], fontsize=8)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_ylabel("paired gain, standard deviations before")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(PICTURES / "parrot.png", dpi=110)


def grid(out: Path) -> None:
    """The same nouns and the same noise for some arms, and for each identifier alone; first seed."""
    seed = plan.SEEDS[0]

    def row(arm: str, asked: str = "") -> Tensor:
        policy, sampler, expander, template = artist(out, plan.ARMS[arm], seed)
        template = preferred(str(out / place(plan.TASK, arm, seed)), asked) if asked else template
        return paint(
            policy,
            sampler,
            [Prompt(f"a {noun}", template=template) for noun in NOUNS],
            1,
            7,
            expander,
        )

    rows = {name: row(name) for name in SHOWN}
    rows |= {f"asked: {reward}": row("no_expander", reward) for reward in plan.REWARDS}
    sheet(rows).save(PICTURES / "parrot_grid.png")
