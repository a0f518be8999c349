"""What is trained: the embedded QR ControlNet, with a curriculum, without one, and without the
rewards for the picture.

Training draws pictures of the animals with payloads of one part; measured is on the other nouns
with payloads of the other part, at one control scale at which the ControlNet, as it was pretrained,
is read in about a fifth of the cases.
"""

from __future__ import annotations

from pathlib import Path

from experiments.running import Trial

SEEDS = (3, 4, 5)  # tuning looked at 0, 1 and 2
RECIPE = "emoji-qr"
TASK = "codes"
BASES = "bases"  # folder of the base pictures, below the experiment's
LENGTH = ITERATIONS, EVERY = 50, 25
SCALE = 1.1  # at which everything is measured, and at which the curriculum ends
# of the curve of the ControlNet before training
SCALES = (0.0, 0.4, 0.8, 1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 2.0)
REACHED = 0.8  # the share of pictures read that training is to reach
EACH = 3  # pictures of a noun that are measured
SCAN = '{use="qr_scan",module_weight=0.0}'
MODULES = '{use="qr_modules",whole=true,weight=0.3}'
PROMPT = '{use="clip_similarity",model="zoo:emoji-clip",weight=0.3}'
BASE = '{use="picture_similarity",model="zoo:emoji-clip",weight=0.3}'
ARMS: dict[str, tuple[str, ...]] = {
    "curriculum": (f"rewards=[{SCAN},{MODULES},{PROMPT},{BASE}]",),
    # at the low scale at once
    "no_curriculum": (f"rewards=[{SCAN},{MODULES},{PROMPT},{BASE}]", "curriculum={}"),
    "no_clip": (f"rewards=[{SCAN},{MODULES}]",),  # nothing keeps the picture
    "control": (f"rewards=[{SCAN},{MODULES},{PROMPT},{BASE}]", "optimizer.lr=0"),
}


def jobs(out: Path) -> list[Trial]:
    """All runs, seed by seed; the control, which moves nothing, once and briefly."""
    base = out.absolute() / BASES / "{noun}.png"
    common = (
        f'prompts.base="{base}"',
        f'evaluation.prompts.base="{base}"',
        f"sampler.control.scale={SCALE}",
        f"curriculum.last={SCALE}",
    )
    return [
        Trial(
            TASK,
            name,
            seed,
            RECIPE,
            *(LENGTH if name != "control" else (2, 2)),
            (*common, *changes),
        )
        for seed in SEEDS
        for name, changes in ARMS.items()
        if name != "control" or seed == SEEDS[0]
    ]
