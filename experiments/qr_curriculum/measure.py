"""Scan rates and similarities of images of nouns, with payloads, that no training saw.

    python -m experiments.qr_curriculum.measure RUN      # after the experiment's stage `bases`

RUN is any run of `burnish train`. An image is `strict` if zxing reads its payload under all
fifteen conditions; `trained` and `held_out` need only the eight conditions that the reward
knows and the seven that it does not; `other` all fifteen by another binarizer of zxing (global
histogram) than the reward's. `clip_text` compares with the prompt, `clip_other` with the other
nouns' prompts, `clip_image` with the noun's base image, `clip_code` with the bare code;
`judged` is the share in which the embedded judge finds the noun of the prompt.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from burnish.config import ControlConfig
from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.files import dumps, write
from burnish.images import open_image
from burnish.qr.conditions import HELD_OUT, TRAIN
from burnish.qr.layout import Layout, layout_of
from burnish.qr.scanner import Scanner, module_errors
from burnish.rewards.clip import Clip
from burnish.rewards.code_distance import code_similarity
from burnish.tools.control_curve import prompts, sample_images
from burnish.tools.gallery import draw, open_source, save
from burnish.types import Prompt
from burnish.zoo import judge
from burnish.zoo.scenes import nouns, vocabulary
from experiments.qr_curriculum import plan

CLIP = "zoo:emoji-clip"
SEED = 880_002  # of payloads and noise: neither training nor tuning saw it

Numbers = dict[str, float]
"""Means over the images, by the names in this module's description."""


def measured_prompts(seed: int = SEED) -> list[Prompt]:
    """Return every noun that is no animal `plan.EACH` times, with payloads of the unseen part."""
    unseen = vocabulary()["objects"]
    return prompts(unseen, plan.EACH * len(unseen), seed=seed)


def draw_bases(folder: Path) -> None:
    """Draw the missing base images: one of every noun, by the generator alone."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [noun for noun in nouns() if not (folder / f"{noun}.png").exists()]
    if not missing:
        return

    policy, sampler = open_source("zoo:emoji-lcm")
    for noun in missing:
        text = f"a {noun}"
        save(draw(policy, sampler, [text], 1), [text], 1, folder / f"{noun}.png")


def measure_all(out: Path) -> None:
    """Write the missing measurements.

    `start.json` has the ControlNet before training at every scale, and `measured.json` beside
    every run that run.
    """
    jobs = plan.jobs(out)
    start = out / "start.json"

    if not start.exists():
        policy, sampler = open_source(str(out / jobs[0].name), before=True)
        by_scale = {f"{scale:g}": measure(policy, sampler, scale, out) for scale in plan.SCALES}
        write(start, dumps(by_scale, indent=1))
        print(f"{start}: written", flush=True)

    for job in jobs:
        target = out / job.name / "measured.json"
        if not target.exists():
            numbers = measure(*open_source(str(out / job.name)), plan.SCALE, out)
            write(target, dumps(numbers, indent=1))
            print(f"{job.name}: {json.loads(target.read_text())}", flush=True)


def measure(policy: Policy, sampler: Sampler, scale: float, out: Path, seed: int = SEED) -> Numbers:
    """Return all numbers of one policy at one control scale.

    Prompts, payloads and noise are the same for all policies.
    """
    coded = measured_prompts(seed)
    images = sample_images(policy, replace(sampler, control=ControlConfig(scale)), coded, seed)
    return measure_images(images, coded, out / plan.BASES)


def measure_images(images: Tensor, coded: Sequence[Prompt], bases: Path) -> Numbers:
    """Return all numbers of the images of these prompts."""
    clip = Clip.load(CLIP)
    layouts = [layout_of(prompt, images.shape[-1]) for prompt in coded]
    columns = {
        **_scan_columns(images, layouts),
        **_similarity_columns(clip, images, coded, bases),
        "clip_code": code_similarity(clip, images, layouts),
        "judged": judge.load()(images, coded),
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


def _similarity_columns(
    clip: Clip, images: Tensor, coded: Sequence[Prompt], bases: Path
) -> dict[str, Tensor]:
    image_nouns = [str(prompt.metadata["noun"]) for prompt in coded]
    embedded = clip.images(images)
    # every image with every prompt
    similarity = embedded @ clip.texts([prompt.text for prompt in coded]).T
    different = torch.tensor([[one != other for other in image_nouns] for one in image_nouns])
    base = clip.images(torch.stack([open_image(bases / f"{noun}.png") for noun in image_nouns]))

    return {
        "clip_text": similarity.diagonal(),
        "clip_other": (similarity * different).sum(1) / different.sum(1),
        "clip_image": (embedded * base).sum(1),
    }


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
        f"the ControlNet before training is nowhere read in {rate:.0%}: add scales to plan.SCALES"
    )


def main() -> None:
    """Print the numbers of one run as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a run of burnish train")
    parser.add_argument("--seed", type=int, default=SEED, help="of payloads and noise")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/qr_curriculum"), help="the experiment's folder"
    )
    options = parser.parse_args()

    policy, sampler = open_source(options.run)
    numbers = measure(policy, sampler, plan.SCALE, options.out, options.seed)
    print(dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
