"""The best of many tries: images for the README, chosen by program and not by hand.

    python -m experiments.qr_curriculum.gallery RUN --out docs/images/qr_gallery.png

Draws every noun many times with one link, by a run's ControlNet at its control scale. Of those that
zxing reads under all fifteen conditions, and OpenCV and ZBar as they are, the one is kept that CLIP
finds most like its prompt and least like the others'. It prints how many of the tries were read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from burnish.files import write
from burnish.images import image_grid
from burnish.prompts.sources import zoo_nouns
from burnish.qr.layout import layout_of
from burnish.qr.phone import Phone
from burnish.qr.scanner import Scanner
from burnish.rewards.clip import Clip
from burnish.rewards.clip_contrast import compare_with, contrast
from burnish.tools.control_curve import sample_images
from burnish.tools.gallery import open_source
from burnish.types import Prompt

LINK = "HTTP://EXAMPLE.ORG"  # capitals, so that the code is of version 1 and its modules are large
NOUNS = (
    "strawberry,sunflower,rocket,sailboat,tulip,mushroom,pineapple,hamburger,"
    "balloon,cactus,banana,penguin,frog,fox,butterfly,fish"
)
CLIP = "zoo:emoji-clip"
COLUMNS = 8  # of the grid


def choose(images: Tensor, prompts: list[Prompt]) -> tuple[Tensor, int]:
    """Return the best image (3, H, W) of several of one prompt, and how many are read by all.

    Where none is, it is the best of those that are not.
    """
    layouts = [layout_of(prompt, images.shape[-1]) for prompt in prompts]
    read = Scanner(["zxing"], "all").measure(images, layouts).strict
    for column in Phone(["zxing"]).plain(images, layouts).values():
        read = read if column is None else read & column

    others = [prompt.text for prompt in zoo_nouns("all")]
    value = compare_with(Clip.load(CLIP), others, contrast)(images, prompts)
    best = torch.where(read, value, value - 2).argmax()  # a contrast lies between -2 and 2
    return images[best], int(read.sum())


def main() -> None:
    """Draw, choose, and save the grid."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a run of burnish train with a ControlNet, or a model")
    parser.add_argument("--out", type=Path, default=Path("qr_gallery.png"))
    parser.add_argument("--link", default=LINK, help="what all codes say")
    parser.add_argument("--nouns", default=NOUNS, help="with commas between them")
    parser.add_argument("--tries", type=int, default=24, help="images of a noun")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    options = parser.parse_args()

    policy, sampler = open_source(options.run)
    chosen = []

    for noun in options.nouns.split(","):
        prompts = [Prompt(f"a {noun}", {"payload": options.link})] * options.tries
        best, read = choose(sample_images(policy, sampler, prompts, options.seed, noun), prompts)
        print(f"a {noun}: {read} of {options.tries} are read by all", flush=True)
        chosen.append(best)

    write(options.out, image_grid(torch.stack(chosen), COLUMNS)[0])


if __name__ == "__main__":
    main()
