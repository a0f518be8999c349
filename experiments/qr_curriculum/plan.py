"""The plan: the embedded QR ControlNet, with and without a curriculum, and without image rewards.

Training draws images of the animals with payloads of one part. The measurements are on the other
nouns with payloads of the other part, at one control scale at which the ControlNet, as it was
pretrained, is read in about a fifth of the cases.
"""

from __future__ import annotations

from pathlib import Path

from experiments.running import Trial

SEEDS = (3, 4, 5)  # tuning looked at 0, 1 and 2
RECIPE = "emoji-qr"
TASK = "codes"
BASES = "bases"  # folder of the base images, below the experiment's
ITERATIONS = 50
EVERY = 25
SCALE = 1.1  # at which everything is measured, and at which the curriculum ends
# of the curve of the ControlNet before training
SCALES = (0.0, 0.4, 0.8, 1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 2.0)
REACHED = 0.8  # the share of images read that training is to reach
EACH = 3  # images of a noun that are measured
SCAN = '{use="qr_scan",module_weight=0.0}'
MODULES = '{use="qr_modules",by_area=true,weight=0.3}'
PROMPT = '{use="clip_similarity",model="zoo:emoji-clip",weight=0.3}'
BASE = '{use="picture_similarity",model="zoo:emoji-clip",weight=0.3}'
ALL_REWARDS = f"rewards=[{SCAN},{MODULES},{PROMPT},{BASE}]"
ARMS: dict[str, tuple[str, ...]] = {
    "curriculum": (ALL_REWARDS,),
    # at the low scale at once
    "no_curriculum": (ALL_REWARDS, "curriculum={}"),
    # no reward for the image
    "no_clip": (f"rewards=[{SCAN},{MODULES}]",),
    "control": (ALL_REWARDS, "optimizer.lr=0"),
}


def seeds(arm: str) -> tuple[int, ...]:
    """Return an arm's seeds; the control, which changes no weight, has one."""
    return SEEDS[:1] if arm == "control" else SEEDS


def jobs(out: Path) -> list[Trial]:
    """Return all runs, seed by seed; the control's is short."""
    base = out.absolute() / BASES / "{noun}.png"
    common = (
        f'prompts.base="{base}"',
        f'evaluation.prompts.base="{base}"',
        f"sampler.control.scale={SCALE}",
        f"curriculum.last={SCALE}",
    )
    trials = []

    for seed in SEEDS:
        for name, changes in ARMS.items():
            if seed not in seeds(name):
                continue

            settings = (*common, *changes)
            iterations, every = (2, 2) if name == "control" else (ITERATIONS, EVERY)
            trials.append(Trial(TASK, name, seed, RECIPE, iterations, every, settings))

    return trials
