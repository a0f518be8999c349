"""Compute the bytes that several processes send each other in an iteration; nothing is trained.

    python -m benchmarks.wire

The networks are made of their configurations, without weights (`burnish check --memory` says which
are known). In an iteration cross

    gradients     4 bytes of each number that learns, at each optimizer step
    the rest      of each image its rewards and its prompt's number, 8 bytes each

and with the reward `votes` 3 bytes of each pixel. An all-reduce in a ring of N processes makes each
of them send 2 (N - 1) / N of the gradients, which goes to 2.
"""

from __future__ import annotations

from burnish import config as configuration
from burnish.config import Config
from burnish.diffusion.allocations import Allocations, GPUArithmetic
from burnish.tools.memory import Forecast
from burnish.world import buckets

RECIPES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("sd15-pickscore", ()),
    ("sd15-rwr", ()),
    ("sdxl-compressibility", ()),
    ("sd35-pickscore-8gpu", ()),
    ("sd35-pickscore-ram", ()),
    ("klein-pickscore-8gpu", ()),
    ("zimage-pickscore-8gpu", ()),
    ("sd15-pickscore", ("model.train=full",)),
    ("sdxl-compressibility", ("model.train=full",)),
)
"""Recipes of models whose configurations come with Burnish, and changes of them."""

ETHERNET = 10e9 / 8
"""Bytes a second of a network of 10 Gbit/s."""

HEADER = (
    "| recipe | objective | numbers that learn | optimizer steps | gradients | the rest | messages "
    "| at 10 Gbit/s |\n|---|---|---|---|---|---|---|---|"
)


def learned(config: Config) -> tuple[int, int]:
    """Return how many numbers of a configuration's generator learn, and in how many messages."""
    memory = Allocations()
    arithmetic = GPUArithmetic()
    with memory, arithmetic:
        policy = Forecast(config, memory, arithmetic).load()
        messages = sum(1 for _ in buckets(policy.trainable))
        return sum(parameter.numel() for parameter in policy.trainable), messages


def row(name: str, changes: tuple[str, ...]) -> str:
    """Return a row of the table."""
    config = configuration.load(name, changes)
    batch = config.batch
    numbers, messages = learned(config)
    steps = batch.minibatches * batch.epochs
    gradients = 4 * numbers * steps
    images = batch.prompts * batch.images_per_prompt
    rest = 8 * images * (len(config.rewards) + 1)
    seconds = 2 * gradients / ETHERNET
    cells = (
        " ".join([f"`{name}`", *(f"`{change}`" for change in changes)]),
        f"`{config.objective['use']}`",
        f"{numbers:,}",
        steps,
        f"{gradients / 1e6:,.0f} MB",
        f"{rest / 1e3:,.1f} kB",
        messages * steps,
        f"{seconds:,.1f} s",
    )
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Print the table of docs/guides/several-gpus.md."""
    print(HEADER)
    for name, changes in RECIPES:
        print(row(name, changes), flush=True)


if __name__ == "__main__":
    main()
