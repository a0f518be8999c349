"""Write the tables of memory.md: what recipes take on a GPU, as `burnish check --memory` predicts.

    python docs/generate_memory.py

Takes some minutes on one core, and needs no GPU, no weights and no network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu_worker import CASES, ITERATION_ONLY
from burnish import config as configuration
from burnish.diffusion import shapes
from burnish.files import write
from burnish.tools.memory import GIB, Prediction, predict
from burnish.tools.memory_table import COLUMNS

DOCS = Path(__file__).parent
PAGE = DOCS / "memory.md"
FAMILIES = (
    "sd15-pickscore",
    "sdxl-compressibility",
    "sd35-pickscore-ram",
    "klein-pickscore-ram",
    "zimage-pickscore-ram",
    "flux-dev-pickscore",
)
"""Recipes of which there are others for smaller cards."""

CARDS = (8, 12, 16, 24, 48)
MEASURED = {"sd15": "allocated_gib", "sd35": "allocated_gib", "klein": "start_allocated_gib"}
"""The keys of benchmarks/gpu.json with what was measured of an iteration, or from loading on.

From loading on, klein's text encoder beside its network took most.
"""


def recipes() -> Iterator[str]:
    """Yield the lines about recipes: the memory of each, and the card that has so much."""
    yield f"| | {' | '.join(COLUMNS.values())} | in all | needed | a card of | most in |"
    yield "|---" * (len(COLUMNS) + 5) + "|"
    for family in FAMILIES:
        sizes = [f"{family}-{card}gb" for card in CARDS]
        for name in [name for name in sizes if name in configuration.recipes()] + [family]:
            prediction = predict(configuration.load(name, []))
            print(name, f"{prediction.needed:.1f}", flush=True)
            yield cells(name, prediction)


def cells(name: str, found: Prediction) -> str:
    """Return a line of the table."""
    taken = [found.phases[found.phase][purpose] / GIB for purpose in COLUMNS]
    numbers = [f"{value:.1f}" for value in (*taken, found.peak / GIB, found.needed)]
    card = min(card for card in CARDS if found.needed <= card)
    return f"| `{name}` | {' | '.join(numbers)} | {card} GB | {found.phase} |"


def measured() -> Iterator[str]:
    """Yield the lines that compare predictions with what was measured on a GPU."""
    result = json.loads((DOCS.parent / "benchmarks/gpu.json").read_text())
    yield f"| {result['device']} | predicted, GiB | measured, GiB | off by |"
    yield "|---|---|---|---|"

    for name, key in MEASURED.items():
        case = CASES[name]
        shapes.KNOWN[f"random-weights/{name}"] = shapes.SHAPES[name]
        place = f"model.id=random-weights/{name}"
        # both were in memory together then
        beside = [] if key == "allocated_gib" else ["model.text_encoder=keep"]
        config = configuration.load(case.recipe, [*ITERATION_ONLY, *case.changes, place, *beside])
        phases = {phase: sum(taken.values()) for phase, taken in predict(config).phases.items()}
        encoding = phases.pop("encoding")
        is_iteration = key == "allocated_gib"
        predicted = (max(phases.values()) if is_iteration else encoding) / GIB
        found = result["models"][name][key]
        print(name, predicted, found, flush=True)
        what = "an iteration" if is_iteration else "encoding beside the network"
        yield f"| {name}, {what} | {predicted:.2f} | {found:.2f} | {predicted / found - 1:+.1%} |"


def main() -> None:
    """Write the page's tables anew."""
    text = PAGE.read_text()
    for mark, lines in (("measured", measured()), ("recipes", recipes())):
        start, end = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->\n"
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(end)
        text = before + start + "\n".join(["", *lines, "", ""]) + end + after
        write(PAGE, text)


if __name__ == "__main__":
    main()
