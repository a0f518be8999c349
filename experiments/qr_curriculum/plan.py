"""The plan: the embedded QR ControlNet at 128 px, from two starts, in two ways of learning.

Training draws images of the animals with links of one part. The measurements are on the other nouns
with links of the other part, at the control scale of the start, which is where the ControlNet, as
it was pretrained, is read in a stated share of the images (`Start.read`): seldom, so that there is
little to learn from without a curriculum, or in about a fifth.

An arm learns in one of two ways. By `GRADIENT` it follows the gradients of rewards that have one,
the modules' brightness and the image's likeness, and no reader of codes has a part in training; by
`SCANNER` the readers' verdict is the reward, which has no gradient, with and without a curriculum;
by `STRICT` too, but only an image that is read under all conditions of training counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from burnish.tools.preflight import cpu_units
from burnish.zoo import QR_CONTROLNET, QR_GENERATOR
from experiments.running import Trial

SEEDS = (4, 5, 6)  # tuning looked at 0 to 3
RECIPE = "emoji-qr"
SIZE = 128  # px: an ordinary QR code fits
# of the arithmetic: with units for it bfloat16 is twice as fast on a CPU, else ten times slower
DTYPE = "bfloat16" if cpu_units().get("amx_bf16") else "float32"
MODEL = (
    f'model.id="{QR_GENERATOR}"',
    f'model.controlnet="{QR_CONTROLNET}"',
    f"model.size={SIZE}",
    f"model.dtype={DTYPE}",
    "model.device=auto",
)
# links of codes of version 2 and of version 1
PATTERNS = ["https://example.org/{}", "HTTP://{}.ORG"]
MODULES = (4, 5)  # px; the ControlNet has learned from 4 alone, which is a latent pixel
MODULE_PATTERN = "HTTP://{}.ORG"  # on version 1: modules of 5 px have no room for more
MODULE_SCALES = (1.2, 1.5, 1.7, 1.85, 2.0)
# ControlNets that are measured with both, by the file of their numbers. The last two learned from
# both, are made by the commands in docs/qr.md, and are left out where they were not made: at a
# diffusion model, and at the consistency model itself.
MODULE_CONTROLNETS: Mapping[str, str] = {
    "modules": QR_CONTROLNET,
    "modules_learned": "build/controlnet-128/model",
    "modules_distilled": "build/controlnet-lcm-128/model",
}
BASES = "bases"  # folder of the base images, below the experiment's
REACHED = 0.8  # the share of images read that training is to reach, and at which the reference lies
# of a curriculum's first scale: the share of images that are read there before training
FIRST_READ = 0.6

# smoothed shares of images that are read, below which and above which a gate moves the scale
GATE = (0.3, 0.7)


@dataclass(frozen=True)
class Start:
    """A control scale at which runs are measured, and at which their curriculum ends.

    Attributes:
        read: the share of images that are read there before training.
        steps: of its curriculum from the first control scale to the last.
        iterations: of a run, at least twice as many as those.
        arms: those that start there.
    """

    read: float
    steps: int
    iterations: int
    arms: tuple[str, ...]


HEADLINE = "middle"
STARTS: Mapping[str, Start] = {
    HEADLINE: Start(0.2, 4, 56, ("gradient", "no_picture", "control")),
    "low": Start(
        0.035,
        6,
        24,
        ("scanner_curriculum", "scanner", "strict_curriculum", "strict_gated", "strict", "control"),
    ),
}
FEWER: Mapping[str, tuple[int, ...]] = {
    "no_picture": (4,),
    "control": (4,),
}
"""Arms with one of the seeds only: the control changes no weight, the other takes long."""


@dataclass(frozen=True)
class Budget:
    """The amounts that are drawn, trained and measured.

    Attributes:
        seeds: of the runs.
        iterations: of a run, whatever its start; None: the start's.
        each: images of a noun that are measured.
        nouns: that are measured, spread over all unseen ones; 0: all.
        scales: at which the ControlNet before training is measured.
        settings: further changes of the recipe.
    """

    seeds: tuple[int, ...]
    iterations: int | None
    each: int
    nouns: int
    scales: tuple[float, ...]
    settings: tuple[str, ...] = ()


FULL = Budget(
    seeds=SEEDS,
    iterations=None,
    each=3,
    nouns=0,
    scales=(0.0, 0.4, 0.8, 1.0, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 2.0, 2.2),
)
QUICK = Budget(
    seeds=SEEDS[:1],
    iterations=2,
    each=1,
    nouns=6,
    scales=(0.0, 1.0, 3.0),
    settings=(
        "batch.prompts=2",
        "batch.images_per_prompt=2",
        "batch.sample_batch=4",
        "batch.minibatches=1",
        "evaluation.max_prompts=4",
        "run.sample_every=0",
    ),
)
"""Everything runs in minutes, and no number means anything."""

OTHERS = '{use="zoo_nouns",split="animals"}'


def scan(weight: float) -> str:
    """Return the reward of the share that reads; of weight 0 it is only written down."""
    return f'{{use="qr_scan",module_weight=0.0,weight={weight}}}'


def likeness(contrast: float, base: float, temperature: float = 0) -> str:
    """Return the rewards of the image: to its prompt rather than others, and to its base image."""
    clip = 'model="zoo:emoji-clip"'
    compared = f"others={OTHERS},temperature={temperature},weight={contrast}"
    return (
        f'{{use="clip_contrast",{clip},{compared}}},'
        f'{{use="picture_similarity",{clip},weight={base}}}'
    )


GRADIENT = (
    "objective={use='latent',kl=4.0}",  # or the picture fades into what pleases CLIP
    "optimizer.lr=2e-4",
    "advantage={use='none'}",  # nothing is compared,
    "batch.prompts=16",  # so that few images of a prompt are enough
    "batch.images_per_prompt=2",
    "batch.sample_batch=32",
    "batch.minibatches=1",
    "chain.normalise=false",  # a module that is right, or hopelessly wrong, has no gradient
    "optimizer.ema=0.8",
)
SOFT = '{use="qr_modules",by_area=true,soft=0.08,around=2,cells=2,weight=4.5}'
FROM_VERDICTS = (
    "objective={use='rvm'}",  # on images noised again, four times each
    "advantage={use='weighted'}",  # a reward that is nearly everywhere the same says little
    "optimizer.lr=5e-5",
    "batch.prompts=4",
    "batch.transitions=4",
    "batch.minibatches=4",
)
SCANNER = (
    *FROM_VERDICTS,
    f'rewards=[{scan(1)},{{use="qr_modules",by_area=true,weight=0.3}},{likeness(2, 0.5)}]',
)
ALL_READ = '{use="qr_scan",name="all_read",strict=true,module_weight=0.0,weight=1}'
STRICT = (*FROM_VERDICTS, f"rewards=[{scan(0)},{ALL_READ},{likeness(2, 0.5)}]")
GRADIENT_OF_ALL = (*GRADIENT, f"rewards=[{scan(0)},{SOFT},{likeness(0.5, 0.5, 0.1)}]")
ARMS: Mapping[str, tuple[str, ...]] = {
    "gradient": GRADIENT_OF_ALL,
    # no reward for the picture
    "no_picture": (*GRADIENT, f"rewards=[{scan(0)},{SOFT}]"),
    "scanner_curriculum": SCANNER,
    "scanner": SCANNER,
    # a reward that is 0 nearly everywhere: one condition that fails is as bad as all
    "strict_curriculum": STRICT,
    "strict_gated": STRICT,
    "strict": STRICT,
    "control": (*GRADIENT_OF_ALL, "optimizer.lr=0"),
}


@dataclass(frozen=True)
class Scales:
    """The control scales of all runs, read off the ControlNet before training.

    Attributes:
        first: at which every curriculum begins.
        starts: of each start.
    """

    first: float
    starts: Mapping[str, float]


def budget(quick: bool) -> Budget:
    """Return the full budget, or the one that only shows that everything runs."""
    return QUICK if quick else FULL


def seeds(arm: str, budget: Budget = FULL) -> tuple[int, ...]:
    """Return an arm's seeds: those of the plan that the budget has, or else its first."""
    planned = FEWER.get(arm, budget.seeds)
    return tuple(seed for seed in planned if seed in budget.seeds) or budget.seeds[:1]


def jobs(out: Path, scales: Scales, budget: Budget = FULL) -> list[Trial]:
    """Return all runs, arm by arm; the controls' are short."""
    return [
        trial(out, scales, budget, start, arm, seed)
        for start in STARTS
        for arm in STARTS[start].arms
        for seed in seeds(arm, budget)
    ]


def trial(out: Path, scales: Scales, budget: Budget, start: str, arm: str, seed: int) -> Trial:
    """Return the run of an arm from a start with a seed."""
    base = out.absolute() / BASES / "{noun}.png"
    settings = (
        *MODEL,
        f"prompts.pattern={PATTERNS}",
        f"evaluation.prompts.pattern={PATTERNS}",
        f'prompts.base="{base}"',
        f'evaluation.prompts.base="{base}"',
        "guard.action=none",  # what it would watch is measured afterwards
        f"sampler.control.scale={scales.starts[start]}",
        curriculum(arm, scales.first, scales.starts[start], STARTS[start].steps),
        *ARMS[arm],
        *budget.settings,
    )
    iterations = 2 if arm == "control" else budget.iterations or STARTS[start].iterations
    return Trial(start, arm, seed, RECIPE, iterations, iterations, settings)


def curriculum(arm: str, first: float, last: float, steps: int) -> str:
    """Return the setting of an arm's control scales, from the first to the last.

    `_curriculum`: at a fixed pace, evenly, and the last one for as long as all others, because a
    run is judged there. `_gated`: a step on once most images are read, and back where few are.
    Other arms are at the last one from the first iteration on.
    """
    if arm.endswith("_gated"):
        by = round((first - last) / steps, 3)
        gate = f'reward="all_read",above={GATE[1]},below={GATE[0]},by={by}'
        return f'curriculum={{use="gated",first={first},last={last},{gate}}}'

    if arm.endswith("_curriculum"):
        falling = [first + (last - first) * step / steps for step in range(steps)]
        values = [round(scale, 3) for scale in [*falling, *[last] * steps]]
        return f'curriculum={{use="steps",values={values}}}'

    return "curriculum={}"
