"""Can the generator write? From the runs that are rewarded for letters to numbers and pictures.

Readers say of images before and after training, and of scenes with and without a written word,
whether there is text in them; RapidOCR has to read it. The scenes also go through the generator's
autoencoder: what it loses no training of the network could draw.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from burnish.files import dumps, write
from burnish.rewards.question import TEXT
from burnish.rewards.vlm import load
from burnish.runs import Run
from burnish.tools.gallery import draw, open_source
from burnish.zoo import questions
from burnish.zoo.scenes import NUMBERS, Scenes
from experiments.counting import plan
from experiments.counting.evaluations import SPLITS, curve, reasons, statistics
from experiments.counting.letters import has_word, letters_read
from experiments.figures import IMAGES, pyplot, save_figure, style
from experiments.image_rows import image_rows

MEASURES = ("letters", "text", "judge", "clip_similarity")
"""Of the evaluations: the reward in nats, the share of images in which its reader sees text, the
share that the judge finds right, and CLIP's similarity to the prompt."""
EVALUATED = range(0, plan.LETTERS_ITERATIONS + 1, plan.EVERY)
DRAWN = 4  # images a prompt that readers see
SEED = 5  # of their noise
SHOWN = (0, 8, 16, 24)  # iterations of the picture
COLUMNS = 8  # of it
READERS = (plan.OTHER_READER, plan.READER)
COLOURS = {"text": "#6a51a3", "judge": "#333333", "clip_similarity": "#3a7d44"}
LABELS = ("text, by the rewarded reader", "judged right", "similarity to the prompt")


def read_all(out: Path) -> None:
    """Write `letters.json`: what readers find in scenes and in drawn images."""
    numbers = {"scenes": read_scenes(), "drawn": read_drawn(out)}
    write(out / "letters.json", dumps(numbers, indent=1))


def read_scenes() -> dict[str, Any]:
    """Return what readers find in scenes with and without a written number, and after coding."""
    scenes = Scenes(30_000_001, size=plan.SIZE)
    images, _ = scenes.draw(plan.SCENES, "count")
    numbers = [str(scenes.rng.choice(list(NUMBERS.values()))) for _ in images]
    written = torch.stack(
        [
            torch.from_numpy(questions.write(image.numpy(), word, scenes.rng))
            for image, word in zip(images, numbers, strict=True)
        ]
    )
    plain, lettered = (each.permute(0, 3, 1, 2).float() / 255 for each in (images, written))

    return {
        "plain": read(plain),
        "written": read(lettered),
        "written, coded": read(through_autoencoder(lettered)),
    }


@torch.no_grad()
def through_autoencoder(images: Tensor) -> Tensor:
    """Return (B, 3, H, W) images in [0, 1] as the generator's autoencoder gives them back."""
    policy, _ = open_source(plan.GENERATOR)
    vae = policy.pipe.vae
    parts = [vae.decode(vae.encode(x * 2 - 1).latent_dist.mean).sample for x in images.split(32)]
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)


def read_drawn(out: Path) -> dict[str, Any]:
    """Return what readers find in images of the trained prompts, before and after training."""
    texts = [f"{number} {noun}" for noun in plan.ANIMALS for number in ("two", "three")]
    runs = {seed: str(out / plan.letters_trial("long", seed).name) for seed in plan.SEEDS}
    policy, sampler = open_source(runs[plan.SEEDS[0]], before=True)
    found = {"before": read(draw(policy, sampler, texts, DRAWN, seed=SEED))}

    for seed, run in runs.items():
        policy, sampler = open_source(run)
        found[f"after, seed {seed}"] = read(draw(policy, sampler, texts, DRAWN, seed=SEED))

    return found


def read(images: Tensor) -> dict[str, float]:
    """Return the shares of images in which readers see text, read letters, and read a word."""
    seen = {reader: load(reader)(images, [TEXT] * len(images)) for reader in READERS}
    texts = letters_read(images)
    shares = {name: share(reply == "yes" for reply in replies) for name, replies in seen.items()}
    return {
        **shares,
        "ocr_letters": share(bool(text) for text in texts),
        "ocr_word": share(has_word(text) for text in texts),
    }


def share(hits: Iterable[bool]) -> float:
    """Return the share of what is true."""
    found = list(hits)
    return sum(found) / len(found)


def result(out: Path) -> dict[str, Any]:
    """Return all numbers about letters."""
    runs = [Run(out / plan.letters_trial("long", seed).name) for seed in plan.SEEDS]
    control = Run(out / plan.letters_trial("control", plan.SEEDS[0]).name)
    end = plan.LETTERS_ITERATIONS
    return {
        **json.loads((out / "letters.json").read_text()),
        "before": {split: statistics(runs, 0, split, MEASURES) for split in SPLITS},
        "after": {split: statistics(runs, end, split, MEASURES) for split in SPLITS},
        "control": {split: statistics([control], plan.EVERY, split, MEASURES) for split in SPLITS},
        "guard": [reasons(run, EVALUATED) for run in runs],
        "curves": [curve(run, EVALUATED, MEASURES) for run in runs],
    }


def tables(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the tables of docs/vlm.md about letters, as Markdown."""
    lines = ["| | reward, nats | text seen | judged right | similarity |", "|---" * 5 + "|"]
    for state in ("before", "after", "control"):
        for split, measures in found[state].items():
            cells = [f"{state}, {'trained prompts' if split == 'train' else 'other animals'}"]
            for name in MEASURES:
                low, high = measures[name]["change_ci95"]
                change = f" [{low:+.2f}, {high:+.2f}]" if state == "after" else ""
                cells.append(f"{measures[name]['mean']:.2f}{change}")
            lines.append("| " + " | ".join(cells) + " |")
    yield "\n".join(lines)

    headings = ("rewarded reader", "other reader", "OCR: letters", "OCR: a word")
    lines = [f"| shares in % | {' | '.join(headings)} |", "|---" * 5 + "|"]
    for name, row in {**found["scenes"], **found["drawn"]}.items():
        values = (row[key] for key in (*READERS, "ocr_letters", "ocr_word"))
        lines.append(f"| {name} | " + " | ".join(f"{value:.0%}"[:-1] for value in values) + " |")
    yield "\n".join(lines)


def draw_figures(out: Path, found: Mapping[str, Any]) -> None:
    """Draw the measures over the iterations, a line a seed, and one seed's images."""
    figure, axis = pyplot.subplots(figsize=(6, 3.4))

    for number, points in enumerate(found["curves"]):
        x = [point["iteration"] for point in points]
        for (name, colour), label in zip(COLOURS.items(), LABELS, strict=True):
            y = [point["train"][name] for point in points]
            axis.plot(x, y, color=colour, label=label if number == 0 else None)

    axis.set(xlabel="iteration", ylim=(0, 1.02))
    axis.legend(frameon=False, fontsize=8, loc=(0.02, 0.5))
    style([axis])
    save_figure(figure, "letters.png")

    run = Run(out / plan.letters_trial("long", plan.SEEDS[0]).name)
    rows = {f"iteration {at}" if at else "before": tiles(run, at) for at in SHOWN}
    image_rows(rows).save(IMAGES / "letters_grid.png")


def tiles(run: Run, iteration: int) -> Tensor:
    """Return images of a run's sample grid, (COLUMNS, 3, H, W) in [0, 1]."""
    with Image.open(run.samples / f"{iteration:06d}.png") as file:
        grid = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1).float() / 255
    side = plan.SIZE
    parts = grid.unfold(1, side, side).unfold(2, side, side)
    return parts.permute(1, 2, 0, 3, 4).flatten(0, 1)[:COLUMNS]
