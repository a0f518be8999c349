"""Scan rates and similarities of pictures of nouns, with payloads, that no training saw.

    python -m experiments.qr_curriculum.measure RUN      # of any run, after the experiment's stage `bases`

A picture is ``strict`` if zxing reads its payload under all fifteen conditions; ``trained`` and
``held_out`` ask only for the eight conditions that the reward knows and the seven that it does not;
``other`` for all fifteen by another binarizer of zxing (global histogram) than the reward's.
``clip_text`` compares with the prompt, ``clip_other`` with the other nouns' prompts, ``clip_image``
with the noun's base picture, ``clip_code`` with the bare code; ``judged`` is the share in which the
embedded judge sees the noun that was asked for.
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
from burnish.images import open_image
from burnish.qr.conditions import HELD_OUT, TRAIN
from burnish.qr.layout import layout_of
from burnish.qr.scanner import Scanner, module_errors
from burnish.rewards.clip import Clip
from burnish.rewards.code_distance import code_similarity
from burnish.runs import dumps, write
from burnish.tools.control_curve import drawn, prompts
from burnish.tools.gallery import draw, open_source, save
from burnish.types import Prompt
from burnish.zoo import judge
from burnish.zoo.scenes import nouns, vocabulary
from experiments.qr_curriculum import plan

CLIP = "zoo:emoji-clip"
SEED = 880_002  # of payloads and noise: neither training nor tuning saw it


def asked(seed: int = SEED) -> list[Prompt]:
    """Every noun that is no animal, `plan.EACH` times, with payloads of the unseen part."""
    unseen = vocabulary()["objects"]
    return prompts(unseen, plan.EACH * len(unseen), seed=seed)


def draw_bases(folder: Path) -> None:
    """A picture of every noun, by the generator alone; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [noun for noun in nouns() if not (folder / f"{noun}.png").exists()]

    if missing:
        policy, sampler = open_source("zoo:emoji-lcm")
        for noun in missing:
            save(draw(policy, sampler, [f"a {noun}"], 1), [f"a {noun}"], 1, folder / f"{noun}.png")


def measure_all(out: Path) -> None:
    """Writes `start.json`, the ControlNet before training at every scale, and `measured.json`
    beside every run.
    """
    first = plan.jobs(out)[0]
    start = out / "start.json"

    if not start.exists():
        policy, sampler = open_source(str(out / first.name), before=True)
        write(
            start,
            dumps(
                {f"{scale:g}": look(policy, sampler, scale, out) for scale in plan.SCALES}, indent=1
            ),
        )
        print(f"{start}: written", flush=True)

    for job in plan.jobs(out):
        target = out / job.name / "measured.json"
        if not target.exists():
            write(target, dumps(look(*open_source(str(out / job.name)), plan.SCALE, out), indent=1))
            print(f"{job.name}: {json.loads(target.read_text())}", flush=True)


def look(
    policy: Policy, sampler: Sampler, scale: float, out: Path, seed: int = SEED
) -> dict[str, float]:
    """All numbers of one policy at one control scale; prompts, payloads and noise are the same for
    all.
    """
    some = asked(seed)
    images = drawn(policy, replace(sampler, control=ControlConfig(scale)), some, seed)
    return seen(images, some, out / plan.BASES)


def seen(images: Tensor, some: Sequence[Prompt], bases: Path) -> dict[str, float]:
    """All numbers of pictures of these prompts."""
    clip = Clip.load(CLIP)
    layouts = [layout_of(prompt, images.shape[-1]) for prompt in some]
    scanner = Scanner(["zxing", "zxing-global"], "all")
    read, other = scanner.measure(images, layouts).table.unbind(1)
    trained, held_out = (
        [scanner.conditions.index(name) for name in names] for names in (TRAIN, HELD_OUT)
    )
    embedded = clip.images(images)
    nouns = [str(prompt.metadata["noun"]) for prompt in some]
    # every picture with every prompt
    alike = embedded @ clip.texts([prompt.text for prompt in some]).T
    other = torch.tensor([[one != another for another in nouns] for one in nouns])
    base = clip.images(torch.stack([open_image(bases / f"{noun}.png") for noun in nouns]))
    numbers = {
        "strict": read.all(1),
        "trained": read[:, trained].all(1),
        "held_out": read[:, held_out].all(1),
        "other": other.all(1),
        "read": read.double().mean(1),
        "modules": 1 - module_errors(images, layouts),
        "clip_text": alike.diagonal(),
        "clip_other": (alike * other).sum(1) / other.sum(1),
        "clip_image": (embedded * base).sum(1),
        "clip_code": code_similarity(clip, images, layouts),
        "judged": judge.load()(images, some),
    }

    return {name: float(values.double().mean()) for name, values in numbers.items()}


def at_rate(start: dict[str, dict[str, float]], rate: float) -> dict[str, float]:
    """What the ControlNet before training would be like where it is read so often, between the
    scales measured.
    """
    scales = sorted(map(float, start))
    rates = [start[f"{scale:g}"]["strict"] for scale in scales]

    for low, high in zip(range(len(scales)), range(1, len(scales)), strict=False):
        if rates[low] <= rate <= rates[high]:
            share = (rate - rates[low]) / max(rates[high] - rates[low], 1e-9)
            a = start[f"{scales[low]:g}"]
            b = start[f"{scales[high]:g}"]
            between = {key: a[key] + share * (b[key] - a[key]) for key in a}
            return between | {"scale": scales[low] + share * (scales[high] - scales[low])}

    raise SystemExit(
        f"the ControlNet before training is nowhere read in {rate:.0%}: add scales to plan.SCALES"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a run of burnish train")
    parser.add_argument("--seed", type=int, default=SEED, help="of payloads and noise")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/qr_curriculum"), help="the experiment's folder"
    )
    options = parser.parse_args()
    print(dumps(look(*open_source(options.run), plan.SCALE, options.out, options.seed), indent=1))
