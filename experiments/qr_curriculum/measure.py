"""Scan rates and similarities of images of nouns, with links, that no training saw.

    python -m experiments.qr_curriculum.measure RUN      # after the experiment's stage `bases`

RUN is any run of `burnish train`. An image is `strict` if zxing reads its payload under all
fifteen conditions; `trained` and `held_out` need only the eight conditions that the reward
knows and the seven that it does not; `other` all fifteen by another binarizer of zxing (global
histogram) than the reward's. `opencv` and `pyzbar`, which no reward uses, read the plain image;
null where the library is missing. `clip_text` compares with the prompt, `clip_other` with the other
nouns' prompts, `contrast` is the first less the second; `clip_image` compares with the noun's base
image, `clip_code` with the bare code. `retrieval_top1` and `retrieval_top5` are the shares in which
the prompt is the nearest, or among the five nearest, of those of all 106 nouns; `judged` is the
share in which `zoo:emoji-code-judge` finds the noun of the prompt.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import nan
from pathlib import Path

import torch
from torch import Tensor

from burnish import config as configuration
from burnish.config import ControlConfig
from burnish.diffusion.loading import present_device
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.files import dumps, write
from burnish.images import open_image
from burnish.prompts.sources import zoo_nouns
from burnish.qr.conditions import HELD_OUT, TRAIN
from burnish.qr.layout import Layout, layout_of
from burnish.qr.phone import Phone
from burnish.qr.scanner import Scanner, module_errors
from burnish.rewards.clip import Clip, cosine
from burnish.rewards.clip_contrast import compare_with, contrast, retrieved
from burnish.rewards.code_distance import code_similarity
from burnish.tools.control_curve import prompts, sample_images
from burnish.tools.gallery import draw, open_source, save
from burnish.training.assembly import load_policy, load_sampler
from burnish.types import Prompt
from burnish.zoo import QR_CONTROLNET, QR_GENERATOR, judge
from burnish.zoo.scenes import nouns, vocabulary
from experiments.qr_curriculum import plan

CLIP = "zoo:emoji-clip"
JUDGE = "zoo:emoji-code-judge"  # sees nouns under codes, and is in no reward
READERS = Phone(["zxing"])  # that take no part in training
SEED = 880_002  # of payloads and noise: neither training nor tuning saw it

Numbers = dict[str, float]
"""Means over the images, by the names in this module's description; NaN where not known."""


def measured_prompts(
    budget: plan.Budget = plan.FULL, seed: int = SEED, pattern: list[str] = plan.PATTERNS
) -> list[Prompt]:
    """Return nouns that are no animals, each `each` times, with links of the unseen part."""
    unseen = vocabulary()["objects"]
    if budget.nouns:
        unseen = unseen[:: len(unseen) // budget.nouns][: budget.nouns]

    return prompts(unseen, budget.each * len(unseen), seed=seed, pattern=pattern)


def draw_bases(folder: Path) -> None:
    """Draw the missing base images: one of every noun, by the generator alone."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [noun for noun in nouns() if not (folder / f"{noun}.png").exists()]
    if not missing:
        return

    policy, sampler = open_source(QR_GENERATOR)
    for noun in missing:
        text = f"a {noun}"
        save(draw(policy, sampler, [text], 1), [text], 1, folder / f"{noun}.png")


def measure_start(out: Path, budget: plan.Budget) -> None:
    """Write `start.json`: the ControlNet before training at every scale, if it is missing."""
    target = out / "start.json"
    if target.exists():
        return

    _write_before(target, {f"{scale:g}": scale for scale in budget.scales}, out, budget)


def measure_modules(out: Path, budget: plan.Budget) -> None:
    """Write what is missing of `plan.MODULE_CONTROLNETS`: numbers by side of a module and scale."""
    for name, controlnet in plan.MODULE_CONTROLNETS.items():
        target = out / f"{name}.json"
        if not target.exists() and (controlnet == QR_CONTROLNET or Path(controlnet).exists()):
            write(target, dumps(_by_module(controlnet, out, budget), indent=1))
            print(f"{target}: written", flush=True)


def _by_module(controlnet: str, out: Path, budget: plan.Budget) -> dict[str, dict[str, Numbers]]:
    policy, sampler = open_before(controlnet)
    numbers: dict[str, dict[str, Numbers]] = {}

    for module in plan.MODULES:
        settings = {"qr": {"module": module}}
        coded = [
            replace(prompt, metadata={**prompt.metadata, **settings})
            for prompt in measured_prompts(budget, pattern=[plan.MODULE_PATTERN])
        ]
        numbers[str(module)] = {}
        for scale in plan.MODULE_SCALES:
            at_scale = replace(sampler, control=ControlConfig(scale))
            images = sample_images(policy, at_scale, coded, SEED)
            numbers[str(module)][f"{scale:g}"] = measure_images(images, coded, out / plan.BASES)

    return numbers


def _write_before(
    target: Path, scales: Mapping[str, float], out: Path, budget: plan.Budget
) -> None:
    """Write the numbers of the ControlNet before training at control scales with names."""
    policy, sampler = open_before()
    numbers = {name: measure(policy, sampler, scale, out, budget) for name, scale in scales.items()}
    write(target, dumps(numbers, indent=1))
    print(f"{target}: written", flush=True)


def open_before(controlnet: str = QR_CONTROLNET) -> tuple[Policy, Sampler]:
    """Return a ControlNet before training, and the sampler of the recipe."""
    config = configuration.load(plan.RECIPE, (*plan.MODEL, f'model.controlnet="{controlnet}"'))
    device = present_device("auto")
    return load_policy(config, device), load_sampler(config)


def measure_runs(out: Path, budget: plan.Budget) -> None:
    """Write what is missing: `measured.json` beside every run, `before.json` for all starts."""
    scales = start_scales(load_numbers(out / "start.json"))
    before = out / "before.json"
    if not before.exists():
        _write_before(before, scales.starts, out, budget)

    for job in plan.jobs(out, scales, budget):
        target = out / job.name / "measured.json"
        if not target.exists():
            scale = scales.starts[job.task]
            numbers = measure(*open_source(str(out / job.name)), scale, out, budget)
            write(target, dumps(numbers, indent=1))
            print(f"{job.name}: {json.loads(target.read_text())}", flush=True)


def measure(
    policy: Policy,
    sampler: Sampler,
    scale: float,
    out: Path,
    budget: plan.Budget = plan.FULL,
    seed: int = SEED,
) -> Numbers:
    """Return all numbers of one policy at one control scale.

    Prompts, payloads and noise are the same for all policies.
    """
    coded = measured_prompts(budget, seed)
    images = sample_images(policy, replace(sampler, control=ControlConfig(scale)), coded, seed)
    return measure_images(images, coded, out / plan.BASES)


def measure_images(images: Tensor, coded: Sequence[Prompt], bases: Path) -> Numbers:
    """Return all numbers of the images of these prompts."""
    clip = Clip.load(CLIP)
    layouts = [layout_of(prompt, images.shape[-1]) for prompt in coded]
    columns = {
        **_scan_columns(images, layouts),
        **_reader_columns(images, layouts),
        **_similarity_columns(clip, images, coded, bases),
        "clip_code": code_similarity(clip, images, layouts),
        "judged": judge.load(JUDGE)(images, coded),
    }
    return {name: float(column.double().mean()) for name, column in columns.items()}


def _scan_columns(images: Tensor, layouts: list[Layout]) -> dict[str, Tensor]:
    scanner = Scanner(["zxing", "zxing-global"], "all")
    read, read_globally = scanner.measure(images, layouts).table.unbind(1)
    trained = [scanner.conditions.index(name) for name in TRAIN]
    held_out = [scanner.conditions.index(name) for name in HELD_OUT]

    return {
        "strict": read.all(1),
        "trained": read[:, trained].all(1),
        "held_out": read[:, held_out].all(1),
        "other": read_globally.all(1),
        "read": read.double().mean(1),
        "modules": 1 - module_errors(images, layouts),
    }


def _reader_columns(images: Tensor, layouts: list[Layout]) -> dict[str, Tensor]:
    unknown = torch.full((len(images),), torch.nan)
    columns = READERS.plain(images, layouts)
    return {name: unknown if column is None else column for name, column in columns.items()}


def _similarity_columns(
    clip: Clip, images: Tensor, coded: Sequence[Prompt], bases: Path
) -> dict[str, Tensor]:
    others = [prompt.text for prompt in zoo_nouns("all")]
    own = cosine(clip)(images, coded)
    less_others = compare_with(clip, others, contrast)(images, coded)
    image_nouns = [str(prompt.metadata["noun"]) for prompt in coded]
    base = clip.images(torch.stack([open_image(bases / f"{noun}.png") for noun in image_nouns]))

    return {
        "clip_text": own,
        "clip_other": own - less_others,
        "contrast": less_others,
        "clip_image": (clip.images(images) * base).sum(1),
        "retrieval_top1": compare_with(clip, others, retrieved(1))(images, coded),
        "retrieval_top5": compare_with(clip, others, retrieved(5))(images, coded),
    }


def load_numbers(file: Path) -> dict[str, Numbers]:
    """Return the numbers of the ControlNet before training, by control scale or start."""
    if not file.exists():
        raise SystemExit(f"{file} is missing: run the stages `start` and `measure` first")

    by_name: dict[str, dict[str, float | None]] = json.loads(file.read_text())
    return {name: _with_nan(numbers) for name, numbers in by_name.items()}


def load_measured(out: Path, name: str) -> Numbers:
    """Return the numbers of a run."""
    return _with_nan(json.loads((out / name / "measured.json").read_text()))


def _with_nan(numbers: Mapping[str, float | None]) -> Numbers:
    return {key: nan if value is None else value for key, value in numbers.items()}


def start_scales(start: dict[str, Numbers]) -> plan.Scales:
    """Return the control scales at which runs start and are measured, from the stated shares."""

    def scale(read: float) -> float:
        return round(at_rate(start, read)["scale"], 3)

    return plan.Scales(
        first=scale(plan.FIRST_READ),
        starts={name: scale(one.read) for name, one in plan.STARTS.items()},
    )


def at_rate(start: dict[str, Numbers], rate: float) -> Numbers:
    """Return the ControlNet before training where it is read at a rate, interpolated.

    Args:
        start: its numbers by control scale.
        rate: of `strict`; between two scales all numbers are on a straight line.

    Returns:
        All numbers and the `scale`. SystemExit if no scale reaches the rate.
    """
    scales = sorted(map(float, start))
    rates = [start[f"{scale:g}"]["strict"] for scale in scales]

    for low, high in zip(range(len(scales)), range(1, len(scales)), strict=False):
        if rates[low] <= rate <= rates[high]:
            part = (rate - rates[low]) / max(rates[high] - rates[low], 1e-9)
            a = start[f"{scales[low]:g}"]
            b = start[f"{scales[high]:g}"]
            numbers = {key: a[key] + part * (b[key] - a[key]) for key in a}
            return numbers | {"scale": scales[low] + part * (scales[high] - scales[low])}

    raise SystemExit(
        f"the ControlNet before training is nowhere read in {rate:.0%}: add scales to the budget "
        "in plan.py"
    )


def main() -> None:
    """Print the numbers of one run as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a run of burnish train")
    parser.add_argument("--scale", type=float, help="of the control; by default the run's")
    parser.add_argument("--seed", type=int, default=SEED, help="of payloads and noise")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/qr_curriculum"), help="the experiment's folder"
    )
    options = parser.parse_args()

    policy, sampler = open_source(options.run)
    scale = sampler.control.scale if options.scale is None else options.scale
    numbers = measure(policy, sampler, scale, options.out, seed=options.seed)
    print(dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
