"""Train on a reward of your own, from Python.

    python examples/custom_reward.py --out runs/redness

The reward is a function in this file, so a recipe can name it too:

    burnish train demo --set rewards.0.use=examples/custom_reward.py:redness --out runs/redness
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from torch import Tensor

import burnish


def redness(images: Tensor, prompts: Sequence[burnish.Prompt]) -> Tensor:
    """Return how much redder than green and blue each image is; images are (B, 3, H, W)."""
    red, others = images[:, 0], images[:, 1:]
    return red.mean((1, 2)) - others.mean((1, 2, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", default="runs/redness", help="the run directory")
    parser.add_argument("--recipe", default="emoji-lcm-compressibility")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="changes")
    options = parser.parse_args()

    for finding in burnish.check_reward(redness):
        print("redness:", finding)

    config = burnish.load_config(options.recipe, options.changes)
    mine = burnish.Overrides(rewards={"redness": redness})
    run = burnish.train(config, options.out, overrides=mine, on_record=show, progress=False)

    evaluation = json.loads((run / "evaluation.json").read_text("utf-8"))["train"]
    low, high = evaluation["ci95"]
    print(f"paired gain: {evaluation['paired_mean']:.3f} [{low:.3f}, {high:.3f}]")


def show(record: dict[str, Any]) -> None:
    """Print the mean reward of an iteration."""
    print(f"iteration {record['iteration']}: {record['rewards']['redness']['mean']:.3f}")


if __name__ == "__main__":
    main()
