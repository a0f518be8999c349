"""Pictures that are codes: drawn one batch after another, read under every condition, and kept only
if they are read.

What a user is handed has been read back, so the number of tries is part of the answer: it tells how
good the model and its control scale are at this payload.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from burnish.diffusion.policy import Policy
from burnish.diffusion.sampler import Sampler
from burnish.images import eight_bit
from burnish.qr.layout import layout_of
from burnish.qr.scanner import Scanner
from burnish.runs import Run
from burnish.seeds import generator
from burnish.tools.gallery import CHUNK, open_source
from burnish.types import Prompt


@dataclass(frozen=True)
class Found:
    """A picture that is read under every condition, and the number of the try that drew it, from 1."""

    image: Tensor  # (3, H, W) in [0, 1], on the CPU
    attempt: int


@dataclass(frozen=True)
class Search:
    """What came of it."""

    found: list[Found]  # what was asked for, at most
    tries: int
    passed: int  # tries that are read under every condition, kept or not
    read: int  # tries that some decoder reads under some condition, kept or not
    payload: str  # as the decoders read it back; "" if nothing was kept


def open_artist(
    source: str,
    controlnet: str = "",
    *,
    steps: int = 0,
    guidance: float = -1.0,
    scale: float = -1.0,
) -> tuple[Policy, Sampler]:
    """A policy with a ControlNet, and how to sample it.

    Args:
        source: a run whose model has a ControlNet, ``zoo:NAME``, a model folder or a hub id.
        controlnet: of a model: ``zoo:NAME``, a folder or a hub id; a run has its own, and the zoo's
            models have theirs.
        steps: network calls an image; 0 takes the run's, or 50, or 4 of a consistency model.
        guidance: its weight; negative takes the run's, or 5 (1.5 of an LCM-LoRA).
        scale: of the control; negative takes the run's, or 1.

    Raises:
        FileNotFoundError, ValueError: there is no such thing, or it has no ControlNet.
    """
    if source.startswith("zoo:"):
        controlnet = controlnet or "zoo:emoji-qr"

    policy, sampler = open_source(source, steps=steps, guidance=guidance, controlnet=controlnet)

    if not policy.has_controlnet:
        if Run(Path(source)).exists():
            raise ValueError(
                f"{source} is a run without a ControlNet: give one that trained with model.controlnet"
            )

        raise ValueError(
            f"{source} draws no codes by itself: give a ControlNet for it by --controlnet"
        )

    if scale >= 0:
        sampler = replace(sampler, control=replace(sampler.control, scale=scale))

    return policy, sampler


def search(
    policy: Policy,
    sampler: Sampler,
    prompt: Prompt,
    scanner: Scanner,
    *,
    count: int,
    tries: int,
    seed: int = 0,
    on_try: Callable[[int, int], None] = lambda tries, kept: None,
) -> Search:
    """Draws ``prompt`` with its payload until ``count`` pictures are read under every condition, or
    ``tries`` are over.

    ``on_try`` hears after each batch how many were drawn and kept. The n-th picture of a seed is
    the same whatever ``count`` and ``tries`` are.

    Raises:
        ValueError: the payload does not fit the model's canvas.
    """
    found: list[Found] = []
    passed = 0
    read = 0
    drawn = 0
    payload = ""

    while drawn < tries and len(found) < count:
        noise = generator(seed, "art", drawn)
        cond = sampler.encode(policy, [prompt] * CHUNK)
        trajectory = sampler.rollout(policy, cond, torch.zeros(CHUNK, dtype=torch.long), noise)
        images = policy.decode(trajectory.latent).cpu()[: tries - drawn]
        code = layout_of(prompt, images.shape[-1])
        readings = scanner.measure(images, [code] * len(images))
        passed += int(readings.strict.sum())
        read += int(readings.lenient.sum())

        for row in readings.strict.nonzero().flatten().tolist():
            if len(found) < count:
                found.append(Found(images[row], drawn + row + 1))
                payload = code.payload  # a strict reading is an exact one

        drawn += len(images)
        on_try(drawn, len(found))

    return Search(found, drawn, passed, read, payload)


def save(result: Search, folder: Path) -> list[Path]:
    """One PNG a picture, named by its try; returns the paths.

    Raises:
        FileExistsError: the folder is a file.
    """
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file; choose another --out")

    folder.mkdir(parents=True, exist_ok=True)
    paths = []

    for one in result.found:
        paths.append(folder / f"code-{one.attempt:04d}.png")
        Image.fromarray(eight_bit(one.image[None])[0]).save(paths[-1])

    return paths
